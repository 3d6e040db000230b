"""What the first nodes of a model tell about the range of its input."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from models.builder import Net, Tensor
from spa.ranges import expected_range
from spa.reader import load

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def channels(*numbers: float) -> np.ndarray:
    return np.asarray(numbers, np.float32).reshape(3, 1, 1)


def found(model: ModelProto, picture: bool = True) -> tuple[np.ndarray, np.ndarray]:
    graph = load(model)
    shape = model.graph.input[0].type.tensor_type.shape.dim
    got = expected_range(graph, graph.inputs[0], len(shape), 0, picture)
    return got.scale, got.shift


def net() -> tuple[Net, Tensor]:
    net = Net("ranges")
    return net, net.input("x", ["n", 3, 16, 16])


def test_nothing_is_said() -> None:
    m, x = net()
    scale, shift = found(m.model(m.conv(x, 4)))
    assert (scale, shift) == (1, 0)


@pytest.mark.parametrize("way", ["div", "mul", "shifted", "cast"])
def test_bytes(way: str) -> None:
    m, x = net()
    if way == "div":
        y = m.div(x, 255.0)
    elif way == "mul":
        y = m.mul(1 / 255, x)
    elif way == "shifted":
        y = m.sub(m.mul(x, 1 / 127.5), 1.0)
    else:
        y = m.div(m.sub(m.cast(x, TensorProto.FLOAT), 127.0), 60.0)
    scale, shift = found(m.model(m.conv(y, 4)))
    assert (scale, shift) == (49, 127.5)


def test_shares() -> None:
    m, x = net()
    y = m.div(m.sub(x, channels(*MEAN)), channels(*STD))
    scale, shift = found(m.model(m.conv(y, 4)))
    assert scale == pytest.approx(49 / 255)
    assert shift == 0.5


def test_bytes_then_statistics() -> None:
    m, x = net()
    y = m.div(m.sub(m.div(x, 255.0), channels(*MEAN)), channels(*STD))
    scale, shift = found(m.model(m.conv(y, 4)))
    assert (scale, shift) == (49, 127.5)


def test_channels_last() -> None:
    m = Net("ranges")
    x = m.input("x", ["n", 16, 16, 3])
    y = m.transpose(x, 0, 3, 1, 2)
    y = m.div(m.sub(y, channels(4000, 5000, 6000)), channels(10, 20, 30))
    scale, shift = found(m.model(m.conv(y, 4)))
    assert np.array_equal(scale, np.float32([[[10, 20, 30]]]))
    assert np.array_equal(shift, np.float32([[[4000, 5000, 6000]]]))


def test_what_no_photograph_fits_is_inverted() -> None:
    m, x = net()
    y = m.sub(channels(900, 901, 902), x)  # c - x, and then no scale
    scale, shift = found(m.model(m.conv(m.div(y, 1e-3), 4)))
    assert scale == pytest.approx(-1e-3)
    assert shift.ravel() == pytest.approx([900, 901, 902])


def test_stored_statistics_are_exact() -> None:
    m, x = net()
    mean, variance = m.const(np.float32([1, 2, 3])), m.const(np.float32([4, 9, 16]))
    ones, zeros = m.const(np.full(3, 7, np.float32)), m.const(np.full(3, 8, np.float32))
    y = m.node("BatchNormalization", m.add(m.mul(x, 2.0), 1.0), ones, zeros, mean, variance)
    scale, shift = found(m.model(m.conv(y, 4)))
    assert scale.ravel() == pytest.approx([1, 1.5, 2])
    assert shift.ravel() == pytest.approx([0, 0.5, 1])


def test_a_scaler_of_a_table() -> None:
    m = Net("ranges")
    x = m.input("x", ["n", 3])
    model = m.model(m.gemm(x, 4))
    scaler = helper.make_node(
        "Scaler", ["x"], ["scaled"], domain="ai.onnx.ml", offset=[1.0, 2, 3], scale=[0.5, 0.25, 0.1]
    )
    model.graph.node[0].input[0] = "scaled"
    model.graph.node.insert(0, scaler)
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    scale, shift = found(model, picture=False)
    assert scale == pytest.approx([2, 4, 10])
    assert shift == pytest.approx([1, 2, 3])


@pytest.mark.parametrize("way", ["two readers", "zero", "not a channel", "constant below"])
def test_what_tells_nothing(way: str) -> None:
    m, x = net()
    if way == "two readers":
        y = m.add(m.mul(x, 1 / 255), m.mul(x, 1 / 9))
    elif way == "zero":
        y = m.mul(x, 0.0)
    elif way == "not a channel":
        y = m.mul(x, np.full((3, 16, 16), 1 / 255, np.float32))
    else:
        y = m.div(255.0, x)
    scale, shift = found(m.model(m.conv(y, 4)))
    assert (scale, shift) == (1, 0)
