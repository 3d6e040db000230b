"""Weights that a file computes from stored ones: stored themselves where statistics are taken."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import spa
from models.builder import Net, Tensor
from tests.conftest import PLAIN
from tests.oracle import check

Make = Callable[[Net, Tensor], Tensor]


def _norm(net: Net, v: Tensor) -> Tensor:
    length = net.node("ReduceL2", v, axes=[1, 2, 3], keepdims=1)
    return net.mul(v, net.div(net.uniform(1, 2, v.shape[0], 1, 1, 1, name="weight_g"), length))


def _batch_norm(net: Net, v: Tensor) -> Tensor:
    """As torch.export writes weight standardisation: every filter is a channel."""
    n = v.shape[0]
    flat = net.reshape(v, [1, n, -1])
    mean, var = (net.node(op, flat, axes=[0, 2], keepdims=0) for op in ("ReduceMean", "ReduceL2"))
    ones = net.uniform(1, 2, n, name="gain")
    y = net.node("BatchNormalization", flat, ones, net.const(np.zeros(n, np.float32)), mean, var)
    return net.reshape(y, v.shape)


def _convs(net: Net, make: Make) -> Tensor:
    x = net.input("x", ("batch", 3, 9, 9))
    for width in (8, 6):
        w = make(net, net.weight(width, x.shape[1], 3, 3, name="weight_v"))
        x = net.relu(net.node("Conv", x, w))
    return net.gemm(net.flatten(net.global_avg_pool(x)), 3)


@pytest.mark.parametrize("make", [_norm, _batch_norm])
def test_normalised_weights_are_stored(make: Make) -> None:
    net = Net("normalised")
    model = net.model(_convs(net, make))
    groups = check(model, 2)
    assert all(group.exact for group in groups)
    assert {n.op_type for n in groups.graph.nodes} == {
        "Conv", "Relu", "GlobalAveragePool", "Flatten", "Gemm"
    }  # fmt: skip
    assert not any("weight_v" in name for name in groups.graph.constants)
    result = spa.prune(model, "channels=0.5", compensate="refit", criterion="l1", repair="none")
    assert result.verification is not None and result.verification.law is not None
    again = spa.verify(model, result.model, result.plan).verification
    assert again.law is not None and again.law < 1e-4


def _scaled(net: Net, v: Tensor) -> Tensor:
    return net.mul(v, 0.5)


def _gated(net: Net, v: Tensor) -> Tensor:
    """A statistic of a vector is none of a weight."""
    gates = net.uniform(1, 2, 5, name="gates")
    return net.mul(v, net.node("ReduceMax", net.softmax(gates, 0), axes=[0], keepdims=0))


@pytest.mark.parametrize("make", [_scaled, _gated])
def test_other_weights_keep_what_they_are_made_of(make: Make) -> None:
    net = Net("scaled")
    groups = check(net.model(_convs(net, make)))
    assert sum("weight_v" in m.tensor for group in groups for m in group.members) == 3
    assert groups.graph.given is None


def test_what_is_written_into_a_weight_is_stored() -> None:
    """Biases of keys that are put to zero, as Swin Transformer V2 has them."""
    net = Net("written")
    x = net.input("x", (2, 5, 8))
    zeros = net.node("Expand", net.const(np.float32([0])), [4])
    bias = net.node("ScatterND", net.uniform(-1, 1, 12), [[4], [5], [6], [7]], zeros)
    q, k, v = net.split(net.add(net.linear(x, 12, bias=False), bias), [4] * 3, axis=2)
    y = net.matmul(net.softmax(net.matmul(q, net.transpose(k, 0, 2, 1))), v)
    groups = check(net.model(net.linear(y, 3)), 2)
    assert sorted(group.size for group in groups) == [4, 4]


def test_what_would_be_larger_is_not_stored() -> None:
    net = Net("expanded")
    x = net.input("x", (5, 3, 7))
    tokens = net.layer_norm(net.node("Expand", net.weight(1, 3, 7), [5, 3, 7]))
    groups = check(net.model(net.linear(net.concat(x, tokens), 2)))
    assert "LayerNormalization" in {n.op_type for n in groups.graph.nodes}


@pytest.mark.parametrize("where", ["output", "input"])
def test_what_a_caller_sees_is_left_alone(where: str) -> None:
    """A weight that is put out, or that a caller may set."""
    net = Net(where)
    w = _norm(net, net.weight(8, 3, 3, 3, name="weight_v"))
    y = net.node("Conv", net.input("x", (1, 3, 9, 9)), w)
    more = [w] if where == "output" else []
    model = net.model(net.relu(y), *more, initializers_as_inputs=where == "input")
    assert "ReduceL2" in {n.op_type for n in spa.analyze(model).graph.nodes}


def test_a_part_that_others_read_stays() -> None:
    """The length of a filter goes into its weight and into a product of its own."""
    net = Net("shared")
    v = net.weight(8, 3, 3, 3, name="weight_v")
    length = net.node("ReduceL2", v, axes=[1, 2, 3], keepdims=1)
    y = net.node("Conv", net.input("x", (2, 3, 9, 9)), net.div(v, length))
    y = net.mul(y, net.reshape(length, [1, 8, 1, 1]))
    model = net.model(net.gemm(net.flatten(net.global_avg_pool(net.relu(y))), 3))
    groups = check(model, 1)
    assert groups[0].exact
    assert spa.prune(model, "channels=0.5", **PLAIN).figures.share("macs") < 0.6
