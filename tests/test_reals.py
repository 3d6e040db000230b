"""What quantised numbers stand for, however they are stored, and back."""

from __future__ import annotations

import re
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

from models.builder import Net, Tensor
from spa.analysis import analyze
from spa.graph import Graph
from spa.propagate import load_rules
from spa.reals import nothing, real, stored
from spa.rules import RULES
from spa.scales import along, is_beside, of_data
from spa.sites import sites
from tests.ops.cases import coded

SCALE = np.linspace(0.1, 0.2, 6, dtype=np.float32)
POINT = np.arange(6)


def test_scales_and_zero_points_are_where_the_schema_has_them() -> None:
    """An input of quantised numbers, and what has its name and ends on scale or zero point."""
    load_rules()
    schemas = {(s.domain, s.name): s for s in state.get_all_operator_schema()}

    def beside(names: list[str], k: int, ending: str) -> list[int]:
        found = [re.fullmatch(f"(.*?)_?({ending})s?", name) for name in names]
        return [i for i, m in enumerate(found) if m and names[k].startswith(m.group(1))]

    seen = 0
    for key, rule in RULES.items():
        if not rule.quantised or rule.op_type == "QLinearConcat":  # a list of threes
            continue
        names = [i.name.lower() for i in schemas[key].inputs]
        scales = {k: beside(names, k, "scale|absmax") for k in range(len(names))}
        points = {k: beside(names, k, "zero_point") for k in range(len(names))}
        factors = sorted({i for k in rule.quantised for i in scales[k]})
        for k, quantised in rule.quantised.items():
            assert not re.search("scale|zero_point|absmax", names[k]), key
            # A bias has no scale of its own: it is added to the products of the others.
            assert list(quantised.scales) == (scales[k] or factors), (key, names[k])
            assert quantised.point == (points[k] or [-1])[0], (key, names[k])
            seen += 1
    assert seen > 40


def _graph(net: Net, y: Tensor) -> Graph:
    return analyze(net.model(y, ir_version=11)).graph


def _dequantised(kind: str, *, axis: int = 0, point: bool = True) -> tuple[Graph, Any]:
    """A weight of shape (6, 6), and what it holds."""
    net = Net("weight", opset=21)
    dtype = np.dtype(getattr(ml_dtypes, kind, kind))
    low = 0 if kind.startswith("u") else -2
    codes = net.rng.integers(low, low + 4, (6, 6)).astype(np.float32).astype(dtype)
    points = [net.const(np.zeros(6).astype(dtype) if "f" in kind else (POINT % 4).astype(dtype))]
    w = net.node("DequantizeLinear", net.const(codes, "w"), SCALE, *points[:point], axis=axis)
    y = net.matmul(net.input("x", (2, 6)), w)
    spread = (slice(None), None) if axis == 0 else (None, slice(None))
    zero = (POINT % 4)[spread] if point and "f" not in kind else 0
    return _graph(net, y), (codes.astype(np.float32) - zero) * SCALE[spread]


