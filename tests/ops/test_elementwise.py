"""Elementwise operators: every one alone and summed over channels, and every way to broadcast."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

import spa
from models.builder import Net, Tensor
from spa.rules import MICROSOFT
from tests.ops.cases import (
    CODE,
    POINT,
    ROWS,
    TOKENS,
    UNSEEN,
    Body,
    Case,
    case,
    check_as_if_never_there,
    coded,
    codes,
    consume,
    contrib,
    dequantise,
    of_numbers,
    produce,
    quantise,
    summed,
    summing,
)

Prepare = Callable[[Net, Tensor], Tensor]


def _as_is(net: Net, a: Tensor) -> Tensor:
    return a


def _bounded(net: Net, a: Tensor) -> Tensor:
    return net.mul(net.node("Tanh", a), 0.9)


def _positive(net: Net, a: Tensor) -> Tensor:
    return net.node("Abs", a)


def _above(net: Net, a: Tensor) -> Tensor:
    return net.add(net.node("Abs", a), 1.5)


def _bits(net: Net, a: Tensor) -> Tensor:
    return net.cast(net.mul(a, 100.0), TensorProto.INT32)


def _unsigned(net: Net, a: Tensor) -> Tensor:
    return net.cast(net.mul(net.node("Abs", a), 100.0), TensorProto.UINT32)


def _truth(net: Net, a: Tensor) -> Tensor:
    return net.node("Greater", a, 0.2)


# operator -> what makes its domain; those of the first table are 0 where their input is 0.
SILENT: dict[str, Prepare] = dict.fromkeys(
    [
        "Abs",
        "Asinh",
        "Atan",
        "Ceil",
        "Celu",
        "Elu",
        "Erf",
        "Floor",
        "Gelu",
        "HardSwish",
        "Identity",
        "IsInf",
        "IsNaN",
        "LeakyRelu",
        "Mish",
        "Neg",
        "Relu",
        "Round",
        "Selu",
        "Shrink",
        "Sign",
        "Sin",
        "Sinh",
        "Softsign",
        "Swish",
        "Tan",
        "Tanh",
        "ThresholdedRelu",
    ],
    _as_is,
) | {"Asin": _bounded, "Atanh": _bounded, "Sqrt": _positive}
SPEAKING: dict[str, Prepare] = dict.fromkeys(
    ["Cos", "Cosh", "Exp", "HardSigmoid", "Sigmoid", "Softplus"], _as_is
) | {
    "Acos": _bounded,
    "Acosh": _above,
    "BitwiseNot": _bits,
    "Log": _above,
    "Not": _truth,
    "Reciprocal": _above,
}
OPSET = {"Gelu": 20, "Mish": 18, "Swish": 24, "BitwiseNot": 18}
NO_KERNEL: set[str] = set()


def _unary(op: str, prepare: Prepare, then: Prepare = _as_is) -> Any:
    return lambda net, a: then(net, net.node(op, prepare(net, a)))


UNARY = [
    case(
        f"{op}{'-summed' * sums}",
        1,
        _unary(op, prepare, summed if sums else _as_is),
        opset=OPSET.get(op, 17),
        exact=(op in SILENT) if sums else True,
        runnable=op not in NO_KERNEL,
    )
    for op, prepare in (SILENT | SPEAKING).items()
    for sums in (False, True)
]


def _with(op: str, *shape: int, first: bool = False) -> Any:
    """The operator on the producer's channels and a constant of this shape."""

    def body(net: Net, a: Tensor) -> Tensor:
        constant = net.uniform(0.5, 1.5, *shape)
        return net.node(op, constant, a) if first else net.node(op, a, constant)

    return body


def _numbers(net: Net, *shape: int, dtype: Any = np.int32) -> Tensor:
    return net.const(np.arange(np.prod(shape)).reshape(shape).astype(dtype) % 7 + 1)


