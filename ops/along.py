"""Operators whose results depend on positions along some axes: these stay whole, others pass."""

import numpy as np

from spa.rules import MICROSOFT, Axes, Op, rule, whole


def _held(op: Op) -> list[int]:
    """The axes along which positions count."""
    rank, kind = len(op.shape()), op.node.op_type
    if kind == "ReverseSequence":
        held = [op.attr("batch_axis", 1), op.attr("time_axis", 0)]
    elif kind == "CenterCropPad":
        held = list(op.attr("axes", range(rank)))
    elif kind == "DFT":  # of real and imaginary parts, which are the last axis
        held = [int(op.value(2)) if op.has(2) else op.attr("axis", -2 if op.opset > 19 else 1), -1]
    else:
        held = [int(np.ravel(op.value(1))[0])]
    return [int(k) % rank for k in held]


@rule(
    "CumSum CumProd ReverseSequence CenterCropPad DFT",
    text="locks the axes it runs along; the others pass",
)
def along(op: Op) -> list[Axes]:
    out = list(op.input())
    for k in range(1, len(op.axes)):
        op.lock_input(k, "lists positions")
    for k in _held(op):
        op.lock(out[k], "the result depends on positions along this axis")
        out[k] = whole(op.out_shape()[k])
    return [out]


@rule("TensorScatter", text="locks axis and the batch; the other axes couple cache and update")
def tensor_scatter(op: Op) -> list[Axes]:
    out: Axes = []
    op.lock_input(2, "lists positions")
    for k, (cache, new) in enumerate(zip(op.input(0), op.input(1), strict=True)):
        if k in (0, op.axis(-2)):
            op.lock(cache, "written to at positions")
            op.lock(new, "written to at positions")
            out.append(whole(len(cache.ids)))
        else:
            out.append(op.meet(cache, new))
    return [out]


@rule("UnfoldTensor", domain=MICROSOFT, text="locks dim and adds an axis of windows")
def unfold(op: Op) -> list[Axes]:
    at, out = int(op.attr("dim", -1)) % len(op.shape()), list(op.input())
    op.lock(out[at], "unfolded into windows")
    out[at] = whole(op.out_shape()[at])
    return [[*out, whole(op.out_shape()[-1])]]
