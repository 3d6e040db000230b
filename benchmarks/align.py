"""What it buys that every group and every head may lose other channels: python -m benchmarks.align.

For nets with grouped convolutions, group norms and heads: the share of all scores that is kept when
half of the units go, as they are and with lines in order (`spa.align`); and the drift of the
outputs from the original's at equal size, with and without compensation.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

import spa
from models.sequence import bert_like, vit
from models.vision import MAKERS
from spa import align
from spa.groups import Groups

TRAINED = Path(__file__).parent.parent / "models" / "trained"
SHARE, SAMPLES = 0.5, 64
PLAIN = {"compensate": "none", "repair": "none"}


def nets() -> dict[str, ModelProto]:
    small: dict[str, Any] = {"layers": 2, "hidden": 64, "heads": 4, "inner": 128, "batch": "batch"}
    image: dict[str, Any] = {"image": 32, "batch": "batch"}
    return {
        "resnext50": MAKERS["resnext50"](width=0.25, classes=10, **image),
        "unet_groupnorm": MAKERS["unet_groupnorm"](**image),
        "bert": bert_like(**small),
        "vit": vit(**small),
        "vit, trained": onnx.load(TRAINED / "vit.onnx"),
    }


def kept(groups: Groups) -> tuple[int, float, float]:
    """How many groups have lines, and the mean share of the scores that they keep: as they are, and
    with lines in order."""
    shares = []
    for lines in align.find(groups):
        cells = align.scores(groups, lines, {})
        gone = round(SHARE * lines.units)
        whole, each = np.sort(cells.sum(1)), np.sort(cells, axis=0)
        shares.append((whole[gone:].sum() / whole.sum(), each[gone:].sum() / whole.sum()))
    before, after = np.mean(shares, axis=0).tolist()
    return len(shares), before, after


def drift(model: ModelProto, aligned: bool, **options: Any) -> float:
    """Relative L2 distance of the outputs, the largest of all."""
    found = spa.prune(
        model,
        f"channels={SHARE}",
        kinds=("conv", "head-dim"),
        align=aligned,
        samples=SAMPLES,
        **options,
    )
    assert found.verification is not None
    return max(found.verification.drift.values())


def main() -> None:
    print(f"{'net':16}{'groups':>8}{'kept':>9}{'aligned':>9}", end="")
    print(f"{'l1':>9}{'aligned':>9}{'obspa':>9}{'aligned':>9}   (drift, the last two with refit)")
    for name, model in nets().items():
        count, before, after = kept(spa.analyze(model))
        print(f"{name:16}{count:8}{before:9.1%}{after:9.1%}", end="", flush=True)
        for options in ({"criterion": "l1", **PLAIN}, {}):
            for aligned in (False, True):
                print(f"{drift(model, aligned, **options):9.3f}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
