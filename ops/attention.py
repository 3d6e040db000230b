"""Attention in one operator, and the rotation of positions into queries and keys.

H is a head of keys and values, G one of the queries that share it, D the size of a head of queries
and keys, E that of values.
"""

import numpy as np

from spa.rules import MICROSOFT, Op, Product, Quantised, Resized, Sized, declare

_WHOLE = "*, *, *, *, *, *, * -> *, *, *, *"


def _heads(op: Op) -> tuple[int, int]:
    """How many heads the queries have, and how many the keys."""
    if len(op.shape()) == 4:
        return op.shape(0)[1], op.shape(1)[1]
    return int(op.attr("q_num_heads")), int(op.attr("kv_num_heads"))


def _sizes(op: Op) -> dict[str, int]:
    return {"H": _heads(op)[1]}


def _kinds(op: Op) -> dict[str, str]:
    return {"H": "heads", "G": "heads", "D": "head-dim", "E": "head-dim"}


def _attention(op: Op) -> str:
    """B s (H G D), B t (H D), B t (H E), mask, B H p D, B H p E, B -> B s (H G E)"""
    if len(op.out_shapes) > 3 and op.out_shapes[3] is not None:
        return _WHOLE  # the scores are shown as well
    packed = ("B s (H G D)", "B t (H D)", "B t (H E)", "B s (H G E)")
    apart = ("B (H G) s D", "B H t D", "B H t E", "B (H G) s E")
    q, k, v, y = packed if len(op.shape()) == 3 else apart
    mask = "*"
    if op.has(3) and len(op.shape(3)) > 2 and op.shape(3)[-3] > 1:
        mask = "B (H G) *" if len(op.shape(3)) == 4 else "(H G) *"
    return f"{q}, {k}, {v}, {mask}, B H p D, B H p E, B -> {y}, B H u D, B H u E"


def _flex(op: Op) -> str:
    """B (H G) s D, B H t D, B H t E -> B (H G) s E   (whole where a body changes the scores)"""
    modified = {"score_mod", "prob_mod"} & op.node.attrs.keys()
    return _WHOLE if modified else "B (H G) s D, B H t D, B H t E -> B (H G) s E"


def _linear(op: Op) -> str:
    """B t (H G D), B t (H D), B t (H E), B H D E, B t (H D), B t H -> B t (H G E), B H D E"""
    each = op.has(4) and op.shape(4)[2] != _heads(op)[1]
    state = f"B H D E, B t {'(H D)' if each else 'H'}, B t H"
    return f"B t (H G D), B t (H D), B t (H E), {state} -> B t (H G E), B H D E"


