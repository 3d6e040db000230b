"""Operators that move data, in the attribute forms of old opsets and the input forms of new."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

import spa
from models.builder import Net, Tensor
from tests.conftest import PLAIN
from tests.ops.cases import (
    CODE,
    ROWS,
    SIGNAL,
    TOKENS,
    Body,
    Case,
    case,
    check_as_if_never_there,
    coded,
    codes,
    contrib,
    dequantise,
    of_numbers,
    quantise,
    summed,
)
from tests.oracle import check

FAR = 2**63 - 1  # how exporters write "to the end"


def _moved(op: str, *inputs: Any, **attrs: Any) -> Body:
    return lambda net, a: net.node(op, a, *inputs, **attrs)


def _quantised_concat(axis: int = 1, stored: bool = False) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        q = quantise(net, a)
        r = codes(net, 2, 6, 6, 6) if stored else quantise(net, net.conv(a, 6, 1))
        y = coded(net, "QLinearConcat", *CODE, q, *CODE, r, *CODE, axis=axis, shape=[2, 14, 6, 6])
        return dequantise(net, y)

    return body


# --- Transpose, Concat

TRANSPOSE = [
    case("and-back", 1, lambda net, a: net.transpose(
        net.relu(net.transpose(a, 0, 2, 3, 1)), 0, 3, 1, 2), exact=True),
    case("default-twice", 1, lambda net, a: net.node("Transpose", net.node("Transpose", a)),
         exact=True),
    case("channels-last-linear", 2, lambda net, a: net.transpose(
        net.linear(net.transpose(a, 0, 2, 3, 1), 6), 0, 3, 1, 2), exact=True),
    case("channels-become-pixels", 0, lambda net, a: net.transpose(a, 0, 2, 1, 3)),
    case("rows", 1, lambda net, a: net.transpose(net.transpose(a, 1, 0), 1, 0), shape=ROWS),
]  # fmt: skip

CONCAT = [
    case("quantised", 2, _quantised_concat(), exact=True),
    case("quantised-negative-axis", 2, _quantised_concat(-3), exact=True),
    case("quantised-with-constant", 2, _quantised_concat(stored=True), exact=True),
    case("two", 2, lambda net, a: net.concat(a, net.conv(net.relu(a), 4)), exact=True),
    case("with-itself", 1, lambda net, a: net.concat(a, a), exact=True),
    case("three", 3, lambda net, a: net.concat(net.conv(a, 4), net.relu(a), net.conv(a, 4))),
    case("of-one", 1, lambda net, a: net.concat(a), exact=True),
    case("negative-axis", 2, lambda net, a: net.concat(a, net.conv(a, 4), axis=-3), exact=True),
    case("last-axis", 2, lambda net, a: net.concat(a, net.linear(a, 4), axis=-1), shape=TOKENS),
    case("over-pixels", 1, lambda net, a: net.concat(a, net.conv(a, 8), axis=3), exact=True),
    case("over-batch", 1, lambda net, a: net.concat(a, net.conv(a, 8), axis=0), exact=True),
    case("with-input", 1, lambda net, a: net.concat(a, net.input("z", (2, 4, 6, 6))), exact=True),
    # The constant's own channels can go as well.
    case("with-constant", 2, lambda net, a: net.concat(a, net.uniform(0, 1, 2, 4, 6, 6))),
    case("constant-over-tokens", 1, lambda net, a: net.concat(
        net.uniform(0, 1, 2, 1, 8), a), shape=TOKENS, exact=True),
    case("twice-reordered", 2, lambda net, a: net.add(
        net.concat(a, b := net.conv(a, 8)), net.concat(net.relu(a), net.relu(b)))),
    # Crossed, a's channels and b's are tied.
    case("twice-crossed", 1, lambda net, a: net.add(
        net.concat(a, b := net.conv(a, 8)), net.concat(net.relu(b), net.relu(a)))),
    # 8 + 4 against 6 + 6: units of [0, 4), and what a runs on: each piece is its own structure.
    case("added-to-other-cuts", 3, lambda net, a: net.add(
        net.concat(a, net.conv(net.relu(a), 4)), net.concat(net.conv(a, 6), net.conv(a, 6)))),
]  # fmt: skip


# --- Split, Slice


def _halves(sizes: list[int] | None, count: int = 2, *, axis: int = 1, attr: bool = False) -> Body:
    """Split, then a convolution or linear layer of 6 on each part, then their sum."""

    def body(net: Net, a: Tensor) -> Tensor:
        inputs = [a] if sizes is None or attr else [a, sizes]
        attrs = {"split": sizes} if attr else {}
        parts = net.nodes("Split", inputs, count, axis=axis, **attrs)
        layer = net.conv if len(a.shape) == 4 else net.linear
        total = layer(parts[0], 6)
        for part in parts[1:]:
            total = net.add(total, layer(part, 6))
        return total

    return body


def _num_outputs(count: int, *, multiplied: bool) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        parts = net.nodes("Split", [a], count, axis=1, num_outputs=count)
        if multiplied:
            return net.mul(parts[0], net.sigmoid(parts[1]))
        total = net.conv(parts[0], 6)
        for part in parts[1:]:
            total = net.add(total, net.conv(part, 6))
        return total

    return body


def _rows_by_data(net: Net, a: Tensor) -> Tensor:
    """How many rows each part has depends on what is read."""
    count = net.node("Ceil", net.node("Clip", net.input("n", (1,)), 0.5, 3.5))
    sizes = net.concat(count, net.sub(6.0, count), axis=0)
    shapes = [[2, 8, 2, 6], [2, 8, 4, 6]]
    parts = net.nodes("Split", [a, net.cast(sizes, TensorProto.INT64)], 2, axis=2, shapes=shapes)
    return net.sub(*(net.node("ReduceSum", part, [2], keepdims=1) for part in parts))


SPLIT = [
    case("sizes", 3, _halves([3, 5]), exact=True),
    case("sizes-opset-11", 3, _halves([3, 5], attr=True), opset=11, exact=True),
    case("sizes-opset-7", 3, _halves([3, 5], attr=True), opset=7, exact=True),
    case("negative-axis", 3, _halves([3, 5], axis=-3), exact=True),
    case("tokens", 3, _halves([3, 5], axis=-1), shape=TOKENS, exact=True),
    # Equal parts whose size the file does not store: it must store them once they differ.
    case("even", 3, _halves(None), exact=True),
    case("even-opset-13", 3, _halves(None), opset=13, exact=True),
    case("sizes-of-input", 0, lambda net, a: net.concat(*net.nodes(
        "Split", [a, net.input("sizes", (2,), np.int64)], 2, axis=1,
        shapes=[[2, 4, 6, 6], [2, 4, 6, 6]])), typed=True),
    case("rows-by-data", 1, _rows_by_data, exact=True),
    case("even-opset-11", 3, _halves(None), opset=11, exact=True),
    case("num-outputs", 3, _num_outputs(2, multiplied=False), opset=18, exact=True),
    case("num-outputs-uneven", 4, _num_outputs(3, multiplied=False), opset=18, exact=True),
    case("num-outputs-gated", 1, _num_outputs(2, multiplied=True), opset=18, exact=True),
    case("gated", 1, lambda net, a: net.mul(*net.nodes("Split", [a], 2, axis=1)), exact=True),
    case("over-pixels", 1, lambda net, a: net.add(*net.split(a, [3, 3], axis=2)), exact=True),
    case("one-part-unused", 2, lambda net, a: net.split(a, [3, 5])[1], exact=True),
    case("split-and-concat", 2, lambda net, a: net.concat(*net.split(a, [3, 5])), exact=True),
    case("swapped", 2, lambda net, a: net.concat(*reversed(net.split(a, [3, 5]))), exact=True),
]  # fmt: skip


def _slice(starts: list[int], ends: list[int], axes: list[int] | None = None,
           steps: list[int] | None = None) -> Body:  # fmt: skip
    inputs = [x for x in (starts, ends, axes, steps) if x is not None]
    return _moved("Slice", *inputs)


def _chunk(net: Net, a: Tensor) -> Tensor:
    """chunk(2) as PyTorch's TorchScript exporter writes it: the middle is computed."""
    half = net.div(net.add(net.dim(a, 1), np.int64(1)), np.int64(2))
    middle = net.unsqueeze(net.mul(half, np.int64(1)), 0)
    end = net.unsqueeze(net.mul(half, np.int64(2)), 0)
    first = net.node("Slice", a, [0], middle, [1], shape=[2, 4, 6, 6])
    second = net.node("Slice", a, middle, end, [1], shape=[2, 4, 6, 6])
    return net.concat(net.conv(first, 4), net.conv(second, 4))


