"""The demonstration: a trained digit classifier, its held-out images, before and after."""

from __future__ import annotations

from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from spa import api, report
from spa import run as runs
from spa.errors import UsageError
from spa.reader import load
from spa.writer import check_writable, save, save_text

NAMES = ("digits.pruned.onnx", "digits.plan.json")


def run(folder: Path, target: str, force: bool) -> dict[str, Any]:
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
    result = api.prune(graph.model, target)
    save(result.model, outs[0])
    save_text(result.plan.to_json(), outs[1])
    name = graph.inputs[0]
    with (
        runs.session(graph.model, optimize=True, threads=1) as before,
        runs.session(result.model, optimize=True, threads=1) as after,
    ):
        accuracy = [
            float((next(iter(runs.run(s, {name: images}).values())).argmax(1) == labels).mean())
            for s in (before, after)
        ]
        latency = runs.latencies(before, after, {name: images[:64]}, 50)
    return {
        "images": len(images),
        "accuracy": accuracy,
        "latency_s": list(latency),
        "figures": asdict(result.figures),
        "verification": result.verification.to_dict() if result.verification else None,
        "wrote": [str(out.relative_to(folder)) for out in outs],
        "result": result,
    }


def show(console: Console, figures: dict[str, Any]) -> None:
    result: api.Result = figures["result"]
    table: Table = report.before_after(result.figures)
    before, after = figures["latency_s"]
    table.add_row(
        "latency, 64 images",
        report.milliseconds(before),
        report.milliseconds(after),
        f"{after / before:.1%}",
    )
    one, other = figures["accuracy"]
    table.add_row(f"accuracy, {figures['images']} images", f"{one:.2%}", f"{other:.2%}", "")
    console.print("a residual network trained on 8x8 digits, pruned with no data and no training")
    console.print(table)
    for line in report.verification_lines(result.verification):
        console.print(line, highlight=False)
    console.print(f"wrote {' and '.join(figures['wrote'])}", highlight=False)
