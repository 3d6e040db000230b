"""Normalisations: over which axes the statistics run decides whether removal is exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import spa
from models.builder import Net, Tensor
from spa.reals import real
from spa.rewrite import rewrite
from tests.isolation import Alone
from tests.numeric import alone
from tests.ops.cases import (
    CODE,
    IMAGE,
    POINT,
    ROWS,
    SCALE,
    SIGNAL,
    TOKENS,
    UNSEEN,
    VOLUME,
    Body,
    Case,
    case,
    check_axes,
    coded,
    codes,
    contrib,
    quantise,
    summed,
    turned,
)
from tests.oracle import check


def _scaled(op: str, *shapes: tuple[int, ...], **attrs: Any) -> Body:
    """The operator with positive constants of these shapes as its further inputs."""
    return lambda net, a: net.node(op, a, *(net.uniform(0.5, 1, *s) for s in shapes), **attrs)


def _along(op: str, axis: int | None, **attrs: Any) -> Body:
    return lambda net, a: net.node(op, a, axis=axis, **attrs)


def _mean_variance(**attrs: Any) -> Body:
    return lambda net, a: net.node("MeanVarianceNormalization", a, shape=a.shape, **attrs)


def _stored_batch(op: str, **attrs: Any) -> Body:
    """Of a batch out of the file, of which some may go."""

    def body(net: Net, a: Tensor) -> Tensor:
        strength = net.node("ReduceMax", a, axes=[0, 1, 2, 3], keepdims=1)  # else stored, ahead
        y = net.node(op, net.mul(net.uniform(-1, 1, 2, 8, 6, 6), strength), **attrs)
        return net.add(a, net.node("ReduceSum", y, [0], keepdims=1))

    return body


def _trained(outputs: int, **attrs: Any) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        constants = (net.uniform(0.5, 1, 8) for _ in range(4))
        return net.nodes("BatchNormalization", [a, *constants], outputs, **attrs)[0]

    return body


def _quantised_softmax(axis: int | None, opset: int) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        attrs = {"axis": axis, "opset": opset}
        scale, point = np.float32(1 / 256), np.uint8(0)
        q = quantise(net, a)
        y = coded(net, "QLinearSoftmax", q, *CODE, scale, point, shape=a.shape, **attrs)
        return net.node("DequantizeLinear", y, scale, point)

    return body


def _quantised_embedding(net: Net, a: Tensor) -> Tensor:
    """Of words that a row of the producer picks, in eight bits throughout."""
    ids = net.cast(net.node("Greater", net.node("ReduceSum", a, [2], keepdims=0), 0.0), 6)
    tables = [codes(net, n, 16) for n in (4, 7, 2)]
    more = [codes(net, 16), codes(net, 16), None]
    made, _ = net.nodes(
        "QEmbedLayerNormalization",
        [ids, ids, *tables, *more, *[SCALE] * 5, *[POINT] * 5],
        2,
        shapes=[[*a.shape[:2], 16], a.shape[:1]],
        domain="com.microsoft",
    )
    return made


BATCH = [
    case("QEmbedLayerNormalization", 2, _quantised_embedding, shape=TOKENS),
    case("QLinearSoftmax-space", 1, _quantised_softmax(3, 13), exact=True),
    case("QLinearSoftmax-channels", 1, _quantised_softmax(1, 13), exact=False),
    case("QLinearSoftmax-space-opset-11", 1, _quantised_softmax(2, 11), exact=True),
    case("QLinearSoftmax-batch-opset-11", 1, _quantised_softmax(0, 11), exact=False),
    case("QLinearSoftmax-batch-opset-13", 1, _quantised_softmax(0, 13), exact=True),
    case("QLinearSoftmax-default-opset-11", 1, _quantised_softmax(None, 11), exact=False),
    case("QLinearSoftmax-default-opset-13", 1, _quantised_softmax(None, 13), exact=True),
    case("QLinearSoftmax-opset-11", 1, _quantised_softmax(1, 11), exact=False),
    case("image", 1, lambda net, a: net.bn(a), shape=IMAGE, exact=True),
    case("signal", 1, lambda net, a: net.bn(a), shape=SIGNAL, exact=True),
    case("volume", 1, lambda net, a: net.bn(a), shape=VOLUME, exact=True),
    case("rows", 1, lambda net, a: net.bn(a), shape=ROWS, exact=True),
    case("opset-7", 1, lambda net, a: net.bn(a), opset=7, exact=True),
    case("opset-9", 1, lambda net, a: net.bn(a), opset=9, exact=True),
    case("opset-14", 1, lambda net, a: net.bn(a), opset=14, exact=True),
    case("each-pixel-opset-7", 1, _scaled(
        "BatchNormalization", *[(8, 6, 6)] * 4, spatial=0), opset=7, exact=True),
    # In training mode statistics run over batch and pixels, not over channels.
    case("all-outputs-opset-7", 1, _trained(5), opset=7, exact=True),
    case("all-outputs-opset-14", 1, _trained(3, training_mode=1), opset=14, exact=True),
    case("summed", 1, lambda net, a: summed(net, net.bn(a)), exact=True),
    case("before-conv", 2, lambda net, a: net.conv(net.relu(net.bn(a)), 6), exact=True),
    case("of-the-input", 1, lambda net, a: net.add(a, net.conv(net.bn(
        net.input("z", IMAGE)), 8)), exact=True),
]  # fmt: skip

OTHER = [
    case("InstanceNormalization", 1, _scaled("InstanceNormalization", (8,), (8,)), exact=True),
    case("InstanceNormalization-1d", 1, _scaled("InstanceNormalization", (8,), (8,)), shape=SIGNAL),
    case("InstanceNormalization-opset-7", 1, _scaled("InstanceNormalization", (8,), (8,)), opset=7),
    case("InstanceNormalization-summed", 1, lambda net, a: summed(
        net, _scaled("InstanceNormalization", (8,), (8,))(net, a)), exact=True),
    case("LRN", 1, lambda net, a: net.node("LRN", a, size=3), exact=False),
    case("LRN-of-pixels", 1, turned(lambda net, a: net.node("LRN", a, size=3), 0, 2, 1, 3),
         exact=True),
    case("LRN-batch", 2, _stored_batch("LRN", size=3)),
    case("LayerNormalization", 1, lambda net, a: net.layer_norm(a), shape=TOKENS, exact=False),
    case("LayerNormalization-no-bias", 1, _scaled("LayerNormalization", (8,), axis=-1),
         shape=TOKENS, exact=False),
    case("LayerNormalization-positive-axis", 1, _scaled("LayerNormalization", (8,), axis=2),
         shape=TOKENS, exact=False),
    case("LayerNormalization-over-tokens", 1, _scaled("LayerNormalization", (5, 8), axis=1),
         shape=TOKENS, exact=False),
    case("LayerNormalization-over-pixels", 1, _scaled("LayerNormalization", (6, 6), axis=2),
         exact=True),
    case("LayerNormalization-over-pixels-summed", 1, lambda net, a: summed(
        net, _scaled("LayerNormalization", (6, 6), (6, 6), axis=2)(net, a)), exact=False),
    case("LayerNormalization-of-image", 1, _scaled("LayerNormalization", (8, 6, 6), axis=1),
         exact=False),
    case("LayerNormalization-all-outputs", 1, lambda net, a: net.nodes(
        "LayerNormalization", [a, net.uniform(0.5, 1, 8)], 3)[0], shape=TOKENS, exact=False),
    case("RMSNormalization", 1, _scaled("RMSNormalization", (8,), axis=-1), shape=TOKENS,
         opset=23, exact=False),
    case("RMSNormalization-over-pixels", 1, _scaled("RMSNormalization", (6, 6), axis=2), opset=23,
         exact=True),
    case("written-out-layer-norm", 1, lambda net, a: net.layer_norm(a, decomposed=True),
         shape=TOKENS, exact=False),
    case("written-out-rms-norm", 1, lambda net, a: net.rms_norm(a), shape=TOKENS, exact=False),
    case("MeanVarianceNormalization", 1, _mean_variance(), typed=True, exact=False),
    case("MeanVarianceNormalization-over-channels", 1, _mean_variance(axes=[1, 2]), typed=True,
         exact=False),
    case("MeanVarianceNormalization-negative-axis", 1, _mean_variance(axes=[-1]), typed=True,
         exact=False),
    case("LpNormalization-over-channels", 1, _along("LpNormalization", 1), exact=None),
    case("LpNormalization-over-pixels", 1, _along("LpNormalization", 3), exact=True),
    *(case(f"LpNormalization-over-{name}-of-what-speaks-opset-11", 1, lambda net, a, axis=axis:
           net.node("LpNormalization", net.sigmoid(a), axis=axis), opset=11, exact=True)
      for name, axis in (("batch", 0), ("default", None))),
    case("LpNormalization-default", 1, _along("LpNormalization", None, p=1), exact=True),
]  # fmt: skip

SOFTMAX = [
    *(
        case(f"{op}-channels-opset-{opset}", 1, _along(op, 1), opset=opset, exact=False)
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for opset in (11, 13)
    ),
    *(
        case(f"{op}-pixels-opset-{opset}", 1, _along(op, -1), opset=opset, exact=True)
        for op in ("Softmax", "LogSoftmax", "Hardmax")
        for opset in (11, 13)
    ),
    # Before opset 13 all axes from `axis` on are one, and the default is 1.
    case("Softmax-batch-opset-11", 1, _along("Softmax", 0), opset=11, exact=False),
    case("Softmax-batch-opset-13", 1, _along("Softmax", 0), opset=13, exact=True),
    case("Softmax-default-opset-11", 1, _along("Softmax", None), opset=11, exact=False),
    case("Softmax-default-opset-13", 1, _along("Softmax", None), opset=13, exact=True),
    case("Softmax-tokens", 1, _along("Softmax", -1), shape=TOKENS, exact=False),
]


def _group_norm(groups: int, scale: int) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        scales = net.uniform(0.5, 1, scale), net.uniform(-1, 1, scale)
        return net.node("GroupNormalization", a, *scales, num_groups=groups, shape=a.shape)

    return body


def _each(speaks: str) -> Body:
    """Every channel a group, then summed; x, scale or bias still speaks where a channel goes."""

    def body(net: Net, a: Tensor) -> Tensor:
        given = {"x": a, "s": net.uniform(0.5, 1, 8), "b": net.uniform(-1, 1, 8)}
        inputs = [net.sigmoid(t) if name in speaks else t for name, t in given.items()]
        y = net.node("GroupNormalization", *inputs, num_groups=8, shape=a.shape)
        return summed(net, y)

    return body


# Of (G C) one factor is live in each view: whole groups go exactly, the same channel of each not.
GROUP = [
    case("GroupNormalization-opset-21", 2, _group_norm(2, 8), opset=21, typed=True),
    case("GroupNormalization-of-one", 1, _group_norm(1, 8), opset=21, typed=True, exact=False),
    case("GroupNormalization-of-each", 1, _group_norm(8, 8), opset=21, typed=True, exact=True),
    *(case(f"GroupNormalization-of-each-where-{which}-speaks", 1, _each(which), opset=21,
           typed=True, exact=exact) for which, exact in (("x", True), ("s", True), ("b", False))),
    case("GroupNormalization-4", 2, _group_norm(4, 8), opset=21, typed=True),
    case("GroupNormalization-untyped", 2, _group_norm(2, 8), opset=21),
    case("GroupNormalization-opset-18", 2, _group_norm(2, 2), opset=18, typed=True),
    case("GroupNormalization-written-out", 2, lambda net, a: net.group_norm(a, 2)),
    case("MeanVarianceNormalization-untyped", 1, _mean_variance()),
]  # fmt: skip


def _skip(op: str, *vectors: bool, shown: bool = False, skip: tuple[int, ...] = ()) -> Body:
    """The sum of two branches, normalised; `vectors` says which of gamma, beta, bias are there."""

    def body(net: Net, a: Tensor) -> Any:
        other = net.uniform(-1, 1, *skip) if skip else net.linear(net.relu(a), 8)
        inputs = [a, other, *(net.uniform(0.5, 1, 8) if given else None for given in vectors)]
        shapes = [a.shape] * (4 if shown else 1)
        made = contrib(net, op, inputs, *shapes)
        return net.add(made[0], net.relu(made[3])) if shown else made[0]

    return body


def _embedded(*, segments: bool = True, mask: bool = False, sums: bool = False) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        ids, kinds = (net.const(net.rng.integers(0, 2, (2, 5)).astype(np.int32)) for _ in "ab")
        tables = [net.weight(n, 8, fan=1) for n in (9, 7, 2)]
        inputs = [ids, kinds if segments else None, *tables[:2], tables[2] if segments else None]
        inputs += [net.uniform(0.5, 1, 8), net.uniform(-1, 1, 8)]
        inputs += [net.const(np.ones((2, 5), np.int32))] if mask else []
        shapes = [(2, 5, 8), (2,), (2, 5, 8)][: 3 if sums else 2]
        made = contrib(net, "EmbedLayerNormalization", inputs, *shapes)
        y = net.add(made[0], net.relu(made[2])) if sums else made[0]
        return net.add(net.linear(a, 8), y)

    return body


def _images(op: str, *, last: int = 1, skip: tuple[int, ...] = (2, 6, 6, 8)) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        x = net.transpose(a, 0, 2, 3, 1) if last else a
        inputs = [x, net.uniform(0.5, 1, 8), net.uniform(-1, 1, 8)]
        if op == "SkipGroupNorm":
            inputs += [net.uniform(-1, 1, *skip), net.uniform(-1, 1, 8)]
        attrs = {"groups": 2, "activation": 1, "channels_last": last}
        y = contrib(net, op, inputs, x.shape, **attrs)[0]
        return net.transpose(y, 0, 3, 1, 2) if last else y

    return body


def _gated(net: Net, a: Tensor) -> Tensor:
    inputs = [a, net.uniform(0.5, 1, 4), net.linear(a, 8)]
    return contrib(net, "GatedRMSNorm", inputs, a.shape, activation="silu")[0]


def _gated_sum(speaks: str, activation: str | None) -> Body:
    """Heads, summed; removed ones still speak in some of x, scale and gate."""

    def body(net: Net, a: Tensor) -> Tensor:
        given = {"x": a, "s": net.uniform(0.5, 1, 2), "g": net.linear(a, 8)}
        inputs = [net.sigmoid(t) if name in speaks else t for name, t in given.items()]
        y = contrib(net, "GatedRMSNorm", inputs, a.shape, activation=activation)[0]
        return net.node("ReduceSum", y, [2], keepdims=1)

    return body


CONTRIB = [
    case("skip", 1, _skip("SkipLayerNormalization", True, True), shape=TOKENS, exact=False),
    case("skip-no-beta", 1, _skip("SkipLayerNormalization", True), shape=TOKENS, exact=False),
    case("skip-bias", 1, _skip("SkipLayerNormalization", True, True, True), shape=TOKENS,
         exact=False),
    case("skip-sum", 1, _skip("SkipLayerNormalization", True, True, True, shown=True),
         shape=TOKENS, exact=False),
    case("skip-for-all", 1, _skip("SkipLayerNormalization", True, True, skip=(5, 8)),
         shape=TOKENS, exact=False),
    case("skip-one", 1, _skip("SkipLayerNormalization", True, True, skip=(1, 5, 8)),
         shape=TOKENS, exact=False),
    case("skip-simplified", 1, _skip("SkipSimplifiedLayerNormalization", True), shape=TOKENS,
         exact=False),
    case("skip-simplified-sum", 1, _skip(
        "SkipSimplifiedLayerNormalization", True, True, shown=True), shape=TOKENS, exact=False),
    case("SimplifiedLayerNormalization", 1, lambda net, a: net.node(
        "SimplifiedLayerNormalization", a, net.uniform(0.5, 1, 8), axis=-1, shape=a.shape),
        shape=TOKENS, exact=False),
    case("embedded", 2, _embedded(), shape=TOKENS),
    case("embedded-no-segments", 2, _embedded(segments=False), shape=TOKENS),
    case("embedded-mask", 2, _embedded(mask=True), shape=TOKENS),
    case("embedded-sums", 2, _embedded(sums=True), shape=TOKENS),
    case("GroupNorm", 2, _images("GroupNorm"), **UNSEEN),
    case("GroupNorm-first", 2, _images("GroupNorm", last=0), **UNSEEN),
    *(case(f"{op}-summed", 2, lambda net, a, op=op: summed(net, _images(op)(net, a)), inexact=1,
           **UNSEEN) for op in ("GroupNorm", "SkipGroupNorm")),
    case("SkipGroupNorm", 2, _images("SkipGroupNorm"), **UNSEEN),
    case("SkipGroupNorm-per-image", 2, _images("SkipGroupNorm", skip=(2, 8)), **UNSEEN),
    case("GatedRMSNorm", 2, _gated, shape=TOKENS),
    case("BiasSoftmax-default", 1, lambda net, a: contrib(
        net, "BiasSoftmax", [a, net.uniform(-1, 1, 2, 8, 6, 6)], a.shape,
        is_inner_broadcast=0)[0], exact=False, typed=True, **UNSEEN),
    case("BiasSoftmax", 1, lambda net, a: contrib(
        net, "BiasSoftmax", [a, net.uniform(-1, 1, 1, 5, 8)], a.shape, axis=2,
        is_inner_broadcast=0)[0], shape=TOKENS, exact=False, typed=True, **UNSEEN),
]  # fmt: skip


@pytest.mark.parametrize("case", [*BATCH, *OTHER, *SOFTMAX, *GROUP, *CONTRIB])
def test_norm(case: Case) -> None:
    case.check()


@pytest.mark.parametrize(("opset", "outputs"), [(17, 3), (9, 5), (17, 0), (9, 1)])
def test_statistics_of_training(opset: int, outputs: int) -> None:
    """They run over all axes but the channels; before opset 14 the outputs tell the mode."""
    net = Net("training", opset=opset)
    x = net.input("x", [3, 4, 5])
    inputs = [x, *(net.uniform(0.5, 1, 4) for _ in range(4))]
    mode = {"training_mode": 1} if opset > 13 and outputs else {}
    made = net.nodes(
        "BatchNormalization", inputs, max(outputs, 1), **mode,
        shapes=[[3, 4, 5], *[[4]] * (outputs - 1)],
    )  # fmt: skip
    groups = spa.analyze(net.model(made[0]))
    lone = alone(groups, groups.views[0].ties.ops[0])
    assert lone is not None
    one = Alone(lone, 0)
    found = {i for ids, _ in one.recorder.inexact for i in ids.tolist()}
    marked = {
        axis
        for name, axis, ids in one.slices()
        if name == "x" and found & set(ids.tolist())
    }  # fmt: skip
    assert marked == ({0, 2} if mode or outputs == 5 else set())


@pytest.mark.parametrize(
    ("op", "zero", "want"),
    [
        ("SkipLayerNormalization", {2, 3}, (True, False)),
        ("SkipLayerNormalization", {2}, (False, False)),
        ("SkipLayerNormalization", {0, 1, 3, 4}, (True, True)),
        ("SkipLayerNormalization", {0, 1, 4}, (False, True)),
        ("SkipLayerNormalization", {0, 1, 3}, (False, False)),
        ("SkipLayerNormalization", {0, 3, 4}, (False, False)),
        ("SkipLayerNormalization", {1, 3, 4}, (False, False)),
        ("SkipSimplifiedLayerNormalization", {2}, (True, False)),
        ("SkipSimplifiedLayerNormalization", {0, 1, 3}, (True, True)),
        ("SkipSimplifiedLayerNormalization", {0, 1}, (False, False)),
        ("SkipSimplifiedLayerNormalization", {0, 3}, (False, False)),
        ("SkipSimplifiedLayerNormalization", {1, 3}, (False, False)),
    ],
)
def test_where_a_sum_is_zero(op: str, zero: set[int], want: tuple[bool, bool]) -> None:
    """What is normalised, and the sum itself, by the inputs where removed channels are zero."""
    count = 3 if op == "SkipLayerNormalization" else 2
    row = case("", 1, _skip(op, *[True] * count, shown=True), shape=TOKENS, typed=True)
    groups = spa.analyze(row.values[0].model())
    ops = groups.views[0].ties.ops.values()
    lone = alone(groups, next(o for o in ops if o.node.op_type == op))
    assert lone is not None
    made = Alone(lone, 0, {k: k in zero for k in lone.inputs}).outputs
    assert (made[0][-1].zero, made[3][-1].zero) == want


@pytest.mark.parametrize("opset, scale", [(18, 2), (21, 8)])
def test_whole_groups_are_exact(opset: int, scale: int) -> None:
    """Statistics run over the channels of a group, so only a whole group leaves the rest alone."""
    model = case("", 2, _group_norm(2, scale), opset=opset, typed=True).values[0].model()
    assert [(g.size, g.exact) for g in spa.analyze(model)] == [(4, False), (2, True)]


@pytest.mark.parametrize(
    ("activation", "speaks", "exact"),
    [
        ("silu", "", True),
        ("silu", "x", True),
        ("silu", "g", True),
        ("silu", "xg", False),
        (None, "x", True),
        ("sigmoid", "g", True),
        ("sigmoid", "x", False),
    ],
)
def test_whole_heads_are_exact(activation: str | None, speaks: str, exact: bool) -> None:
    """Where x is zero or, but for a sigmoid, its gate is; the same place of every head never is."""
    model = case("", 2, _gated_sum(speaks, activation), shape=TOKENS, typed=True).values[0].model()
    groups = check(model, 2)
    assert sorted((g.size, g.exact) for g in groups) == [(2, False), (4, exact)]


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("op", ["GroupNorm", "SkipGroupNorm", "SkipGroupNorm-per-image"])
def test_group_norms_of_onnxruntime_couple_what_the_standard_one_does(op: str, last: int) -> None:
    """Nothing runs them on the CPU: all vectors go by the place in every group, or by the group."""
    op, _, each = op.partition("-")
    skip = (2, 8) if each else (2, 6, 6, 8) if last else (2, 8, 6, 6)
    body = _images(op, last=last, skip=skip)
    groups = spa.analyze(case("", 2, body, typed=True).values[0].model())
    assert [(g.size, g.exact) for g in groups] == [(4, False), (2, True)]
    wanted = ([[0, 4], [1, 5], [2, 6], [3, 7]], [[0, 1, 2, 3], [4, 5, 6, 7]])
    for group, index in zip(groups, wanted, strict=True):
        assert all(m.index.tolist() == index for m in group.members)
        held = {m.tensor for m in group.members}
        assert held >= {c.name for c in groups.graph.constants.values() if c.shape == (8,)}
        rows = {c.name for c in groups.graph.constants.values() if c.shape == (2, 8)}
        assert not each or held & rows
    for g, count in ((0, 2), (1, 1)):
        pruned = rewrite(groups, {g: np.arange(1)})
        (node,) = [n for n in pruned.graph.node if n.op_type == op]
        assert [a.i for a in node.attribute if a.name == "groups"] == [count]


def test_exact_leaves_out_what_runs_over_channels() -> None:
    """Asked for exact groups only, a group normalisation gives up whole groups."""
    model = case("", 2, _group_norm(2, 8), opset=21, typed=True).values[0].model()
    (group,) = spa.analyze(model, exact=True)
    assert (group.size, group.exact) == (2, True)
    assert np.array_equal(group.members[0].index, [[0, 1, 2, 3], [4, 5, 6, 7]])


def test_no_exact_group_over_a_layer_norm() -> None:
    def body(net: Net, a: Tensor) -> Tensor:
        return net.layer_norm(a)

    assert len(spa.analyze(case("", 1, body, shape=TOKENS).values[0].model(), exact=True)) == 0


def test_an_embedding_in_eight_bits() -> None:
    groups = spa.analyze(case("", 2, _quantised_embedding, shape=TOKENS).values[0].model())
    (hidden,) = [group for group in groups if group.size == 16]
    assert hidden.kind == "hidden"
    tables = {m.tensor for m in hidden.members if m.tensor.startswith("codes")}
    assert len(tables) == 5
    for name in tables:
        stored = groups.graph.array(name).astype(np.float32)
        np.testing.assert_allclose(real(groups.graph, name), (stored - POINT) * SCALE, rtol=1e-5)


@pytest.mark.parametrize("each", [False, True])
def test_every_axis_of_a_group_norm(each: bool) -> None:
    def body(net: Net, a: Tensor) -> tuple[Tensor, ...]:
        skip = (2, 8) if each else (2, 6, 6, 8)
        inputs = [net.weight(2, 6, 6, 8), *(net.uniform(0.5, 1, 8) for _ in "gb")]
        inputs += [net.uniform(-1, 1, *skip), net.uniform(-1, 1, 8)]
        made = contrib(net, "SkipGroupNorm", inputs, *[(2, 6, 6, 8)] * 2, groups=2, activation=0,
                       channels_last=1)  # fmt: skip
        behind = (net.rng.uniform(1, 2, (2, 1, 1, 8)).astype(np.float32) for _ in made)
        read = [net.mul(y, net.const(b, "behind")) for y, b in zip(made, behind, strict=True)]
        return net.linear(a, 3), *(net.node("ReduceSum", y, [0, 1, 2, 3]) for y in read)

    terms = ["N h w GC", "GC", "GC", "N GC" if each else "N h w GC", "GC"]
    check_axes(body, "SkipGroupNorm", "NGC", terms, ["N 1 1 GC"] * 2)
