"""Time `spa prune --criterion l1 --no-verify` of a 100 MB file against reading and writing it.

    python -m benchmarks.speed

Prints the seconds of `onnx.load` + `onnx.save`, of the same stages inside spa, their ratio, the
analysis time of a deeper and deeper net, and the CPU seconds of `spa --help`.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import spa
from models import sequence, vision
from spa import api
from spa.writer import save

# What is timed is the cut by itself.
PLAIN: dict[str, Any] = {
    "criterion": "l1",
    "compensate": "none",
    "repair": "none",
    "verify": False,
}


def seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """The median of several runs, after one that is not counted."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


def prune_against_copy(folder: Path) -> None:
    source, copy, out = folder / "resnet50.onnx", folder / "copy.onnx", folder / "out.onnx"
    onnx.save(vision.resnet50(), source)
    spa.prune(
        source, "macs=0.7", criterion="l1", compensate="none", repair="none", verify=False
    )  # imports

    def prune() -> None:
        result = api.prune(
            source, "macs=0.7", criterion="l1", compensate="none", repair="none", verify=False
        )
        save(result.model, out, data=result.data)  # as the command line does

    plain = seconds(lambda: onnx.save(onnx.load(source), copy))
    ours = seconds(prune)
    print(f"resnet50, {source.stat().st_size / 1e6:.0f} MB")
    print(f"  onnx.load + onnx.save          {plain:.2f} s")
    print(f"  spa prune, l1, no verification {ours:.2f} s   {ours / plain:.2f}x")


def analysis_by_depth() -> None:
    print("analysis, a Llama-like stack")
    for layers in (8, 16, 32):
        model = sequence.llama_like(layers=layers)
        print(f"  {layers:3d} layers  {seconds(lambda m=model: spa.analyze(m), 3):.2f} s")


def help_text() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", "spa", "--help"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"spa --help: {cpu:.2f} s of CPU")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        prune_against_copy(Path(name))
    analysis_by_depth()
    help_text()
