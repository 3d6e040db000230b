"""Choices and options that commands share; nothing heavy, so that --help answers at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

MODEL = click.Path(path_type=Path)
CHOICES: dict[str, tuple[str, ...]] = {
    "criterion": (
        "obspa",
        *("l1", "l2", "random", "lamp", "bn-scale", "geometric-median", "similarity", "dfpc"),
        *("wanda", "flap", "apoz", "entropy", "cfsp", "obs-diagonal", "perturbation"),
    ),
    "aggregate": ("sum", "mean", "max", "prod", "l2"),
    "normalize": ("none", "sum", "mean", "max", "standard"),
    "scope": ("curves", "global", "floor", "erk", "local"),
    "compensate": ("bias", "refit", "sweep", "merge", "reconstruct", "fold", "none"),
    "repair": ("statistics", "none"),
}
INPUTS = (
    click.option(
        "--data",
        default="noise",
        show_default=True,
        metavar="SOURCE",
        help="Inputs of the model: a .npz, a .npy, a folder of images, or noise.",
    ),
    click.option(
        "--samples",
        default=512,
        show_default=True,
        type=click.IntRange(1),
        help="How many of them at most.",
    ),
    click.option(
        "--preprocess",
        metavar="KEY=VALUE,...",
        help="How images become arrays, such as size=224,mean=0.5,std=0.5.",
    ),
    click.option(
        "--memory", default="4GiB", show_default=True, metavar="SIZE", help="What samples may take."
    ),
)
IO_CHANGE = (
    "Let states that are inputs and outputs of the file, such as caches of keys and values, become "
    "smaller."
)
KINDS = "heads,head-dim,hidden,embedding,recurrent,conv,linear (or ffn),other,depth"


def seed(what: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The option --seed. what: what is drawn with it."""
    return click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help=what)


def calibration_inputs(command: Callable[..., None]) -> Callable[..., None]:
    for option in reversed(INPUTS):
        command = option(command)
    return command


def split(text: str) -> tuple[str, ...]:
    """What commas separate."""
    return tuple(part.strip() for part in text.split(",") if part.strip())
