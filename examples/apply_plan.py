"""Apply a plan to your own weights, such as a state dict: python -m examples.apply_plan.

Names of tensors never change, so a plan made on the .onnx says how to cut the framework's own
parameters: take the kept indices of every axis that it lists, and leave out what goes with whole
branches or experts.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

import spa

DEMO = Path(spa.__file__).parent / "data" / "digits.onnx"


def cut(weights: dict[str, np.ndarray], plan: spa.Plan) -> dict[str, np.ndarray]:
    """The weights that stay."""
    gone = {name for names in (plan.gone, *plan.blocks.values()) for name in names}
    smaller = {name: value for name, value in weights.items() if name not in gone}
    for name, order in plan.orders:
        if name in smaller:
            smaller[name] = order.put(smaller[name])
    for name in plan.kept.keys() & smaller.keys():
        for axis, kept in plan.kept[name].items():
            smaller[name] = smaller[name].take(kept, axis=axis)
    return smaller


def stored(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}


def main() -> None:
    original = onnx.load(DEMO)
    # A plain cut: what spa makes up for by default is in the pruned file, not in the plan.
    result = spa.prune(original, "params=0.6", criterion="l1", compensate="none", repair="none")
    ours = cut(stored(original), result.plan)
    theirs = stored(result.model)
    for name in result.plan.kept:
        print(f"{name}: {list(result.plan.shapes[name])} -> {list(ours[name].shape)}")
        assert np.array_equal(ours[name], theirs[name])
    print("every tensor of the plan is the one in the pruned model")


if __name__ == "__main__":
    main()
