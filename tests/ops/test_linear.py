"""Matrix products: every rank of MatMul, every flag of Gemm, equations of Einsum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

import spa
from models.builder import Net, Tensor
from spa.cost import CostModel
from spa.rewrite import rewrite
from spa.rules import MICROSOFT
from tests.ops.cases import (
    CODE,
    IMAGE,
    ROWS,
    TOKENS,
    UNSEEN,
    Body,
    Case,
    case,
    coded,
    contrib,
    dequantise,
    quantise,
    summing,
)
from tests.oracle import check_sizes, choices


def _times(*shape: int) -> Body:
    """The producer's output times a weight of this shape."""
    return lambda net, a: net.matmul(net.relu(a), net.weight(*shape, fan=8))


def _gemm(
    bias: tuple[int, ...] | None, *, trans_a: bool = False, trans_b: bool = False, **attrs: Any
) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        a = net.transpose(a, 1, 0) if trans_a else a
        w = net.weight(7, 8) if trans_b else net.weight(8, 7, fan=8)
        c = [] if bias is None else [net.uniform(-1, 1, *bias)]
        return net.node("Gemm", a, w, *c, transA=int(trans_a), transB=int(trans_b), **attrs)

    return body


def _einsum(equation: str, *shapes: tuple[int, ...]) -> Body:
    return lambda net, a: net.node(
        "Einsum", net.relu(a), *(net.weight(*s, fan=8) for s in shapes), equation=equation
    )


def _attention(net: Net, a: Tensor) -> Tensor:
    q, k, v = (net.linear(a, 6) for _ in "qkv")
    return net.matmul(net.softmax(net.matmul(q, net.transpose(k, 0, 2, 1))), v)


def _heads(net: Net, a: Tensor, count: int = 2, d: int = 4) -> Tensor:
    return net.transpose(net.reshape(net.linear(a, count * d), [0, 0, count, d]), 0, 2, 1, 3)


def _multi_head(net: Net, a: Tensor) -> Tensor:
    q, k, v = (_heads(net, a) for _ in "qkv")
    y = net.matmul(net.softmax(net.matmul(q, net.transpose(k, 0, 1, 3, 2))), v)
    return net.reshape(net.transpose(y, 0, 2, 1, 3), [0, 0, 8])


def _einsum_heads(net: Net, a: Tensor) -> Tensor:
    q, k, v = (net.reshape(net.linear(a, 8), [0, 0, 2, 4]) for _ in "qkv")
    scores = net.softmax(net.node("Einsum", q, k, equation="bqhd,bkhd->bhqk"))
    return net.reshape(net.node("Einsum", scores, v, equation="bhqk,bkhd->bqhd"), [0, 0, 8])


def _gram(net: Net, a: Tensor) -> Tensor:
    flat = net.reshape(a, [2, 8, 36])
    gram = net.matmul(flat, net.transpose(flat, 0, 2, 1))
    return net.unsqueeze(net.matmul(gram, net.weight(8, 4)), 3)


def _left_weight(net: Net, a: Tensor) -> Tensor:
    """Mixes tokens: rows of the weight are outputs, its columns the 5 tokens."""
    mixed = net.matmul(net.weight(4, 5), a)
    return net.matmul(net.weight(3, 4), net.relu(mixed))


