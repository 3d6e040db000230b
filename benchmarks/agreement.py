"""How often a pruned classifier says what the original says, on inputs of yours.

    python -m benchmarks.agreement MODEL INPUTS.npy [--targets 0.9 0.8] [--samples N] [--data FILE]

For pretrained nets whose labels are not at hand. INPUTS.npy holds samples as the model reads them
and judges; nothing is fitted on it. Without --data inputs are made up. What is printed: the share
of samples with the same first class, and the mean Kullback-Leibler divergence in nats.
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
    given = parser.parse_args()
    inputs = np.load(given.inputs, allow_pickle=False).astype(np.float32)
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
        print(
            f"macs {result.figures.share('macs'):.3f}: {same:.1f} % of {len(inputs)} agree, "
            f"{apart:.3f} nats apart ({spent:.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