def _lanes(step: int) -> Body:
    return lambda net, a: net.concat(
        *(net.conv(net.slice(a, k, FAR, step=step), 4) for k in range(step))
    )


# What a slice leaves out can go too, so every cut makes one more group.
SLICE = [
    case("from-start", 2, _slice([0], [3], [1]), exact=True),
    case("to-the-end", 2, _slice([3], [FAR], [1]), exact=True),
    case("to-int32-max", 2, _slice([3], [2**31 - 1], [1]), exact=True),
    case("middle", 2, _slice([2], [6], [1]), exact=True),
    case("all", 1, _slice([0], [FAR], [1]), exact=True),
    case("negative-start", 2, _slice([-3], [FAR], [1]), exact=True),
    case("negative-end", 2, _slice([0], [-3], [1]), exact=True),
    case("far-negative-start", 2, _slice([-100], [3], [1]), exact=True),
    case("negative-axis", 2, _slice([1], [3], [-3]), exact=True),
    case("default-axes", 2, _slice([0, 0], [2, 3]), exact=True),
    case("two-axes", 2, _slice([1, 2], [4, FAR], [3, 1]), exact=True),
    case("pixels", 1, _slice([1], [-1], [2]), exact=True),
    case("pixels-step", 1, _slice([0], [FAR], [3], [2]), exact=True),
    case("pixels-reversed", 1, _slice([-1], [-FAR], [2], [-1]), exact=True),
    case("tokens", 2, _slice([2], [5], [-1]), shape=TOKENS, exact=True),
    case("opset-9", 2, lambda net, a: net.node("Slice", a, axes=[1], starts=[2], ends=[FAR]),
         opset=9, exact=True),
    case("opset-7-no-axes", 2, lambda net, a: net.node("Slice", a, starts=[0, 2], ends=[2, 7]),
         opset=7, exact=True),
    case("opset-10", 2, _slice([2], [FAR], [1], [1]), opset=10, exact=True),
    case("int32-positions", 2, _moved("Slice", np.array([2], np.int32), np.array([9], np.int32),
                                      np.array([1], np.int32)), exact=True),
    case("reversed", 1, _slice([-1], [-FAR], [1], [-1]), exact=True),
    case("reversed-from-the-last", 1, _slice([7], [-9], [1], [-1]), exact=True),
    case("reversed-middle", 2, _slice([6], [1], [1], [-1]), exact=True),
    case("reversed-to-the-first", 2, _slice([4], [-FAR], [1], [-1]), exact=True),
    case("reversed-and-added", 1, lambda net, a: net.add(a, _slice(
        [-1], [-FAR], [1], [-1])(net, a)), exact=True),
    case("reversed-step-2", 0, _slice([-1], [-FAR], [1], [-2])),
    # With a stored step neighbours go together.
    case("step-2", 1, _slice([0], [FAR], [1], [2]), exact=True),
    case("lanes-of-2", 3, _lanes(2), exact=True),
    case("step-3-of-8", 0, _slice([0], [FAR], [1], [3])),
    case("step-2-of-some", 0, _slice([0], [6], [1], [2])),
    case("step-2-from-3", 0, _slice([3], [FAR], [1], [2])),
    case("from-an-input", 0, lambda net, a: net.node(
        "Slice", a, net.input("at", (1,), np.int64), [FAR], [1], shape=[2, 5, 6, 6]),
        refused=True),
    case("pixels-from-an-input", 1, lambda net, a: net.node(
        "Slice", a, net.input("at", (1,), np.int64), [FAR], [2], shape=[2, 8, 5, 6]), exact=True),
    case("first-axes-from-an-input", 0, lambda net, a: net.node(
        "Slice", a, net.input("at", (2,), np.int64), [FAR, FAR], shape=[2, 8, 6, 6])),
    case("halves", 4, lambda net, a: net.concat(
        net.conv(net.slice(a, 0, 4), 4), net.conv(net.slice(a, 4, FAR), 5)), exact=True),
    case("overlapping", 4, lambda net, a: net.add(
        net.conv(net.slice(a, 0, 5), 6), net.conv(net.slice(a, 3, 8), 6)), exact=True),
    case("computed-chunk", 4, _chunk, exact=True),
    case("signal", 2, _moved("Slice", [0], [3], [1]), shape=SIGNAL, exact=True),
    case("computed-elsewhere", 1, lambda net, a: net.node(
        "Slice", a, [0], net.unsqueeze(net.dim(a, 2), 0), [3], shape=[2, 8, 6, 6]), exact=True),
]  # fmt: skip