MATMUL = [
    case("rows", 2, _times(8, 7), shape=ROWS, exact=True),
    case("tokens", 2, _times(8, 7), shape=TOKENS, exact=True),
    case("last-axis-of-image", 1, lambda net, a: net.matmul(a, net.weight(6, 4)), exact=True),
    case("by-vector", 1, lambda net, a: (net.matmul(a, net.weight(8)),), shape=TOKENS, exact=True),
    case("vector-times-rows", 1, lambda net, a: net.unsqueeze(net.matmul(net.weight(4), a), 0),
         shape=ROWS, exact=True),
    case("vector-times-tokens", 1, lambda net, a: net.matmul(net.weight(5), a), shape=TOKENS,
         exact=True),
    case("vector-times-vector", 1, lambda net, a: (net.matmul(net.weight(8), net.gather(
        a, np.int64(1))),), shape=ROWS, exact=True),
    case("batched-weight", 2, _times(2, 8, 7), shape=TOKENS, exact=True),
    case("broadcast-weight", 2, _times(1, 8, 7), shape=TOKENS, exact=True),
    case("weight-of-higher-rank", 2, _times(3, 1, 8, 7), shape=TOKENS, exact=True),
    # The 4 mixed tokens are removable: a unit each of the first weight's rows.
    case("weight-on-the-left", 2, _left_weight, shape=TOKENS, exact=True),
    case("one-column", 1, _times(8, 1), shape=TOKENS, exact=True),
    case("two-layers", 3, lambda net, a: _times(7, 6)(net, _times(8, 7)(net, a)), shape=TOKENS),
    case("weight-transposed", 2, lambda net, a: net.matmul(
        a, net.transpose(net.weight(7, 8), 1, 0)), shape=TOKENS, exact=True),
    case("weight-tied", 1, lambda net, a: net.matmul(net.matmul(
        a, w := net.weight(8, 8)), w), shape=TOKENS, exact=True),
    case("gram", 1, _gram, exact=True),
    # q and k share one group, v has its own.
    case("single-head-attention", 3, _attention, shape=TOKENS, exact=True),
    # heads; head dims of q and k; head dims of v; and the producer's channels.
    case("multi-head-attention", 4, _multi_head, shape=TOKENS, exact=True),
    # the producer, queries, the slots that both tables have, values.
    case("fixed-keys", 4, lambda net, a: net.matmul(
        net.softmax(net.matmul(net.linear(a, 6), net.weight(6, 4))), net.weight(4, 7)),
        shape=TOKENS),
]  # fmt: skip

GEMM = [
    case("gemm", 2, _gemm((7,)), shape=ROWS, exact=True),
    case("transA", 2, _gemm((7,), trans_a=True), shape=ROWS, exact=True),
    case("transB", 2, _gemm((7,), trans_b=True), shape=ROWS, exact=True),
    case("transAB", 2, _gemm((7,), trans_a=True, trans_b=True), shape=ROWS, exact=True),
    case("no-bias", 2, _gemm(None), shape=ROWS, exact=True),
    case("bias-of-one", 2, _gemm((1,)), shape=ROWS, exact=True),
    case("bias-scalar", 2, _gemm(()), shape=ROWS, exact=True),
    case("bias-row", 2, _gemm((1, 7)), shape=ROWS, exact=True),
    case("bias-column", 2, _gemm((4, 1)), shape=ROWS, exact=True),
    case("bias-full", 2, _gemm((4, 7)), shape=ROWS, exact=True),
    case("alpha-beta", 2, _gemm((7,), alpha=0.5, beta=2.0), shape=ROWS, exact=True),
    case("opset-7", 2, _gemm((7,), trans_b=True), shape=ROWS, opset=7, exact=True),
    case("opset-9", 2, _gemm((1, 7)), shape=ROWS, opset=9, exact=True),
    case("left-weight", 1, lambda net, a: net.transpose(net.node(
        "Gemm", net.weight(3, 4), a, net.uniform(-1, 1, 8)), 0, 1), shape=ROWS),
    case("of-two-activations", 1, lambda net, a: (net.node("Gemm", a, a, transB=1),), shape=ROWS,
         exact=True),
    case("after-flatten", 2, lambda net, a: net.gemm(net.flatten(a), 7), exact=True),
]  # fmt: skip