BROADCAST = [
    case("per-channel", 1, _with("Add", 8, 1, 1), exact=True),
    case(
        "SwiGLU",
        2,
        lambda net, a: net.node("SwiGLU", net.conv(a, 6, 1), net.conv(a, 6, 1)),
        opset=28,
        exact=True,
        runnable=False,
    ),
    case("per-channel-first", 1, _with("Sub", 8, 1, 1, first=True), exact=True),
    case("rank-4", 1, _with("Mul", 1, 8, 1, 1), exact=True),
    case("full", 1, _with("Add", 2, 8, 6, 6), exact=True),
    case("per-pixel", 1, _with("Mul", 1, 1, 6, 6), exact=True),
    case("per-column", 1, _with("Add", 6), exact=True),
    case("scalar", 1, _with("Add"), exact=True),
    case("one", 1, _with("Add", 1, 1, 1, 1), exact=True),
    case("last-axis", 1, _with("Add", 8), shape=TOKENS, exact=True),
    case("last-axis-of-rows", 1, _with("Mul", 8), shape=ROWS, exact=True),
    case("constant-of-higher-rank", 1, _with("Mul", 3, 1, 1, 8), shape=TOKENS, exact=True),
    case("two-producers", 1, lambda net, a: net.add(a, net.conv(net.relu(a), 8)), exact=True),
    case("gate-per-channel", 1, lambda net, a: net.mul(net.global_avg_pool(a), a), exact=True),
    case(
        "gate-per-pixel",
        1,
        lambda net, a: net.mul(a, net.conv(net.relu(a), 1)),
        exact=True,
    ),
    case("tied-with-an-input", 0, lambda net, a: net.add(a, net.input("z", (2, 8, 6, 6)))),
    case("input-broadcasts", 1, lambda net, a: net.add(a, net.input("z", (2, 1, 6, 6)))),
    case("scalar-kept-in-a-sum", 1, lambda net, a: summed(net, net.add(a, 0.5)), exact=False),
    case("scaled-sum", 1, lambda net, a: summed(net, net.mul(a, 0.5)), exact=True),
    case(
        "sum-of-a-product-with-one-silent-factor",
        1,
        lambda net, a: summed(net, net.mul(a, net.sigmoid(a))),
        exact=True,
    ),
]


def _channels(net: Net, count: int) -> list[Tensor]:
    return [net.uniform(-1, 1, 8, 1, 1)] * (count > 1)


VARIADIC = [
    case(
        f"{op}-of-{count}",
        1,
        lambda net, a, op=op, count=count: net.node(
            op, a, *(net.conv(net.relu(a), 8) for _ in range(count - 1)), *_channels(net, count)
        ),
        exact=True,
    )
    for op in ("Sum", "Max", "Min", "Mean")
    for count in (1, 2, 3)
]

BINARY = [
    case("Div-by-channel", 1, _with("Div", 8, 1, 1), exact=True),
    case("Div-of-channel", 1, lambda net, a: net.div(net.uniform(1, 2, 8, 1, 1), _above(net, a))),
    case("Div-by-channel-summed", 1, lambda net, a: summed(net, _with("Div", 8, 1, 1)(net, a))),
    case("Mod", 1, lambda net, a: net.node("Mod", a, net.uniform(0.5, 1, 8, 1, 1), fmod=1)),
    case("Mod-int", 1, lambda net, a: net.node("Mod", _bits(net, a), np.int32(7))),
    case("Pow-square", 1, lambda net, a: net.node("Pow", a, 2.0)),
    case("Pow-square-summed", 1, lambda net, a: summed(net, net.node("Pow", a, 2.0)), exact=True),
    case("Pow-per-channel", 1, lambda net, a: _with("Pow", 8, 1, 1)(net, _positive(net, a))),
    case("Pow-of-a-constant", 1, lambda net, a: net.node("Pow", 2.0, a)),
    case(
        "Pow-of-a-constant-summed",
        1,
        lambda net, a: summed(net, net.node("Pow", 2.0, a)),
        exact=False,
    ),
    case("Pow-root-summed", 1,
         lambda net, a: summed(net, net.node("Pow", _positive(net, a), 0.5)), exact=None),
    case("Pow-one-summed", 1, lambda net, a: summed(net, net.node("Pow", a, 1.0)), exact=True),
    case("Pow-zero-summed", 1, lambda net, a: summed(net, net.node("Pow", a, 0.0))),
    case("PRelu-channel", 1, _with("PRelu", 8, 1, 1), exact=True),
    case("PRelu-shared", 1, _with("PRelu", 1), exact=True),
    case("PRelu-summed", 1, lambda net, a: summed(net, _with("PRelu", 8, 1, 1)(net, a))),
    case("PRelu-opset-7", 1, _with("PRelu", 8, 1, 1), opset=7, exact=True),
    case("BitShift", 1, lambda net, a: net.node(
        "BitShift", _unsigned(net, a), _numbers(net, 8, 1, 1, dtype=np.uint32), direction="RIGHT"
    )),
    *(
        case(op, 1, lambda net, a, op=op: net.node(op, _bits(net, a), _numbers(net, 8, 1, 1)),
             opset=18)
        for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")
    ),
    case("BitwiseAnd-summed", 1, lambda net, a: summed(
        net, net.node("BitwiseAnd", _bits(net, a), np.int32(12))
    ), opset=18, exact=True),
    *(
        case(op, 1, _with(op, 8, 1, 1), exact=True)
        for op in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
    ),
    case("Less-summed", 1, lambda net, a: summed(net, net.node("Less", a, 0.5)), exact=False),
    *(
        case(
            f"{op}{'-summed' * sums}",
            1,
            lambda net, a, op=op, then=summed if sums else _as_is: then(
                net,
                net.node(
                    op,
                    net.cast(net.relu(a), TensorProto.BOOL),
                    net.cast(net.relu(net.node("Neg", net.conv(a, 8, 1))), TensorProto.BOOL),
                ),
            ),
            exact=True,
        )
        for op in ("And", "Or", "Xor")
        for sums in (False, True)
    ),
]  # fmt: skip

