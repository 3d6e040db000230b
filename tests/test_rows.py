"""Features put in the place of tokens, number by number: whole rows are written."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

from models.builder import Net
from tests.oracle import check

WIDTH = 8


def _model(opset: int, columns: int = WIDTH, cut: bool = True) -> ModelProto:
    """masked_scatter as PyTorch's exporters write it; the features have so many columns."""
    net = Net("tokens", opset=opset)
    tokens, pictures = net.input("tokens", (2, 6), np.int64), net.input("pictures", (2, 20, 3))
    x = net.gather(net.weight(5, WIDTH), tokens)
    mask = net.node("Less", tokens, np.int64(3))
    last = {"axes": [-1]} if opset < 13 else {}
    mask = net.node("Unsqueeze", mask, *([] if last else [[-1]]), **last)
    mask = net.node("Expand", mask, [2, 6, WIDTH])
    found = net.node("NonZero", mask, shape=(3, "count"))
    places = net.node("Transpose", found, perm=[1, 0], shape=("count", 3))
    values = net.reshape(net.linear(pictures, columns), [-1])
    if cut:
        count = net.slice(net.node("Shape", places, shape=(2,)), 0, 1, axis=0)
        values = net.node("Slice", values, [0], count, [0], shape=("count",))
    y = net.node("ScatterND", x, places, values, shape=(2, 6, WIDTH))
    model = net.model(net.linear(net.relu(net.linear(y, 6)), 4))
    del model.graph.value_info[:]
    return model


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_columns_are_channels(opset: int) -> None:
    model = _model(opset)
    groups = check(model, 2)
    assert groups.graph.given is not None
    assert {group.size for group in groups} == {WIDTH, 6}


def test_rows_of_another_length_are_left_alone() -> None:
    groups = check(_model(17, columns=WIDTH // 2), 1)
    assert groups.graph.given is None
    assert any("written to" in lock.why for lock in groups.locks())