EINSUM = [
    case("bsd,dh->bsh", 2, _einsum("bsd,dh->bsh", (8, 7)), shape=TOKENS, exact=True),
    case("implicit", 2, _einsum("bsd,dt", (8, 7)), shape=TOKENS, exact=True),
    case("implicit-ellipsis", 2, _einsum("...d,dh", (8, 7)), shape=TOKENS, exact=True),
    case("ellipsis", 2, _einsum("...d,dh->...h", (8, 7)), shape=TOKENS, exact=True),
    case("capitals", 2, _einsum("bsA,Aa->bsa", (8, 7)), shape=TOKENS, exact=True),
    case("spaces", 2, _einsum("b s d, h d -> b s h", (7, 8)), shape=TOKENS, exact=True),
    case("permute", 1, _einsum("bsd->sbd"), shape=TOKENS, exact=True),
    case("sum-out", 1, lambda net, a: (net.node("Einsum", net.relu(a), equation="bsd->bs"),),
         shape=TOKENS, exact=True),
    case("sum-out-speaking", 1, lambda net, a: (
        net.node("Einsum", net.sigmoid(a), equation="bsd->bs"),), shape=TOKENS, exact=False),
    case("outer", 1, lambda net, a: (
        net.node("Einsum", a, net.linear(a, 8), equation="bsd,btd->bst"),), shape=TOKENS),
    case("scale", 1, _einsum("bsd,d->bsd", (8,)), shape=TOKENS, exact=True),
    # (b s d, d e, e f): the producer, the inner index e, and f before the consumer.
    case("three-terms", 3, _einsum("bsd,de,ef->bsf", (8, 6), (6, 7)), shape=TOKENS, exact=True),
    case("channels", 2, _einsum("bchw,oc->bohw", (6, 8)), shape=IMAGE, exact=True),
    case("heads", 4, _einsum_heads, shape=TOKENS, exact=True),
    # the producer, heads, head dims, values: every letter has an axis of its own.
    case("projection-to-heads", 4, lambda net, a: net.node(
        "Einsum", net.node("Einsum", a, net.weight(8, 2, 4), equation="bsd,dhe->bshe"),
        net.weight(2, 4, 7), equation="bshe,hef->bsf"), shape=TOKENS),
    case("diagonal", 1, lambda net, a: net.node(
        "Einsum", net.reshape(net.linear(a, 25), [2, 5, 5, 5]), equation="bsii->bsi"),
        shape=TOKENS, refused=True),
    case("opset-12", 2, _einsum("bsd,dh->bsh", (8, 7)), shape=TOKENS, opset=12, exact=True),
]  # fmt: skip


def _stored(net: Net, *shape: int) -> Tensor:
    return net.const(net.rng.integers(68, 188, shape).astype(np.uint8), "stored")


def _points(shape: tuple[int, ...]) -> Any:
    return (120 + np.arange(np.prod(shape)).reshape(shape) % 5).astype(np.uint8)


def _integer(*points: tuple[int, ...], dynamic: bool = False) -> Body:
    """Rows in eight bits times a weight in eight bits, with zero points of these shapes."""

    def body(net: Net, a: Tensor) -> Tensor:
        zeros: list[Any] = [_points(shape) for shape in points]
        if dynamic:
            x, _, zeros[0] = net.nodes("DynamicQuantizeLinear", [a], 3)
        else:
            x = net.node("QuantizeLinear", a, np.float32(0.03), np.uint8(120))
        y = net.node("MatMulInteger", x, _stored(net, 8, 6), *zeros)
        return net.mul(net.cast(y, TensorProto.FLOAT), 1e-3)

    return body


def _qlinear(
    rows: tuple[int, ...] = (), columns: tuple[int, ...] = (), one_point: bool = False
) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        scale, point = np.float32(0.03), np.uint8(120)
        x = net.node("QuantizeLinear", a, scale, point)
        a_scale = np.full(rows, scale) if rows else scale
        b_scale = np.full(columns, np.float32(0.01)) if columns else np.float32(0.01)
        y = net.node(
            "QLinearMatMul", x, a_scale, np.full(rows, point) if rows else point,
            _stored(net, 8, 6), b_scale, _points(() if one_point else columns), np.float32(0.1),
            np.uint8(99),
        )  # fmt: skip
        return net.node("DequantizeLinear", y, np.float32(0.1), np.uint8(99))

    return body


def _to_float(*columns: int, points: bool = True, bias: bool = True) -> Body:
    """MatMulInteger and what scales it, in one."""

    def body(net: Net, a: Tensor) -> Tensor:
        scale = np.linspace(0.01, 0.02, columns[0] if columns else 1, dtype=np.float32)
        more = [np.uint8(120), _points(columns)] if points else [None, None]
        return coded(
            net, "MatMulIntegerToFloat", net.node("QuantizeLinear", a, np.float32(0.03), np.uint8(
            120)), _stored(net, 8, 6), np.float32(0.03), scale if columns else scale[0], *more,
            net.uniform(-1, 1, 6) if bias else None, shape=[*a.shape[:-1], 6], dtype=np.float32,
        )  # fmt: skip

    return body