# --- Gather, Pad


def _zeros(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape, np.int64)


def _dynamic_gather(axis: int) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        return net.gather(a, net.input("index", (2,), np.int64), axis=axis)

    return body


GATHER = [
    case("list", 2, _moved("Gather", [1, 4, 6], axis=1), exact=True),
    case("permutation", 1, _moved("Gather", [7, 1, 0, 2, 5, 4, 3, 6], axis=1), exact=True),
    case("negative", 2, _moved("Gather", [-1, -3, 0], axis=1), exact=True),
    case("negative-axis", 2, _moved("Gather", [1, 4, 6], axis=-3), exact=True),
    # 0 and 3 appear twice, 1 and 2 once, 4 to 7 never.
    case("repeated", 3, _moved("Gather", [0, 0, 3, 3, 1, 2], axis=1), exact=True),
    case("int32", 2, _moved("Gather", np.array([1, 4, 6], np.int32), axis=1), exact=True),
    case("one", 1, _moved("Gather", [3], axis=1)),
    case("scalar-of-channels", 1, lambda net, a: net.unsqueeze(
        net.gather(a, np.int64(3), axis=1), 1)),
    case("table-of-channels", 0, lambda net, a: net.reshape(
        net.gather(a, np.arange(8).reshape(2, 4), axis=1), [2, 8, 6, 6])),
    case("scalar-of-tokens", 1, lambda net, a: net.gather(a, np.int64(0), axis=1), shape=TOKENS),
    case("list-of-tokens", 1, _moved("Gather", [0, 2], axis=1), shape=TOKENS, exact=True),
    case("table-of-tokens", 1, _moved("Gather", np.array([[0, 1], [2, 3]]), axis=1), shape=TOKENS),
    case("computed-channels", 0, _dynamic_gather(1)),
    case("computed-pixels", 1, _dynamic_gather(2), exact=True),
    # The embedding's columns are the producer's channels.
    case("embedding", 1, lambda net, a: net.add(a, net.gather(
        net.weight(10, 8), net.input("ids", (2, 5), np.int64))), shape=TOKENS, exact=True),
    # Rows that nothing picks are a group of their own.
    case("rows-of-a-constant", 2, lambda net, a: net.add(a, net.gather(
        net.weight(10, 8), np.arange(5))), shape=TOKENS, exact=True),
    case("opset-7", 2, _moved("Gather", [1, 4, 6], axis=1), opset=7, exact=True),
    case("default-axis", 1, _moved("Gather", [1, 0]), exact=True),
    case("GatherElements-channels", 0, _moved("GatherElements", _zeros(2, 4, 6, 6), axis=1)),
    case("GatherElements-pixels", 1, _moved("GatherElements", _zeros(2, 8, 6, 3), axis=3),
         exact=True),
    case("GatherElements-default-axis", 1, _moved("GatherElements", _zeros(1, 8, 6, 6)),
         exact=True),
    case("GatherElements-of-fewer", 0, _moved("GatherElements", _zeros(2, 5, 6, 3), axis=3)),
    case("GatherND", 0, _moved("GatherND", np.array([[[0]], [[1]]]))),
    case("GatherND-channels", 0, lambda net, a: net.reshape(net.node(
        "GatherND", a, np.array([[0, 1], [1, 7]])), [2, 1, 6, 6])),
    case("GatherND-batch", 0, lambda net, a: net.reshape(net.node(
        "GatherND", a, np.array([[1], [7]]), batch_dims=1), [2, 1, 6, 6])),
    case("GatherND-tokens", 1, _moved("GatherND", np.array([[[1]], [[2]]]), batch_dims=1),
         shape=TOKENS, exact=True),
]  # fmt: skip


