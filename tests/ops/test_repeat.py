"""Operators that repeat values, or make a constant, to stored and to computed shapes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from models.builder import Net, Tensor
from tests.ops.cases import TOKENS, Body, Case, case, summed


def _tile(*repeats: int) -> Body:
    return lambda net, a: net.node("Tile", a, list(repeats))


def _computed_expand(net: Net, a: Tensor) -> Tensor:
    pooled = net.global_avg_pool(a)
    return net.mul(a, net.node("Expand", pooled, net.node("Shape", a), shape=a.shape))


def _zeros_like(value: float | None) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        attrs = {} if value is None else {"value": np.array([value], np.float32)}
        filled = net.node("ConstantOfShape", net.node("Shape", a), shape=a.shape, **attrs)
        return net.concat(a, filled)

    return body


def _fresh(value: float | None, kind: int = TensorProto.FLOAT, op: str = "Mul") -> Body:
    """A constant of stored sizes joins the channels, and a sum over them follows."""

    def body(net: Net, a: Tensor) -> Tensor:
        attrs = {} if value is None else {"value": helper.make_tensor("value", kind, [1], [value])}
        filled = net.node("ConstantOfShape", net.const([2, 8, 6, 6]), shape=[2, 8, 6, 6], **attrs)
        return summed(net, net.node(op, a, net.cast(filled, TensorProto.FLOAT)))

    return body


REPEAT = [
    case("Expand-pixels", 1, lambda net, a: net.node(
        "Expand", net.global_avg_pool(a), [2, 8, 6, 6]), exact=True),
    case("Expand-ones", 1, lambda net, a: net.node("Expand", a, [1, 1, 1, 1]), exact=True),
    case("Expand-short", 1, lambda net, a: net.node(
        "Expand", net.global_avg_pool(a), [6, 6]), exact=True),
    case("Expand-rank", 1, lambda net, a: net.node("Expand", a, [3, 2, 5, 8]), shape=TOKENS),
    case("Expand-computed", 1, _computed_expand, exact=True),
    # One channel becomes eight: those are the consumer's and the other term's alone.
    case("Expand-channels", 2, lambda net, a: net.add(
        net.conv(net.relu(a), 8), net.node("Expand", net.conv(a, 1), [2, 8, 6, 6]))),
    case("Expand-of-zeros-summed", 1, lambda net, a: summed(net, net.add(
        a, net.node("Expand", 0.0, [2, 8, 6, 6]))), exact=True),
    case("Expand-of-twos-summed", 1, lambda net, a: summed(net, net.add(
        a, net.node("Expand", 2.0, [2, 8, 6, 6]))), exact=False),
    case("Expand-of-constant", 1, lambda net, a: net.add(
        a, net.node("Expand", net.uniform(-1, 1, 8, 1, 1), [2, 8, 6, 6])), exact=True),
    case("Tile-channels", 1, _tile(1, 2, 1, 1), exact=True),
    case("Tile-pixels", 1, _tile(1, 1, 2, 2), exact=True),
    case("Tile-ones", 1, _tile(1, 1, 1, 1), exact=True),
    case("Tile-one-channel", 2, lambda net, a: net.add(
        net.conv(net.relu(a), 8), net.node("Tile", net.conv(a, 1), [1, 8, 1, 1]))),
    case("Tile-tokens", 1, _tile(1, 2, 1), shape=TOKENS, exact=True),
    case("Tile-opset-7", 1, _tile(1, 2, 1, 1), opset=7, exact=True),
    # Its channels are as many as the producer's, but nothing says that they are the same.
    case("ConstantOfShape-computed", 2, _zeros_like(None), exact=True),
    case("ConstantOfShape-computed-ones", 2, _zeros_like(1.0), exact=True),
    case("ConstantOfShape-free-batch", 2, _zeros_like(1.0), shape=("n", 3, 6, 6), exact=True),
    case("ConstantOfShape-stored", 1, _fresh(None)),
    # Whichever field of the value holds the number.
    *(case(f"ConstantOfShape-{value}-added-{kind}", 1, _fresh(value, kind, "Add"), exact=not value)
      for kind in (TensorProto.FLOAT, TensorProto.INT64, TensorProto.DOUBLE, TensorProto.INT32)
      for value in (0, 2)),
    case("Tile-of-input", 0, lambda net, a: net.node(
        "Tile", a, net.input("repeats", (4,), np.int64), shape=[2, 8, 6, 6]), refused=True),
    case("ConstantOfShape-stored-twos", 1, _fresh(2.0), exact=True),
    case("Size", 1, lambda net, a: net.mul(a, net.cast(net.node("Size", a), 1)), exact=True),
    case("Size-free-batch", 1, lambda net, a: net.mul(a, net.cast(net.node("Size", a), 1)),
         shape=("n", 3, 6, 6), exact=True),
    case("Expand-free-batch", 1, _computed_expand, shape=("n", 3, 6, 6), exact=True),
    case("Shape-part", 1, lambda net, a: net.node("Expand", net.global_avg_pool(a), net.node(
        "Shape", a, start=2), shape=a.shape), exact=True),
    case("Constant", 2, lambda net, a: net.node("Conv", a, net.node(
        "Constant", value=net.weight(6, 8, 1, 1).values)), exact=True),
    case("Expand-computed-opset-8", 1, _computed_expand, opset=8, exact=True),
    *(case(f"Constant-opset-{opset}", 2, lambda net, a: net.node("Conv", a, net.node(
        "Constant", value=net.weight(6, 8, 1, 1).values)), opset=opset, exact=True)
      for opset in (7, 11)),
    case("Constant-floats", 1, lambda net, a: net.node("Mul", a, net.node(
        "Constant", value_floats=[0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0])), shape=TOKENS),
]  # fmt: skip


@pytest.mark.parametrize("case", REPEAT)
def test_repeat(case: Case) -> None:
    case.check()