def _counted(node: Sized, k: int, heads: int) -> tuple[int, int]:
    """How many heads are kept on the last axis of input k, and the size of each."""
    kept = node.kept[k]
    assert kept is not None
    count = len(np.unique(kept[2] // (node.op.shape(k)[2] // heads)))
    return count, len(kept[2]) // count


def _resize(node: Sized) -> Resized:
    """The scale that a head's size stands for is written out where that size changes."""
    op, new = node.op, node.new_in[0]
    assert new is not None
    queries, keys = _heads(op)
    attrs: dict[str, int | float] = {}
    old, size = op.shape()[-1], new[-1]
    if len(new) == 3:
        old = old // queries
        attrs["q_num_heads"], size = _counted(node, 0, queries)
        attrs["kv_num_heads"], _ = _counted(node, 1, keys)
    derived = None if op.node.op_type != "LinearAttention" else 0.0
    if size != old and op.attr("scale", derived) == derived:
        attrs["scale"] = old**-0.5
    return Resized(attrs=attrs)


def _macs(op: Op) -> list[Product]:
    """Every element of a query, and every element of the output, meets every key once."""
    at = len(op.shape(1)) - 2
    keys = (-2, 2) if len(op.out_shapes) > 1 and op.out_shapes[1] else (1, at)
    rank = range(len(op.shape()))
    return [[*((0, k) for k in rank), keys], [*((-1, k) for k in rank), keys]]


for _op, _domain, _pattern, _cost, _states in (
    ("Attention", "", _attention, _macs, {4: 1, 5: 2}),
    ("FlexAttention", "ai.onnx.preview", _flex, _macs, {}),
    ("LinearAttention", "", _linear, None, {3: 1}),
    ("LinearAttention", MICROSOFT, _linear, None, {3: 1}),
):
    declare(
        _op,
        _pattern,
        zero="0 1 + 2",
        sizes=_sizes,
        kinds=_kinds,
        resize=_resize,
        macs=_cost,
        states=_states,
        domain=_domain,
    )


# onnxruntime's attention with quantised projections: one weight makes queries, keys and values.
def _projected(op: Op) -> str:
    """B s I, I (3 H D), (3 H D), *, (3 H D), mask, *, (3 H D), 2 B H p D -> B s (H D), 2 B H t D"""
    heads = "(3 H d)" if op.attr("do_rotary", 0) else "(3 H D)"
    each = [heads if op.has(k) and op.shape(k) not in ((), (1,)) else "*" for k in (4, 7)]
    past = f"2 B H p {heads[5]}"
    given = f"B s I, I {heads}, {heads}, *, {each[0]}, *, *, {each[1]}, {past}"
    return f"{given} -> B s {heads.replace('3 ', '')}, {past.replace('p', 't')}"


def _resize_projected(node: Sized) -> Resized:
    kept, new = node.kept[1], node.new_in[1]
    assert kept is not None and new is not None
    heads = int(node.op.attr("num_heads"))
    old = node.op.shape(1)[1] // 3 // heads
    count = len(np.unique(kept[1] // old)) // 3
    attrs: dict[str, int | float] = {"num_heads": count}
    if new[1] != 3 * count * old and not node.op.attr("scale", 0.0):
        attrs["scale"] = old**-0.5
    return Resized(attrs=attrs)


def _projected_macs(op: Op) -> list[Product]:
    """The projections; then every element of a query and of the output meets every key once."""
    rank = range(3)
    return [[(0, 0), (0, 1), (1, 0), (1, 1)], *[[*((-1, k) for k in rank), (0, 1)]] * 2]


declare(
    "QAttention",
    _projected,
    zero="0 1 + 2 + 8",
    # Queries and keys are multiplied along D, which values have too.
    inexact=lambda op: "D" if op.speaks((1,), (2,)) else "",
    sizes=lambda op: {"H": int(op.attr("num_heads"))},
    kinds=lambda op: _kinds(op) | {"I": "linear"},
    resize=_resize_projected,
    macs=_projected_macs,
    quantised={0: Quantised((3,), 6), 1: Quantised((4,), 7, (1,))},
    states={8: 1},
    domain=MICROSOFT,
)

# Rotary positions ------------------------------------------------------------------------------


def _turned(op: Op) -> tuple[int, int, int]:
    """The number of heads, the size of each, and how much of that is turned."""
    packed = len(op.shape()) == 3
    heads = int(op.attr("num_heads")) if packed else op.shape()[1]
    size = op.shape()[-1] // (heads if packed else 1)
    return heads, size, int(op.attr("rotary_embedding_dim", 0)) or size


def _rotary(op: Op) -> str:
    """B S (H 2 D), p D, p D, B S -> B S (H 2 D)   (D 2 where interleaved; d where a part turns)"""
    _, size, part = _turned(op)
    turned = "d" if part != size else "D 2" if op.attr("interleaved", 0) else "2 D"
    x = f"B S (H {turned})" if len(op.shape()) == 3 else f"B H S ({turned})"
    rows = "p" if op.has(3) else "B S"  # of a table, or one for each step
    cache = f"{rows} {'e' if part != size else 'D'}"
    return f"{x}, {cache}, {cache}, {'B S' if op.has(3) else '*'} -> {x}"


def _resize_rotary(node: Sized) -> Resized:
    new = node.new_in[0]
    assert new is not None
    heads, _, part = _turned(node.op)
    attrs, size = {}, new[-1]
    if len(new) == 3:
        attrs["num_heads"], size = _counted(node, 0, heads)
    if node.op.attr("rotary_embedding_dim", 0):
        attrs["rotary_embedding_dim"] = min(part, size)
    return Resized(attrs=attrs)


declare(
    "RotaryEmbedding",
    _rotary,
    zero="0",
    sizes=lambda op: {"H": _turned(op)[0]},
    kinds=_kinds,
    resize=_resize_rotary,
)