def _shared_out(take: Callable[[Net, Tensor], list[Tensor]], size: int = 1) -> Body:
    """The sum of branches, each with its share of four, or with the sum of two shares."""

    def body(net: Net, a: Tensor) -> Tensor:
        total = net.linear(a, 6)
        for share in take(net, net.sigmoid(net.linear(a, 4))):
            if size > 1:
                share = net.node("ReduceSum", net.mul(share, net.linear(a, size)), [-1])
            total = net.add(total, net.mul(share, net.linear(a, 6)))
        return total

    return body


def _taken(op: str, size: int) -> Callable[[Net, Tensor], list[Tensor]]:
    def take(net: Net, p: Tensor) -> list[Tensor]:
        parts = [[*range(k, k + size)] for k in range(0, 4, size)]
        if op == "Split":
            return net.split(p, [size] * len(parts), axis=-1)
        if op == "Slice":
            return [net.slice(p, part[0], part[-1] + 1, axis=-1) for part in parts]
        return [net.gather(p, part, axis=-1) for part in parts]

    return take


# One index alone goes with the branch that is made from it, and several do not.
SHARED_OUT = [
    case(f"{op}-{size}-shared-out", {1: 3, 2: 4}[size], _shared_out(_taken(op, size), size),
         shape=TOKENS, exact=True)
    for op in ("Gather", "Slice", "Split") for size in (1, 2)
]  # fmt: skip