@pytest.mark.parametrize("point", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", ["int8", "uint8", "uint16", "int4", "uint4", "float8_e4m3fn"])
def test_a_weight_and_back(kind: str, axis: int, point: bool) -> None:
    graph, want = _dequantised(kind, axis=axis, point=point)
    found = real(graph, "w")
    np.testing.assert_allclose(found, want, rtol=1e-6)
    back = stored(graph, "w", found)
    assert back.dtype == graph.array("w").dtype
    assert (back == graph.array("w")).all()


def test_what_is_out_of_reach_is_the_nearest_that_can_be_stored() -> None:
    graph, want = _dequantised("int8", point=False)
    back = real(graph, "w", stored(graph, "w", np.full_like(want, 1e6)))
    np.testing.assert_allclose(back, np.repeat(127 * SCALE[:, None], 6, axis=1), rtol=1e-6)


def test_floats_are_what_they_are() -> None:
    net = Net("floats")
    w = net.weight(6, 4, name="w")
    graph = _graph(net, net.matmul(net.input("x", (2, 6)), w))
    assert real(graph, "w") is graph.array("w") or (real(graph, "w") == graph.array("w")).all()
    assert nothing(graph, "w", graph.array("w")) is None


def test_through_what_moves_numbers() -> None:
    net = Net("moved", opset=21)
    codes = net.const(net.rng.integers(-9, 9, (4, 6)).astype(np.int8), "w")
    w = net.node("DequantizeLinear", net.transpose(codes, 1, 0), SCALE, axis=0)
    graph = _graph(net, net.matmul(net.input("x", (2, 6)), w))
    np.testing.assert_allclose(real(graph, "w"), graph.array("w") * SCALE, rtol=1e-6)


def test_a_table_that_is_scaled_after_rows_are_picked() -> None:
    net = Net("table", opset=21)
    table = net.const(net.rng.integers(0, 255, (9, 6)).astype(np.uint8), "w")
    picked = net.gather(table, net.input("ids", (2, 3), np.int64))
    y = net.node("DequantizeLinear", picked, np.float32(0.1), np.uint8(7))
    graph = _graph(net, net.matmul(y, net.weight(6, 4)))
    codes = graph.array("w").astype(np.float32)
    np.testing.assert_allclose(real(graph, "w"), (codes - 7) * np.float32(0.1), rtol=1e-6)
    zero = nothing(graph, "w", graph.array("w"))
    assert zero is not None and (zero == 7).all()


@pytest.mark.parametrize("point", [False, True])
def test_what_is_written_out(point: bool) -> None:
    """Cast, Sub and Mul in place of a DequantizeLinear."""
    net = Net("written")
    w = net.cast(net.const(net.rng.integers(0, 255, (6, 6)).astype(np.uint8), "w"), 1)
    w = net.sub(w, 120.0) if point else w
    graph = _graph(net, net.matmul(net.input("x", (2, 6)), net.mul(w, SCALE[:, None])))
    codes = graph.array("w").astype(np.float32) - 120 * point
    np.testing.assert_allclose(real(graph, "w"), codes * SCALE[:, None], rtol=1e-6)
    (site,) = sites(graph)
    assert site.rounds and site.weight == "w"


def test_a_scale_behind_the_product() -> None:
    net = Net("integer", opset=21)
    q, scale, point = net.nodes("DynamicQuantizeLinear", [net.input("x", (2, 6))], 3)
    w = net.const(net.rng.integers(0, 255, (6, 6)).astype(np.uint8), "w")
    y = net.node("MatMulInteger", q, w, point, (POINT + 120).astype(np.uint8))
    y = net.mul(net.cast(y, 1), net.mul(scale, SCALE))
    graph = _graph(net, y)
    codes = graph.array("w").astype(np.float32)
    np.testing.assert_allclose(real(graph, "w"), (codes - POINT - 120) * SCALE, rtol=1e-6)


def test_a_scale_behind_the_convolution() -> None:
    """One for every output channel, as the zero point is."""
    net = Net("integer", opset=21)
    q, scale, point = net.nodes("DynamicQuantizeLinear", [net.input("x", (2, 4, 5, 5))], 3)
    w = net.const(net.rng.integers(0, 255, (6, 4, 3, 3)).astype(np.uint8), "w")
    y = net.node("ConvInteger", q, w, point, (POINT + 120).astype(np.uint8))
    each = (6, 1, 1)
    y = net.mul(net.cast(y, 1), net.mul(scale, SCALE.reshape(each)))
    graph = _graph(net, y)
    codes = graph.array("w").astype(np.float32)
    want = (codes - POINT.reshape(-1, 1, 1, 1) - 120) * SCALE.reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(real(graph, "w"), want, rtol=1e-6)


def test_a_scale_behind_sixteen_bits() -> None:
    net = Net("integer", opset=21)
    w = net.const(net.rng.integers(-99, 99, (6, 6)).astype(np.int16), "w")
    x = net.input("x", (2, 6), np.int16)
    y = coded(net, "MatMulInteger16", x, w, shape=[2, 6], dtype=np.int32)
    graph = _graph(net, net.mul(net.cast(y, 1), SCALE))
    want = graph.array("w").astype(np.float32) * SCALE
    np.testing.assert_allclose(real(graph, "w"), want, rtol=1e-6)
    assert of_data(graph, graph.nodes[0], 0) is None  # it is somewhere in that scale


def test_parts_that_are_joined() -> None:
    net = Net("parts", opset=21)
    x, w = net.input("x", (1, 6), np.uint8), net.const(np.arange(8, dtype=np.uint8)[None], "w")
    inputs = [np.float32(1), np.uint8(0), x, np.float32(0.5), np.uint8(3)]
    y = coded(
        net, "QLinearConcat", *inputs, w, np.float32(0.25), np.uint8(4), axis=1, shape=[1, 14]
    )
    graph = _graph(net, y)
    np.testing.assert_allclose(real(graph, "w"), (graph.array("w") - 4.0) * 0.25)


def test_data_beside_their_projection() -> None:
    net = Net("attention", opset=21)
    x, w = (net.const(net.rng.integers(0, 99, n).astype(np.uint8), m)
            for n, m in (((1, 5, 6), "x"), ((6, 18), "w")))  # fmt: skip
    bias = np.zeros(18, np.float32)
    inputs = [x, w, bias, np.float32(0.5), np.float32(0.25), None, np.uint8(3), np.uint8(4)]
    y = coded(net, "QAttention", *inputs, shape=[1, 5, 6], dtype=np.float32, num_heads=2)
    graph = _graph(net, y)
    np.testing.assert_allclose(real(graph, "x"), (graph.array("x") - 3.0) * 0.5)
    np.testing.assert_allclose(real(graph, "w"), (graph.array("w") - 4.0) * 0.25)


def test_an_image_with_a_zero_point() -> None:
    net = Net("integer", opset=21)
    x, w = (net.const(net.rng.integers(0, 99, (2, 3, 4, 4)).astype(np.uint8), n) for n in "xw")
    graph = _graph(net, net.node("ConvInteger", x, w, np.uint8(7), np.uint8(9)))
    np.testing.assert_allclose(real(graph, "x"), graph.array("x") - 7.0)


def test_one_scale_for_every_gate() -> None:
    net = Net("gates", opset=21)
    w, r = (net.const(net.rng.integers(0, 99, (2, n, 12)).astype(np.uint8), m)
            for n, m in ((6, "w"), (3, "r")))  # fmt: skip
    scales = [net.rng.uniform(0.1, 0.2, (2, 12)).astype(np.float32) for _ in "wr"]
    zero = np.zeros((2, 12), np.uint8)
    inputs = [net.input("x", (5, 2, 6)), w, r, *[None] * 5, scales[0], zero, scales[1], zero]
    y = coded(net, "DynamicQuantizeLSTM", *inputs, shape=[5, 2, 2, 3], dtype=np.float32,
              hidden_size=3, direction="bidirectional")  # fmt: skip
    graph = _graph(net, y)
    for name, scale in zip("wr", scales, strict=True):
        want = graph.array(name).astype(np.float32) * scale[:, None]
        np.testing.assert_allclose(real(graph, name), want, rtol=1e-6)


def test_one_zero_point_for_every_row() -> None:
    net = Net("integer", opset=21)
    w = net.const(net.rng.integers(0, 99, (6, 6)).astype(np.uint8), "w")
    y = net.node("MatMulInteger", w, net.input("x", (6, 2), np.uint8), POINT.astype(np.uint8))
    graph = _graph(net, y)
    codes = graph.array("w").astype(np.float32)
    np.testing.assert_allclose(real(graph, "w"), codes - POINT[:, None])


@pytest.mark.parametrize(
    ("op", "domain", "at", "scale", "spread"),
    [
        ("QLinearMatMul", "", 0, 1, (6, 1)), ("QLinearMatMul", "", 3, 4, (1, 6)),
        ("MatMulIntegerToFloat", "com.microsoft", 0, 2, (1, 6)),
        ("MatMulIntegerToFloat", "com.microsoft", 1, 3, (1, 6)),
        ("QGemm", "com.microsoft", 3, 4, (1, 6)), ("QGemm", "com.microsoft", 6, 4, (1, 6)),
    ],
)  # fmt: skip
def test_one_scale_for_every_row_or_column(
    op: str, domain: str, at: int, scale: int, spread: tuple[int, ...]
) -> None:
    net = Net("product", opset=21)
    one, none, x, y = np.float32(1), np.uint8(0), *(net.input(n, (6, 6), np.uint8) for n in "xy")
    inputs: list[Any] = {
        "QLinearMatMul": [x, one, none, y, one, none, one, none],
        "MatMulIntegerToFloat": [x, y, one, one, none, none],
        "QGemm": [x, one, none, y, one, none, np.zeros(6, np.int32), one, none],
    }[op]
    held = net.rng.integers(0, 99, (6, 6))
    inputs[at] = net.const(held.astype(np.int32 if at == 6 else np.uint8), "w")
    inputs[scale] = SCALE
    dtype = np.float32 if op[-1] == "t" else np.uint8
    made = net.nodes(op, inputs, shapes=[[6, 6]], dtype=dtype, domain=domain)[0]
    graph = _graph(net, made)
    np.testing.assert_allclose(real(graph, "w"), held * SCALE.reshape(spread), rtol=1e-6)


def _bytes(net: Net, *shape: int, name: str = "codes") -> Tensor:
    return net.const(net.rng.integers(0, 256, shape).astype(np.uint8), name)


def _check_round_trip(graph: Graph, name: str) -> None:
    np.testing.assert_array_equal(stored(graph, name, real(graph, name)), graph.array(name))
    assert (stored(graph, name, real(graph, name) + 1e3) == 255).all()
    assert (stored(graph, name, real(graph, name) - 1e3) == 0).all()
    numbers = real(graph, name)
    numbers[..., ::2], numbers[..., 1::2] = 1e3, -1e3  # the first of two in a byte
    if numbers.size > graph.array(name).size:
        assert set(np.unique(stored(graph, name, numbers))) <= {0x0F, 0x33}


@pytest.mark.parametrize("bits", [None, 2, 4, 8])
@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("blocks", [2, 3])
def test_packed_blocks(bits: int | None, points: bool, blocks: int) -> None:
    """Against onnxruntime: the product with ones is the sum of what is stored."""
    import onnxruntime as ort

    net, size = Net("packed", opset=21), bits or 4
    w = _bytes(net, 3, blocks, 16 * size // 8, name="w")
    zeros = _bytes(net, 3, -(-blocks * size // 8)) if points else None
    inputs = [net.input("x", (1, 16 * blocks)), w, net.uniform(0.1, 0.2, 3, blocks), zeros, None]
    y = coded(
        net, "MatMulNBits", *inputs, np.zeros(3, np.float32), shape=[1, 3], dtype=np.float32, N=3,
        K=16 * blocks, bits=bits, block_size=16,
    )  # fmt: skip
    graph = _graph(net, y)
    found = real(graph, "w")
    assert found.shape == (3, blocks, 16)
    session = ort.InferenceSession(graph.model.SerializeToString())
    (want,) = session.run(None, {"x": np.ones((1, 16 * blocks), np.float32)})
    np.testing.assert_allclose(found.sum((1, 2)), want[0], rtol=1e-4)
    _check_round_trip(graph, "w")


@pytest.mark.parametrize("kind", [None, 8, "int4", "uint4"])
@pytest.mark.parametrize("points", [False, True])
@pytest.mark.parametrize("blocks", [3, 4])
def test_a_table_in_blocks(kind: int | str | None, points: bool, blocks: int) -> None:
    """Against onnxruntime, which shows the rows."""
    import onnxruntime as ort

    net, per, width = Net("table", opset=21), 2 if kind is None else 1, 16 * blocks
    w, zeros = (net.rng.integers(0, 8, (5, -(-n // per))).astype(np.uint8) for n in (width, blocks))
    if isinstance(kind, str):
        w, zeros = (x.astype(getattr(ml_dtypes, kind)) for x in (w, zeros))
    elif kind is None:
        w, zeros = w * 17 // 2, zeros * 17 // 2
    inputs = [net.const(w, "w"), net.input("ids", (5,), np.int64), net.uniform(0.1, 0.2, 5, blocks)]
    inputs += [net.const(zeros)] if points else []
    y = coded(
        net, "GatherBlockQuantized", *inputs, shape=[5, width], dtype=np.float32, gather_axis=0,
        bits=kind if kind == 8 else None, quantize_axis=1, block_size=16,
    )  # fmt: skip
    graph = _graph(net, y)
    session = ort.InferenceSession(graph.model.SerializeToString())
    (want,) = session.run(None, {"ids": np.arange(5)})
    np.testing.assert_allclose(real(graph, "w").reshape(5, width), want, rtol=1e-5)


@pytest.mark.parametrize("bits", [None, 2, 8])
@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("points", [False, True])
def test_experts_in_bytes(bits: int | None, block: int, points: bool) -> None:
    """Against the meaning of the operator, written out; the third matrix is a gate."""
    net, size, experts, width = Net("experts", opset=21), bits or 4, 2, 32
    per = 8 // size
    inputs: list[Any] = [net.input("x", (3, width)), net.input("r", (3, experts))]
    scales, zeros = {}, {}
    for k in (2, 5, 8):
        shape = (experts, width, width // block) if block else (experts, width)
        scales[k] = net.rng.uniform(0.1, 0.2, shape).astype(np.float32)
        inputs += [_bytes(net, experts, width, width // per, name=f"w{k}"), scales[k], None]
    for k in (2, 5, 8) if points else ():
        shape = (experts, width, width // block) if block else (experts, width)
        zeros[k] = _bytes(net, *shape[:-1], -(-shape[-1] // per))
        inputs.append(zeros[k])
    inputs += [None] * (14 - len(inputs))
    inputs.append(net.input("shares", (3, experts)))
    made = coded(
        net, "QMoE", *inputs, shape=[3, width], dtype=np.float32, expert_weight_bits=bits,
        block_size=block or None,
    )  # fmt: skip
    graph = _graph(net, made)

    def unpacked(value: Any) -> Any:
        shifts = np.arange(0, 8, size)
        codes = (np.asarray(value).astype(int)[..., None] >> shifts) & (2**size - 1)
        return codes.reshape(*codes.shape[:-2], -1)

    for k in (2, 5, 8):
        codes = unpacked(graph.array(f"w{k}"))
        point = unpacked(zeros[k].values) if points else np.asarray(2 ** (size - 1))
        scale = scales[k]
        if block:
            scale = scale.repeat(block, -1)
            point = point[..., : width // block].repeat(block, -1) if points else point
        else:
            scale, point = scale[..., None], point[..., None] if points else point
        found = real(graph, f"w{k}")
        np.testing.assert_allclose(found.reshape(codes.shape), (codes - point) * scale, rtol=1e-5)
        _check_round_trip(graph, f"w{k}")


@pytest.mark.parametrize("code", range(16))
@pytest.mark.parametrize("quant_type", [0, 1])
def test_sixteen_numbers(quant_type: int, code: int) -> None:
    """The tables of FP4 and NF4 against onnxruntime."""
    import onnxruntime as ort

    net = Net("sixteen", opset=21)
    w = np.full(3 * 32 // 2, 17 * code, np.uint8)
    y = coded(
        net, "MatMulBnb4", net.input("x", (1, 32)), net.const(w, "w"), net.uniform(0.1, 0.2, 6),
        shape=[1, 3], dtype=np.float32, N=3, K=32, block_size=16, quant_type=quant_type,
    )  # fmt: skip
    graph = _graph(net, y)
    session = ort.InferenceSession(graph.model.SerializeToString())
    (want,) = session.run(None, {"x": np.ones((1, 32), np.float32)})
    np.testing.assert_allclose(real(graph, "w").reshape(3, -1).sum(1), want[0], rtol=1e-4)


def test_scales_and_zero_points_are_beside() -> None:
    graph, _ = _dequantised("uint8")
    node = next(n for n in graph.nodes if n.op_type == "DequantizeLinear")
    assert [is_beside(graph, name) for name in node.inputs] == [False, True, True]
    point = node.inputs[2]
    kept = nothing(graph, point, graph.array(point))
    assert kept is not None and (kept == graph.array(point)).all()


@pytest.mark.parametrize(
    ("value", "axes", "want"),
    [
        ([5], (), [[5, 5, 5, 5], [5, 5, 5, 5]]),
        ([1, 2], (0,), [[1, 1, 1, 1], [2, 2, 2, 2]]),
        ([1, 2, 3, 4], (-1,), [[1, 2, 3, 4], [1, 2, 3, 4]]),
        ([[1, 2], [3, 4]], (0,), [[1, 1, 2, 2], [3, 3, 4, 4]]),
    ],
)
def test_along(value: list[Any], axes: tuple[int, ...], want: list[list[int]]) -> None:
    assert along(np.asarray(value), (2, 4), axes).tolist() == want


def test_along_says_what_does_not_fit() -> None:
    with pytest.raises(ValueError):
        along(np.arange(3), (2, 4), ())
