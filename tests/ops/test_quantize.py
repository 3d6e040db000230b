"""QuantizeLinear and DequantizeLinear: per tensor, per axis, in blocks."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from models.builder import Net, Tensor
from tests.ops.cases import ROWS, Body, Case, case, coded, summed


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


def _weight(axis: int | None, point: int | None = None, named: bool = True) -> Body:
    """A convolution whose weight is stored in eight bits; axis 1 need not be named."""

    def body(net: Net, a: Tensor) -> Tensor:
        stored = net.rng.integers(-100, 100, (10, a.shape[1], 1, 1)).astype(np.int8)
        n = 1 if axis is None else stored.shape[axis]
        scale = np.linspace(0.01, 0.02, n, dtype=np.float32)
        attrs = {} if axis is None or not named else {"axis": axis}
        points = [] if point is None else [(point + np.arange(n) % 3).astype(np.int8)]
        if axis is None:
            scale, points = scale[0], [p[0] for p in points]
        w = net.node("DequantizeLinear", net.const(stored, "stored"), scale, *points, **attrs)
        return net.node("Conv", a, w)

    return body


def _columns(net: Net, a: Tensor) -> Tensor:
    """A matrix with a zero point for every column, which is what axis is where it is not named."""
    stored = net.const(net.rng.integers(-100, 100, (a.shape[1], 12)).astype(np.int8), "stored")
    points = (50 + np.arange(12) % 3).astype(np.int8)
    w = net.node("DequantizeLinear", stored, net.uniform(0.01, 0.02, 12), points)
    return net.matmul(net.sigmoid(a), w)


def _shift(net: Net, a: Tensor) -> Tensor:
    """A list of numbers by one scale, which is in a list too."""
    stored = net.const(net.rng.integers(-100, 100, a.shape[1]).astype(np.int8), "stored")
    return net.add(a, net.node("DequantizeLinear", stored, net.const([np.float32(0.01)])))


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


def _moved(net: Net, a: Tensor) -> Tensor:
    """A table in eight bits that is transposed before it is made floats."""
    stored = net.const(net.rng.integers(0, 255, (6, a.shape[1])).astype(np.uint8), "stored")
    moved = net.transpose(stored, 1, 0)
    return net.matmul(a, net.node("DequantizeLinear", moved, np.float32(0.01), np.uint8(128)))


def _dynamic(net: Net, a: Tensor) -> Tensor:
    return net.node("DequantizeLinear", *net.nodes("DynamicQuantizeLinear", [a], 3))


def _blocked_points(net: Net, a: Tensor) -> Tensor:
    stored = net.rng.integers(0, 255, (a.shape[1], 12)).astype(np.uint8)
    scale = np.full((a.shape[1] // 4, 12), 0.01, np.float32)
    point = net.rng.integers(100, 150, scale.shape).astype(np.uint8)
    w = net.node("DequantizeLinear", net.const(stored), scale, point, axis=0, block_size=4)
    return net.matmul(a, w)


def _bias(net: Net, a: Tensor) -> Tensor:
    """Stored in eight bits whose zero is 7: what is removed holds that, not 0."""
    stored = net.rng.integers(-100, 100, (a.shape[1], 1, 1)).astype(np.int8)
    bias = net.node("DequantizeLinear", net.const(stored, "stored"), np.float32(0.05), np.int8(7))
    return net.add(a, bias)


def _padded(net: Net, a: Tensor) -> Tensor:
    """The value that fills is computed, as onnxruntime's quantiser leaves it."""
    scale, point = np.float32(0.05), np.int8(7)
    q = net.node("QuantizeLinear", np.float32(0), scale, point)
    filler = net.node("DequantizeLinear", q, scale, point)
    return net.node("Pad", a, np.array([0, 0, 1, 1, 0, 0, 1, 1]), filler)