CLIPS = [
    # Only the third term of the sum speaks at a removed index: what it leaves is lost.
    case("Sum-of-three-summed", 1,
         lambda net, a: summed(net, net.node("Sum", a, net.relu(a), net.sigmoid(a))), exact=False),
    case("Clip-relu6", 1, lambda net, a: net.relu6(a), exact=True),
    case("Clip-relu6-summed", 1, lambda net, a: summed(net, net.relu6(a)), exact=True),
    case("Clip-no-min", 1, lambda net, a: net.node("Clip", a, None, 0.5), exact=True),
    case("Clip-of-input-summed", 1, lambda net, a: summed(net, net.node(
        "Clip", a, net.input("low", (), np.float32))), exact=False),
    case("Clip-no-max", 1, lambda net, a: net.node("Clip", a, 0.1), exact=True),
    case("Clip-open", 1, lambda net, a: net.node("Clip", a), exact=True),
    case("Clip-opset-7", 1, lambda net, a: net.node("Clip", a, min=0.0, max=6.0), opset=7),
    case("Clip-away-from-zero", 1, lambda net, a: net.node("Clip", a, 0.2, 0.5), exact=True),
    case("Clip-below-zero-summed", 1,
         lambda net, a: summed(net, net.node("Clip", a, -2.0, -1.0)), exact=False),
    case("Clip-up-to-zero-summed", 1,
         lambda net, a: summed(net, net.node("Clip", a, -1.0, 0.0)), exact=True),
    case("Clip-away-from-zero-summed", 1,
         lambda net, a: summed(net, net.node("Clip", a, 0.2, 0.5))),
    case("Clip-away-summed-opset-7", 1, lambda net, a: net.node(
        "ReduceSum", net.node("Clip", a, min=0.2, max=0.5), axes=[1]), opset=7),
]  # fmt: skip


def _dropout_mask(net: Net, a: Tensor) -> Tensor:
    y, kept = net.nodes("Dropout", [a], 2)
    return net.mul(y, net.cast(kept, TensorProto.FLOAT))


def _dropout_mask_summed(net: Net, a: Tensor) -> Tensor:
    _, kept = net.nodes("Dropout", [a], 2)
    return net.conv(summed(net, kept), 4)