# --- Read and written to at positions, which may be computed


def _scatter(op: str) -> Body:
    """Writes into the producer's tensor at constant positions."""

    def body(net: Net, a: Tensor) -> Tensor:
        if op == "ScatterND":
            return net.node(op, a, np.array([[0, 1]]), net.uniform(0, 1, 1, 6, 6))
        return net.node(op, a, np.zeros((1, 1, 1, 1), np.int64), net.uniform(0, 1, 1, 1, 1, 1))

    return body


def _beside(net: Net, at: Tensor) -> Tensor:
    """Given positions beside those that are computed, a row for each."""
    first = net.input("at", tuple(at.shape), np.int64)
    return net.concat(net.unsqueeze(first, 2), net.unsqueeze(at, 2), axis=2)


def _written_to_a_square(net: Net, a: Tensor) -> Tensor:
    square = net.matmul(net.weight(8, 4), a)
    _, at = net.nodes("TopK", [square, [3]], 2, axis=1)
    made = net.node("ScatterElements", square, at, net.uniform(0, 1, 8, 3), axis=1)
    return net.matmul(net.weight(4, 8), made)


INDEXED = [
    case("GatherND-list", 2, lambda net, a: net.transpose(net.node(
        "GatherND", net.transpose(a, 1, 0, 2, 3), np.array([[5], [0], [-1]])), 1, 0, 2, 3),
        exact=True),
    case("GatherND-list-summed", 2, lambda net, a: net.node("ReduceSum", net.node(
        "GatherND", net.transpose(a, 1, 0, 2, 3), np.array([[5], [0], [-1]])), [0]), exact=True),
    case("GatherND-computed", 1, lambda net, a: net.transpose(net.node("GatherND", net.transpose(
        a, 2, 0, 1, 3), net.input("at", (2, 1), np.int64)), 1, 2, 0, 3), exact=True),
    case("GatherElements-as-many", 0, lambda net, a: net.node(
        "GatherElements", a, np.zeros((2, 8, 6, 6), np.int64), axis=1)),
    case("ScatterElements-as-many", 0, lambda net, a: net.node(
        "ScatterElements", a, np.arange(8).reshape(1, 8, 1, 1).repeat(2, 0), net.uniform(
        0, 1, 2, 8, 1, 1), axis=1)),
    case("TopK-looked-up-in-a-cube", 1, of_numbers(lambda net, a, at: net.unsqueeze(
        net.node("GatherND", net.weight(8, 8, 8, 4), at), 1)), shape=ROWS),
    case("numbers-looked-up", 1, lambda net, a: net.mul(a, net.unsqueeze(net.gather(
        net.uniform(0, 1, 10), net.input("ids", (2, 5), np.int64)), 2)), shape=TOKENS, exact=True),
    case("GatherND-square", 2, lambda net, a: net.transpose(net.node("GatherND", net.transpose(
        net.matmul(net.weight(8, 4), a), 1, 0), np.array([[5], [0], [-1], [2], [1]])), 1, 0),
        shape=ROWS),
    case("GatherND-one", 1, lambda net, a: net.unsqueeze(net.node(
        "GatherND", net.transpose(a, 1, 0, 2, 3), np.array([2])), 1), exact=True),
    case("GatherND-opset-11", 0, lambda net, a: net.node(
        "GatherND", a, np.array([[[0]], [[1]]])), opset=11),
    case("Scatter", 0, lambda net, a: _scatter("Scatter")(net, a), opset=10),
    case("ScatterElements", 0, _scatter("ScatterElements")),
    case("ScatterElements-opset-13", 0, _scatter("ScatterElements"), opset=13),
    case("ScatterND", 0, _scatter("ScatterND")),
    case("ScatterND-opset-11", 0, _scatter("ScatterND"), opset=11),
    case("ScatterND-opset-13", 0, _scatter("ScatterND"), opset=13),
    case("ScatterElements-pixels", 1, lambda net, a: net.node(
        "ScatterElements", a, np.zeros((2, 8, 6, 2), np.int64), net.uniform(0, 1, 2, 8, 6, 2),
        axis=3), exact=True),
    case("ScatterElements-adds", 1, lambda net, a: net.node(
        "ScatterElements", net.const(np.zeros((2, 8, 6, 6), np.float32)),
        np.zeros((2, 8, 6, 6), np.int64), a, axis=-1, reduction="add"), exact=True),
    # Each channel says where a row of a table is written to; the columns of it may go.
    case("ScatterND-where-channels-say", 1, lambda net, a: net.mul(a, net.node(
        "ReduceMean", net.node("ScatterND", net.uniform(-1, 1, 9, 4), net.cast(net.unsqueeze(
            net.node("Clip", net.node("ReduceMax", a, axes=[0, 2, 3], keepdims=0), 0.0, 8.0), 1),
            7), net.uniform(-1, 1, 8, 4)), keepdims=0))),
    case("ScatterND-rows", 1, lambda net, a: net.transpose(net.node(
        "ScatterND", net.transpose(a, 2, 0, 1, 3), np.array([[3], [1]]),
        net.uniform(0, 1, 2, 2, 8, 6)), 1, 2, 0, 3), exact=True),
    case("TopK-looked-up", 2, of_numbers(lambda net, a, at: net.gather(net.weight(8, 4), at)),
         shape=ROWS),
    case("TopK-looked-up-by-lists", 2, of_numbers(
        lambda net, a, at: net.node("GatherND", net.weight(8, 4), net.unsqueeze(at, 2))),
        shape=ROWS),
    case("TopK-looked-up-beside-others", 2, of_numbers(lambda net, a, at: net.node(
        "GatherND", net.weight(5, 8, 4), _beside(net, at))), shape=ROWS),
    case("TopK-written-to-beside-others", 1, of_numbers(lambda net, a, at: net.unsqueeze(net.node(
        "ScatterND", a, _beside(net, at), net.uniform(0, 1, 4, 3)), 2)), shape=ROWS, exact=False),
    case("TopK-beside-others-that-are-read", 0, of_numbers(
        lambda net, a, at: net.cast(_beside(net, at), 1)), shape=ROWS),
    case("TopK-looked-up-elements", 1, of_numbers(
        lambda net, a, at: net.unsqueeze(net.node("GatherElements", net.relu(a), at, axis=1), 2)),
        shape=ROWS, exact=False),
    case("TopK-written-to", 1, of_numbers(lambda net, a, at: net.unsqueeze(
        net.node("ScatterElements", a, at, net.uniform(0, 1, 4, 3), axis=1), 2)),
        shape=ROWS, exact=False),
    # Of a square the positions are those of one axis.
    case("TopK-looked-up-in-a-square", 1, of_numbers(lambda net, a, at: net.unsqueeze(net.node(
        "GatherElements", net.matmul(net.weight(8, 4), a), at, axis=1), 2)), shape=ROWS),
    case("TopK-written-to-a-square", 2, _written_to_a_square, shape=ROWS),
    case("TopK-sliced-numbers", 1, of_numbers(
        lambda net, a, at: net.gather(net.weight(8, 4), net.slice(at, 0, 2))), shape=ROWS),
    case("ArgMax-looked-up", 2, lambda net, a: net.gather(net.weight(8, 4), net.node(
        "ArgMax", a, axis=1, keepdims=0)), shape=ROWS),
]  # fmt: skip

