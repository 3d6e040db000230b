"""Lists of tensors whose elements are in plain sight are no lists."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto

from models.builder import Net, Tensor
from tests.ops.test_sequence import sequence
from tests.oracle import check


def _dense(opset: int) -> ModelProto:
    """A DenseNet's features, joined from a list that every layer adds to."""
    net = Net("dense", opset=opset)
    x = net.conv(net.input("x", (2, 3, 6, 6)), 8)
    found, count = sequence(net, "SequenceConstruct", x), 8
    for _ in range(3):
        joined = net.node("ConcatFromSequence", found, shape=(2, count, 6, 6), axis=1)
        new, count = net.relu(net.conv(joined, 4)), count + 4
        found = sequence(net, "SequenceInsert", found, new)
    joined = net.node("ConcatFromSequence", found, shape=(2, count, 6, 6), axis=1)
    return net.model(net.conv(joined, 5, 1))


@pytest.mark.parametrize("opset", [11, 17])
def test_features_of_layers_are_channels_of_their_own(opset: int) -> None:
    groups = check(_dense(opset), 4)
    assert not any("Sequence" in node.op_type for node in groups.graph.nodes)


def _at(net: Net, made: Tensor, at: int, shape: list[int]) -> Tensor:
    return net.node("SequenceAt", made, np.int64(at), shape=shape)


def _put_and_taken(net: Net, a: Tensor) -> Tensor:
    """Of three tensors of different shapes the first and the last, which stood elsewhere."""
    made = sequence(net, "SequenceInsert", sequence(net, "SequenceEmpty"), net.conv(a, 5))
    made = sequence(net, "SequenceInsert", made, net.relu(a), np.int64(0))
    made = sequence(net, "SequenceInsert", made, net.conv(a, 8), np.int64(-1))
    made = sequence(net, "SequenceErase", made, np.int64(2))
    return net.add(_at(net, made, 0, a.shape), _at(net, made, -1, a.shape))


def _stacked(net: Net, a: Tensor) -> Tensor:
    made = sequence(net, "SequenceConstruct", a, net.conv(net.relu(a), 8))
    stacked = net.node("ConcatFromSequence", made, shape=(2, 8, 2, 6, 6), axis=2, new_axis=1)
    return net.node("ReduceMax", stacked, axes=[2], keepdims=0)


def _unbound(net: Net, a: Tensor) -> Tensor:
    made = sequence(net, "SplitToSequence", a, axis=3, keepdims=0)
    first, last = (_at(net, made, k, [2, 8, 6]) for k in (0, -1))
    return net.unsqueeze(net.add(first, net.relu(last)), 3)


def _turned(net: Net, a: Tensor) -> Tensor:
    made = sequence(net, "SplitToSequence", a, axis=2, keepdims=0)
    back = net.node("ConcatFromSequence", made, shape=(6, 2, 8, 6), axis=0, new_axis=1)
    return net.transpose(net.relu(back), 1, 2, 0, 3)


@pytest.mark.parametrize(
    ("body", "groups", "opset"),
    [
        (_put_and_taken, 1, 17),
        (_stacked, 1, 17),
        (_stacked, 1, 11),
        (_unbound, 1, 17),
        (_turned, 1, 17),
    ],
)
def test_what_is_taken_out_is_what_was_put_in(
    body: Callable[[Net, Tensor], Tensor], groups: int, opset: int
) -> None:
    net = Net("list", opset=opset)
    y = body(net, net.conv(net.input("x", (2, 3, 6, 6)), 8))
    found = check(net.model(net.conv(y, 5, 1)), groups)
    assert not any("Sequence" in node.op_type for node in found.graph.nodes)
    assert all(group.exact for group in found)
