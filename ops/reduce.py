"""Reductions, and operators whose result is an index into an axis."""

import numpy as np

from spa.rules import MICROSOFT, Axes, Op, Quantised, Resized, Sized, follow, rule, whole

_SUMS = {"ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceLogSum"}


def _reduced(op: Op) -> set[int]:
    rank = len(op.shape())
    axes = op.value(1, "axes")
    if axes is None or len(axes) == 0:
        return set() if op.attr("noop_with_empty_axes", 0) else set(range(rank))
    return {int(k) % rank for k in np.atleast_1d(axes)}


@rule(
    "ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare"
    " ReduceLogSum ReduceLogSumExp",
    text="drops the axes; inexact where they are live, but for sums of zeros",
)
def reduce(op: Op) -> list[Axes]:
    op.lock_input(1, "lists axes")
    return _without(op, _reduced(op))


@rule(
    "QLinearReduceMean",
    text="drops the axes; inexact where they are live",
    quantised={0: Quantised((1,), 2)},
    domain=MICROSOFT,
)
def qlinear_reduce(op: Op) -> list[Axes]:
    rank = len(op.shape())
    return _without(op, {int(k) % rank for k in op.attr("axes", range(rank))})


def _without(op: Op, gone: set[int]) -> list[Axes]:
    out = []
    last = len(op.shape()) - 1
    for k, axis in enumerate(op.input()):
        if k not in gone:
            out.append(axis._replace(zero=axis.zero and "Log" not in op.node.op_type))
            continue
        if not (op.node.op_type in _SUMS and axis.zero):
            op.inexact(axis)
        if op.node.op_type.endswith("ReduceMean") and k == last:
            op.kind(axis, "hidden")  # the mean of a layer normalisation written out
        if op.attr("keepdims", 1):
            out.append(whole(1))
    return [out]


@rule("ArgMax ArgMin", text="the result holds positions on axis; inexact")
def arg(op: Op) -> list[Axes]:
    at = op.axis(0)
    op.points(op.input()[at])
    op.inexact(op.input()[at])
    rest = [axis._replace(zero=False) for axis in op.input()]
    return [rest[:at] + [whole(1)] * op.attr("keepdims", 1) + rest[at + 1 :]]


@rule("TopK", text="the second result holds positions on axis, of which k stay; inexact")
def top_k(op: Op) -> list[Axes]:
    at = op.axis(-1)
    op.points(op.input()[at], 1)
    op.inexact(op.input()[at])
    if op.has(1) and op.fixed(1) is None:
        op.lock(op.input()[at], "how many are picked depends on sizes")
    op.keep(op.input()[at], op.out_shape()[at])
    op.lock_input(1, "counts an axis")
    out = [axis._replace(zero=False) for axis in op.input()]
    out[at] = whole(op.out_shape()[at])
    return [out, list(out)]


def _resize_one_hot(node: Sized) -> Resized:
    old, shape = node.op.fixed(1), node.new_out[0]
    assert shape is not None
    if old is None:
        return Resized()
    depth = shape[int(node.op.attr("axis", -1)) % len(shape)]
    return Resized(inputs={1: np.full_like(old, depth)})


@rule(
    "OneHot", resize=_resize_one_hot, text="makes a whole axis, or that of the positions it reads"
)
def one_hot(op: Op) -> list[Axes]:
    op.lock_input(1, "counts classes")
    op.lock_input(2, "holds the two values")
    out = [axis._replace(zero=False) for axis in op.input()]
    at = int(op.attr("axis", -1)) % (len(out) + 1)
    made, depth = whole(op.out_shape()[at]), op.fixed(1)
    if depth is not None:
        fresh = op.fresh(op.out_shape()[at], zero=False)
        made = fresh if op.indexes(0, fresh) else made
    return [[*out[:at], made, *out[at:]]]


@rule("Trilu", text="keeps the last two axes whole")
@rule("Trilu", domain=MICROSOFT, text="keeps the last two axes whole")
def trilu(op: Op) -> list[Axes]:
    return follow(op, "... m n, * -> ... m n", zero="0")
