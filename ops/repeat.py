"""Operators that repeat values, or make a constant, to a wanted shape."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.rules import Axes, Op, Resized, Sized, is_whole, rule, whole


def _wanted_shape(node: Sized, position: int) -> NDArray[Any]:
    """The stored shape, aligned to the end of the output's, with every live size brought up to
    date; sizes of 1 stay."""
    old, new = np.array(node.op.values[position]), node.new_out[0]
    assert new is not None
    for i in range(1, len(old) + 1):
        if old[-i] != 1:
            old[-i] = new[-i]
    return old


@rule("Expand", resize=lambda node: Resized(inputs={1: _wanted_shape(node, 1)}))
def expand(op: Op) -> list[Axes]:
    op.lock_input(1, "lists sizes")
    shape = op.out_shape()
    axes = [whole(1)] * (len(shape) - len(op.input())) + op.input()
    grows = op.values[1] is not None
    value = op.fixed(0)
    silent = value is not None and not value.any()  # zeros, such as a first state
    return [
        [
            axis if len(axis.ids) == n else op.fresh(n, zero=silent) if grows else whole(n)
            for axis, n in zip(axes, shape, strict=True)
        ]
    ]


def _wanted_repeats(node: Sized) -> Resized:
    """What repeats an axis of size 1 is the size that is wanted."""
    repeats, new = np.array(node.op.values[1]), node.new_out[0]
    assert new is not None
    for k, size in enumerate(node.op.shape()):
        if size == 1 and repeats[k] != 1:
            repeats[k] = new[k]
    return Resized(inputs={1: repeats})


@rule("Tile", resize=_wanted_repeats)
def tile(op: Op) -> list[Axes]:
    op.need(1)
    op.lock_input(1, "lists sizes")
    return [
        [
            axis
            if len(axis.ids) == n
            else op.fresh(n, zero=False)
            if len(axis.ids) == 1 and op.values[1] is not None
            else whole(n)
            if is_whole(axis)
            else axis._replace(ids=np.tile(axis.ids, n // len(axis.ids)))
            for axis, n in zip(op.input(), op.out_shape(), strict=True)
        ]
    ]


@rule("ConstantOfShape", resize=lambda node: Resized(inputs={0: _wanted_shape(node, 0)}))
def constant_of_shape(op: Op) -> list[Axes]:
    op.lock_input(0, "lists sizes")
    value = op.tensor("value")
    silent = value is None or not value.any()
    return [[op.fresh(n, zero=silent) for n in op.out_shape()]]


@rule("Shape Size", text="reads sizes only")
def shape_of(op: Op) -> list[Axes]:
    return op.whole_outputs()


@rule("Constant", text="a value of its own")
def constant(op: Op) -> list[Axes]:
    return op.whole_outputs()