OTHERS = [
    case("Cast", 1, lambda net, a: net.cast(net.cast(a, TensorProto.DOUBLE), TensorProto.FLOAT)),
    case("Cast-to-half", 1, lambda net, a: net.cast(a, TensorProto.FLOAT16)),
    case("Cast-saturate", 1, lambda net, a: net.node("Cast", a, to=TensorProto.DOUBLE, saturate=0),
         opset=19),
    case("Cast-round-mode", 1, lambda net, a: net.node(
        "Cast", a, to=TensorProto.DOUBLE, round_mode="up"), opset=24),
    case("CastLike-saturate", 1, lambda net, a: net.node(
        "CastLike", a, np.float64(0), saturate=0), opset=19),
    case("CastLike-round-mode", 1, lambda net, a: net.node(
        "CastLike", a, np.float64(0), round_mode="up"), opset=24),
    case("CastLike", 1, lambda net, a: net.node("CastLike", a, np.float64(0))),
    case("CastLike-summed", 1, lambda net, a: summed(net, net.node("CastLike", a, np.float64(0)))),
    case("CastLike-of-a-constant", 1,
         lambda net, a: net.add(a, net.node("CastLike", np.float64(0.1), a)), exact=True),
    case("Dropout", 1, lambda net, a: net.node("Dropout", a)),
    case("Dropout-ratio", 1, lambda net, a: net.node("Dropout", a, 0.3)),
    case("Dropout-not-training", 1, lambda net, a: net.node("Dropout", a, 0.3, np.bool_(False))),
    case("Dropout-opset-7", 1, lambda net, a: net.node("Dropout", a, ratio=0.3), opset=7),
    case("Dropout-mask", 1, _dropout_mask),
    case("Dropout-mask-summed", 2, _dropout_mask_summed),
    case("Where-scalar", 1, lambda net, a: net.node("Where", net.node("Greater", a, 0.1), a, 0.0)),
    case("Where-channel-bits", 1, lambda net, a: net.node(
        "Where", net.const(np.arange(8).reshape(8, 1, 1) % 3 > 0), a, -1.0)),
    case("Where-summed", 1, lambda net, a: summed(net, net.node(
        "Where", net.const(np.arange(8).reshape(8, 1, 1) % 3 > 0), a, -1.0)), exact=False),
    case("Where-silent-summed", 1, lambda net, a: summed(net, net.node(
        "Where", net.node("Greater", a, 0.1), a, net.conv(a, 8, 1))), exact=True),
    case("Where-of-two", 1, lambda net, a: net.node(
        "Where", net.node("Greater", a, 0.1), net.conv(a, 8, 1), a)),
    case("Where-causal", 1, lambda net, a: net.node(
        "Where", net.const(np.tri(6, dtype=bool)), a, -1e3)),
    case("Reciprocal-of-a-weight", 1, lambda net, a: net.mul(
        a, net.node("Reciprocal", net.uniform(1, 2, 8, 1, 1)))),
    case("Log-of-a-weight", 1, lambda net, a: net.mul(
        a, net.node("Log", net.uniform(1, 2, 8, 1, 1)))),
    case("Sqrt-of-a-weight-divides", 1, lambda net, a: net.div(
        a, net.node("Sqrt", net.uniform(1, 2, 8, 1, 1)))),
    case("Exp-of-a-weight", 1, lambda net, a: net.mul(
        a, net.node("Exp", net.uniform(1, 2, 8, 1, 1)))),
    case("one-weight-two-axes", 1, lambda net, a: _square(net, a)),
    case("chain", 2, lambda net, a: produce(net, net.silu(a))),
    case("gate-is-an-output", 2, lambda net, a: (
        consume(net, net.conv(a, 4, 1)), net.sigmoid(summed(net, a)))),
]  # fmt: skip


def _square(net: Net, a: Tensor) -> Tensor:
    """One weight that maps 8 channels to themselves, twice."""
    w = net.weight(8, 8, 1, 1)
    return net.node("Conv", net.relu(net.node("Conv", a, w)), w)


def _quantised(op: str, speaks: bool = False, **attrs: float) -> Body:
    """One operator of onnxruntime on quantised numbers."""

    def body(net: Net, a: Tensor) -> Tensor:
        q = quantise(net, net.sigmoid(a) if speaks else a)
        return dequantise(net, coded(net, op, q, *CODE, *CODE, shape=a.shape, **attrs))

    return body