_SPACE = [0, 0, 1, 1, 0, 0, 1, 1]
_MORE = [0, 2, 0, 0, 0, 2, 0, 0]

# Channels that a pad adds are zeros that nothing stores: they can go with what reads them.
PAD = [
    case("space", 1, _moved("Pad", _SPACE), exact=True),
    case("space-opset-10", 1, _moved("Pad", pads=_SPACE), opset=10, exact=True),
    case("space-value", 1, _moved("Pad", _SPACE, 1.0), exact=True),
    case("space-value-summed", 1, lambda net, a: summed(net, net.node("Pad", a, _SPACE, 1.0)),
         exact=False),
    case("space-value-summed-opset-10", 1, lambda net, a: net.node("ReduceSum", net.node(
        "Pad", a, pads=_SPACE, value=1.0), axes=[1]), opset=10, exact=False),
    case("space-zero-summed", 1, lambda net, a: summed(net, net.node("Pad", a, _SPACE, 0.0)),
         exact=True),
    case("by-a-free-size", 1, lambda net, a: net.node("Pad", a, net.concat(
        net.const([0] * 7), net.unsqueeze(net.dim(a, 0), 0), axis=0), shape=["n", 8, 6, "m"]),
        shape=("n", 3, 6, 6), exact=True),
    case("value-of-input", 1, lambda net, a: net.node(
        "Pad", a, _SPACE, net.input("value", (), np.float32)), exact=True),
    case("space-summed", 1, lambda net, a: summed(net, net.node("Pad", a, _SPACE)), exact=True),
    case("space-reflect", 1, _moved("Pad", _SPACE, mode="reflect"), exact=True),
    case("space-reflect-summed", 1, lambda net, a: summed(net, net.node(
        "Pad", a, _SPACE, mode="reflect")), exact=True),
    case("axes-of-input", 0, lambda net, a: net.node("Pad", a, [1, 1], None, net.input(
        "axes", (1,), np.int64), shape=[2, 8, 6, 8]), opset=18, typed=True, refused=True),
    # What is added to an axis that is whole is whole too.
    case("tokens", 1, lambda net, a: net.matmul(net.weight(4, 7), net.node(
        "Pad", a, [0, 1, 0, 0, 1, 0])), shape=TOKENS, exact=True),
    case("space-edge", 1, _moved("Pad", _SPACE, mode="edge"), exact=True),
    case("space-wrap", 1, _moved("Pad", _SPACE, mode="wrap"), opset=19, exact=True),
    case("space-axes", 1, _moved("Pad", [1, 1, 1, 1], None, [2, 3]), opset=18, exact=True),
    case("space-negative-axes", 1, _moved("Pad", [1, 1, 1, 1], 0.0, [-1, -2]), opset=18),
    case("space-cropped", 1, _moved("Pad", [0, 0, -1, 0, 0, 0, 0, -1]), exact=True),
    case("channels", 2, _moved("Pad", _MORE), exact=True),
    case("channels-opset-10", 2, _moved("Pad", pads=_MORE), opset=10, exact=True),
    case("channels-before", 2, _moved("Pad", [0, 3, 0, 0, 0, 0, 0, 0]), exact=True),
    case("channels-axes", 2, _moved("Pad", [2, 2], None, [1]), opset=18, exact=True),
    case("channels-one-on-each-side", 2, _moved("Pad", [0, 1, 0, 0, 0, 1, 0, 0]), exact=True),
    case("channels-value", 2, _moved("Pad", _MORE, 0.5), exact=True),
    case("channels-value-summed", 1, lambda net, a: summed(net, net.node("Pad", a, _MORE, 0.5))),
    case("channels-edge", 0, _moved("Pad", _MORE, mode="edge")),
    case("channels-cropped", 0, _moved("Pad", [0, -2, 0, 0, 0, 0, 0, 0])),
    case("shortcut", 2, lambda net, a: net.add(
        net.node("Pad", a, _MORE), net.conv(a, 12)), exact=True),
    case("computed", 0, lambda net, a: net.node("Pad", a, net.mul(
        net.node("Shape", net.node("Shape", a)), net.input("by", (8,), np.int64)),
        shape=[2, 8, 6, 6]), refused=True),
]  # fmt: skip