def _dynamic(
    *columns: int, bias: bool = True, speaks: bool = False, one_point: bool = False
) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        a = net.sigmoid(a) if speaks else a
        scale = np.linspace(0.01, 0.02, columns[0] if columns else 1, dtype=np.float32)
        return coded(
            net, "DynamicQuantizeMatMul", a, _stored(net, 8, 6), scale if columns else scale[0],
            _points(() if one_point else columns), net.uniform(-1, 1, 6) if bias else None,
            shape=[*a.shape[:-1], 6],
            dtype=np.float32,
        )  # fmt: skip

    return body


def _made(net: Net, *shape: int) -> Tensor:
    """A stored weight in eight bits that is not zero where an index of it is removed."""
    return quantise(net, net.sigmoid(net.weight(*shape)))


def _qgemm(
    *columns: int,
    bias: tuple[int, ...] | None = (6,),
    back: bool = True,
    speaks: str = "",
    **attrs: Any,
) -> Body:
    """speaks: which of x, w and c hold something where an index is removed."""

    def body(net: Net, a: Tensor) -> Tensor:
        a = net.sigmoid(a) if "x" in speaks else a
        x = quantise(net, net.transpose(a, 1, 0) if attrs.get("transA") else a)
        weight = _made if "w" in speaks else _stored
        w = weight(net, *((6, 8) if attrs.get("transB") else (8, 6)))
        scale = np.full(columns, 0.01, np.float32) if columns else np.float32(0.01)
        c = None
        if bias is not None:
            c = net.const(net.rng.integers(-500, 500, bias).astype(np.int32))
        if "c" in speaks:
            c = net.cast(net.add(net.uniform(-1, 1, 6), 99.0), TensorProto.INT32)
        made = coded(
            net, "QGemm", x, *CODE, w, scale, _points(columns), c,
            *(CODE if back else ()),
            shape=[a.shape[0], 6], dtype=np.uint8 if back else np.float32, **attrs,
        )  # fmt: skip
        return dequantise(net, made) if back else made

    return body


def _of_columns(net: Net, a: Tensor, **attrs: Any) -> Tensor:
    """The channels are the rows of what is made."""
    x = quantise(net, a if attrs else net.transpose(a, 1, 0))
    c = net.const(net.rng.integers(-500, 500, (8, 6)).astype(np.int32))
    inputs = [x, *CODE, _stored(net, 4, 6), *CODE, c if attrs else None, *CODE]
    made = coded(net, "QGemm", *inputs, shape=[8, 6], **attrs)
    return net.transpose(dequantise(net, made), 1, 0)


def _codes(*shape: int) -> list[Any]:
    return [np.full(shape, CODE[0]), np.full(shape, CODE[1])]


def _of_rows(op: str, *rows: int, one_point: bool = False) -> Body:
    """Scales and zero points for every row, and the channels are the rows; or what is summed."""

    def body(net: Net, a: Tensor) -> Tensor:
        summed = op == "MatMulIntegerToFloat"
        x = quantise(net, a if summed else net.transpose(a, 1, 0))
        w, (scale, point) = _stored(net, 8 if summed else 4, 6), _codes(*rows)
        point = CODE[1] if one_point else point
        inputs = {
            "QLinearMatMul": [x, scale, point, w, *CODE, *CODE],
            "MatMulInteger": [x, w, point],
            "MatMulIntegerToFloat": [x, w, scale, CODE[0], point, CODE[1]],
        }[op]
        y = _node(net, op, inputs, (4 if summed else 8, 6))
        return y if summed else net.transpose(y, 1, 0)

    return body