def _own(op: str, *shapes: tuple[int, ...], sums: bool = False, **attrs: Any) -> Any:
    """An operator of onnxruntime's own, with constants of these shapes as its further inputs."""

    def body(net: Net, a: Tensor) -> Tensor:
        inputs = [a, *(net.uniform(0.5, 1, *s) for s in shapes)]
        y = contrib(net, op, inputs, a.shape, **attrs)[0]
        return net.node("ReduceSum", y, [-1], keepdims=1) if sums else y

    return body


def _quantised_pair(op: str, other: str) -> Body:
    """Of an activation and another one, or of what is stored for every channel."""

    def body(net: Net, a: Tensor) -> Tensor:
        q = quantise(net, a)
        side = quantise(net, net.sigmoid(a)) if other == "made" else codes(net, a.shape[1], 1, 1)
        y = coded(net, op, q, *CODE, side, *CODE, *CODE, shape=a.shape)
        return dequantise(net, y)

    return body


def _old(op: str, **attrs: Any) -> Any:
    """An operator that ONNX took back, and that onnxruntime still has."""
    return lambda net, a: net.node(op, a, shape=a.shape, **attrs)


def _old_sum(op: str, **attrs: Any) -> Any:
    return lambda net, a: net.node("ReduceSum", _old(op, **attrs)(net, a), axes=[1], keepdims=1)


def _halves(op: str, *shapes: tuple[int, ...]) -> Any:
    def body(net: Net, a: Tensor) -> Tensor:
        inputs = [a, *(net.uniform(0.5, 1, *s) for s in shapes)]
        return contrib(net, op, inputs, (2, 5, 4))[0]

    return body


def _quantised_where(net: Net, a: Tensor) -> Tensor:
    q, stored = quantise(net, a), codes(net, a.shape[1], 1, 1)
    chosen = net.node("Greater", a, 0.0)
    y = coded(net, "QLinearWhere", chosen, q, *CODE, stored, *CODE, *CODE, shape=a.shape)
    return dequantise(net, y)


def _integers(*speaks: int) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        a, b = (net.sigmoid(x) if k in speaks else x for k, x in enumerate((a, net.conv(a, 8, 1))))
        inputs = [quantise(net, a), POINT, quantise(net, b), POINT]
        y = coded(net, "MulInteger", *inputs, shape=a.shape, dtype=np.int32)
        return net.cast(y, TensorProto.FLOAT)

    return body


QUANTISED = [
    case("QLinearLeakyRelu", 1, _quantised("QLinearLeakyRelu", alpha=0.1), exact=True),
    case("QLinearLeakyRelu-summed", 1, summing(_quantised("QLinearLeakyRelu")), exact=True),
    case("QLinearSigmoid", 1, _quantised("QLinearSigmoid"), exact=True),
    case("QLinearSigmoid-summed", 1, summing(_quantised("QLinearSigmoid")), exact=False),
    *(
        case(f"{op}-{other}", 1, _quantised_pair(op, other), exact=True)
        for op in ("QLinearAdd", "QLinearMul")
        for other in ("made", "stored")
    ),
    case("QLinearMul-summed", 1, summing(_quantised_pair("QLinearMul", "made")), exact=True),
    case("QLinearAdd-summed", 1, summing(_quantised_pair("QLinearAdd", "made")), exact=False),
    case("QLinearAdd-stored-summed", 1, summing(_quantised_pair("QLinearAdd", "stored")),
         exact=True),
    case("QLinearWhere", 1, _quantised_where, exact=True),
    case("QLinearWhere-summed", 1, summing(_quantised_where), exact=True),
    case("MulInteger", 1, _integers(), exact=True, runnable=False, typed=True),
    *(case(f"MulInteger-of-{len(speaks)}-summed-{k}", 1, summing(_integers(*speaks)),
           exact=len(speaks) < 2, runnable=False, typed=True)
      for k, speaks in enumerate(((), (0,), (1,), (0, 1)))),
]  # fmt: skip


def _dropped(net: Net, a: Tensor) -> Tensor:
    inputs = [a, net.uniform(-1, 1, 8), net.linear(a, 8)]
    return contrib(net, "BiasDropout", inputs, a.shape)[0]


def _gated(net: Net, a: Tensor) -> Tensor:
    return contrib(net, "GatedAdd", [a, net.linear(a, 8), net.linear(a, 1)], a.shape)[0]


