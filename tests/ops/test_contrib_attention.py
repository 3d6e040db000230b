"""onnxruntime's own attention: projections inside, packed and apart, caches, masks, rotations."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

import spa
from models.builder import Net, Tensor
from spa.rewrite import rewrite
from tests.ops.cases import TOKENS, UNSEEN, Body, Case, case, check_axes, contrib

BATCH, STEPS, WIDTH = 2, 5, 8
CACHED = 3


def _lengths(net: Net, *values: int) -> Tensor:
    return net.const(np.asarray(values, np.int32), "lengths")


def _some(net: Net, parts: list[Any], names: str, speaks: str) -> list[Any]:
    """Those that are named hold something where an index is removed."""
    return [net.sigmoid(p) if n in speaks else p for n, p in zip(names, parts, strict=True)]


def _scores(net: Net, per_head: int, keys: int, steps: int = STEPS) -> Tensor:
    return net.uniform(-1, 1, BATCH, per_head, steps, keys)


def _projected(
    heads: int = 2, size: int = 4, value: int | None = None, *, bias: bool = True,
    mask: bool = False, scores: int = 0, past: bool = False, shown: bool = False,
    speaks: str = "", **attrs: Any,
) -> Body:  # fmt: skip
    """speaks: of the weight, the bias and what is remembered those that speak where removed."""

    def body(net: Net, a: Tensor) -> Any:
        v = heads * (value or size)
        total = 2 * heads * size + v
        keys = STEPS + CACHED * past
        inputs = [a, net.weight(WIDTH, total, fan=WIDTH)]
        inputs += [net.uniform(-1, 1, total) if bias else None]
        inputs += [_lengths(net, 4, 5) if mask else None]
        inputs += [net.uniform(-1, 1, 2, BATCH, heads, CACHED, size) if past else None]
        inputs += [_scores(net, scores, keys) if scores else None]
        inputs = _some(net, inputs, "xwblps", speaks)
        sizes = {} if value is None else {"qkv_hidden_sizes": [heads * size, heads * size, v]}
        shapes: list[tuple[int, ...]] = [(BATCH, STEPS, v)]
        if past or shown:
            shapes.append((2, BATCH, heads, keys, size))
        made = contrib(net, "Attention", inputs, *shapes, num_heads=heads, **sizes, **attrs)
        return (net.linear(made[0], 5), made[1]) if shown else made[0]

    return body


def _packed(net: Net, a: Tensor) -> Tensor:
    """Tokens without padding."""
    rows = net.reshape(a, [-1, WIDTH])
    inputs = [rows, net.weight(WIDTH, 24, fan=WIDTH), net.uniform(-1, 1, 24)]
    inputs += [net.const(np.arange(10, dtype=np.int32).reshape(2, 5)), _lengths(net, 0, 5, 10)]
    y = contrib(net, "PackedAttention", inputs, (10, 8), num_heads=2)[0]
    return net.reshape(net.linear(y, 6), [BATCH, STEPS, 6])


# The producer's channels, what queries and keys share, what values have, and heads.
PROJECTED = [
    case("plain", 4, _projected(), shape=TOKENS, exact=True),
    case("no-bias", 4, _projected(bias=False), shape=TOKENS, exact=True),
    case("value-size", 4, _projected(value=3), shape=TOKENS, exact=True),
    case("one-head", 3, _projected(1), shape=TOKENS, exact=True),
    case("scaled", 4, _projected(scale=0.3), shape=TOKENS, exact=True),
    case("causal", 4, _projected(unidirectional=1), shape=TOKENS, exact=True),
    case("lengths", 4, _projected(mask=True), shape=TOKENS, exact=True),
    case("scores-of-all-heads", 4, _projected(scores=1), shape=TOKENS, exact=True),
    case("scores-per-head", 4, _projected(scores=2), shape=TOKENS, exact=True),
    # What is remembered holds keys and values of one size.
    case("past", 3, _projected(past=True), shape=TOKENS, exact=True),
    case("past-no-bias", 3, _projected(past=True, bias=False), shape=TOKENS, exact=True),
    case("present-is-output", 1, _projected(shown=True), shape=TOKENS, exact=True),
    case("turned", 2, _projected(2, 16, do_rotary=1), shape=TOKENS, exact=True, **UNSEEN),
    case("packed", 5, _packed, shape=TOKENS, exact=True, **UNSEEN),
]  # fmt: skip


def _multi(
    heads: int = 2, size: int = 4, value: int | None = None, *, bias: bool = False,
    scores: int = 0, past: bool = False, outputs: int = 1, laid: str = "", speaks: str = "",
    **attrs: Any,
) -> Body:  # fmt: skip
    """Queries, keys and values apart; keys and values as in a cache, or all in one tensor."""

    def body(net: Net, a: Tensor) -> Any:
        v = value or size
        keys = STEPS + CACHED * past
        counts = {"in one": [3 * size], "keys and values in one": [size, 2 * size]}
        parts: list[Any] = [net.linear(a, heads * n) for n in counts.get(laid, [size, size, v])]
        parts = _some(net, parts, "qkv"[: len(parts)], speaks)
        if laid == "cache":
            parts[1:] = [net.transpose(net.reshape(p, [0, 0, heads, n]), 0, 2, 1, 3)
                         for p, n in zip(parts[1:], (size, v), strict=True)]  # fmt: skip
        if laid == "in one":
            parts = [net.reshape(parts[0], [0, 0, heads, 3, size]), None, None]
        if laid == "keys and values in one":
            parts = [parts[0], net.reshape(parts[1], [0, 0, heads, 2, size]), None]
        total = 2 * heads * size + heads * v
        inputs = [*parts, *_some(net, [net.uniform(-1, 1, total) if bias else None], "b", speaks)]
        inputs += [None]
        inputs += [_scores(net, scores, keys) if scores else None]
        if past:
            held = [net.uniform(-1, 1, BATCH, heads, CACHED, n) for n in (size, v)]
            inputs += _some(net, held, "KV", speaks)
        shapes: list[tuple[int, ...]] = [(BATCH, STEPS, heads * v)]
        shapes += [(BATCH, heads, keys, n) for n in (size, v)] if past or outputs > 1 else []
        shapes += [(BATCH, heads, STEPS, keys)] if outputs == 4 else []
        made = contrib(net, "MultiHeadAttention", inputs, *shapes, num_heads=heads, **attrs)
        return made[0] if outputs == 1 else (net.linear(made[0], 5), made[outputs - 1])

    return body


def _masked(
    *, bias: bool = False, past: bool = False, apart: bool = False, scores: int = 0,
    speaks: str = "",
) -> Body:  # fmt: skip
    """One step of a decoder; its keys and values are written into the cache that it is given."""

    def body(net: Net, a: Tensor) -> Tensor:
        step = net.slice(a, 0, 1, axis=1)
        rest = a if apart else step
        parts: list[Any] = [net.linear(step, 8), net.linear(rest, 8), net.linear(rest, 8)]
        parts = _some(net, parts, "qkv", speaks)
        if apart:
            parts[1:] = [net.transpose(net.reshape(p, [0, 0, 2, 4]), 0, 2, 1, 3) for p in parts[1:]]
        inputs = [*parts, None, _scores(net, scores, CACHED, 1) if scores else None]
        held = [net.uniform(-1, 1, BATCH, 2, CACHED, 4) if past else None for _ in "kv"]
        inputs += _some(net, held, "KV", speaks)
        inputs += [_lengths(net, CACHED - 1) if past else None, None, None]
        inputs += _some(net, [net.uniform(-1, 1, 24) if bias else None], "b", speaks)
        shapes: list[tuple[int, ...]] = [(BATCH, 1, 8)]
        shapes += [(BATCH, 2, CACHED, 4)] * 2 if past else []
        attrs = {"num_heads": 2, "past_present_share_buffer": int(past)}
        return contrib(net, "DecoderMaskedMultiHeadAttention", inputs, *shapes, **attrs)[0]

    return body


def _tokens(*, together: bool, speaks: str = "") -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        rows = net.reshape(a, [-1, WIDTH])
        parts: list[Any] = [net.linear(rows, n) for n in ([24] if together else [8, 8, 8])]
        if together:
            parts = [net.reshape(parts[0], [-1, 2, 3, 4]), None, None]
        places = net.const(np.arange(10, dtype=np.int32).reshape(2, 5))
        bias = _some(net, [net.uniform(-1, 1, 24)], "b", speaks)
        inputs = [*parts, *bias, places, _lengths(net, 0, 5, 10)]
        y = contrib(net, "PackedMultiHeadAttention", inputs, (10, 8), num_heads=2)[0]
        return net.reshape(net.linear(y, 6), [BATCH, STEPS, 6])

    return body


MULTI = [
    case("multi", 4, _multi(), shape=TOKENS, exact=True),
    case("multi-bias", 4, _multi(bias=True), shape=TOKENS, exact=True),
    case("multi-value-size", 4, _multi(value=3), shape=TOKENS, exact=True),
    case("multi-value-size-bias", 4, _multi(value=3, bias=True), shape=TOKENS, exact=True),
    case("multi-causal", 4, _multi(unidirectional=1), shape=TOKENS, exact=True),
    case("multi-scores", 4, _multi(scores=2), shape=TOKENS, exact=True),
    case("multi-scores-of-all", 4, _multi(scores=1), shape=TOKENS, exact=True),
    case("multi-past", 3, _multi(past=True), shape=TOKENS, exact=True),
    case("multi-past-bias", 3, _multi(past=True, bias=True), shape=TOKENS, exact=True),
    case("multi-cache", 3, _multi(laid="cache"), shape=TOKENS, exact=True),
    case("multi-present-is-output", 2, _multi(outputs=3), shape=TOKENS, exact=True),
    case("multi-scores-are-output", 3, _multi(outputs=4), shape=TOKENS, exact=True),
    case("multi-in-one", 3, _multi(laid="in one"), shape=TOKENS, exact=True, **UNSEEN),
    case("multi-keys-and-values-in-one", 3, _multi(laid="keys and values in one"), shape=TOKENS,
         exact=True, **UNSEEN),
    case("masked", 3, _masked(), shape=TOKENS, exact=True),
    case("masked-bias", 3, _masked(bias=True), shape=TOKENS, exact=True),
    case("masked-scores", 3, _masked(past=True, scores=2), shape=TOKENS, exact=True),
    case("masked-scores-of-all", 3, _masked(past=True, scores=1), shape=TOKENS, exact=True),
    case("masked-past", 3, _masked(past=True, bias=True), shape=TOKENS, exact=True),
    case("masked-apart", 3, _masked(apart=True), shape=TOKENS, exact=True),
    case("tokens", 5, _tokens(together=False), shape=TOKENS, exact=True, **UNSEEN),
    case("tokens-in-one", 4, _tokens(together=True), shape=TOKENS, exact=True, **UNSEEN),
]  # fmt: skip


def _grouped(
    heads: int = 4, keys: int = 2, size: int = 32, *, part: int | None = None,
    together: bool = False, scores: int = 0, sink: bool = False, outputs: int = 1,
    past: int = 0, speaks: str = "", coded: str = "", scaled: bool = False,
    **attrs: Any,
) -> Body:  # fmt: skip
    """coded: which of past keys and values are in eight bits. scaled: queries and keys are."""

    def body(net: Net, a: Tensor) -> Any:
        a = net.slice(a, 0, 1, axis=1) if past else a  # of more steps it takes one batch alone
        counts = [heads + 2 * keys] if together else [heads, keys, keys]
        parts: list[Any] = [net.linear(a, n * size) for n in counts]
        parts = _some(net, parts, "qkv"[: len(parts)], speaks)
        parts += [None] * (3 - len(parts))
        steps = 1 if past else STEPS
        total = steps + past
        cache = [net.uniform(-1, 1, BATCH, keys, past, size) if past else None for _ in "kv"]
        cache = _some(net, cache, "KV", speaks)
        inputs = [*parts, *cache, _lengths(net, total - 1, total - 1), _lengths(net, total)]
        angle = net.rng.uniform(-3, 3, (12, (part or size) // 2)).astype(np.float32)
        turned = [net.const(f(angle), f.__name__) for f in (np.cos, np.sin)]
        inputs += turned if attrs.get("do_rotary") else [None, None]
        inputs += [None, _scores(net, scores, total) if scores else None]
        inputs += [net.uniform(-1, 1, heads) if sink else None]
        inputs += [np.ones(1, np.float32) if name in coded else None for name in "kv"]
        inputs += [net.uniform(0.5, 1, size) if scaled else None for _ in "qk"]
        shapes = [(BATCH, steps, heads * size), *[(BATCH, keys, total, size)] * 2]
        shapes += [(BATCH, heads, steps, total)] if outputs == 4 else []
        sizes = {"num_heads": heads, "kv_num_heads": keys}
        made = contrib(net, "GroupQueryAttention", inputs, *shapes, **sizes, **attrs)
        return made[0] if outputs == 1 else (net.linear(made[0], 5), made[outputs - 1])

    return body


# The producer's channels, heads of keys, one query of each; eight or sixteen elements at once.
GROUPED = [
    case("grouped", 4, _grouped(), shape=TOKENS, exact=True),
    case("grouped-own-keys", 3, _grouped(2, 2), shape=TOKENS, exact=True),
    case("grouped-one-key", 3, _grouped(4, 1), shape=TOKENS, exact=True),
    case("grouped-in-one", 4, _grouped(together=True), shape=TOKENS, exact=True),
    case("grouped-turned", 4, _grouped(do_rotary=1), shape=TOKENS, exact=True),
    case("grouped-turned-in-one", 4, _grouped(do_rotary=1, together=True), shape=TOKENS,
         exact=True),
    case("grouped-interleaved", 4, _grouped(do_rotary=1, rotary_interleaved=1), shape=TOKENS,
         exact=True),
    case("grouped-a-part-turns", 3, _grouped(do_rotary=1, part=16), shape=TOKENS, exact=True),
    case("grouped-queries-and-keys-scaled", 4, _grouped(scaled=True), shape=TOKENS, inexact=1,
         typed=True, **UNSEEN),
    case("grouped-scores-are-output", 2, _grouped(outputs=4, qk_output=1), shape=TOKENS),
    case("grouped-past", 4, _grouped(past=3), shape=TOKENS, exact=True),
    case("grouped-scores", 4, _grouped(scores=1), shape=TOKENS, exact=True),
    case("grouped-scores-per-head", 4, _grouped(scores=4), shape=TOKENS, exact=True),
    case("grouped-scores-of-two", 3, _grouped(2, 2, scores=2), shape=TOKENS, exact=True),
    case("grouped-window", 4, _grouped(local_window_size=2), shape=TOKENS, exact=True),
    case("grouped-capped", 4, _grouped(softcap=2.0), shape=TOKENS, exact=True),
    case("grouped-sink", 4, _grouped(sink=True), shape=TOKENS, exact=True),
    case("grouped-smooth", 4, _grouped(smooth_softmax=1), shape=TOKENS, exact=True),
    case("grouped-scaled", 4, _grouped(scale=0.3), shape=TOKENS, exact=True),
    case("grouped-present-is-output", 2, _grouped(outputs=2), shape=TOKENS, exact=True),
]  # fmt: skip


def _linear(net: Net, a: Tensor) -> Tensor:
    """Attention without a softmax, which carries a state."""
    q, k, v = (net.linear(a, n) for n in (16, 8, 6))
    decay = net.node("Neg", net.sigmoid(net.linear(a, 2)))
    sizes = {"q_num_heads": 4, "kv_num_heads": 2, "update_rule": "gated"}
    inputs = [q, k, v, None, decay]
    return contrib(net, "LinearAttention", inputs, (BATCH, STEPS, 12), (BATCH, 2, 4, 3), **sizes)[0]


LINEAR = [case("linear", 5, _linear, shape=TOKENS, exact=True)]


# What a head's element leaves behind where it is removed changes the scores, so that nothing is
# exact there, unless the other side is zero. The same with values, which are summed by the scores.
SPEAKING = [
    case(f"{name}-where-{speaks}-speaks", groups, body(speaks=speaks, **options), shape=TOKENS,
         inexact=inexact, **runnable)
    for name, body, groups, options, runnable, silent, heard in (
        ("plain", _projected, 4, {}, {}, "", "w b"),
        ("past", _projected, 3, {"past": True}, {}, "p", "w b"),
        ("multi", _multi, 4, {}, {}, "q k", "qk"),
        ("multi-past", _multi, 3, {"past": True}, {}, "q k v K V", "qk qK"),
        ("multi-past-bias", _multi, 3, {"past": True, "bias": True}, {}, "", "b"),
        ("multi-in-one", _multi, 3, {"laid": "in one"}, UNSEEN, "", "q"),
        ("multi-two-in-one", _multi, 3, {"laid": "keys and values in one"}, UNSEEN, "q k", "qk"),
        ("masked", _masked, 3, {}, {}, "q k v", "qk"),
        ("multi-bias", _multi, 4, {"bias": True}, {}, "", "b"),
        ("masked-bias", _masked, 3, {"bias": True}, {}, "", "b"),
        ("masked-past", _masked, 3, {"past": True}, {}, "q k v K V", "qk qK"),
        ("tokens-in-one", _tokens, 4, {"together": True}, UNSEEN, "", "b"),
        ("grouped", _grouped, 4, {}, {}, "q k v", "qk"),
        ("grouped-in-one", _grouped, 4, {"together": True}, {}, "", "q"),
        ("grouped-past", _grouped, 4, {"past": 3}, {}, "q k K V", "qk qK"),
    )
    for inexact, which in ((0, silent), (1, heard))
    for speaks in which.split()
]  # fmt: skip


def _turn(net: Net, x: Tensor, size: int, op: str, each: bool, **attrs: Any) -> Tensor:
    angle = net.rng.uniform(-3, 3, (10, size // 2)).astype(np.float32)
    places = np.tile(np.arange(STEPS), (BATCH, 1)) if each else np.zeros(1, np.int64)
    if op == "MRotaryEmbedding":
        places = np.stack([places] * 3)
        attrs["mrope_section"] = [size // 2 - 2, 1, 1]
    inputs = [
        x,
        net.const(places.astype(np.int64)),
        net.const(np.cos(angle)),
        net.const(np.sin(angle)),
    ]
    return contrib(net, op, inputs, tuple(x.shape), **attrs)[0]


def _rotary(
    heads: int = 2, size: int = 8, *, part: int = 0, apart: bool = False, each: bool = True,
    op: str = "RotaryEmbedding", **attrs: Any,
) -> Body:  # fmt: skip
    """Attention over turned queries and keys."""

    def body(net: Net, a: Tensor) -> Tensor:
        turned = []
        for _ in "qk":
            x = net.linear(a, heads * size)
            if apart:
                x = net.transpose(net.reshape(x, [0, 0, heads, size]), 0, 2, 1, 3)
            named = {"num_heads": heads, "rotary_embedding_dim": part} if part else {}
            named = {"num_heads": heads} if op == "MRotaryEmbedding" else named
            x = _turn(net, x, part or size, op, each, **named, **attrs)
            turned.append(net.reshape(net.transpose(x, 0, 2, 1, 3), [0, 0, -1]) if apart else x)
        inputs = [*turned, net.linear(a, heads * 4)]
        return contrib(net, "MultiHeadAttention", inputs, (BATCH, STEPS, heads * 4),
                     num_heads=heads)[0]  # fmt: skip

    return body


def _sum_of_turned(net: Net, a: Tensor) -> Tensor:
    turned = _turn(net, net.linear(a, 16), 8, "MRotaryEmbedding", True, num_heads=2)
    return net.node("ReduceSum", turned, [-1])


def _turned_from_the_file(apart: bool) -> Body:
    """Of what is stored the batch and the steps may go as well."""

    def body(net: Net, a: Tensor) -> Tensor:
        x = net.weight(*((BATCH, 2, STEPS, 8) if apart else (BATCH, STEPS, 16)), fan=8)
        x = _turn(net, x, 8, "RotaryEmbedding", True)
        total = net.node("ReduceSum", x, [0, 2] if apart else [0, 1], keepdims=1)
        return net.add(net.linear(a, 16), net.reshape(total, [1, 1, 16]))

    return body


ROTARY = [
    *(case(f"stored-{apart=}", 5, _turned_from_the_file(apart), shape=TOKENS, exact=True)
      for apart in (False, True)),
    case("three-positions-summed", 2, _sum_of_turned, shape=TOKENS, exact=True),
    case("halves", 4, _rotary(), shape=TOKENS, exact=True),
    case("interleaved", 4, _rotary(interleaved=1), shape=TOKENS, exact=True),
    case("from-one-position", 4, _rotary(each=False), shape=TOKENS, exact=True),
    case("all-by-name", 4, _rotary(part=8), shape=TOKENS, exact=True),
    case("a-part-turns", 3, _rotary(part=4), shape=TOKENS, exact=True),
    case("rotary-apart", 4, _rotary(apart=True), shape=TOKENS, exact=True),
    case("three-positions", 3, _rotary(op="MRotaryEmbedding"), shape=TOKENS, exact=True),
]  # fmt: skip


@pytest.mark.parametrize("row", [*PROJECTED, *MULTI, *GROUPED, *SPEAKING, *LINEAR, *ROTARY])
def test_contrib_attention(row: Case) -> None:
    row.check()


def _cut(body: Body, op_type: str, kind: str) -> dict[str, Any]:
    """The attributes of a node, with one unit of every group of a kind removed."""
    groups = spa.analyze(Case(op_type, 0, body, TOKENS).model())
    chosen = {g: np.arange(1) for g in range(len(groups)) if groups[g].kind == kind}
    node, *_ = [n for n in rewrite(groups, chosen).graph.node if n.op_type == op_type]
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize(
    ("body", "op_type", "kind", "expected"),
    [
        (_projected(), "Attention", "heads", {"num_heads": 1}),
        (_projected(), "Attention", "head-dim",
         {"num_heads": 2, "qkv_hidden_sizes": None, "scale": 0.5}),
        (_projected(value=3), "Attention", "head-dim",
         {"num_heads": 2, "qkv_hidden_sizes": [6, 6, 4], "scale": 0.5}),
        (_projected(scale=0.3), "Attention", "head-dim", {"scale": pytest.approx(0.3)}),
        *((_rotary(apart=apart, part=8), "RotaryEmbedding", kind,
           {"num_heads": 1 + (kind == "head-dim"), "rotary_embedding_dim": size})
          for apart in (False, True) for kind, size in (("heads", 8), ("head-dim", 6))),
        (_multi(), "MultiHeadAttention", "heads", {"num_heads": 1, "scale": None}),
        *((body, op, kind, {"num_heads": 1 + (kind == "head-dim"), "scale": scale})
          for body, op in ((_multi(laid="in one"), "MultiHeadAttention"),
                           (_multi(laid="cache"), "MultiHeadAttention"),
                           (_multi(laid="keys and values in one"), "MultiHeadAttention"),
                           (_tokens(together=False), "PackedMultiHeadAttention"),
                           (_tokens(together=True), "PackedMultiHeadAttention"))
          for kind, scale in (("heads", None), ("head-dim", 0.5))),
        (_multi(), "MultiHeadAttention", "head-dim", {"num_heads": 2, "scale": 0.5}),
        (_grouped(size=16), "GroupQueryAttention", "head-dim",
         {"num_heads": 4, "kv_num_heads": 2, "scale": 0.25}),
    ],
)  # fmt: skip
def test_stored_sizes_follow(body: Body, op_type: str, kind: str, expected: dict[str, Any]) -> None:
    attrs = _cut(body, op_type, kind)
    assert {name: attrs.get(name) for name in expected} == expected


@pytest.mark.parametrize("coded", ["k", "v"])
def test_caches_in_eight_bits_keep_heads_whole(coded: str) -> None:
    groups = spa.analyze(Case("", 1, _grouped(coded=coded), TOKENS, typed=True).model())
    assert [group.size for group in groups] == [8]


def _from_the_file(op: str, shapes: list[tuple[int, ...] | None], **attrs: Any) -> Body:
    """All inputs are stored; lists of lengths have one axis at most, and end in a total.

    What is made is summed over the batch and the steps, weighted with a constant behind it.
    """

    def stored(net: Net, shape: tuple[int, ...] | None, k: int) -> Tensor | None:
        whole = (op == "GroupQueryAttention" and k in (5, 6, 16)) or (op == "Attention" and k == 3)
        if shape is None:
            return None
        return net.const(np.full(shape, STEPS, np.int32)) if whole else net.uniform(-1, 1, *shape)

    def body(net: Net, a: Tensor) -> tuple[Tensor, ...]:
        inputs = [stored(net, shape, k) for k, shape in enumerate(shapes)]
        total = STEPS + CACHED
        y, *presents = {
            "Attention": [(BATCH, STEPS, 8), (2, BATCH, 2, total, 4)],
            "MultiHeadAttention": [
                (BATCH, STEPS, 8),
                *[(BATCH, 2, total, 4)] * 2,
                (BATCH, 2, STEPS, total),
            ],
            "GroupQueryAttention": [
                (BATCH, STEPS, 96),
                *[(BATCH, 2, total, 16)] * 2,
                (BATCH, 6, STEPS, total),
            ],
            "DecoderMaskedMultiHeadAttention": [(BATCH, STEPS, 8)],
            "PackedMultiHeadAttention": [(BATCH * STEPS, 8)],
            "PackedAttention": [(BATCH * STEPS, 8)],
        }[op]
        made = contrib(net, op, inputs, y, *presents, **attrs)
        read = []
        for t in made:  # but for steps, and the sizes of what is remembered
            kept = {2: (1,), 3: (0, 2), 4: (0, 1), 5: (1, 2)}[len(t.shape)]
            weights = [n if k in kept else 1 for k, n in enumerate(t.shape)]
            t = net.mul(t, net.const(net.rng.uniform(1, 2, weights).astype(np.float32), "behind"))
            read.append(net.node("ReduceSum", t, [*range(len(t.shape) - 1)], keepdims=0))
        return net.linear(a, 3), *(net.linear(net.unsqueeze(t, 0), 3) for t in read)

    return body


PAST = (BATCH, 2, CACHED, 4)
SCORES = (BATCH, 2, STEPS, STEPS + CACHED)


_HELD = ["B H p D", "B H p D"]
_MADE = ["B 1 HD", "B H 1 1", "B H 1 1", "B H 1 1"]
_MULTI: list[tuple[Any, list[str]]] = [
    ([(BATCH, STEPS, 8)] * 3, ["B s HD", "B t HD", "B t HD"]),
    ([(BATCH, STEPS, 2, 3, 4), None, None], ["B s H 3 D", "", ""]),
    ([(BATCH, STEPS, 8), (BATCH, STEPS, 2, 2, 4), None], ["B s HD", "B t H 2 D", ""]),
    ([(BATCH, STEPS, 24), None, None], ["B s HD", "", ""]),
]


@pytest.mark.parametrize(("shapes", "terms"), _MULTI)
def test_every_axis_of_multi_head_attention(shapes: Any, terms: list[str]) -> None:
    body = _from_the_file(
        "MultiHeadAttention", [*shapes, (24,), None, SCORES, PAST, PAST], num_heads=2
    )
    terms = [*terms, "HD", "", "B H s t", *_HELD]
    check_axes(body, "MultiHeadAttention", "BHD", terms, _MADE)


def test_every_axis_of_masked_attention() -> None:
    given = [*[(BATCH, STEPS, 8)] * 3, None, (BATCH, 2, STEPS, STEPS), *[None] * 5, (24,)]
    body = _from_the_file("DecoderMaskedMultiHeadAttention", given, num_heads=2)
    terms = ["B s HD", "B t HD", "B t HD", "", "B H s t", *[""] * 5, "HD"]
    check_axes(body, "DecoderMaskedMultiHeadAttention", "BHD", terms, ["B 1 HD"])


def test_every_axis_of_projected_attention() -> None:
    shapes = [(BATCH, STEPS, 6), (6, 24), (24,), (BATCH,), (2, *PAST), SCORES]
    terms = ["B s I", "I HD", "HD", "", "2 B H p D", "B H s t"]
    body = _from_the_file("Attention", shapes, num_heads=2)
    check_axes(body, "Attention", "BIHD", terms, ["B 1 HD", "1 B H 1 1"])
    scores = (BATCH, 2, STEPS, STEPS)
    body = _from_the_file(
        "PackedAttention", [(BATCH * STEPS, 6), (6, 24), (24,), (2, 5), (3,), scores], num_heads=2
    )
    terms = ["t I", "I HDE", "HDE", "", "", "b H s t"]
    check_axes(body, "PackedAttention", "IHDE", terms, ["1 HE"])


@pytest.mark.parametrize(("lengths", "scored"), [((BATCH,), 6), ((BATCH, 1), 1)])
@pytest.mark.parametrize("together", [False, True])
def test_every_axis_of_grouped_attention(
    lengths: tuple[int, ...], scored: int, together: bool
) -> None:
    """scored: for how many heads there are scores of their own."""
    parts = [(BATCH, STEPS, 160), None, None] if together else [(BATCH, STEPS, 96), *[
        (BATCH, STEPS, 32)] * 2]  # fmt: skip
    cache, scores = (BATCH, 2, CACHED, 16), (BATCH, scored, STEPS, STEPS + CACHED)
    body = _from_the_file(
        "GroupQueryAttention",
        [*parts, cache, cache, lengths, (1,), *[None] * 3, scores, (6,), *[None] * 4, (BATCH,)],
        num_heads=6, kv_num_heads=2,
    )  # fmt: skip
    first = ["B s HGD8", "", ""] if together else ["B s HGD8", "B t HD8", "B t HD8"]
    per_head = "B HG s t" if scored > 1 else "B 1 s t"
    terms = [*first, *["B H p D8"] * 2, "B 1", *[""] * 4, per_head, "HG", *[""] * 4, "B"]
    made = ["B 1 HGD8", "B H 1 1", "B H 1 1", "B HG 1 1"]
    check_axes(body, "GroupQueryAttention", "BHGD", terms, made)


def test_every_axis_of_packed_attention() -> None:
    beside = [(2, 5), (3,), (BATCH, 2, STEPS, STEPS)]
    body = _from_the_file(
        "PackedMultiHeadAttention", [*[(BATCH * STEPS, 8)] * 3, (24,), *beside], num_heads=2
    )
    terms = ["t HD", "t HD", "t HE", "HDE", "", "", "b H s t"]
    check_axes(body, "PackedMultiHeadAttention", "HDE", terms, ["1 HE"])
    body = _from_the_file(
        "PackedMultiHeadAttention",
        [(BATCH * STEPS, 2, 3, 4), None, None, (24,), *beside], num_heads=2,
    )  # fmt: skip
    terms = ["t H 3 D", "", "", "HD", "", "", "b H s t"]
    check_axes(body, "PackedMultiHeadAttention", "HD", terms, ["1 HD"])


def test_what_groups_of_queries_are_called() -> None:
    groups = spa.analyze(Case("", 4, _grouped(6, 2), TOKENS).model())
    kinds = sorted((group.kind, group.size) for group in groups)
    assert kinds == [("head-dim", 4), ("heads", 2), ("heads", 3), ("linear", 8)]
