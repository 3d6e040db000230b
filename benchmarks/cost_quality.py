"""What OBSPA costs on a full-width ResNet-50 with 512 inputs of 224x224: seconds by stage, memory.

    python -m benchmarks.cost_quality [--samples 512] [--data noise] [--profile OUT]
    python -m benchmarks.cost_quality --from 16 48

The bar: 15 minutes and 6 GB on two cores. With --from two smaller runs are made, and what 512
samples would take is drawn through them as a line, stage by stage; what looks at few held-out
samples grows no more once it has them. Matrices do not grow with the samples, activations do up to
--memory.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import spa
from benchmarks.quality import Clock
from models import vision
from spa.study import HELD, PROBES

SAMPLES, MINUTES, GIGABYTES = 512, 15, 6
TARGET = "macs=0.5"
FEW = ("measuring drift", "judging")  # stages on PROBES samples of the HELD share, if there are


def run(given: argparse.Namespace) -> dict[str, Any]:
    """One prune in this process."""
    data: Any = "noise"
    if given.data == "arrays":
        random = np.random.default_rng(0)
        data = random.normal(size=(given.samples, 3, 224, 224)).astype(np.float32)
    clock, peak = Clock(), Peak()
    peak.start()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.onnx"
        onnx.save(getattr(vision, given.net)(), path)
        start, busy = time.perf_counter(), time.process_time()
        profile = cProfile.Profile()
        if given.profile:
            profile.enable()
        result = spa.prune(
            path, TARGET, data=data, samples=given.samples, memory=given.memory, progress=clock
        )
        clock("")
        profile.disable()
    if given.profile:
        profile.dump_stats(given.profile)
    return {
        "samples": given.samples,
        "total": round(time.perf_counter() - start, 1),
        "cpu": round(time.process_time() - busy, 1),
        "seconds": clock.seconds,
        "gigabytes": round(peak.bytes / 1e9, 2),
        "macs": round(result.figures.share("macs"), 3),
    }


class Peak(threading.Thread):
    """The most memory of its own that this process held. Pages of the temporary files that
    activations go to, which the system takes back when it needs them, are not counted."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.bytes = 0

    def run(self) -> None:
        while True:
            lines = Path("/proc/self/status").read_text().splitlines()
            held = next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))
            self.bytes = max(self.bytes, held * 1024)
            time.sleep(0.1)


def apart(samples: int, given: argparse.Namespace) -> dict[str, Any]:
    """One prune in a process of its own, so that its peak of memory is its own."""
    command = [sys.executable, "-m", "benchmarks.cost_quality", "--json"]
    command += ["--samples", str(samples), "--data", given.data, "--net", given.net]
    command += ["--memory", given.memory]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout)
    show(found)
    return found


def line_through(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """What SAMPLES would take. Memory is not drawn: it has a bound."""

    def at(one: float, other: float, samples: float = SAMPLES) -> float:
        slope = (other - one) / (b["samples"] - a["samples"])
        return round(max(other + slope * (samples - b["samples"]), other), 1)

    stages = {
        s: at(t, b["seconds"].get(s, t), PROBES / HELD if s in FEW else SAMPLES)
        for s, t in a["seconds"].items()
    }
    found = {"samples": SAMPLES, "total": round(sum(stages.values()), 1), "seconds": stages}
    return {**found, "cpu": None, "gigabytes": None, "macs": b["macs"]}


def show(found: dict[str, Any]) -> None:
    memory = f", {found['gigabytes']} GB" if found["gigabytes"] else ""
    spent = f"{found['total']} s" + (f", {found['cpu']} s of CPU" if found["cpu"] else "")
    print(f"{found['samples']} samples: {spent}{memory}, macs {found['macs']}")
    for stage, seconds in found["seconds"].items():
        print(f"  {stage:24s} {seconds:8.1f} s")


def verdict(found: dict[str, Any]) -> str:
    slow = found["total"] > MINUTES * 60
    large = (found["gigabytes"] or 0) > GIGABYTES
    said = f"bar: {MINUTES} minutes and {GIGABYTES} GB: "
    return said + ("missed" if slow or large else "met")


def main() -> None:
    parser = argparse.ArgumentParser(description="Seconds and memory of OBSPA on a ResNet-50.")
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--from", dest="two", type=int, nargs=2, metavar="N")
    parser.add_argument("--data", choices=("noise", "arrays"), default="noise")
    parser.add_argument("--net", default="resnet50", help="of models.vision")
    parser.add_argument("--memory", default="2GiB", help="what samples may take")
    parser.add_argument("--profile", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.two:
        found = line_through(*(apart(n, given) for n in given.two))
        print("drawn through these:")
    else:
        found = run(given)
    if given.json:
        print(json.dumps(found))
        return
    show(found)
    if found["samples"] == SAMPLES:
        print(verdict(found))


if __name__ == "__main__":
    main()
