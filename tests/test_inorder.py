"""Gathers that read everything in order move nothing, as torch.export writes as_strided."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from models.builder import Net, Tensor
from spa import load
from spa.inorder import in_order
from spa.shapes import infer
from tests.oracle import check

C = 300  # so that there are too many places to be worked out as a size is


def _count(net: Net, end: Any, by: int, *axes: int) -> Tensor:
    steps = net.node("Range", np.int64(0), end, np.int64(1), shape=["n"], dtype=np.int64)
    return net.unsqueeze(net.mul(steps, np.int64(by)), *axes)


def _model(batch: Any = "batch", across: int = 1, last: int = 1) -> ModelProto:
    """Channel means, flattened and picked by place.

    across: how far apart two channels are read. last: the size of an axis put behind.
    """
    net = Net("strided")
    a = net.relu(net.conv(net.input("x", (batch, 3, 4, 4)), C, 1))
    mean = net.global_avg_pool(a)
    rows = _count(net, net.dim(mean, 0), C, 1, 2, 3)
    places = net.add(rows, _count(net, np.int64(C // across), across, 1, 2))
    if last > 1:
        places = net.add(places, _count(net, np.int64(last), 0, 0))
    shape = [batch, C // across, 1, last]
    picked = net.node("Gather", net.reshape(mean, [-1]), places, shape=shape)
    return net.model(net.gemm(net.reshape(picked, [0, C // across * last]), 5))


@pytest.mark.parametrize("batch", [2, "batch"])
def test_a_strided_view_of_what_lies_in_order(batch: Any) -> None:
    model = _model(batch)
    graph = load(model)
    (source,) = in_order(graph, infer(graph)).values()
    assert source == "GlobalAveragePool_0.out"
    groups = check(model, 1)
    assert groups[0].size == C
    left = {node.op_type for node in groups.graph.nodes}
    assert "Identity" in left and not left & {"Gather", "Range"}


@pytest.mark.parametrize("options", [{"across": 2}, {"last": 2}])
def test_other_views_stay(options: dict[str, int]) -> None:
    graph = load(_model(2, **options))
    assert not in_order(graph, infer(graph))


def test_places_that_inputs_decide_stay() -> None:
    net = Net("picked")
    a = net.reshape(net.conv(net.input("x", (2, 3, 4, 4)), 8), [-1])
    places = net.input("places", (2, 8, 4, 4), np.int64)
    graph = load(net.model(net.node("Gather", a, places)))
    assert not in_order(graph, infer(graph))
