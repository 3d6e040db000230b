"""QuantizeLinear and DequantizeLinear: per tensor, per axis, in blocks."""

from __future__ import annotations

import numpy as np
import pytest

from models.builder import Net, Tensor
from tests.ops.cases import ROWS, Body, Case, case


def _activation(axis: int | None) -> Body:
    """Quantised and back, by one scale or by one for every channel."""

    def body(net: Net, a: Tensor) -> Tensor:
        n = 1 if axis is None else a.shape[axis]
        scale = np.linspace(0.02, 0.05, n, dtype=np.float32)
        point = np.zeros(n, np.int8)
        if axis is None:
            scale, point = scale[0], point[0]
        attrs = {} if axis is None else {"axis": axis}
        q = net.node("QuantizeLinear", a, scale, point, **attrs)
        return net.node("DequantizeLinear", q, scale, point, **attrs)

    return body


def _default_axis(net: Net, a: Tensor) -> Tensor:
    scale = np.linspace(0.02, 0.05, a.shape[1], dtype=np.float32)
    q = net.node("QuantizeLinear", a, scale, np.zeros(a.shape[1], np.int8))
    return net.node("DequantizeLinear", q, scale, np.zeros(a.shape[1], np.int8))


def _weight(axis: int | None, opset: int = 17) -> Body:
    """A convolution whose weight is stored in eight bits."""

    def body(net: Net, a: Tensor) -> Tensor:
        stored = net.rng.integers(-100, 100, (10, a.shape[1], 1, 1)).astype(np.int8)
        n = 1 if axis is None else stored.shape[axis]
        scale = np.linspace(0.01, 0.02, n, dtype=np.float32)
        attrs = {} if axis is None else {"axis": axis}
        scale = scale[0] if axis is None else scale
        w = net.node("DequantizeLinear", net.const(stored, "stored"), scale, **attrs)
        return net.node("Conv", a, w)

    return body


def _unsigned(axis: int | None) -> Body:
    """Two weights in eight bits without a sign: what stands for zero is about 128."""

    def stored(net: Net, out: int, channels: int) -> Tensor:
        q = net.rng.integers(90, 170, (out, channels, 1, 1)).astype(np.uint8)
        n = 1 if axis is None else q.shape[axis]
        scale = np.linspace(0.01, 0.02, n, dtype=np.float32)
        point = np.arange(120, 120 + n, dtype=np.uint8)
        if axis is None:
            return net.node("DequantizeLinear", net.const(q), scale[0], point[0])
        return net.node("DequantizeLinear", net.const(q), scale, point, axis=axis)

    def body(net: Net, a: Tensor) -> Tensor:
        y = net.relu(net.node("Conv", a, stored(net, 6, a.shape[1])))
        return net.node("Conv", y, stored(net, 10, 6))

    return body


def _blocked(axis: int | None) -> Body:
    """A matrix in eight bits with a scale for every block of 4 rows or columns: whole blocks go."""

    def body(net: Net, a: Tensor) -> Tensor:
        stored = net.rng.integers(-100, 100, (a.shape[1], 12)).astype(np.int8)
        shape = (a.shape[1] // 4, 12) if axis == 0 else (a.shape[1], 3)
        attrs = {} if axis is None else {"axis": axis}
        scale = net.uniform(0.01, 0.02, *shape)
        q = net.const(stored, "stored")
        return net.matmul(a, net.node("DequantizeLinear", q, scale, block_size=4, **attrs))

    return body


QUANTIZE = [
    case("tensor", 1, _activation(None), exact=True),
    case("axis", 1, _activation(1), exact=True),
    case("negative-axis", 1, _activation(-3), exact=True),
    case("weight", 2, _weight(None), exact=True),
    case("weight-per-output", 2, _weight(0), exact=True),
    case("weight-per-input", 2, _weight(1), exact=True),
    case("unsigned", 3, _unsigned(None), exact=True),
    case("unsigned-per-output", 3, _unsigned(0), exact=True),
    case("unsigned-per-input", 3, _unsigned(1), exact=True),
    case("default-axis", 1, _default_axis, exact=True),
    case("scale-per-image", 1, _activation(0), exact=True),
    case("blocks", 2, _blocked(0), shape=ROWS, opset=21, exact=True),
    case("blocks-default-axis", 2, _blocked(None), shape=ROWS, opset=21, exact=True),
]


@pytest.mark.parametrize("row", QUANTIZE)
def test_quantize(row: Case) -> None:
    row.check()
