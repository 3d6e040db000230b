"""How often a pruned classifier says what the original says, on inputs of yours.

    python -m benchmarks.agreement MODEL INPUTS.npy [--targets 0.9 0.8] [--samples N] [--data FILE]
        [--labels LABELS.npy]

For pretrained nets. INPUTS.npy holds samples as the model reads them and judges; nothing is fitted
on it. Without --data inputs are made up. What is printed: the share of samples with the same first
class, the mean Kullback-Leibler divergence in nats and, with labels, top-1 before and after.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

import spa
from spa import run as runs

BATCH = 20


def logits(model: Path | onnx.ModelProto, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    with runs.session(model, optimize=True) as running:
        name = running.get_inputs()[0].name
        parts = [
            running.run(None, {name: inputs[k : k + BATCH]})[0]
            for k in range(0, len(inputs), BATCH)
        ]
    found = np.concatenate(parts).astype(np.float64)
    found -= found.max(1, keepdims=True)
    return np.asarray(found - np.log(np.exp(found).sum(1, keepdims=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description="Agreement of a pruned classifier with its own.")
    parser.add_argument("model", type=Path)
    parser.add_argument("inputs", type=Path)
    parser.add_argument("--targets", type=float, nargs="*", default=[0.9, 0.8])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--data", default="noise")
    parser.add_argument("--labels", type=Path, help="a class for every sample")
    given = parser.parse_args()
    inputs = np.load(given.inputs, allow_pickle=False).astype(np.float32)
    labels = np.load(given.labels, allow_pickle=False) if given.labels else None
    dense = logits(given.model, inputs)
    for share in given.targets:
        start = time.perf_counter()
        result = spa.prune(
            given.model, {"macs": share}, data=given.data, samples=given.samples, verify=False
        )
        spent = time.perf_counter() - start
        got = logits(result.model, inputs)
        same = 100 * (got.argmax(1) == dense.argmax(1)).mean()
        apart = (np.exp(dense) * (dense - got)).sum(1).mean()
        top1 = ""
        if labels is not None:
            hits = [100 * (z.argmax(1) == labels).mean() for z in (dense, got)]
            top1 = f", top-1 {hits[0]:.1f} -> {hits[1]:.1f}"
        print(
            f"macs {result.figures.share('macs'):.3f}: {same:.1f} % of {len(inputs)} agree, "
            f"{apart:.3f} nats apart{top1} ({spent:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