def _own(op: str, shape: tuple[int, ...], *inputs: Any, **attrs: Any) -> Body:
    return lambda net, a: contrib(net, op, [a, *(net.const(i) for i in inputs)], shape, **attrs)[0]


CONTRIB = [
    case("ms-Pad", 1, _own("Pad", (2, 8, 8, 7), np.asarray([0, 0, 1, 0, 0, 0, 1, 1])), exact=True),
    case("ms-Pad-channels", 2, _own("Pad", (2, 11, 6, 6), np.asarray([0, 1, 0, 0, 0, 2, 0, 0]))),
    case("ms-GatherND", 1, _own("GatherND", (3, 8, 6, 6), np.asarray([[0], [1], [1]])),
         exact=True),
]  # fmt: skip


@pytest.mark.parametrize("case", CONTRIB)
def test_contrib(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("case", TRANSPOSE)
def test_transpose(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("case", CONCAT)
def test_concat(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("case", SPLIT)
def test_split(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("case", SLICE)
def test_slice(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("case", GATHER)
def test_gather(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("case", SHARED_OUT)
def test_shared_out(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("case", INDEXED)
def test_indexed(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("case", PAD)
def test_pad(case: Case) -> None:
    case.check()


def _free(shape: list[int | str], cut: Callable[[Net, Tensor], Tensor]) -> ModelProto:
    net = Net("of a free size")
    return net.model(net.conv(cut(net, net.conv(net.input("x", shape), 8, 1)), 5, 1))


def test_only_the_axis_of_a_free_size_is_cut_at_run_time() -> None:
    """Some exporters slice all axes at once, the batch to its end as the run has it."""

    def cut(net: Net, a: Tensor) -> Tensor:
        ends = net.shape_vector(net.dim(a, 0), 4, 6, 6)
        return net.node("Slice", a, [0, 0, 0, 0], ends, [0, 1, 2, 3], shape=["n", 4, 6, 6])

    groups = check(_free(["n", 3, 6, 6], cut), 2)
    assert all(group.exact for group in groups)


@pytest.mark.parametrize("start", [False, True])
def test_channels_that_a_free_size_counts_stay(start: bool) -> None:
    def cut(net: Net, a: Tensor) -> Tensor:
        size = net.unsqueeze(net.dim(a, 3), 0)
        edges = (net.node("Neg", size), [FAR]) if start else ([0], size)
        return net.node("Slice", a, *edges, [1], shape=[2, "w", 6, "w"])

    net = Net("counted by a free size")
    made = net.conv(net.input("x", [2, 3, 6, "w"]), 8, 1)
    groups = check(net.model(net.node("ReduceSum", cut(net, made), [1], keepdims=0)), 0)
    assert {lock.why for lock in groups.locks() if lock.operator == "Slice"} == {
        "sliced at positions computed at run time"
    }


@pytest.mark.parametrize(
    ("given", "axis", "groups"),
    [("starts", 1, 0), ("ends", 1, 0), ("axes", 1, 0), ("steps", 1, 0), ("starts", 2, 1),
     ("ends", 2, 1), ("axes", 2, 0), ("steps", 2, 1)],
)  # fmt: skip
def test_what_is_sliced_where_an_input_says(given: str, axis: int, groups: int) -> None:
    """Nothing else than the axes that it may be."""

    def body(net: Net, a: Tensor) -> Tensor:
        held = {
            "starts": 0,
            "ends": FAR,
            "axes": axis,
            **({"steps": 1} if given == "steps" else {}),
        }
        inputs = [
            net.input(name, (1,), np.int64) if name == given else [value]
            for name, value in held.items()
        ]
        cut = [n - (k == axis and given in ("starts", "ends")) for k, n in enumerate(a.shape)]
        return net.node("Slice", a, *inputs, shape=cut)

    assert len(spa.analyze(Case("", groups, body, typed=True).model())) == groups


LOOKED_UP = ("TopK-looked-up", "TopK-looked-up-by-lists", "TopK-looked-up-elements")


@pytest.mark.parametrize("row", [row for row in INDEXED if row.id in LOOKED_UP])
@pytest.mark.parametrize("gone", [[0], [2, 5], [1, 3, 4, 6, 7]])
def test_looked_up_as_if_never_there(row: Case, gone: list[int]) -> None:
    check_as_if_never_there(row, gone)


def test_a_list_may_be_as_long_as_there_are_channels() -> None:
    net = Net("many channels")
    made = net.relu(net.gemm(net.input("x", ["n", 4]), 1100))
    order = net.rng.permutation(1100)
    model = net.model(net.gemm(net.node("Gather", made, order, axis=1), 3))
    result = spa.prune(model, "channels=0.5", **PLAIN)
    assert result.verification is not None and result.verification.law is not None
    assert result.figures.share("params") < 0.6