def _decayed(net: Net, a: Tensor) -> Tensor:
    inputs = [a, net.uniform(-1, 1, 8), net.uniform(-1, 1, 8), net.linear(a, 8)]
    decay, beta = contrib(net, "LinearAttentionGate", inputs, a.shape, a.shape)
    return net.linear(net.add(decay, beta), 6)


CONTRIB = [
    case("Affine", 1, _old("Affine", alpha=0.5, beta=0.5), opset=9, exact=True),
    case("Affine-summed", 1, _old_sum("Affine", alpha=0.5), opset=9, exact=True),
    case("Affine-shifted-summed", 1, _old_sum("Affine", beta=0.5), opset=9, exact=False),
    case("ParametricSoftplus", 1, _old("ParametricSoftplus", alpha=0.5, beta=0.5), opset=9),
    case("Scale", 1, _old_sum("Scale", scale=0.5), opset=9, exact=True),
    case("ScaledTanh", 1, _old_sum("ScaledTanh", alpha=0.5, beta=0.5), opset=9, exact=True),
    case("MemcpyFromHost", 1, _old("MemcpyFromHost"), exact=True),
    case("MemcpyToHost", 1, _old("MemcpyToHost"), exact=True),
    *(
        case(f"ms-{op}", 1, _own(op, sums=True), shape=TOKENS, exact=True)
        for op in ("Gelu", "QuickGelu", "FastGelu", "ScaledSiLU")
    ),
    case("ScaledSiLU-given", 1, _own("ScaledSiLU", ()), shape=TOKENS, exact=True),
    case("FastGelu-bias", 1, _own("FastGelu", (8,), sums=True), shape=TOKENS, exact=True),
    case("BiasGelu", 1, _own("BiasGelu", (8,), sums=True), shape=TOKENS, exact=True),
    case("BiasAdd", 1, _own("BiasAdd", (8,), (2, 5, 8), sums=True), shape=TOKENS, exact=True,
         **UNSEEN),
    case("BiasDropout", 1, _dropped, shape=TOKENS, exact=True, **UNSEEN),
    case("BiasSplitGelu", 1, _halves("BiasSplitGelu", (8,)), shape=TOKENS, exact=True, **UNSEEN),
    case("SwiGLU-halves", 1, _halves("SwiGLU"), shape=TOKENS, exact=True, **UNSEEN),
    case("SwiGLU-apart", 1, _own("SwiGLU", (2, 5, 8)), shape=TOKENS, exact=True, **UNSEEN),
    case("GatedAdd", 1, _gated, shape=TOKENS, exact=True),
    case("LinearAttentionGate", 2, _decayed, shape=TOKENS, exact=True),
]  # fmt: skip


def _where_some_speak(
    op: str, kinds: str, *speaks: int, domain: str = MICROSOFT, out: int = 8
) -> Body:
    """A sum over the channels of what an operator makes of silent inputs and of these, which are
    not; kinds: m for one that is made, b for a stored bias."""

    def body(net: Net, a: Tensor) -> Tensor:
        inputs = [net.linear(a, 8) if kind == "m" else net.uniform(-1, 1, 8) for kind in kinds]
        inputs = [net.sigmoid(x) if k in speaks else x for k, x in enumerate(inputs)]
        made = net.nodes(op, inputs, 1, shapes=[(2, 5, out)], domain=domain)[0]
        return net.node("ReduceSum", made, [-1])

    return body


# Operators that no kernel is there for: how many groups are inexact of what is made and summed.
SUMS = [
    case(f"{op}-{domain}-{kinds}-where-{k}-speaks", 2,
         _where_some_speak(op, kinds, *(() if k is None else (k,)), domain=domain, out=out),
         shape=TOKENS, opset=28 if not domain else 17, inexact=int(k in heard), **UNSEEN)
    for op, domain, kinds, out, heard in (
        ("BiasAdd", MICROSOFT, "mbm", 8, (0, 1, 2)),
        ("BiasDropout", MICROSOFT, "mbm", 8, (0, 1, 2)),
        ("BiasSplitGelu", MICROSOFT, "mb", 4, (0, 1)),
        ("SwiGLU", MICROSOFT, "m", 4, (0,)),
        ("SwiGLU", MICROSOFT, "mm", 8, (0,)),
        ("SwiGLU", "", "mm", 8, ()),
    )
    for k in (None, *range(len(kinds)))
]  # fmt: skip


