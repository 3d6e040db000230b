"""Axes split and merged: heads, flattened maps, shuffles, and shapes in every written form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

from models.builder import Net, Tensor
from models.vision import channel_shuffle
from tests.ops.cases import IMAGE, ROWS, SIGNAL, TOKENS, Body, Case, case, contrib


def _there_and_back(*dims: int, back: tuple[int, ...] = IMAGE) -> Body:
    """Reshape, a function of single values, and back to [2, 8, ...]."""
    wide = (2, 8, *back[2:])
    return lambda net, a: net.reshape(net.node("Tanh", net.reshape(a, dims)), wide)


def _to_rows(*dims: int) -> Body:
    return lambda net, a: net.gemm(net.reshape(a, dims), 7)


def _by_the_data(net: Net, a: Tensor) -> Tensor:
    """The sizes are always the same, but nothing says so."""
    none = net.cast(net.mul(net.node("ReduceMax", a, keepdims=0), 0.0), TensorProto.INT64)
    return net.node("Reshape", a, net.add([2, 8, 36], none), shape=[2, 8, 36])


def _flatten(axis: int | None, opset: int = 17) -> Body:
    return lambda net, a: net.gemm(net.node("Flatten", a, axis=axis), 7)


def _computed(*parts: Any) -> Body:
    """A shape put together at run time: None stands for the batch, read from the tensor."""

    def body(net: Net, a: Tensor) -> Tensor:
        sizes = [net.dim(a, 0) if part is None else part for part in parts]
        shape = [2 if part is None else part for part in parts]
        shape = [288 if size == -1 else size for size in shape]
        return net.gemm(net.node("Reshape", a, net.shape_vector(*sizes), shape=shape), 7)

    return body


def _shape_as(net: Net, a: Tensor) -> Tensor:
    """Flattened and put back into the shape that another tensor has."""
    flat = net.node("Tanh", net.reshape(a, [2, -1]))
    return net.node("Reshape", flat, net.node("Shape", a), shape=a.shape)


def _halved_count(net: Net, a: Tensor) -> Tensor:
    """(2 C) h w -> two of C, by a count computed from the tensor's own."""
    half = net.div(net.dim(a, 1), np.int64(2))
    shape = net.shape_vector(net.dim(a, 0), 2, half, 36)
    split = net.node("Reshape", a, shape, shape=[2, 2, 4, 36])
    return net.unsqueeze(net.node("ReduceMax", split, axes=[1], keepdims=0), 3)


def _swapped_factors(net: Net, a: Tensor) -> Tensor:
    """(2 4) -> (4 2) -> 8: neither 2 nor 4 is a factor of the other cut."""
    first = net.transpose(net.reshape(a, [2, 2, 4, 6, 6]), 0, 2, 1, 3, 4)
    return net.reshape(first, [2, 8, 6, 6])


def _space_as_batch(net: Net, a: Tensor) -> Tensor:
    rows = net.reshape(net.transpose(a, 0, 2, 3, 1), [72, 8])
    return net.transpose(net.reshape(net.relu(rows), [2, 6, 6, 8]), 0, 3, 1, 2)


def _squeeze(*axes: int) -> Body:
    return lambda net, a: net.squeeze(net.global_avg_pool(a), *axes)


def _from_the_end(net: Net, a: Tensor) -> Tensor:
    """Pairs of columns put side by side, as rotary positions do, before opset 11."""
    parts = [net.node("Unsqueeze", t, axes=[-1], shape=[*a.shape, 1]) for t in (a, net.relu(a))]
    pairs = net.node("Concat", *parts, axis=-1, shape=[*a.shape, 2])
    return net.node("ReduceMax", pairs, axes=[-1], keepdims=0, shape=a.shape)


