"""Reductions over live and over whole axes, and results that are positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto

from models.builder import Net, Tensor
from tests.ops.cases import (
    CODE,
    ROWS,
    TOKENS,
    Body,
    Case,
    case,
    coded,
    contrib,
    dequantise,
    of_numbers,
    quantise,
)

SUMS = ("ReduceSum", "ReduceL1", "ReduceL2", "ReduceSumSquare")
OTHERS = ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceLogSum", "ReduceLogSumExp")
REDUCTIONS = (*SUMS, *OTHERS)


def _reduce(op: str, axes: list[int] | None, opset: int, keepdims: int | None = 1) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        a = net.add(net.node("Abs", a), 0.1) if op == "ReduceLogSum" else a
        by_input = opset >= 18 or (op == "ReduceSum" and opset >= 13)
        if by_input:
            return net.node(op, a, axes, keepdims=keepdims)
        return net.node(op, a, axes=axes, keepdims=keepdims)

    return body


def _quantised(axes: list[int], shape: list[int]) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        q = quantise(net, a)
        y = coded(net, "QLinearReduceMean", q, *CODE, *CODE, axes=axes, keepdims=1, shape=shape)
        return dequantise(net, y)

    return body


REDUCE = [
    case("QLinearReduceMean-space", 1, _quantised([2, -1], [2, 8, 1, 1]), exact=True,
         runnable=False, typed=True),
    case("QLinearReduceMean-channels", 1, _quantised([1], [2, 1, 6, 6]), exact=False,
         runnable=False, typed=True),
    # Space goes, channels stay.
    *(
        case(f"{op}-space-opset-{opset}", 1, _reduce(op, [2, 3], opset), opset=opset, exact=True)
        for op in REDUCTIONS
        for opset in (7, 11, 13, 18)
    ),
    *(
        case(f"{op}-negative-axes", 1, _reduce(op, [-1, -2], opset), opset=opset, exact=True)
        for op in REDUCTIONS
        for opset in (11, 18)
    ),
    *(
        case(f"{op}-to-rows-opset-{opset}", 1, _reduce(op, [2, 3], opset, 0), opset=opset)
        for op in ("ReduceMean", "ReduceSum", "ReduceMax")
        for opset in (11, 13, 18)
    ),
    # Channels go: exact where zeros add nothing.
    *(
        case(f"{op}-channels", 1, _reduce(op, [1], opset), opset=opset, exact=op in SUMS)
        for op in REDUCTIONS
        for opset in (13, 18)
    ),
    *(
        case(f"{op}-all", 1, lambda net, a, op=op: (_reduce(op, None, 18, 0)(net, a),), opset=18)
        for op in ("ReduceSum", "ReduceMean")
    ),
    case("ReduceSum-all-opset-11", 1, lambda net, a: (_reduce("ReduceSum", None, 11, 0)(net, a),),
         opset=11, exact=True),
    case("ReduceSum-all-empty-input", 1, lambda net, a: (net.node(
        "ReduceSum", a, np.zeros(0, np.int64), keepdims=0),), exact=True),
    case("ReduceSum-noop", 1, lambda net, a: net.node(
        "ReduceSum", a, noop_with_empty_axes=1), exact=True),
    case("ReduceSum-noop-empty-input", 1, lambda net, a: net.node(
        "ReduceSum", a, np.zeros(0, np.int64), noop_with_empty_axes=1), exact=True),
    # With nothing to reduce the operator still squares.
    case("ReduceSumSquare-noop", 1, lambda net, a: net.node(
        "ReduceSumSquare", a, noop_with_empty_axes=1), opset=18, exact=True),
    case("batch-goes", 1, _reduce("ReduceMean", [0], 17), exact=True),
    case("tokens-go", 1, _reduce("ReduceMean", [1], 17, 0), shape=TOKENS, exact=True),
    case("features-go", 1, lambda net, a: net.mul(a, net.mean(a)), shape=TOKENS, exact=False),
    case("rows-go", 1, _reduce("ReduceMax", [0], 17), shape=ROWS, exact=True),
    case("mean-to-a-gate", 1, lambda net, a: net.mul(a, net.sigmoid(net.mean(a, 1))), exact=False),
]  # fmt: skip


def _attr_or_input(op: str, opset: int, axis: int, **attrs: Any) -> Body:
    return lambda net, a: net.node(op, a, axis=axis, **attrs)


def _top_k(axis: int, opset: int = 17) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        if opset < 10:
            return net.nodes("TopK", [a], 2, k=3, axis=axis)[0]
        return net.nodes("TopK", [a, [3]], 2, axis=axis)[0]

    return body


def _one_hot(net: Net, a: Tensor) -> Tensor:
    classes = net.cast(net.node("Abs", a), TensorProto.INT64)
    hot = net.node("OneHot", classes, [3], [0.0, 1.0], axis=-1)
    return net.node("ReduceSum", hot, [-1], keepdims=0)


def _asked_for(axis: int) -> Body:
    """As many as an input says."""
    shape = [2, 8, 6, 6]
    shape[axis] = 3

    def body(net: Net, a: Tensor) -> Tensor:
        count = net.input("k", (1,), np.int64)
        made, at = net.nodes("TopK", [a, count], 2, shapes=[shape] * 2, axis=axis)
        at.dtype = np.dtype(np.int64)
        return made

    return body


def _free_depth(net: Net, a: Tensor) -> Tensor:
    """As many classes as there are images."""
    classes = net.node("ArgMax", a, axis=3, keepdims=0)
    hot = net.node("OneHot", classes, net.dim(a, 0), [0.0, 1.0], axis=1, shape=["n", "n", 8, 6])
    return net.node("ReduceSum", hot, [1], keepdims=0)


INDICES = [
    case("TopK-asked-for", 0, _asked_for(1), runnable=False, typed=True),
    case("TopK-pixels-asked-for", 1, _asked_for(2), typed=True),
    case("TopK-channels-opset-7", 1, _top_k(1, 7), opset=7, exact=False),
    case("OneHot-free-depth", 1, _free_depth, shape=("n", 3, 6, 6), exact=True),
    case("TopK-marked-in-front", 1, of_numbers(
        lambda net, a, at: net.transpose(net.node("OneHot", at, [8], [0.0, 1.0], axis=1), 0, 2, 1)),
        shape=ROWS, exact=False),
    case("TopK-marked-as-asked", 0, of_numbers(lambda net, a, at: net.node(
        "OneHot", at, net.input("depth", (), np.int64), [0.0, 1.0], shape=[4, 3, 8])),
        shape=ROWS, runnable=False, typed=True),
    *(
        case(f"{op}-{name}", groups, _attr_or_input(op, 17, axis, keepdims=1), exact=True)
        for op in ("ArgMax", "ArgMin")
        for name, axis, groups in (("channels", 1, 0), ("pixels", -1, 1), ("negative", -3, 0))
    ),
    *(
        case(f"{op}-{name}-opset-{opset}", groups, _attr_or_input(op, opset, axis), opset=opset,
             exact=True)
        for op in ("ArgMax", "ArgMin")
        for name, axis, groups in (("channels", 1, 0), ("pixels", 3, 1))
        for opset in (7, 12)
    ),
    case("ArgMax-drops", 1, lambda net, a: net.node("ArgMax", a, axis=3, keepdims=0), exact=True),
    case("ArgMax-defaults", 1, lambda net, a: net.node("ArgMax", a), exact=True),
    case("TopK-default-axis", 1, lambda net, a: net.nodes("TopK", [a, [3]], 2)[0], exact=True),
    case("ReduceMax-keeps", 1, lambda net, a: net.node("ReduceMax", a, axes=[2]), exact=True),
    case("OneHot-default-axis", 1, lambda net, a: net.node("ReduceSum", net.node(
        "OneHot", net.node("ArgMax", a, axis=3, keepdims=0), [6], [0.0, 1.0]), [-1]), exact=True),
    case("TopK-channels", 1, _top_k(1), exact=False),
    # The channels that are looked up in, or marked, go with those that are numbered.
    case("TopK-marked", 1, of_numbers(
        lambda net, a, at: net.node("OneHot", at, [8], [0.0, 1.0], axis=-1)),
        shape=ROWS, exact=False),
    case("TopK-marked-in-more", 0, of_numbers(
        lambda net, a, at: net.node("OneHot", at, [9], [0.0, 1.0], axis=-1)), shape=ROWS),
    case("TopK-counted-with", 0, of_numbers(
        lambda net, a, at: net.cast(net.unsqueeze(at, 2), TensorProto.FLOAT)), shape=ROWS),
    case("TopK-pixels", 1, _top_k(-1), exact=True),
    case("TopK-opset-7", 1, _top_k(3, 7), opset=7, exact=True),
    case("TopK-opset-10", 1, _top_k(-1, 10), opset=10, exact=True),
    case("OneHot", 1, _one_hot, exact=True),
]  # fmt: skip


def _random(net: Net, op: str) -> Tensor:
    sizes = [2, 8, 6, 6]
    net.graph.nodes.append(node := gs.Node(op, op, {"shape": sizes}))
    node.outputs.append(gs.Variable(f"{op}.out", np.dtype(np.float32), sizes))
    return node.outputs[0]


def _boxes(net: Net, a: Tensor) -> Any:
    boxes = net.reshape(net.conv(a, 4, 1), [2, 36, 4])
    scores = net.reshape(net.conv(a, 2, 1), [2, 2, 36])
    return (net.node("NonMaxSuppression", boxes, scores, [3]),)


def _loss(op: str) -> Body:
    def body(net: Net, a: Tensor) -> Any:
        a = net.node("LogSoftmax", a, axis=1) if op[0] == "N" else a
        return (net.node(op, a, np.zeros((2, 6, 6), np.int64)),)

    return body


def _random_like(op: str, opset: int = 17) -> Body:
    return lambda net, a: net.add(a, net.node(op, a))


def _beside(op: str, *inputs: Any, shape: list[int] | None = None, **attrs: Any) -> Body:
    """Something made of nothing, as a graph output beside the ordinary one."""

    def body(net: Net, a: Tensor) -> Any:
        options = {} if shape is None else {"shape": shape}
        return net.conv(a, 5, 1), net.node(op, *inputs, **options, **attrs)

    return body


POSITIONS = [
    case("NonZero", 0, lambda net, a: (net.node("NonZero", a),)),
    # All but the operator's own input, which is made of two convolutions of the producer, is free.
    case("NonMaxSuppression", 1, _boxes, exact=True),
    case("Unique", 0, lambda net, a: (net.node("Unique", a),)),
    case("Compress", 0, lambda net, a: (net.node("Compress", a, np.ones(8, bool), axis=1),)),
    case("Multinomial", 0, lambda net, a: (net.node("Multinomial", a, sample_size=3),), shape=ROWS),
    case("EyeLike", 0, lambda net, a: (net.node("EyeLike", a),), shape=ROWS),
    case("Trilu-of-pixels", 1, lambda net, a: net.node("Trilu", a), exact=True),
    case("Trilu-of-channels", 0, lambda net, a: net.node("Trilu", a), shape=TOKENS),
    case("Det", 0, lambda net, a: (net.node("Det", a),)),
    case("NegativeLogLikelihoodLoss", 0, _loss("NegativeLogLikelihoodLoss")),
    case("SoftmaxCrossEntropyLoss", 0, _loss("SoftmaxCrossEntropyLoss")),
    *(case(op, 0, _random_like(op))
      for op in ("RandomNormalLike", "RandomUniformLike", "Bernoulli")),
    case("Range", 1, _beside("Range", np.int64(0), np.int64(4), np.int64(1)), exact=True),
    *(case(op, 0, lambda net, a, op=op: net.add(a, _random(net, op)), typed=True)
      for op in ("RandomNormal", "RandomUniform")),
    case("StringNormalizer", 1, lambda net, a: (net.conv(a, 5, 1), net.node(
        "StringNormalizer", net.input("words", (2,), np.str_), shape=[2], dtype=np.str_)),
        exact=True),
    case("TfIdfVectorizer", 1, lambda net, a: (net.conv(a, 5, 1), net.node(
        "TfIdfVectorizer", net.input("ids", (4,), np.int64), max_gram_length=1, max_skip_count=0,
        min_gram_length=1, mode="TF", ngram_counts=[0], ngram_indexes=[0, 1], pool_int64s=[2, 3])),
        exact=True),
]  # fmt: skip


def _triangle(net: Net, a: Tensor) -> Tensor:
    turned = contrib(net, "Trilu", [net.transpose(a, 2, 0, 1)], (8, 2, 5))[0]
    return net.transpose(turned, 1, 2, 0)


CONTRIB = [case("ms-Trilu", 1, _triangle, shape=TOKENS, exact=True)]


@pytest.mark.parametrize("case", [*REDUCE, *INDICES, *POSITIONS, *CONTRIB])
def test_reduce(case: Case) -> None:
    case.check()
