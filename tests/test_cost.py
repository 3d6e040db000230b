"""The cost of a model: multiply-accumulates by operator, counted by hand; parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

import spa
from models.builder import Net, Tensor
from spa.cost import CostModel
from tests.ops.cases import CODE, codes, contrib, quantise

Body = Callable[[Net], Tensor]


def _conv(channels: int, out: int, k: int, groups: int = 1, stride: int = 1) -> Body:
    return lambda net: net.conv(
        net.input("x", [2, channels, 8, 8]), out, k, stride, groups=groups, bias=False
    )


def _transposed(groups: int) -> Body:
    return lambda net: net.conv_transpose(net.input("x", [2, 6, 4, 4]), 8, 2, 2, groups=groups)


def _deform(net: Net) -> Tensor:
    x, offset = net.input("x", [2, 6, 8, 8]), net.input("o", [2, 18, 6, 6])
    return net.node("DeformConv", x, net.weight(4, 6, 3, 3), offset, kernel_shape=[3, 3])


def _integer(net: Net) -> Tensor:
    w = net.const(net.rng.integers(-60, 60, (4, 6, 3, 3)).astype(np.int8))
    return net.node("ConvInteger", net.input("x", [2, 6, 8, 8], np.int8), w)


def _quantised(net: Net) -> Tensor:
    w = net.const(net.rng.integers(-60, 60, (4, 6, 3, 3)).astype(np.int8))
    scale, zero = np.float32(0.1), np.int8(0)
    x = net.input("x", [2, 6, 8, 8], np.int8)
    return net.node("QLinearConv", x, scale, zero, w, scale, zero, scale, zero)


def _spread(net: Net) -> Tensor:
    pads, x = net.const(np.zeros(4, np.int64)), net.input("x", [2, 6, 4, 4])
    inputs = [x, net.weight(6, 4, 2, 2), pads]
    return contrib(net, "ConvTransposeWithDynamicPads", inputs, (2, 8, 5, 5), group=2)[0]


def _projected(net: Net) -> Tensor:
    x, w = quantise(net, net.input("x", [2, 5, 6])), codes(net, 6, 24)
    inputs = [x, w, net.uniform(-1, 1, 24), CODE[0], CODE[0], None, CODE[1], CODE[1]]
    return contrib(net, "QAttention", inputs, (2, 5, 8), num_heads=2)[0]


def _gemm(a: list[int], b: tuple[int, int], **flags: int) -> Body:
    return lambda net: net.node("Gemm", net.input("x", a), net.weight(*b), **flags)


def _matmul(a: list[int], *b: int) -> Body:
    return lambda net: net.matmul(net.input("x", a), net.weight(*b, fan=4))


def _einsum(equation: str, *shapes: list[int]) -> Body:
    return lambda net: net.node(
        "Einsum", *(net.input(f"x{k}", s) for k, s in enumerate(shapes)), equation=equation
    )


def _attention(*shapes: list[int], past: int = 0) -> Body:
    def body(net: Net) -> Tensor:
        inputs: list[Any] = [net.input(f"x{k}", s) for k, s in enumerate(shapes)]
        heads = {"q_num_heads": 2, "kv_num_heads": 2} if len(shapes[0]) == 3 else {}
        if past:
            inputs.append(None)
            inputs += [net.input(f"p{d}", [2, 2, past, d]) for d in (4, 3)]
        return net.nodes("Attention", inputs, 3 if past else 1, **heads)[0]

    return body


def _experts(net: Net) -> Tensor:
    x, router = net.input("x", [2, 5, 8]), net.input("r", [10, 4])
    inputs: list[Any] = [x, router, net.weight(4, 6, 8), None, net.weight(4, 8, 6)]
    return contrib(net, "MoE", inputs, (2, 5, 8))[0]


def _heads(op: str, *shapes: tuple[int, ...], past: int = 0, **attrs: int) -> Body:
    """Attention of onnxruntime's own on inputs of these shapes; the last one is made."""

    def body(net: Net) -> Tensor:
        *given, made = shapes
        inputs: list[Any] = [net.input(f"x{k}", list(shape)) for k, shape in enumerate(given)]
        inputs += [None] * ((6 if op[0] == "M" else 3) - len(inputs)) if past else []
        size = made[-1] // attrs.get("num_heads", 2)
        heads = attrs.get("kv_num_heads", 2)
        steps = given[-1][1] if len(given) > 1 else made[1]
        more = [(2, heads, steps + past, size)] * 2 if past else []
        inputs += [net.input(f"p{k}", [2, heads, past, size]) for k in "kv"] if past else []
        if op[0] == "G":
            inputs += [net.const(np.full(n, steps + past - 1, np.int32)) for n in (2, 1)]
        return contrib(net, op, inputs, made, *more, **{"num_heads": 2, **attrs})[0]

    return body