def _of_each(op: str) -> Body:
    """Scales and zero points for every row and column of every matrix; the channels count these."""

    def body(net: Net, a: Tensor) -> Tensor:
        x, w = quantise(net, net.transpose(a, 2, 1, 0)), _stored(net, 8, 2, 6)
        rows, sums, columns = _codes(8, 5, 1), _codes(8, 1, 2), _codes(8, 1, 6)
        inputs = {
            "QLinearMatMul": [x, *rows, w, *columns, *CODE],
            "MatMulInteger": [x, w, rows[1], columns[1]],
            "MatMulIntegerToFloat": [x, w, sums[0], columns[0], sums[1], columns[1]],
        }[op]
        return net.node("ReduceSum", _node(net, op, inputs, (8, 5, 6)), [0], keepdims=0)

    return body


def _node(net: Net, op: str, inputs: list[Any], shape: tuple[int, ...]) -> Tensor:
    """Of either domain, and its floats."""
    if op == "MatMulIntegerToFloat":
        return coded(net, op, *inputs, shape=shape, dtype=np.float32)
    dtype = np.int32 if op == "MatMulInteger" else np.uint8
    y = net.nodes(op, inputs, shapes=[shape], dtype=dtype)[0]
    return net.cast(y, TensorProto.FLOAT) if op == "MatMulInteger" else dequantise(net, y)


def _from_the_left(op: str) -> Body:
    """A stored matrix times rows that speak: removed columns hold the zero point."""

    def body(net: Net, a: Tensor) -> Tensor:
        x, w = net.transpose(quantise(net, net.sigmoid(a)), 0, 2, 1), _stored(net, 6, 8)
        points = [np.uint8(123), CODE[1]]
        if op == "MatMulInteger":
            y = net.cast(net.node(op, w, x, *points), TensorProto.FLOAT)
        else:
            inputs = [w, x, CODE[0], CODE[0], *points]
            y = coded(net, op, *inputs, shape=[2, 6, 5], dtype=np.float32)
        return net.transpose(y, 0, 2, 1)

    return body


def _sixteen(net: Net, a: Tensor) -> Tensor:
    x = net.cast(net.mul(a, 100.0), TensorProto.INT16)
    w = net.const(net.rng.integers(-99, 99, (8, 6)).astype(np.int16), "stored")
    y = coded(net, "MatMulInteger16", x, w, shape=[*a.shape[:-1], 6], dtype=np.int32)
    return net.mul(net.cast(y, TensorProto.FLOAT), 1e-4)