RESHAPE = [
    case("from-the-end-opset-10", 1, _from_the_end, opset=10, exact=True),
    case("to-rows", 2, _to_rows(2, 288), exact=True),
    case("to-rows-minus-one", 2, _to_rows(2, -1), exact=True),
    case("to-rows-zero", 2, _to_rows(0, -1), exact=True),
    case("to-rows-minus-one-first", 2, _to_rows(-1, 288), exact=True),
    case("keeps-channels", 1, _there_and_back(2, 8, 36), exact=True),
    case("keeps-channels-zero", 1, _there_and_back(0, 0, -1), exact=True),
    case("keeps-channels-minus-one", 1, _there_and_back(2, -1, 36), exact=True),
    case("merges-all", 1, _there_and_back(-1), exact=True),
    case("merges-batch-and-channels", 1, _there_and_back(16, 6, 6), exact=True),
    case("merges-batch-and-space", 1, _space_as_batch, exact=True),
    # 4 units of pairs and 2 of halves, the columns and the rows of a grid.
    case("splits-channels", 2, _there_and_back(2, 2, 4, 36), exact=True),
    case("splits-channels-in-three", 3, _there_and_back(2, 2, 2, 2, 36), exact=True),
    case("splits-oddly", 0, _there_and_back(2, 3, 96)),
    case("splits-space", 1, _there_and_back(2, 8, 2, 3, 6), exact=True),
    case("unit-axes", 1, _there_and_back(2, 1, 8, 1, 36), exact=True),
    # The pixels do not split so; the channels do.
    case("splits-channels-beside-odd-pixels", 2, _there_and_back(2, 2, 4, 4, 9), exact=True),
    # Zero copies the number of channels, where pixels stand.
    case("zero-of-another-axis", 1, lambda net, a: net.reshape(net.relu(net.reshape(
        a, [16, 0])), [2, 8, 8]), shape=SIGNAL, exact=True),
    case("same", 1, lambda net, a: net.reshape(a, [2, 8, 6, 6]), exact=True),
    case("same-zeros", 1, lambda net, a: net.reshape(a, [0, 0, 0, 0]), exact=True),
    case("opset-7", 2, _to_rows(2, -1), opset=7, exact=True),
    case("allowzero", 2, lambda net, a: net.gemm(net.node(
        "Reshape", a, [2, -1], allowzero=1), 7), exact=True),
    case("signal", 2, _to_rows(2, 64), shape=SIGNAL, exact=True),
    case("tokens-to-rows", 2, lambda net, a: net.reshape(net.gemm(net.reshape(
        a, [10, 8]), 7), [2, 5, 7]), shape=TOKENS, exact=True),
    case("tokens-flattened", 2, lambda net, a: net.unsqueeze(net.gemm(net.reshape(
        a, [2, 40]), 7), 1), shape=TOKENS, exact=True),
    case("rows-to-image", 2, lambda net, a: (net.conv(net.reshape(
        net.gemm(a, 36), [4, 4, 3, 3]), 5),), shape=ROWS, exact=True),
    case("computed-batch", 2, _computed(None, 288), exact=True),
    case("computed-batch-minus-one", 2, _computed(None, -1), exact=True),
    case("computed-as-another", 1, _shape_as, exact=True),
    # A maximum over the 2 halves: pairs go exactly, a half does not.
    case("computed-count", 2, _halved_count),
    case("shuffle-2", 2, lambda net, a: channel_shuffle(net, a, 2), exact=True),
    case("shuffle-4", 2, lambda net, a: channel_shuffle(net, a, 4), exact=True),
    # A channel is added to the one it moves to: all eight are one unit.
    case("shuffle-and-residual", 0, lambda net, a: net.add(a, channel_shuffle(net, a, 2))),
    case("swapped-factors", 2, _swapped_factors, exact=True),
    # The producer's channels, heads (2) and head dims (4).
    case("heads", 3, lambda net, a: net.reshape(net.relu(net.reshape(
        net.linear(a, 8), [0, 0, 2, 4])), [0, 0, 8]), shape=TOKENS, exact=True),
]  # fmt: skip