def _storage(kind: str) -> Body:
    """A weight of odd sizes in another type, with a scale for every output and no zero point."""

    def body(net: Net, a: Tensor) -> Tensor:
        dtype = np.dtype(getattr(ml_dtypes, kind, kind))
        low, high = (0, 4) if kind.startswith("u") else (-2, 2)
        stored = net.rng.integers(low, high, (7, a.shape[1], 1, 1)).astype(np.float32)
        q = net.const(stored.astype(dtype), "stored")
        w = net.node("DequantizeLinear", q, net.uniform(0.1, 0.2, 7), axis=0)
        return net.node("Conv", a, w)

    return body


def _storage_in_blocks(kind: str, width: int = 12) -> Body:
    """The same with zero points for blocks; the last one may not be full."""

    def body(net: Net, a: Tensor) -> Tensor:
        dtype = np.dtype(getattr(ml_dtypes, kind))
        stored = net.rng.integers(0, 4, (a.shape[1], width)).astype(dtype)
        shape = a.shape[1], -(-width // 4)
        scale = net.uniform(0.1, 0.2, *shape)
        point = net.const(net.rng.integers(0, 4, shape).astype(dtype), "point")
        q = net.const(stored, "stored")
        return net.matmul(a, net.node("DequantizeLinear", q, scale, point, block_size=4))

    return body


def _integer_bias(net: Net, a: Tensor) -> Tensor:
    """Weight and bias as onnxruntime's quantiser stores them."""
    stored = net.const(net.rng.integers(-100, 100, (10, a.shape[1], 1, 1)).astype(np.int8), "w")
    bias = net.const(net.rng.integers(-500, 500, 10).astype(np.int32), "b")
    scale = np.linspace(0.01, 0.02, 10, dtype=np.float32)
    w = net.node("DequantizeLinear", stored, scale, np.zeros(10, np.int8), axis=0)
    b = net.node("DequantizeLinear", bias, scale / 20, np.zeros(10, np.int32), axis=0)
    return net.node("Conv", a, w, b)


def _in_the_graph(net: Net, a: Tensor) -> Tensor:
    """A weight in floats that is quantised and back every time."""
    scale = net.const(np.linspace(0.01, 0.02, 10, dtype=np.float32), "scale")
    point = net.const(np.zeros(10, np.int8), "point")
    q = net.node("QuantizeLinear", net.weight(10, a.shape[1], 1, 1), scale, point, axis=0)
    return net.node("Conv", a, net.node("DequantizeLinear", q, scale, point, axis=0))


def _shared_scale(net: Net, a: Tensor) -> Tensor:
    """Two layers that read one vector of scales, and have nothing else in common."""
    scale = net.const(np.linspace(0.01, 0.02, 8, dtype=np.float32), "scale")
    for _ in range(2):
        stored = net.const(net.rng.integers(-100, 100, (8, a.shape[1], 1, 1)).astype(np.int8), "w")
        a = net.relu(net.node("Conv", a, net.node("DequantizeLinear", stored, scale, axis=0)))
    return a


def _of_onnxruntime(axis: int | None, kind: str) -> Body:
    """Its own forms of both operators."""

    def body(net: Net, a: Tensor) -> Tensor:
        dtype, n = np.dtype(getattr(ml_dtypes, kind, kind)), a.shape[1]
        scale = np.full(() if axis is None else n, 0.05, np.float32)
        point = net.const(np.full(scale.shape, 3).astype(dtype), "point")
        attrs = {} if axis is None else {"axis": axis}
        q = coded(net, "QuantizeLinear", a, scale, point, shape=a.shape, dtype=dtype, **attrs)
        return coded(
            net, "DequantizeLinear", q, scale, point, shape=a.shape, dtype=np.float32, **attrs
        )

    return body


STORAGE = [
    *(
        case(kind, 2, _storage(kind), opset=21, exact=True)
        for kind in ("int8", "uint8", "int16", "uint16", "int4", "uint4", "float8_e4m3fn",
                     "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz")
    ),
    *(case(kind, 2, _storage(kind), opset=25, exact=True) for kind in ("int2", "uint2")),
    case("float4_e2m1fn", 2, _storage("float4_e2m1fn"), opset=23, runnable=False),
    case("uint4-in-blocks", 2, _storage_in_blocks("uint4"), shape=ROWS, opset=21, exact=True),
    case("int4-in-blocks", 2, _storage_in_blocks("int4"), shape=ROWS, opset=21, exact=True),
    case("block-that-is-not-full", 1, _storage_in_blocks("uint4", 10), shape=ROWS, opset=21,
         exact=True),
    case("integer-bias", 2, _integer_bias, exact=True),
    case("in-the-graph", 2, _in_the_graph, exact=True),
    case("shared-scale", 3, _shared_scale, exact=True),
    *(
        case(f"of-onnxruntime-{kind}-{axis}", 1, _of_onnxruntime(axis, kind), opset=20, exact=True)
        for kind, axis in (("uint8", None), ("int16", None), ("uint16", 1), ("int4", None))
    ),
]  # fmt: skip

QUANTIZE = [
    case("bias-with-zero-point", 1, _bias, exact=True),
    case("bias-with-zero-point-summed", 1, lambda net, a: summed(net, _bias(net, a)), exact=True),
    case("computed-pad", 1, _padded, exact=True),
    case("tensor", 1, _activation(None), exact=True),
    case("axis", 1, _activation(1), exact=True),
    case("negative-axis", 1, _activation(-3), exact=True),
    case("opset-10", 1, _activation(None), opset=10, exact=True),
    case("opset-19", 1, _activation(1), opset=19, exact=True),
    case("opset-23", 1, _activation(1), opset=23, exact=True),
    case("weight", 2, _weight(None), exact=True),
    case("weight-per-output", 2, _weight(0), exact=True),
    case("weight-per-input", 2, _weight(1), exact=True),
    # A removed slice holds the zero point, which is not zero here: what reads it must hear nothing.
    *(
        case(
            f"{name}-of-what-speaks",
            2,
            lambda net, a, body=body: body(net, net.sigmoid(a)),
            exact=True,
        )
        for name, body in (
            ("weight-point", _weight(None, 50)),
            ("weight-points-per-output", _weight(0, 50)),
            ("weight-points-per-input", _weight(1, 50)),
            ("weight-points-by-default", _weight(1, 50, named=False)),
        )
    ),
    case(
        "weight-moved-of-what-speaks",
        2,
        lambda net, a: _moved(net, net.sigmoid(a)),
        shape=ROWS,
        exact=True,
    ),
    case(
        "weight-points-of-blocks-of-what-speaks",
        2,
        lambda net, a: _blocked_points(net, net.sigmoid(a)),
        shape=ROWS,
        opset=21,
        exact=True,
    ),
    case("columns-of-what-speaks", 2, _columns, shape=ROWS, exact=True),
    case("scale-in-a-list", 1, _shift, shape=ROWS, exact=True),
    case("weight-point", 2, _weight(None, 50), exact=True),
    case("weight-points-per-output", 2, _weight(0, 50), exact=True),
    case("weight-points-per-input", 2, _weight(1, 50), exact=True),
    case("weight-moved", 2, _moved, shape=ROWS, exact=True),
    case("weight-points-of-blocks", 2, _blocked_points, shape=ROWS, opset=21, exact=True),
    case("dynamic", 1, _dynamic, exact=True),
    case("dynamic-where-zero-speaks", 1, lambda net, a: _dynamic(net, net.sigmoid(a)), exact=False),
    case("unsigned", 3, _unsigned(None), exact=True),
    case("unsigned-per-output", 3, _unsigned(0), exact=True),
    case("unsigned-per-input", 3, _unsigned(1), exact=True),
    case("default-axis", 1, _default_axis, exact=True),
    case("scale-per-image", 1, _activation(0), exact=True),
    case("blocks", 2, _blocked(0), shape=ROWS, opset=21, exact=True),
    case("blocks-default-axis", 2, _blocked(None), shape=ROWS, opset=21, exact=True),
]


@pytest.mark.parametrize("row", [*QUANTIZE, *STORAGE])
def test_quantize(row: Case) -> None:
    row.check()