QUANTISED = [
    case("MatMulIntegerToFloat", 2, _to_float(), shape=TOKENS, exact=True),
    case("MatMulIntegerToFloat-per-column", 2, _to_float(6), shape=TOKENS, exact=True),
    case("MatMulIntegerToFloat-no-points", 2, _to_float(points=False, bias=False), shape=ROWS,
         exact=True),
    case("DynamicQuantizeMatMul", 2, _dynamic(), shape=TOKENS, exact=True),
    case("DynamicQuantizeMatMul-per-column", 2, _dynamic(6), shape=ROWS, exact=True),
    case("DynamicQuantizeMatMul-per-column-but-one-point", 2, _dynamic(6, one_point=True),
         shape=ROWS, exact=True),
    case("QLinearMatMul-per-column-but-one-point", 2, _qlinear(columns=(6,), one_point=True),
         shape=ROWS, exact=True, typed=True),
    case("DynamicQuantizeMatMul-no-bias", 2, _dynamic(6, bias=False), shape=ROWS, exact=True),
    case("DynamicQuantizeMatMul-of-what-speaks", 2, _dynamic(speaks=True), shape=ROWS, inexact=1),
    case("QGemm", 2, _qgemm(), shape=ROWS, exact=True),
    case("QGemm-per-column", 2, _qgemm(6), shape=ROWS, exact=True),
    case("QGemm-transposed", 2, _qgemm(6, transA=1, transB=1), shape=ROWS, exact=True),
    case("QGemm-to-floats", 2, _qgemm(back=False, bias=None), shape=ROWS, exact=True),
    case("QGemm-to-floats-with-bias", 2, _qgemm(back=False), shape=ROWS, exact=True),
    case("QGemm-without-bias", 2, _qgemm(bias=None), shape=ROWS, exact=True),
    case("QGemm-of-what-speaks", 2, _qgemm(6, speaks="x"), shape=ROWS, exact=True),
    case("QGemm-transposed-of-what-speaks", 2, _qgemm(6, speaks="x", transB=1), shape=ROWS,
         exact=True),
    case("QGemm-by-what-speaks", 2, _qgemm(speaks="w"), shape=ROWS, exact=True),
    case("QGemm-of-and-by-what-speaks", 2, _qgemm(speaks="xw"), shape=ROWS, inexact=1),
    *(case(f"QGemm-bias-{len(bias)}", 2, _qgemm(bias=bias), shape=ROWS, exact=True)
      for bias in ((), (1, 6), (4, 6))),
    case("QGemm-summed", 2, summing(_qgemm(), -1), shape=ROWS, exact=True),
    case("QGemm-and-what-speaks-summed", 2, summing(_qgemm(speaks="c"), -1), shape=ROWS, inexact=1),
    case("QGemm-of-columns", 1, _of_columns, shape=ROWS, exact=True),
    case("QGemm-of-columns-transposed", 1, lambda net, a: _of_columns(net, a, transA=1),
         shape=ROWS, exact=True),
    *(case(f"{op}-from-the-left", 2, _from_the_left(op), shape=TOKENS, exact=True)
      for op in ("MatMulInteger", "MatMulIntegerToFloat")),
    case("MatMulInteger16", 2, _sixteen, shape=TOKENS, exact=True),
    case("MatMulInteger16-of-what-speaks", 2, lambda net, a: _sixteen(net, net.sigmoid(a)),
         shape=TOKENS, exact=True),
    case("MatMulInteger", 2, _integer(), shape=ROWS, exact=True),
    case("MatMulInteger-points", 2, _integer((), ()), shape=ROWS, exact=True),
    case("MatMulInteger-of-tokens", 2, _integer((), ()), shape=TOKENS, exact=True),
    case("MatMulInteger-per-column", 2, _integer((), (6,)), shape=ROWS, exact=True),
    case("MatMulInteger-of-what-speaks", 2, lambda net, a: _integer((), (6,))(net, net.sigmoid(a)),
         shape=ROWS, exact=True),
    case("QLinearMatMul-of-what-speaks", 2, lambda net, a: _qlinear(columns=(6,))(
        net, net.sigmoid(a)), shape=ROWS, exact=True),
    case("MatMulInteger-dynamic", 2, _integer((), (6,), dynamic=True), shape=TOKENS, exact=True),
    case("QLinearMatMul", 2, _qlinear(), shape=ROWS, exact=True),
    case("QLinearMatMul-of-tokens", 2, _qlinear(), shape=TOKENS, exact=True),
    case("QLinearMatMul-per-column", 2, _qlinear(columns=(6,)), shape=ROWS, exact=True),
    case("QLinearMatMul-opset-21", 2, _qlinear(), shape=ROWS, opset=21, exact=True),
]  # fmt: skip

# No kernel takes these, and no list for that: only sizes are checked.
FINE = (
    *(case(f"{op}-per-row-{len(rows)}", 1 + (op[-1] == "t"), _of_rows(op, *rows), shape=ROWS,
           typed=True)
      for op, *forms in (("QLinearMatMul", (8,), (8, 1)), ("MatMulInteger", (8,), (8, 1)),
                         ("MatMulIntegerToFloat", (8,), (1, 8)))
      for rows in forms),
    case("QLinearMatMul-per-row-but-one-point", 1, _of_rows("QLinearMatMul", 8, one_point=True),
         shape=ROWS, typed=True),
    *(case(f"{op}-of-each", 2, _of_each(op), shape=TOKENS, typed=True)
      for op in ("QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat")),
)  # fmt: skip


@pytest.mark.parametrize("row", FINE)
def test_scales_of_rows_and_columns(row: Case) -> None:
    groups = spa.analyze(row.model())
    assert len(groups) == row.groups
    sizes = {group.size for group in groups}
    live = {
        (name, k)
        for name, constant in groups.graph.constants.items()
        for k, size in enumerate(constant.shape)
        if size in sizes and name != "MatMul_0.weight"
    }
    assert live <= {(member.tensor, member.axis) for group in groups for member in group.members}
    for removed in choices(groups, 0):
        check_sizes(groups, rewrite(groups, removed), removed)


