"""Prune the nine `light_*` nets of the onnx wheel and the nets of `models.vision` to macs=0.5.

    python -m benchmarks.pruned [light|vision]

Prints groups, operators without a rule, what was kept, the law, and seconds. The vision nets are
made at full width; the light ones get seeded random weights.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

from onnx import ModelProto

import spa
from models import light, vision

MAKERS: dict[str, dict[str, Callable[[], ModelProto]]] = {
    "light": {name: partial(light.light, name) for name in light.NAMES},
    "vision": dict(vision.MAKERS),
}


def row(name: str, model: ModelProto) -> str:
    start = time.perf_counter()
    try:
        result = spa.prune(model, "macs=0.5")
    except spa.SpaError as error:
        return f"{name:16s} {error}"
    checked = result.verification
    law = "not checked" if checked is None or checked.law is None else f"{checked.law:.1e}"
    return (
        f"{name:16s} {len(result.groups):4d} groups, unknown {sorted(result.groups.unknown)}, "
        f"macs {result.figures.share('macs'):.3f}, params {result.figures.share('params'):.3f}, "
        f"law {law}, {time.perf_counter() - start:.1f} s"
    )


def main(families: list[str]) -> None:
    for family in families or list(MAKERS):
        for name, make in MAKERS[family].items():
            print(row(name, make()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
