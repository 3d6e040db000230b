"""Sequences: elements of one shape go together, others lock."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto

from models.builder import Net, Tensor
from tests.ops.cases import TOKENS, Body, Case, case

HIDDEN = 6


def sequence(net: Net, op: str, *inputs: Any, like: Tensor | None = None, **attrs: Any) -> Tensor:
    """A node that makes a sequence."""
    shape = None if like is None else like.shape
    made: Tensor = net.node(op, *inputs, shape=shape or [], **attrs)
    made.type, made.shape = "sequence_type", shape
    return made


def _list(net: Net, *elements: Tensor) -> Tensor:
    """A list of which it is not in plain sight what stands where, see `spa.lists`."""
    first, *others = elements
    op = "SequenceConstruct" if others else "SequenceEmpty"
    made = sequence(net, op, *others, like=first if others else None)
    return sequence(net, "SequenceInsert", made, first, _nought(net), like=first)


def _nought(net: Net) -> Tensor:
    """Zero, but nothing says so."""
    given = net.input(f"nought_{len(net.main.inputs)}", [])
    return net.cast(net.mul(given, 0.0), TensorProto.INT64)


def _joined(
    net: Net, made: Tensor, shape: list[Any], axis: int, new_axis: int | None = None
) -> Tensor:
    return net.node("ConcatFromSequence", made, shape=shape, axis=axis, new_axis=new_axis)


def _pair(net: Net, a: Tensor) -> Tensor:
    """Three maps side by side, the channels apart."""
    made = _list(net, a, net.conv(net.relu(a), 8, 1), net.relu(a))
    return _joined(net, made, [2, 8, 18, 6], axis=2)


def _channels(net: Net, a: Tensor) -> Tensor:
    """Joined along the channels: how many there are is not known to the rule."""
    return _joined(net, _list(net, a, net.relu(a)), [2, 16, 6, 6], axis=1)


def _stacked(net: Net, a: Tensor) -> Tensor:
    made = _joined(net, _list(net, a, net.relu(a)), [2, 2, 8, 6, 6], axis=-4, new_axis=1)
    return net.node("ReduceSum", made, [1], keepdims=0)


def _summed(*acts: str) -> Body:
    """Each element behind an activation of its own, and a sum that sees what a channel leaves."""

    def body(net: Net, a: Tensor) -> Tensor:
        made = _list(net, *(net.node(act, a) for act in acts))
        stacked = _joined(net, made, [len(acts), *a.shape], axis=0, new_axis=1)
        return net.node("ReduceSum", stacked, [0, 3], keepdims=0)

    return body


def _appended(net: Net, a: Tensor) -> Tensor:
    made = sequence(net, "SequenceEmpty")
    for y in (a, net.conv(a, 8, 1)):
        made = sequence(net, "SequenceInsert", made, y, like=y)
    made = sequence(net, "SequenceInsert", made, net.relu(a), _nought(net), like=a)
    return net.node("SequenceAt", made, np.int64(1), shape=a.shape)


def _unlike(net: Net, a: Tensor) -> Tensor:
    """Elements of two shapes: the channels of both are whole."""
    made = _list(net, a, net.conv(a, 5, 1))
    made.shape = None
    return net.node("SequenceAt", made, np.int64(0), shape=a.shape)


def _unlike_in_place(net: Net, a: Tensor) -> Tensor:
    made = sequence(net, "SequenceInsert", _list(net, a), net.conv(a, 5, 1))
    return net.node("SequenceAt", made, np.int64(0), shape=a.shape)


def _of_two_ranks(net: Net, a: Tensor) -> Tensor:
    mean = net.node("ReduceMean", a, axes=[2, 3], keepdims=0)
    made = sequence(net, "SequenceInsert", _list(net, a), mean)
    return net.node("SequenceAt", made, np.int64(0), shape=a.shape)


def _cell(net: Net, x: Tensor, h: Tensor) -> Tensor:
    def linear(v: Tensor) -> Tensor:
        return net.matmul(v, net.weight(v.shape[-1], HIDDEN, gain=1.0))

    return net.node("Tanh", net.add(linear(x), linear(h)))


def _rounds(net: Net, a: Tensor, lists: int, swap: bool = False, act: str = "") -> list[Tensor]:
    """A cell over the tokens of a that appends its state, and another layer of it, to lists."""
    names = ("state", *(f"list_{k}" for k in range(lists)))
    inside = [gs.Variable(name, np.dtype(np.float32), None) for name in names]
    inside[0].shape = [2, HIDDEN]
    for one in inside[1:]:
        one.type = "sequence_type"
    i = gs.Variable("i", np.dtype(np.int64), [])
    on = gs.Variable("on", np.dtype(np.bool_), [])
    with net.body(i, on, *inside) as body:
        h = _cell(net, net.gather(a, i, axis=1), inside[0])
        others = [net.node("Neg", net.matmul(h, net.weight(HIDDEN, HIDDEN))) for _ in inside[2:]]
        grown = [
            sequence(net, "SequenceInsert", one, net.node(act, y) if act else y, like=y)
            for one, y in zip(inside[1:], [h, *others], strict=True)
        ]
        body.outputs = [net.node("Identity", on), h, *(reversed(grown) if swap else grown)]
    start = net.const(np.zeros((2, HIDDEN), np.float32))
    empty = [sequence(net, "SequenceEmpty") for _ in range(lists)]
    shape = [2, HIDDEN]
    _, *made = net.nodes(
        "Loop", [np.int64(5), np.array(True), start, *empty], 1 + lists,
        shapes=[shape] * (1 + lists), body=body,
    )  # fmt: skip
    for one in made:
        one.type = "sequence_type"
    return [_joined(net, one, [2, 5, HIDDEN], axis=1, new_axis=1) for one in made]


def _looped(lists: int, **options: Any) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        return net.concat(*_rounds(net, a, lists, **options), axis=2)

    return body


SEQUENCE = [
    case("Sequence-joined", 1, _pair, exact=True),
    case("Sequence-joined-channels", 0, _channels),
    case("Sequence-stacked", 1, _stacked, exact=True),
    case("Sequence-appended", 1, _appended, exact=True),
    case("Sequence-unlike", 0, _unlike, refused=True),
    case("Sequence-unlike-in-place", 0, _unlike_in_place, refused=True),
    case("Sequence-of-two-ranks", 0, _of_two_ranks, refused=True),
    case("Sequence-summed", 1, _summed("Relu", "Tanh"), shape=TOKENS, exact=True),
    case("Sequence-of-what-speaks", 1, _summed("Relu", "Sigmoid"), shape=TOKENS, exact=False),
    case("Sequence-of-what-speaks-first", 1, _summed("Sigmoid", "Relu"), shape=TOKENS, exact=False),
    case("Sequence-of-rounds", 2, _looped(1), shape=TOKENS, exact=True),
    case("Sequence-of-rounds-speaking", 2, _looped(1, act="Sigmoid"), shape=TOKENS, exact=True),
    case("Sequence-two-lists", 3, _looped(2), shape=TOKENS, exact=True),
    # Every list holds elements of both kinds.
    case("Sequence-lists-change-places", 2, _looped(2, swap=True), shape=TOKENS, exact=True),
]  # fmt: skip


@pytest.mark.parametrize("row", SEQUENCE)
def test_sequence(row: Case) -> None:
    row.check()