def _product(
    a_shape: str = "", b_shape: str = "", *, op: str = "FusedMatMul", transA: int = 0,
    transB: int = 0, transBatchA: int = 0, transBatchB: int = 0, stored: bool = True,
) -> Body:  # fmt: skip
    """A product with transposed operands; the batch may stand between the two others."""

    def body(net: Net, a: Tensor) -> Tensor:
        # (2, 5, 8), as (rows, batch, columns) where the batch stands between
        a = net.transpose(a, 1, 0, 2) if transBatchA else a
        if transA:
            a = net.transpose(a, 2, 1, 0) if transBatchA else net.transpose(a, 0, 2, 1)
        flags = {"transA": transA, "transB": transB, "transBatchA": transBatchA,
                 "transBatchB": transBatchB}  # fmt: skip
        flags = {name: n for name, n in flags.items() if n}
        if stored and not transBatchB:
            b = net.weight(7, 8) if transB else net.weight(8, 7, fan=8)
        else:
            b = net.weight(2, 8, 7, fan=8)
            b = net.const(np.swapaxes(b.values, 1, 2).copy()) if transB else b
            b = net.const(np.moveaxis(b.values, 0, 1).copy()) if transBatchB else b
        return contrib(net, op, [a, b], (2, 5, 7), alpha=0.5, **flags)[0]

    return body


def _scores(net: Net, a: Tensor) -> Tensor:
    """Attention with the scale and the transposition inside the product."""
    q, k, v = (_heads(net, a) for _ in "qkv")
    scores = contrib(net, "FusedMatMul", [q, k], (2, 2, 5, 5), transB=1, alpha=0.5)[0]
    y = net.matmul(net.softmax(scores), v)
    return net.reshape(net.transpose(y, 0, 2, 1, 3), [0, 0, 8])


def _fused_gemm(activation: str, trans_a: bool = False, trans_b: bool = False) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        a = net.transpose(a, 1, 0) if trans_a else a
        w = net.weight(7, 8) if trans_b else net.weight(8, 7, fan=8)
        flags: dict[str, Any] = {"transA": int(trans_a) or None, "transB": int(trans_b) or None}
        if activation == "LeakyRelu":
            flags["activation_alpha"] = 0.1
        inputs = [a, w, net.uniform(-1, 1, 7)]
        return contrib(net, "FusedGemm", inputs, (4, 7), activation=activation, **flags)[0]

    return body


def _gemm_gelu(speaks: str = "") -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        w, b = net.weight(8, 7, fan=8), net.uniform(-1, 1, 7)
        inputs = [a, net.sigmoid(w) if "w" in speaks else w, net.sigmoid(b) if speaks == "b" else b]
        return contrib(net, "GemmFastGelu", inputs, (2, 5, 7))[0]

    return body


def _short(net: Net, a: Tensor) -> Tensor:
    whole = net.cast(net.mul(a, 50.0), TensorProto.INT16)
    b = net.const(net.rng.integers(-50, 50, (8, 7)).astype(np.int16))
    y = net.nodes("MatMulInteger16", [whole, b], shapes=[(2, 5, 7)], dtype=np.int32,
                  domain=MICROSOFT)[0]  # fmt: skip
    return net.mul(net.cast(y, TensorProto.FLOAT), 1e-3)


