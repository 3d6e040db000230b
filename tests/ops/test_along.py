"""Operators along one axis: it stays whole, the others pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from models.builder import Net, Tensor
from tests.ops.cases import TOKENS, Body, Case, case, contrib


def _along(op: str, *inputs: Any, **attrs: Any) -> Body:
    return lambda net, a: net.node(op, a, *inputs, **attrs)


def _spectrum(net: Net, a: Tensor, **attrs: Any) -> Tensor:
    parts = net.node("DFT", net.unsqueeze(a, -1), **attrs)
    return net.node("ReduceSum", parts, [-1], keepdims=0)


def _cache(along: int, **attrs: Any) -> Body:
    """Two new rows in a cache of zeros."""

    def body(net: Net, a: Tensor) -> Tensor:
        places = [0, 0, 0, 0]
        places[along] = 2
        at = [slice(None)] * 4
        at[along] = slice(0, 2)
        new = net.node("Slice", a, [0], [2], [along])
        cache = net.const(np.zeros((2, 8, 6, 6), np.float32))
        return net.node("TensorScatter", cache, new, np.array([1, 3]), **attrs)

    return body


def _as_far_as_channels_say(net: Net, a: Tensor) -> Tensor:
    """Every row of a stored table is reversed as far as one channel says."""
    far = net.node("Clip", net.node("ReduceMax", a, axes=[0, 2, 3], keepdims=0), 1.0, 5.0)
    table = net.node("ReverseSequence", net.uniform(-1, 1, 8, 5), net.cast(far, TensorProto.INT64),
                     batch_axis=0, time_axis=1)  # fmt: skip
    return net.mul(a, net.reshape(net.mean(table), [8, 1, 1]))


def _where_channels_say(net: Net, a: Tensor) -> Tensor:
    """One row is written into each of eight caches, at a place that one channel says."""
    at = net.node("Clip", net.node("ReduceMax", a, [0, 2, 3], keepdims=0), 0.0, 4.0)
    rows, at = net.uniform(-1, 1, 8, 1, 3), net.cast(at, TensorProto.INT64)
    caches = net.node("TensorScatter", net.uniform(-1, 1, 8, 5, 3), rows, at, axis=1)
    return net.mul(a, net.reshape(net.node("ReduceMean", caches, [1, 2]), [8, 1, 1]))


ALONG = [
    case("TensorScatter-where-channels-say", 1, _where_channels_say,
         opset=24),
    case("ReverseSequence-as-channels-say", 0, _as_far_as_channels_say),
    case("DFT-19-default", 0, _spectrum, opset=19),
    case("TensorScatter-default", 1, _cache(2), opset=24, exact=True),
    case("UnfoldTensor-default", 1, lambda net, a: net.reshape(contrib(
        net, "UnfoldTensor", [a], (2, 8, 6, 3, 4), size=4, step=1)[0], [0, 0, 6, 12]), exact=True),
    case("CumSum-channels", 0, lambda net, a: net.node("CumSum", a, np.int64(1))),
    case("CumSum-negative", 0, lambda net, a: net.node("CumSum", a, np.int64(-3))),
    case("CumSum-pixels", 1, lambda net, a: net.node("CumSum", a, np.int64(-1)), exact=True),
    case("CumProd-pixels", 1, lambda net, a: net.node("CumProd", a, np.int64(3)), opset=26,
         exact=True),
    case("CumProd-channels", 0, lambda net, a: net.node("CumProd", a, np.int64(1)), opset=26),
    case("ReverseSequence-time", 1, _along(
        "ReverseSequence", [3, 2], batch_axis=0, time_axis=1), shape=TOKENS, exact=True),
    case("ReverseSequence-first", 1, lambda net, a: net.transpose(net.node(
        "ReverseSequence", net.transpose(a, 2, 0, 1, 3), [3, 2]), 1, 2, 0, 3), exact=True),
    case("ReverseSequence-channels", 0, _along(
        "ReverseSequence", [3, 2], batch_axis=0, time_axis=1)),
    case("CenterCropPad-pixels", 1, _along("CenterCropPad", [4, 8], axes=[2, -1]), opset=18,
         exact=True),
    case("CenterCropPad-channels", 0, _along("CenterCropPad", [4], axes=[1]), opset=18),
    case("CenterCropPad-all", 0, _along("CenterCropPad", [2, 8, 4, 6]), opset=18),
    case("DFT-17", 1, lambda net, a: _spectrum(net, a, axis=2), exact=True),
    case("DFT-17-default", 0, _spectrum),
    case("DFT-20-default", 1, _spectrum, opset=20, exact=True),
    case("DFT-20-channels", 0, lambda net, a: net.node("ReduceSum", net.node(
        "DFT", net.unsqueeze(a, -1), None, np.int64(1)), [-1], keepdims=0), opset=20),
    case("TensorScatter", 1, _cache(2, axis=2), opset=24, exact=True),
    case("TensorScatter-channels", 1, _cache(1, axis=1), opset=24),
    case("UnfoldTensor", 1, lambda net, a: net.reshape(contrib(
        net, "UnfoldTensor", [a], (2, 8, 6, 3, 4), dim=3, size=4, step=1)[0], [0, 0, 6, 12]),
        exact=True),
]  # fmt: skip


@pytest.mark.parametrize("case", ALONG)
def test_along(case: Case) -> None:
    case.check()
