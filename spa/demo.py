"""The demonstration: a trained digit classifier, its held-out images, before and after.

Some of the images calibrate, without their labels; accuracy is that on the others."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from spa import api, report
from spa import run as runs
from spa.errors import UsageError
from spa.outcome import compensation_lines
from spa.reader import load
from spa.writer import check_writable, save, save_text

NAMES = ("digits.pruned.onnx", "digits.plan.json", "digits.inputs.npy")
CALIBRATION = 256  # images without labels that the pruning may look at; the others measure


@dataclass(frozen=True)
class Demonstration:
    """What was done and measured; accuracy and seconds before and after."""

    result: api.Result
    images: int
    accuracy: tuple[float, float]
    latency: tuple[float, float]
    wrote: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        found = self.result.verification
        return {
            "images": self.images,
            "accuracy": self.accuracy,
            "latency_s": self.latency,
            "figures": asdict(self.result.figures),
            "verification": found.to_dict() if found else None,
            "wrote": self.wrote,
        }


def run(folder: Path, target: str, force: bool) -> Demonstration:
    """Prune the shipped model into ``folder`` and measure both.

    Raises:
        UsageError: if the files exist and ``force`` is off, or the folder cannot be written to.
    """
    outs = [folder / name for name in NAMES]
    for out in outs:
        if out.exists() and not force:
            raise UsageError(f"{out} exists; --force replaces it")
        check_writable(out)
    data = resources.files("spa") / "data"
    with resources.as_file(data / "digits.onnx") as path:
        graph = load(path)
    with resources.as_file(data / "digits.npz") as path, np.load(path) as held_out:
        images, labels = held_out["images"], held_out["labels"]
    np.save(outs[2], images[:CALIBRATION])
    images, labels = images[CALIBRATION:], labels[CALIBRATION:]
    result = api.prune(graph.model, target, data=outs[2])
    save(result.model, outs[0])
    save_text(result.plan.to_json(), outs[1])
    name = graph.inputs[0]
    with (
        runs.session(graph.model, optimize=True, threads=1) as before,
        runs.session(result.model, optimize=True, threads=1) as after,
    ):
        right = [
            next(iter(runs.run(s, {name: images}).values())).argmax(1) == labels
            for s in (before, after)
        ]
        latency = runs.latencies(before, after, {name: images[:64]}, 50)
    accuracy = float(right[0].mean()), float(right[1].mean())
    return Demonstration(result, len(images), accuracy, latency, NAMES)


def show(console: Console, found: Demonstration) -> None:
    table: Table = report.before_after(found.result.figures)
    before, after = found.latency
    table.add_row(
        "latency, 64 images",
        report.milliseconds(before),
        report.milliseconds(after),
        f"{after / before:.1%}",
    )
    one, other = found.accuracy
    table.add_row(f"accuracy, {found.images} images", f"{one:.2%}", f"{other:.2%}", "")
    console.print(
        f"a residual network trained on 8x8 digits, pruned with {CALIBRATION} images, no labels, "
        "no training"
    )
    console.print(table)
    said = [*compensation_lines(found.result, False)]
    for line in [*said, *report.verification_lines(found.result.verification)]:
        console.print(line, highlight=False)
    console.print(f"wrote {', '.join(found.wrote)}", highlight=False)