def _compared(other: Any, first: bool = False) -> Body:
    """The numbers of the three largest channels, compared with others."""

    def read(net: Net, a: Tensor, at: Tensor) -> Tensor:
        at = net.unsqueeze(at, 2)
        same = net.node("Equal", other, at) if first else net.node("Equal", at, other)
        return net.cast(same, TensorProto.FLOAT)

    return of_numbers(read)


def _compared_in_a_table(net: Net, a: Tensor, at: Tensor) -> Tensor:
    same = net.node("Equal", net.unsqueeze(at, 2, 3), np.arange(8).reshape(2, 4))
    return net.reshape(net.cast(same, TensorProto.FLOAT), [4, 3, 8])


def _compared_with_made(net: Net, a: Tensor, at: Tensor) -> Tensor:
    same = net.node("Equal", at, net.node("ArgMax", a, axis=1))
    return net.unsqueeze(net.cast(same, TensorProto.FLOAT), 2)


def _shared_out(*wanted: int) -> Body:
    """The sum of branches, each for the tokens of which a router wants a number of its own."""

    def body(net: Net, a: Tensor) -> Tensor:
        values, index = net.nodes("TopK", [net.linear(a, 4), [2]], 2, axis=-1)
        total = net.linear(a, 6)
        for e in wanted:
            here = net.cast(net.node("Equal", index, np.int64(e)), TensorProto.FLOAT)
            share = net.node("ReduceSum", net.mul(values, here), [-1])
            total = net.add(total, net.mul(share, net.linear(a, 6)))
        return total

    return body


COMPARED = [
    case("TopK-compared", 1, _compared(np.arange(8)), shape=ROWS, inexact=1),
    case("TopK-compared-from-the-other-side", 1, _compared(np.arange(8).reshape(1, 1, 8), True),
         shape=ROWS, inexact=1),
]  # fmt: skip
# No list: alone, on numbers that are drawn, hardly any two are equal.
SHARED_OUT = (
    case("TopK-shared-out", 3, _shared_out(0, 1, 2, 3), shape=TOKENS, inexact=1),
    *(case(f"TopK-shared-out-to-{e}", 2, _shared_out(0, 1, 2, e), shape=TOKENS, inexact=0)
      for e in (-1, 4)),
)  # fmt: skip
NOT_COMPARED = (
    case("TopK-compared-with-some", 1, _compared(np.arange(1, 9)), shape=ROWS, inexact=0),
    case("TopK-compared-with-none", 0, _compared(np.array([8])), shape=ROWS),
    case("TopK-compared-in-a-table", 2, of_numbers(_compared_in_a_table), shape=ROWS),
    case("TopK-compared-with-made", 0, of_numbers(_compared_with_made), shape=ROWS),
)  # fmt: skip


@pytest.mark.parametrize("row", COMPARED)
@pytest.mark.parametrize("gone", [[0], [2, 5], [1, 3, 4, 6, 7]])
def test_compared_as_if_never_there(row: Case, gone: list[int]) -> None:
    check_as_if_never_there(row, gone)


@pytest.mark.parametrize(("op", "kinds"), [("BiasSplitGelu", "mb"), ("SwiGLU", "m")])
def test_halves_lie_apart(op: str, kinds: str) -> None:
    groups = spa.analyze(Case("", 2, _where_some_speak(op, kinds, out=4), TOKENS).model())
    (group,) = [group for group in groups if group.size == 4]
    pairs = [m.index.tolist() for m in group.members if m.index.shape == (4, 2)]
    assert pairs == [[[k, k + 4] for k in range(4)]] * (1 + len(kinds))


@pytest.mark.parametrize(
    "case",
    [
        *SUMS,
        *COMPARED,
        *SHARED_OUT,
        *NOT_COMPARED,
        *UNARY,
        *BROADCAST,
        *VARIADIC,
        *BINARY,
        *CLIPS,
        *OTHERS,
        *QUANTISED,
        *CONTRIB,
    ],
)
def test_elementwise(case: Case) -> None:
    case.check()