CONTRIB = [
    case("fused-product", 2, _product(), shape=TOKENS, exact=True),
    case("fused-product-a", 2, _product(transA=1), shape=TOKENS, exact=True),
    case("fused-product-b", 2, _product(transB=1), shape=TOKENS, exact=True),
    case("fused-product-a-b", 2, _product(transA=1, transB=1), shape=TOKENS, exact=True),
    case("TransposeMatMul", 2, _product(op="TransposeMatMul", transB=1), shape=TOKENS, exact=True),
    case("fused-batch-a", 2, _product(transBatchA=1, stored=False), shape=TOKENS, exact=True),
    case("fused-batch-a-turned", 2, _product(transBatchA=1, transA=1, stored=False), shape=TOKENS,
         exact=True),
    case("fused-batch-b", 2, _product(transBatchB=1), shape=TOKENS, exact=True),
    case("fused-batch-b-turned", 2, _product(transBatchB=1, transB=1), shape=TOKENS, exact=True),
    case("fused-scores", 4, _scores, shape=TOKENS, exact=True),
    *(
        case(f"fused-gemm-{name}", 2, _fused_gemm(name), shape=ROWS, exact=True)
        for name in ("Relu", "Tanh", "Sigmoid", "LeakyRelu")
    ),
    case("fused-gemm-a-b", 2, _fused_gemm("Relu", True, True), shape=ROWS, exact=True),
    case("GemmFastGelu", 2, _gemm_gelu(), shape=TOKENS, exact=True, **UNSEEN),
    case("GemmFastGelu-by-what-speaks", 2, _gemm_gelu("w"), shape=TOKENS, exact=True, **UNSEEN),
    case("GemmFastGelu-summed", 2, summing(_gemm_gelu(), -1), shape=TOKENS, exact=True, **UNSEEN),
    case("GemmFastGelu-and-what-speaks-summed", 2, summing(_gemm_gelu("b"), -1), shape=TOKENS,
         inexact=1, **UNSEEN),
    case("MatMulInteger16", 2, _short, shape=TOKENS, exact=True),
    case("CDist", 2, lambda net, a: contrib(
        net, "CDist", [a, net.uniform(-1, 1, 5, 8)], (4, 5), metric="sqeuclidean")[0], shape=ROWS,
        exact=True),
]  # fmt: skip


@pytest.mark.parametrize("case", [*MATMUL, *GEMM, *EINSUM, *QUANTISED, *CONTRIB])
def test_linear(case: Case) -> None:
    case.check()


def test_heads_and_head_dims_go_separately() -> None:
    """2 heads of 4: removing a head takes 4 columns, removing a head dim takes 2."""
    import spa

    model = case("heads", 4, _multi_head, shape=TOKENS).values[0].model()
    found = {(g.kind, g.size): g.members[0].index.shape[1] for g in spa.analyze(model)}
    assert found == {("linear", 8): 1, ("heads", 2): 4, ("head-dim", 4): 2}
    assert np.prod([2, 4]) == 8


def test_a_scale_for_every_row() -> None:
    """onnxruntime refuses it, so only the coupling is looked at."""
    import spa

    model = Case("rows", 2, _qlinear(rows=(4,)), ROWS).model()
    assert [g.size for g in spa.analyze(model)] == [8, 6]


@pytest.mark.parametrize(
    ("shape", "body"),
    [
        ((4, 8), _integer()), ((4, 8), _qlinear()), ((4, 8), _to_float()), ((4, 8), _dynamic()),
        ((4, 8), _qgemm()), ((4, 8), _qgemm(6, transA=1, transB=1)), ((2, 5, 8), _sixteen),
        ((4, 8), _fused_gemm("Relu")), ((4, 8), _fused_gemm("Relu", True, True)),
        ((2, 5, 8), _gemm_gelu()), ((2, 5, 8), _product()), ((2, 5, 8), _product(transA=1)),
        ((2, 5, 8), _product(transBatchA=1, stored=False)),
        ((2, 5, 8), _product(transBatchA=1, transA=1, stored=False)),
    ],
)  # fmt: skip
def test_every_product_is_counted_and_named(shape: tuple[int, ...], body: Body) -> None:
    """Of eight channels that no operator has named yet, and nothing behind it costs."""
    net = Net("alone")
    made = body(net, net.mul(net.input("x", [*shape[:-1], 1]), net.uniform(0.5, 1, 8)))
    assert isinstance(made, Tensor)
    groups = spa.analyze(net.model(net.node("ReduceSum", made, [-1])))
    assert {group.kind for group in groups} == {"linear"}
    assert len(groups) == 2
    assert CostModel(groups)().macs == np.prod(shape) * made.shape[-1]