FLATTEN = [
    case("Flatten", 2, _flatten(1), exact=True),
    case("Flatten-default", 2, _flatten(None), exact=True),
    case("Flatten-opset-7", 2, _flatten(1), opset=7, exact=True),
    case("Flatten-negative", 2, _flatten(-3), exact=True),
    case("Flatten-rows", 2, _flatten(1), shape=ROWS, exact=True),
    case("Flatten-tokens", 2, _flatten(2), shape=TOKENS, exact=True),
    # (N C) rows reach the output: only the columns of the matrix product are free.
    case("Flatten-after-channels", 1, _flatten(2)),
    case("Flatten-all", 2, lambda net, a: net.gemm(net.node("Flatten", a, axis=0), 7), exact=True),
    case("Flatten-signal", 2, _flatten(1), shape=SIGNAL, exact=True),
]  # fmt: skip

SQUEEZE = [
    case("Squeeze", 2, lambda net, a: net.gemm(_squeeze(2, 3)(net, a), 7), exact=True),
    case("Squeeze-negative", 1, lambda net, a: _squeeze(-1, -2)(net, a), exact=True),
    case("Squeeze-one", 1, lambda net, a: net.unsqueeze(_squeeze(3)(net, a), 2), exact=True),
    case("Squeeze-all-ones", 1, lambda net, a: net.node("Squeeze", net.global_avg_pool(a)),
         exact=True),
    case("Squeeze-all-ones-opset-11", 1, lambda net, a: net.node(
        "Squeeze", net.global_avg_pool(a)), opset=11, exact=True),
    case("Reshape-to-sizes-of-the-data", 0, _by_the_data, typed=True),
    case("Squeeze-all-ones-signal", 2, lambda net, a: net.gemm(net.node(
        "Squeeze", net.global_avg_pool(a)), 7), shape=SIGNAL, exact=True),
    case("Squeeze-all-ones-opset-13", 1, lambda net, a: net.node(
        "Squeeze", net.global_avg_pool(a)), opset=13, exact=True),
    case("Squeeze-opset-11-one", 1, lambda net, a: net.node("Unsqueeze", net.node(
        "Squeeze", net.global_avg_pool(a), axes=[3]), axes=[3]), opset=11, exact=True),
    case("Squeeze-opset-7", 1, lambda net, a: net.node(
        "Squeeze", net.global_avg_pool(a), axes=[2, 3]), opset=7, exact=True),
    case("Squeeze-opset-11-negative", 1, lambda net, a: net.node(
        "Squeeze", net.global_avg_pool(a), axes=[-1, 2]), opset=11, exact=True),
    case("Squeeze-one-channel", 1, lambda net, a: net.unsqueeze(net.squeeze(
        net.conv(a, 1), 1), 1), exact=True),
    case("Unsqueeze", 1, lambda net, a: net.squeeze(net.relu(net.unsqueeze(a, 1)), 1), exact=True),
    case("Unsqueeze-two", 1, lambda net, a: net.squeeze(net.relu(net.unsqueeze(a, 0, 3)), 0, 3)),
    case("Unsqueeze-negative", 1, lambda net, a: net.squeeze(net.relu(net.unsqueeze(a, -1)), -1)),
    case("Unsqueeze-opset-11", 1, lambda net, a: net.node("Squeeze", net.relu(net.node(
        "Unsqueeze", a, axes=[1, -1])), axes=[1, 5]), opset=11, exact=True),
    case("Unsqueeze-tokens", 1, lambda net, a: net.squeeze(net.relu(net.unsqueeze(a, 2)), 2),
         shape=TOKENS, exact=True),
]  # fmt: skip


CONTRIB = [
    case(
        "ExpandDims",
        1,
        lambda net, a: net.squeeze(
            contrib(net, "ExpandDims", [a, np.int32(1)], (2, 1, 8, 6, 6))[0], 1
        ),
        exact=True,
    ),
]


@pytest.mark.parametrize("case", [*RESHAPE, *FLATTEN, *SQUEEZE, *CONTRIB])
def test_reshape(case: Case) -> None:
    case.check()
