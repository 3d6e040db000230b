"""Sequences whose elements have one shape: the axes of a sequence are those of every element."""

from spa.patterns import PatternError
from spa.rules import Axes, Op, rule, whole


def _together(op: Op, inputs: list[int]) -> list[Axes]:
    """The elements of one sequence, which go together."""
    known = [k for k in inputs if k not in op.empty]
    if any(op.shapes[k] != op.out_shapes[0] for k in known):
        raise PatternError("puts tensors of different or unknown shapes into one sequence")
    made = list(op.input(known[0]))
    for k in known[1:]:
        for at, axis in enumerate(op.input(k)):
            op.tie(axis.ids, made[at].ids)
            made[at] = made[at]._replace(zero=made[at].zero and axis.zero)
    return [made]


@rule("SequenceEmpty", partial=True, text="makes no ids")
def empty(op: Op) -> list[Axes]:
    return op.whole_outputs()


@rule("SequenceConstruct", text="ties the elements")
def construct(op: Op) -> list[Axes]:
    return _together(op, list(range(len(op.axes))))


@rule("SequenceInsert", partial=True, text="ties the new element with the others")
def insert(op: Op) -> list[Axes]:
    return _together(op, [0, 1])


@rule("SequenceAt")
def at(op: Op) -> list[Axes]:
    """gives the ids of all elements to one"""
    return [list(op.input())]


@rule("ConcatFromSequence", text="stacks the elements, or locks the axis along which it joins them")
def concat_from_sequence(op: Op) -> list[Axes]:
    out, shape = list(op.input()), op.out_shape()
    axis = int(op.attr("axis")) % len(shape)
    if op.attr("new_axis", 0):
        return [[*out[:axis], whole(shape[axis]), *out[axis:]]]
    op.lock(out[axis], "joined a number of times that is not known")
    out[axis] = whole(shape[axis])
    return [out]
