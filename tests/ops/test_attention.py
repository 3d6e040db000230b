"""Attention as one operator: packed and apart, shared heads, masks, caches, rotary positions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest

import spa
from models.builder import Net, Tensor
from spa.rewrite import rewrite
from tests.ops.cases import POINT, SCALE, TOKENS, Body, Case, case, codes, quantise

BATCH, STEPS = TOKENS[:2]


def _packed(
    heads: int = 2,
    keys: int | None = None,
    size: int = 4,
    value: int = 4,
    *,
    mask: tuple[int, ...] | None = None,
    outputs: int = 1,
    past: int = 0,
    speaks: str = "",
    **attrs: Any,
) -> Body:
    """Queries, keys and values from linear layers, all heads on the last axis.

    speaks: which of these hold something where an index is removed.
    """
    keys = keys or heads

    def body(net: Net, a: Tensor) -> Any:
        inputs: list[Any] = [net.linear(a, n) for n in (heads * size, keys * size, keys * value)]
        inputs = [net.sigmoid(x) if n in speaks else x for n, x in zip("qkv", inputs, strict=True)]
        inputs.append(None if mask is None else net.uniform(-1, 1, *mask))
        if past:
            inputs += [net.uniform(-1, 1, BATCH, keys, past, n) for n in (size, value)]
        sizes = {"q_num_heads": heads, "kv_num_heads": keys}
        made = net.nodes("Attention", inputs, 3 if past else outputs, **sizes, **attrs)
        shown = made[3:] or made[1:]  # the scores alone, or past and new keys and values
        return made[0] if outputs == 1 else (net.linear(made[0], 5), *shown)

    return body


def _apart(heads: int = 2, keys: int = 2, size: int = 4, value: int = 4, **attrs: Any) -> Body:
    """The same on four axes, as exporters reshape and transpose."""

    def split(net: Net, a: Tensor, heads: int, size: int) -> Tensor:
        flat = net.linear(a, heads * size)
        return net.transpose(net.reshape(flat, [0, 0, heads, size]), 0, 2, 1, 3)

    def body(net: Net, a: Tensor) -> Tensor:
        q, k, v = (split(net, a, *n) for n in ((heads, size), (keys, size), (keys, value)))
        y = net.node("Attention", q, k, v, **attrs)
        return net.reshape(net.transpose(y, 0, 2, 1, 3), [0, 0, -1])

    return body


def _loud(which: str) -> Body:
    """Heads that are summed without a weight; removed ones still speak in some of q, k and v."""

    def body(net: Net, a: Tensor) -> Tensor:
        made = {part: net.linear(a, n) for part, n in (("q", 8), ("k", 8), ("v", 2))}
        made.update({part: net.sigmoid(made[part]) for part in which})
        y = net.node("Attention", *made.values(), q_num_heads=2, kv_num_heads=2)
        return net.node("ReduceSum", y, [2], keepdims=1)

    return body


def _by_weights(net: Net, a: Tensor) -> Tensor:
    """Queries, keys and values that are stored head by head."""
    q, k, v = (net.matmul(net.unsqueeze(a, 1), net.weight(2, 8, 4, fan=8)) for _ in "qkv")
    y = net.node("Attention", q, k, v)
    return net.node("ReduceSum", net.matmul(y, net.weight(2, 4, 6, fan=4)), [1], keepdims=0)


def _stored(
    op: str = "Attention",
    heads: int = 2,
    keys: int = 2,
    *,
    steps: int = 3,
    apart: bool = False,
    others: Callable[[Net], list[Any]] = lambda net: [],
    outputs: int = 1,
    **options: Any,
) -> Body:
    """Queries, keys and values out of the file: of these the batch may go too, and no step."""

    def body(net: Net, a: Tensor) -> Tensor:
        parts = ((heads, steps, 4), (keys, STEPS, 4), (keys, STEPS, 3))
        shapes = [(BATCH, n, t, d) if apart else (BATCH, t, n * d) for n, t, d in parts]
        sizes = {} if apart else {"q_num_heads": heads, "kv_num_heads": keys}
        inputs = [net.weight(*shape, fan=4) for shape in shapes] + others(net)
        made = (BATCH, heads, steps, 3) if apart else (BATCH, steps, heads * 3)
        known = [made] if options.get("domain") else None
        y, *presents = net.nodes(op, inputs, outputs, shapes=known, **sizes, **options)
        total = net.node("ReduceSum", y, [0, 2] if apart else [0, 1], keepdims=1)
        total = net.reshape(total, [1, 1, heads * 3])
        for present in presents:  # of past and new keys, values, states
            rest = net.node("ReduceSum", present, [0, 1, 2], keepdims=0)
            total = net.add(total, net.linear(rest, heads * 3))
        return net.add(net.linear(a, heads * 3), total)

    return body


def _past(net: Net) -> list[Any]:
    return [None, *(net.uniform(-1, 1, BATCH, 2, 6, d) for d in (4, 3))]


def _mask(net: Net) -> list[Any]:
    return [net.uniform(-1, 1, BATCH, 2, 3, STEPS)]


def _state(decay: int, beta: int) -> Callable[[Net], list[Any]]:
    """What a linear attention remembers, forgets and takes in."""
    return lambda net: [
        net.uniform(-1, 1, BATCH, 2, 4, 3),
        net.uniform(0.1, 0.9, BATCH, STEPS, decay),
        net.uniform(0.1, 0.9, BATCH, STEPS, beta),
    ]


def _lengths(net: Net) -> list[Any]:
    return [None, None, None, net.const(np.asarray([STEPS - 1, STEPS]), "lengths")]


# The producer's channels, what queries and keys share, what values have, and heads; with shared
# heads also the queries of one.
ATTENTION = [
    case("packed", 4, _packed(), shape=TOKENS, opset=23, exact=True),
    case("packed-opset-24", 4, _packed(), shape=TOKENS, opset=24, exact=True),
    case("packed-opset-25", 4, _packed(), shape=TOKENS, opset=25, exact=True),
    case("value-size", 4, _packed(value=3), shape=TOKENS, opset=23, exact=True),
    case("one-head", 3, _packed(1), shape=TOKENS, opset=23, exact=True),
    case("shared-heads", 5, _packed(6, 2), shape=TOKENS, opset=23, exact=True),
    case("one-shared-head", 4, _packed(4, 1), shape=TOKENS, opset=23, exact=True),
    case("causal", 4, _packed(is_causal=1), shape=TOKENS, opset=23, exact=True),
    case("scaled", 4, _packed(scale=0.3), shape=TOKENS, opset=23, exact=True),
    case("capped", 4, _packed(softcap=2.0), shape=TOKENS, opset=23, exact=True),
    case("mask", 4, _packed(mask=(STEPS, STEPS)), shape=TOKENS, opset=23, exact=True),
    case("mask-per-head", 5, _packed(6, 2, mask=(BATCH, 6, STEPS, STEPS)), shape=TOKENS,
         opset=23, exact=True),
    case("mask-of-three-axes", 4, _packed(mask=(2, STEPS, STEPS)), shape=TOKENS, opset=23,
         exact=True),
    case("mask-for-all-heads", 4, _packed(mask=(BATCH, 1, STEPS, STEPS)), shape=TOKENS, opset=23,
         exact=True),
    *(case(f"past-where-{speaks}-speaks", 4, _packed(past=3, speaks=speaks), shape=TOKENS, opset=23,
           inexact=int(speaks == "qk")) for speaks in ("q", "k", "v", "qk")),
    case("past", 4, _packed(past=3), shape=TOKENS, opset=23, exact=True),
    case("present-is-output", 1, _packed(outputs=3), shape=TOKENS, opset=23, exact=True),
    case("scores-are-output", 1, _packed(outputs=4), shape=TOKENS, opset=23, exact=True),
    case("apart", 4, _apart(), shape=TOKENS, opset=23, exact=True),
    case("apart-value-size", 4, _apart(value=3), shape=TOKENS, opset=23, exact=True),
    case("apart-shared-heads", 5, _apart(6, 2), shape=TOKENS, opset=23, exact=True),
    case("queries-speak", 3, _loud("q"), shape=TOKENS, opset=23, exact=True),
    case("keys-speak", 3, _loud("k"), shape=TOKENS, opset=23, exact=True),
    case("values-speak", 3, _loud("v"), shape=TOKENS, opset=23),
    case("both-speak", 3, _loud("qk"), shape=TOKENS, opset=23),
    case("mask-of-three-axes-shared", 5, _packed(6, 2, mask=(6, STEPS, STEPS)), shape=TOKENS,
         opset=23, exact=True),
    case("stored", 5, _stored(), shape=TOKENS, opset=23, exact=True),
    case("stored-shared-heads", 6, _stored(heads=6), shape=TOKENS, opset=23, exact=True),
    case("stored-past", 5, _stored(others=_past, outputs=3), shape=TOKENS, opset=23, exact=True),
    case("stored-mask", 5, _stored(others=_mask), shape=TOKENS, opset=23, exact=True),
    case("stored-lengths", 5, _stored(others=_lengths), shape=TOKENS, opset=24, exact=True),
    case("stored-apart", 5, _stored(apart=True), shape=TOKENS, opset=23, exact=True),
    case("stored-apart-shared-heads", 6, _stored(heads=6, apart=True), shape=TOKENS, opset=23,
         exact=True),
    case("stored-apart-steps-as-sizes", 5, _stored(apart=True, steps=4), shape=TOKENS, opset=23,
         exact=True),
    case("stored-apart-past", 5, _stored(apart=True, others=_past, outputs=3), shape=TOKENS,
         opset=23, exact=True),
    case("stored-apart-mask", 5, _stored(apart=True, others=_mask), shape=TOKENS, opset=23,
         exact=True),
    case("stored-head-by-head", 5, _by_weights, shape=TOKENS, opset=23, exact=True),
]  # fmt: skip


def _angles(net: Net, size: int, table: bool) -> list[Any]:
    """Cosines and sines in a table, with positions to look up there; or for every step its own."""
    rows = (10,) if table else (BATCH, STEPS)
    angle = net.rng.uniform(-3, 3, (*rows, size // 2)).astype(np.float32)
    angles = [net.const(np.cos(angle), "cos"), net.const(np.sin(angle), "sin")]
    if table:
        angles.append(net.const(np.tile(np.arange(STEPS), (BATCH, 1)), "positions"))
    return angles


def _turned(*, part: int = 0, table: bool = True, apart: bool = False) -> Body:
    """Of what is stored the batch and the steps may go as well."""

    def body(net: Net, a: Tensor) -> Tensor:
        x = net.weight(*((BATCH, 2, STEPS, 8) if apart else (BATCH, STEPS, 16)), fan=8)
        attrs = {"rotary_embedding_dim": part or None, "num_heads": None if apart else 2}
        x = net.node("RotaryEmbedding", x, *_angles(net, part or 8, table), **attrs)
        total = net.node("ReduceSum", x, [0, 2] if apart else [0, 1], keepdims=1)
        return net.add(net.linear(a, 16), net.reshape(total, [1, 1, 16]))

    return body


def _rotary(
    heads: int = 2, size: int = 8, *, part: int = 0, table: bool = True, apart: bool = False,
    **attrs: Any,
) -> Body:  # fmt: skip
    """Attention over turned queries and keys."""

    def turn(net: Net, a: Tensor, angles: list[Any]) -> Tensor:
        x = net.linear(a, heads * size)
        if apart:
            x = net.transpose(net.reshape(x, [0, 0, heads, size]), 0, 2, 1, 3)
            x = net.node("RotaryEmbedding", x, *angles, **attrs)
            return net.reshape(net.transpose(x, 0, 2, 1, 3), [0, 0, -1])
        attrs_ = {**attrs, "num_heads": heads}
        if part:
            attrs_["rotary_embedding_dim"] = part
        return net.node("RotaryEmbedding", x, *angles, **attrs_)

    def body(net: Net, a: Tensor) -> Tensor:
        angles = _angles(net, part or size, table)
        q, k = (turn(net, a, angles) for _ in "qk")
        count = {"q_num_heads": heads, "kv_num_heads": heads}
        return net.node("Attention", q, k, net.linear(a, heads * 4), **count)

    return body


ROTARY = [
    case("halves", 4, _rotary(), shape=TOKENS, opset=23, exact=True),
    case("interleaved", 4, _rotary(interleaved=1), shape=TOKENS, opset=23, exact=True),
    case("angles-per-step", 4, _rotary(table=False), shape=TOKENS, opset=23, exact=True),
    case("all-by-name", 4, _rotary(part=8), shape=TOKENS, opset=23, exact=True),
    case("a-part-turns", 3, _rotary(part=4), shape=TOKENS, opset=23, exact=True),
    case("rotary-stored", 5, _turned(), shape=TOKENS, opset=23, exact=True),
    case("rotary-stored-angles-per-step", 5, _turned(table=False), shape=TOKENS, opset=23,
         exact=True),
    case("rotary-stored-a-part-turns", 4, _turned(part=4), shape=TOKENS, opset=23, exact=True),
    case("rotary-stored-part-angles-per-step", 4, _turned(part=4, table=False), shape=TOKENS,
         opset=23, exact=True),
    case("rotary-stored-apart", 5, _turned(apart=True), shape=TOKENS, opset=23, exact=True),
    case("rotary-stored-apart-all-by-name", 5, _turned(apart=True, part=8), shape=TOKENS, opset=23,
         exact=True),
    case("rotary-apart", 4, _rotary(apart=True), shape=TOKENS, opset=23, exact=True),
]  # fmt: skip


def _flex(modified: bool) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        q, k, v = (
            net.transpose(net.reshape(net.linear(a, 8), [0, 0, 2, 4]), 0, 2, 1, 3) for _ in "qkv"
        )
        attrs = {}
        if modified:
            x, y = (gs.Variable(n, np.float32, (BATCH, 2, STEPS, STEPS)) for n in "xy")
            tanh = gs.Node("Tanh", "tanh", inputs=[x], outputs=[y])
            attrs["score_mod"] = gs.Graph([tanh], inputs=[x], outputs=[y])
        y = net.node("FlexAttention", q, k, v, shape=q.shape, domain="ai.onnx.preview", **attrs)
        return net.reshape(net.transpose(y, 0, 2, 1, 3), [0, 0, -1])

    return body


def _linear(
    rule: str, *, heads: int = 2, keys: int = 2, decay: int = 0, beta: int = 0, past: bool = False,
    scale: float | None = None, speaks: str = "",
) -> Body:  # fmt: skip
    """speaks: which of q, k and v hold something where an index is removed."""

    def body(net: Net, a: Tensor) -> Tensor:
        q, k, v = (net.linear(a, n) for n in (heads * 4, keys * 4, keys * 3))
        q, k, v = (
            net.sigmoid(x) if n in speaks else x for n, x in zip("qkv", (q, k, v), strict=True)
        )
        inputs = [q, k, v, net.uniform(-1, 1, BATCH, keys, 4, 3) if past else None]
        inputs.append(net.sigmoid(net.linear(a, decay)) if decay else None)
        inputs.append(net.sigmoid(net.linear(a, beta)) if beta else None)
        sizes = {"q_num_heads": heads, "kv_num_heads": keys}
        return net.nodes("LinearAttention", inputs, 2, update_rule=rule, scale=scale, **sizes)[0]

    return body


NEWER = [
    *(case(f"linear-where-{speaks}-speaks", 4, _linear("linear", speaks=speaks), shape=TOKENS,
           opset=27, inexact=int(speaks == "qk")) for speaks in ("q", "k", "v", "qk")),
    case("FlexAttention", 4, _flex(False), shape=TOKENS, opset=26, exact=True, runnable=False),
    case("FlexAttention-modified", 1, _flex(True), shape=TOKENS, opset=26, runnable=False),
    case("linear", 4, _linear("linear"), shape=TOKENS, opset=27, exact=True),
    case("FlexAttention-shared", 6, _stored(
        "FlexAttention", heads=6, apart=True, domain="ai.onnx.preview"), shape=TOKENS, opset=26,
        exact=True, runnable=False),
    case("linear-stored-gated", 5, _stored("LinearAttention", steps=STEPS, outputs=2,
         update_rule="gated_delta", others=_state(8, 2)), shape=TOKENS, opset=27),
    case("linear-stored-shared", 6, _stored("LinearAttention", steps=STEPS, outputs=2, heads=6,
         update_rule="gated_delta", others=_state(2, 1)), shape=TOKENS, opset=27),
    case("FlexAttention-stored", 5, _stored("FlexAttention", apart=True, domain="ai.onnx.preview"),
         shape=TOKENS, opset=26, exact=True, runnable=False),
    case("linear-stored", 5, _stored("LinearAttention", steps=STEPS, update_rule="linear",
         outputs=2), shape=TOKENS, opset=27),
    case("linear-scale-of-the-size", 4, _linear("linear", scale=0.0), shape=TOKENS, opset=27,
         exact=True),
    case("linear-shared", 5, _linear("linear", heads=6), shape=TOKENS, opset=27, exact=True),
    case("gated", 4, _linear("gated", decay=8, past=True), shape=TOKENS, opset=27, exact=True),
    case("gated-per-head", 4, _linear("gated", decay=2), shape=TOKENS, opset=27, exact=True),
    case("delta", 4, _linear("delta", beta=2), shape=TOKENS, opset=27, exact=True),
    case("gated-delta", 4, _linear("gated_delta", decay=2, beta=1), shape=TOKENS, opset=27,
         exact=True),
]  # fmt: skip


def _projected(
    channels: bool = False, past: bool = False, points: int = 2, speaks: bool = False, **attrs: Any
) -> Body:
    """Attention with quantised projections inside.

    points: of how many inputs there are zero points; one for each column takes two.
    speaks: whether a removed row of the weight does.
    """

    def body(net: Net, a: Tensor) -> Any:
        w = codes(net, a.shape[2], 24)
        w = quantise(net, net.sigmoid(net.weight(a.shape[2], 24))) if speaks else w
        scale = np.linspace(0.01, 0.02, 24, dtype=np.float32) if channels else np.float32(0.01)
        each = (np.arange(24) % 5 + 118).astype(np.uint8)
        zeros = [POINT, each if channels and points > 1 else np.uint8(120)][: points or 1]
        inputs = [quantise(net, a), w, net.uniform(-1, 1, 24), SCALE, scale, None, *zeros]
        made = [[*a.shape[:2], 8]]
        if past:
            inputs.append(net.uniform(-1, 1, 2, BATCH, 2, 3, 4))
            made.append([2, BATCH, 2, 3 + STEPS, 4])
        y, *more = net.nodes(
            "QAttention", inputs, len(made), shapes=made, num_heads=2, domain="com.microsoft",
            **attrs,
        )  # fmt: skip
        return (net.linear(y, 5), *more) if past else y

    return body


PROJECTED = [
    case("QAttention-turned", 2, _projected(do_rotary=1), shape=TOKENS, runnable=True),
    case("QAttention-one-point", 3, _projected(points=1), shape=TOKENS),
    case("QAttention-by-what-speaks", 3, _projected(speaks=True), shape=TOKENS, inexact=1),
    case("QAttention", 3, _projected(), shape=TOKENS),
    case("QAttention-per-column", 3, _projected(True), shape=TOKENS),
    case("QAttention-scale", 3, _projected(scale=0.3, unidirectional=1), shape=TOKENS),
    case("QAttention-past", 1, _projected(past=True, unidirectional=1), shape=TOKENS),
]


def _projected_sum(speaks: bool = False, axis: int = 2) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        y = _projected()(net, net.sigmoid(a) if speaks else a)
        return net.node("ReduceSum", y, [axis], keepdims=1)

    return body


def _projected_stored(past: bool, speaks: bool = False) -> Body:
    """Of data in the file the batch may go as well, and no step.

    speaks: whether what is remembered does where it is removed.
    """

    def body(net: Net, a: Tensor) -> Tensor:
        x = net.const(net.rng.integers(90, 150, (BATCH, STEPS, 8)).astype(np.uint8), "codes")
        inputs = [x, codes(net, 8, 24), net.uniform(-1, 1, 24), SCALE, np.float32(0.01), None]
        inputs += [POINT, POINT]
        made = [[BATCH, STEPS, 8], [2, BATCH, 2, 3 + STEPS, 4]][: 1 + past]
        inputs += [net.uniform(-1, 1, 2, BATCH, 2, 3, 4)] if past else []
        inputs[8:] = [net.sigmoid(held) if speaks else held for held in inputs[8:]]
        y, *more = net.nodes("QAttention", inputs, len(made), shapes=made, num_heads=2,
                             unidirectional=int(past), domain="com.microsoft")  # fmt: skip
        total = net.node("ReduceSum", y, [0, 1], keepdims=1)
        if speaks:
            total, more = net.node("ReduceSum", y, [0, 1, 2], keepdims=1), []
        for present in more:
            total = net.add(total, net.node("ReduceSum", present, [0, 1, 2, 3, 4], keepdims=0))
        return net.add(net.linear(a, 8), total)

    return body


PROJECTED += [
    case("QAttention-stored", 5, _projected_stored(False), shape=TOKENS, typed=True),
    case("QAttention-stored-past", 5, _projected_stored(True), shape=TOKENS, typed=True),
    case(
        "QAttention-past-that-speaks-summed",
        6,
        _projected_stored(True, True),
        shape=TOKENS,
        typed=True,
        inexact=3,
    ),
    case("QAttention-per-column-but-one-point", 3, _projected(True, points=1), shape=TOKENS),
    case("QAttention-summed", 3, _projected_sum(), shape=TOKENS, exact=True),
    case("QAttention-of-what-speaks", 3, _projected_sum(True), shape=TOKENS, exact=True),
]


def test_heads_that_turn_are_cut_whole() -> None:
    groups = spa.analyze(Case("turned", 2, _projected(do_rotary=1), TOKENS).model())
    (heads,) = [group for group in groups if group.kind == "heads"]
    assert heads.members[0].index[0].tolist() == [*range(4), *range(8, 12), *range(16, 20)]


def test_outputs_without_a_name_are_not_there() -> None:
    """Scores that nobody asked for keep nothing whole."""
    model = Case("unnamed", 4, _packed(), TOKENS, 23).model()
    (node,) = [n for n in model.graph.node if n.op_type == "Attention"]
    node.output.extend(["", "", ""])
    assert len(spa.analyze(model)) == 4


@pytest.mark.parametrize("row", [*ATTENTION, *ROTARY, *NEWER, *PROJECTED])
def test_attention(row: Case) -> None:
    row.check()


def test_flex_attention_couples_what_attention_does() -> None:
    """Nothing runs the one, but the other."""
    coupled = []
    for op, domain in (("Attention", ""), ("FlexAttention", "ai.onnx.preview")):
        body = _stored(op, heads=6, apart=True, domain=domain)
        groups = spa.analyze(Case(op, 6, body, TOKENS, 26).model())
        coupled.append([[(m.tensor, m.axis, m.index.tolist()) for m in g.members] for g in groups])
    assert coupled[0] == coupled[1]


def _cut(model: onnx.ModelProto, kind: str) -> onnx.NodeProto:
    groups = spa.analyze(model)
    pruned = rewrite(
        groups, {g: np.arange(1) for g in range(len(groups)) if groups[g].kind == kind}
    )
    (node,) = [n for n in pruned.graph.node if n.op_type == "Attention"]
    return node


@pytest.mark.parametrize(("kind", "expected"), [("head-dim", [2, 2, 0.5]), ("heads", [1, 1, None])])
def test_the_scale_stays_what_it_was(kind: str, expected: list[float | None]) -> None:
    """Its default is 1 / sqrt(size of a head), which must not follow a smaller head."""
    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in _cut(
        Case("scale", 4, _packed(), TOKENS, 23).model(), kind).attribute}  # fmt: skip
    assert [attrs.get(n) for n in ("q_num_heads", "kv_num_heads", "scale")] == expected