def _onto(op: str, *rows: int, past: int = 0) -> Body:
    """Attention with its projection inside."""

    def body(net: Net) -> Tensor:
        inputs: list[Any] = [net.input("x", [*rows, 6]), net.weight(6, 24), net.weight(24)]
        if op == "PackedAttention":
            places = np.arange(10, dtype=np.int32).reshape(2, 5)
            inputs += [net.const(places), net.const(np.asarray([0, 5, 10], np.int32))]
        more = [(2, 2, 2, rows[1] + past, 4)] if past else []
        inputs += [None, net.input("p", [2, 2, 2, past, 4])] if past else []
        return contrib(net, op, inputs, (*rows, 8), *more, num_heads=2)[0]

    return body


def _recurrent(op: str, gates: int, ways: int = 1) -> Body:
    def body(net: Net) -> Tensor:
        more: dict[str, Any] = {"direction": "bidirectional"} if ways == 2 else {}
        x = net.input("x", [5, 2, 6])
        w, r = net.weight(ways, gates * 4, 6), net.weight(ways, gates * 4, 4)
        return net.nodes(op, [x, w, r], 1, hidden_size=4, **more)[0]

    return body


def _scan(net: Net) -> Tensor:
    """A sum of products of five slices."""
    x, start = net.input("x", [2, 5, 6]), net.const(np.zeros((2, 4), np.float32))
    state = gs.Variable("state", np.dtype(np.float32), [2, 4])
    slice_ = gs.Variable("slice", np.dtype(np.float32), [2, 6])
    with net.body(state, slice_) as body:
        body.outputs = [net.add(state, net.matmul(slice_, net.weight(6, 4)))]
    return net.node(
        "Scan", start, x, shape=[2, 4], body=body, num_scan_inputs=1, scan_input_axes=[1]
    )


def _eight_bits(net: Net) -> Tensor:
    w, r, code = codes(net, 2, 6, 16), codes(net, 2, 4, 16), [np.full(2, c) for c in CODE]
    inputs = [net.input("x", [5, 2, 6]), w, r, *[None] * 5, *code, *code]
    shape = (5, 2, 2, 4)
    way = "bidirectional"
    return contrib(net, "DynamicQuantizeLSTM", inputs, shape, hidden_size=4, direction=way)[0]


