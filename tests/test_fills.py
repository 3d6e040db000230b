"""Zeros that several layers start from: one copy for each, so that their widths are their own."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import ModelProto, TensorProto

import spa
from models.builder import Net, Tensor
from tests.conftest import PLAIN
from tests.oracle import check

WIDTH = 6


def _lstm(net: Net, x: Tensor, size: int, state: Tensor) -> Tensor:
    weights = [
        net.uniform(-0.5, 0.5, 1, 4 * WIDTH, n, name="lstm.weight") for n in (size, WIDTH)
    ]  # fmt: skip
    bias = net.uniform(-0.5, 0.5, 1, 8 * WIDTH, name="lstm.bias")
    y = net.node("LSTM", x, *weights, bias, None, state, state, hidden_size=WIDTH)
    return net.squeeze(y, 1)


def _model(spread: str, value: float = 0.0, use: str = "") -> ModelProto:
    """Two layers whose first states are slices of one tensor, as torch.export writes them.

    spread: how; the first two are of one number. use: what else happens to the states.
    """
    net = Net("layers")
    x = net.input("x", (5, "batch", 3))
    dims = net.shape_vector(2, net.dim(x, 1), WIDTH)
    if spread == "Expand":
        states = net.node("Expand", net.const(np.float32(value)), dims)
    elif spread == "of several":
        states = net.node("Expand", net.uniform(0, 1, WIDTH), dims)
    elif spread == "computed":
        states = net.node("Expand", net.node("ReduceMax", x, keepdims=0), dims)
    elif spread == "moved":
        states = net.node("Identity", net.node("Expand", np.float32(value), dims))
    else:
        states = net.node("ConstantOfShape", dims, value=np.float32([value]))
    y = _lstm(net, x, 3, net.slice(states, 0, 1, axis=0))
    y = _lstm(net, y, WIDTH, net.slice(states, 1, 2, axis=0))
    return net.model(net.linear(y, 2), *([states] if use == "output" else []))


@pytest.mark.parametrize("spread", ["Expand", "ConstantOfShape"])
@pytest.mark.parametrize("value", [0.0, 0.5])
def test_layers_have_widths_of_their_own(spread: str, value: float) -> None:
    groups = check(_model(spread, value), 2)
    assert [group.size for group in groups] == [WIDTH, WIDTH]
    assert all(group.exact for group in groups)


def test_a_plan_of_it_is_replayed() -> None:
    model = _model("Expand")
    result = spa.prune(model, "params=0.6", **PLAIN)
    again = spa.prune(model, plan=result.plan, **PLAIN)
    assert again.model == result.model
    names = [node.name for node in result.model.graph.node]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("spread", ["of several", "computed", "moved"])
def test_others_are_left_alone(spread: str) -> None:
    groups = spa.analyze(_model(spread))
    assert groups.graph.given is None
    assert max(len(group.members) for group in groups) > 6


def test_operators_of_others_are_left_alone() -> None:
    net = Net("theirs")
    size = net.const(np.int64([2, 8]))
    made = net.nodes("ConstantOfShape", [size], 2, shapes=[[2, 8]] * 2, domain="theirs")
    x = net.linear(net.input("x", (2, 3)), 8)
    y = net.add(net.mul(x, made[0]), net.mul(net.add(x, made[0]), made[1]))
    assert spa.analyze(net.model(net.linear(y, 2))).graph.given is None


def test_what_has_no_width_is_left_alone() -> None:
    net = Net("numbers")
    x = net.linear(net.input("x", (2, 3)), 8)
    one = net.node("ConstantOfShape", np.int64([1, 1]), value=np.float32([2]))
    y = net.add(net.mul(x, one), one)
    assert spa.analyze(net.model(net.linear(y, 2))).graph.given is None


def test_bodies_stay_where_they_are() -> None:
    net = Net("beside")
    x = net.linear(net.input("x", (2, 3)), 8)
    zeros = net.node("ConstantOfShape", np.int64([2, 8]), value=np.float32([0]))
    i, on, h = (
        gs.Variable(name, np.dtype(kind), shape)
        for name, kind, shape in (("i", np.int64, []), ("on", np.bool_, []), ("h", "f4", [2, 8]))
    )
    with net.body(i, on, h) as body:
        body.outputs = [net.node("Identity", on), net.relu(net.add(h, x))]
    (y,) = net.nodes("Loop", [np.int64(3), np.array(True), x], 1, shapes=[[2, 8]], body=body)
    other = net.add(net.linear(net.add(y, zeros), 8), zeros)
    model = net.model(net.linear(net.relu(other), 2))
    groups = check(model, 2)
    assert len(groups.graph.model.graph.node) == len(model.graph.node) + 1


def test_what_a_body_reads_is_left_alone() -> None:
    net = Net("inside")
    x = net.linear(net.input("x", (2, 3)), 8)
    zeros = net.node("Expand", np.float32(0), net.shape_vector(net.dim(x, 0), 8))
    flag, bodies = net.input("flag", [], np.bool_), {}
    for name, op in (("then_branch", "Add"), ("else_branch", "Mul")):
        with net.body() as body:
            body.outputs = [net.node(op, x, zeros)]
        bodies[name] = body
    y = net.add(net.node("If", flag, shape=[2, 8], **bodies), net.relu(zeros))
    groups = check(net.model(net.linear(y, 2)), 1)
    assert groups.graph.given is None


@pytest.mark.parametrize("kind", ["input", "initializer"])
def test_copies_have_names_of_their_own(kind: str) -> None:
    model = _model("Expand")
    made = {name for node in spa.analyze(model).graph.model.graph.node for name in node.output}
    (copy,) = made - {name for node in model.graph.node for name in node.output}
    first = getattr(model.graph, kind)[0]
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = copy if name == first.name else name
    first.name = copy
    check(model, 2)


def test_states_that_are_put_out_stay_one() -> None:
    assert spa.analyze(_model("Expand", use="output")).graph.given is None


def _shared_bias(kind: str) -> ModelProto:
    """Three layers whose biases are one vector, stored in another form, as quantisers leave them
    where the exporter had found equal biases."""
    net = Net("bias")
    x = net.input("x", (4, 3))
    if kind == "cast":
        bias = net.cast(net.const(np.linspace(-1, 1, 8).astype(np.float16)), TensorProto.FLOAT)
    else:
        stored = net.const(np.arange(-4, 4, dtype=np.int32))
        scale = np.float32(0.25) if kind == "scale" else np.full(8, 0.25, np.float32)
        bias = net.node("DequantizeLinear", stored, scale, np.zeros_like(scale, np.int32), axis=0)
    for k in range(3):
        own = net.node("Identity", bias) if k else bias
        x = net.relu(net.node("Gemm", x, net.weight(8, x.shape[1]), own, transB=1))
    return net.model(net.gemm(x, 2))


@pytest.mark.parametrize("kind", ["cast", "scale", "scales"])
def test_a_bias_in_another_form_has_no_width_either(kind: str) -> None:
    groups = check(_shared_bias(kind), 3)
    assert all(group.exact for group in groups)


def test_what_is_made_of_a_shared_matrix_stays_one() -> None:
    net = Net("siamese")
    weight = net.cast(net.const(net.rng.normal(size=(8, 8)).astype(np.float16)), TensorProto.FLOAT)
    x = net.gemm(net.input("x", (4, 3)), 8)
    for _ in range(2):
        x = net.relu(net.matmul(x, weight))
    check(net.model(net.gemm(x, 2)), 1)