MACS: dict[str, tuple[Body, int]] = {
    "Conv": (_conv(6, 4, 3), 2 * 4 * 8 * 8 * 6 * 9),
    "Conv-stride": (_conv(6, 4, 3, stride=2), 2 * 4 * 4 * 4 * 6 * 9),
    "Conv-1x1": (_conv(6, 4, 1), 2 * 4 * 8 * 8 * 6),
    "Conv-grouped": (_conv(6, 4, 3, groups=2), 2 * 4 * 8 * 8 * 3 * 9),
    "Conv-depthwise": (_conv(6, 6, 3, groups=6), 2 * 6 * 8 * 8 * 9),
    "ConvTranspose": (_transposed(1), 2 * 6 * 4 * 4 * 8 * 4),
    "ConvTranspose-grouped": (_transposed(2), 2 * 6 * 4 * 4 * 4 * 4),
    "DeformConv": (_deform, 2 * 4 * 6 * 6 * 6 * 9),
    "ConvInteger": (_integer, 2 * 4 * 6 * 6 * 6 * 9),
    "QLinearConv": (_quantised, 2 * 4 * 6 * 6 * 6 * 9),
    "ConvTransposeWithDynamicPads": (_spread, 2 * 6 * 4 * 4 * 4 * 4),
    "QAttention": (_projected, 2 * 5 * 6 * 24 + 2 * 2 * 5 * 5 * 8),
    "Gemm": (_gemm([5, 6], (6, 7)), 5 * 6 * 7),
    "Gemm-transA": (_gemm([6, 5], (6, 7), transA=1), 5 * 6 * 7),
    "Gemm-transB": (_gemm([5, 6], (7, 6), transB=1), 5 * 6 * 7),
    "MatMul": (_matmul([2, 5, 6], 6, 7), 2 * 5 * 6 * 7),
    "MatMul-batched": (_matmul([3, 5, 6], 2, 1, 6, 7), 2 * 3 * 5 * 6 * 7),
    "MatMul-by-vector": (_matmul([5, 6], 6), 5 * 6),
    "MatMul-of-vector": (_matmul([6], 6, 7), 6 * 7),
    "MatMul-of-vectors": (_matmul([6], 6), 6),
    "Einsum": (_einsum("bsd,dh->bsh", [2, 5, 6], [6, 7]), 2 * 5 * 6 * 7),
    "Einsum-heads": (
        _einsum("bqhd,bkhd->bhqk", [2, 3, 4, 5], [2, 6, 4, 5]), 2 * 3 * 4 * 5 * 6),
    "Einsum-two-sums": (_einsum("abcd,cde->abe", [2, 3, 4, 5], [4, 5, 6]), 2 * 3 * 4 * 5 * 6),
    "Einsum-three": (_einsum("ab,bc,cd->ad", [2, 3], [3, 4], [4, 5]), 2 * 3 * 4 * 5),
    "Einsum-implicit": (_einsum("ab,bc", [2, 3], [3, 4]), 2 * 3 * 4),
    "Attention": (_attention([2, 5, 8], [2, 7, 8], [2, 7, 6]), 2 * 5 * 7 * (8 + 6)),
    "Attention-apart": (
        _attention([2, 2, 5, 4], [2, 2, 7, 4], [2, 2, 7, 3]), 2 * 2 * 5 * 7 * (4 + 3)),
    "Attention-past": (
        _attention([2, 5, 8], [2, 7, 8], [2, 7, 6], past=9), 2 * 5 * 16 * (8 + 6)),
    "MultiHeadAttention": (_heads(
        "MultiHeadAttention", (2, 5, 8), (2, 7, 8), (2, 7, 6), (2, 5, 6)), 2 * 5 * 7 * (8 + 6)),
    "MultiHeadAttention-cache": (_heads(
        "MultiHeadAttention", (2, 5, 8), (2, 2, 7, 4), (2, 2, 7, 4), (2, 5, 8)), 2 * 5 * 7 * 16),
    "MultiHeadAttention-past": (_heads(
        "MultiHeadAttention", (2, 5, 8), (2, 7, 8), (2, 7, 8), (2, 5, 8), past=9), 2 * 5 * 16 * 16),
    "MultiHeadAttention-in-one": (_heads(
        "MultiHeadAttention", (2, 5, 2, 3, 4), (2, 5, 8)), 2 * 5 * 5 * 16),
    "MultiHeadAttention-keys-and-values-in-one": (_heads(
        "MultiHeadAttention", (2, 5, 8), (2, 7, 2, 2, 4), (2, 5, 8)), 2 * 5 * 7 * 16),
    "PackedMultiHeadAttention": (_heads(
        "PackedMultiHeadAttention", (10, 8), (10, 8), (10, 6), (10, 6)), 10 * 10 * (8 + 6)),
    "PackedMultiHeadAttention-in-one": (_heads(
        "PackedMultiHeadAttention", (10, 2, 3, 4), (10, 8)), 10 * 10 * 16),
    "GroupQueryAttention": (_heads(
        "GroupQueryAttention", (2, 1, 32), (2, 1, 16), (2, 1, 16), (2, 1, 32), past=6, num_heads=4,
        kv_num_heads=2), 2 * 1 * 7 * 64),
    "GroupQueryAttention-in-one": (_heads(
        "GroupQueryAttention", (2, 1, 64), (2, 1, 32), past=6, num_heads=4, kv_num_heads=2),
        2 * 1 * 7 * 64),
    "onnxruntime's Attention": (_onto("Attention", 2, 5), 2 * 5 * 6 * 24 + 2 * 2 * 5 * 8 * 5),
    "onnxruntime's Attention-past": (
        _onto("Attention", 2, 5, past=9), 2 * 5 * 6 * 24 + 2 * 2 * 5 * 8 * 14),
    "PackedAttention": (_onto("PackedAttention", 10), 10 * 6 * 24 + 2 * 10 * 8 * 10),
    "LSTM": (_recurrent("LSTM", 4), 5 * 2 * 16 * (6 + 4)),
    "LSTM-both-ways": (_recurrent("LSTM", 4, 2), 5 * 2 * 2 * 16 * (6 + 4)),
    "GRU": (_recurrent("GRU", 3), 5 * 2 * 12 * (6 + 4)),
    "RNN": (_recurrent("RNN", 1), 5 * 2 * 4 * (6 + 4)),
    "DynamicQuantizeLSTM": (_eight_bits, 5 * 2 * 2 * 16 * (6 + 4)),
    "MoE": (_experts, 10 * 2 * 6 * 8),
    "Scan": (_scan, 5 * 2 * 6 * 4),
    "Relu": (lambda net: net.relu(net.input("x", [2, 3])), 0),
}  # fmt: skip


@pytest.mark.parametrize("name", MACS)
def test_macs(name: str) -> None:
    body, expected = MACS[name]
    net = Net("cost", opset=23)
    model = net.model(body(net), ir_version=10)
    assert CostModel(spa.analyze(model))().macs == expected


def test_parameters_count_every_stored_weight_once() -> None:
    net = Net("cost")
    x = net.relu(net.gemm(net.input("x", [2, 6]), 8))
    y = net.add(net.gemm(x, 3), net.const(np.zeros(3, np.int64).astype(np.float32)))
    assert CostModel(spa.analyze(net.model(y)))().params == 6 * 8 + 8 + 8 * 3 + 3 + 3
