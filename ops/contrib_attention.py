"""Attention in one operator as onnxruntime has it, and the rotation of positions before it.

H is a head of keys and values, G one of the queries that share it, D the size of a head of queries
and keys, E that of values. Queries, keys and values may lie behind one another on one axis.
"""

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.rules import MICROSOFT, Op, Product, Resized, Sized, declare

_PACKED = "H D + H D + H E"


def _heads(op: Op) -> int:
    return int(op.attr("num_heads"))


def _keys(op: Op) -> int:
    """How many heads the keys have."""
    return int(op.attr("kv_num_heads", _heads(op)))


def _kinds(op: Op) -> dict[str, str]:
    return {"H": "heads", "G": "heads", "D": "head-dim", "E": "head-dim", "I": "linear"}


def _scaled(op: Op, old: int, new: int) -> dict[str, Any]:
    """The scale that a head's size stands for is written out where that size changes."""
    return {"scale": old**-0.5} if new != old and not op.attr("scale", 0.0) else {}


def _count(kept: NDArray[np.intp], size: int) -> tuple[int, int]:
    """How many heads of this size are kept in part, and the size that they have then."""
    count = len(np.unique(kept // size))
    return count, len(kept) // count


# Attention with its projection -----------------------------------------------------------------


def _hidden(op: Op) -> list[int]:
    """The sizes of queries, keys and values."""
    total = op.shape(1)[1]
    return [int(n) for n in op.attr("qkv_hidden_sizes", [total // 3] * 3)]


def _projected(op: Op) -> str:
    """B s I, I (H D + H D + H E), (H D + H D + H E), *, 2 B H p D, B H * -> B s (H E), 2 B H u D"""
    packed = op.node.op_type == "PackedAttention"
    state = not packed and (op.has(4) or len(op.node.outputs) > 1)
    size = "d" if op.attr("do_rotary", 0) else "D"
    value = size if state or size == "d" else "E"
    qkv = f"(H {size} + H {size} + H {value})"
    if packed:
        return f"t I, I {qkv}, {qkv}, *, *, b H * -> t (H {value})"
    past = f"2 B H p {size}, B H *, *"
    return f"B s I, I {qkv}, {qkv}, *, {past} -> B s (H {value}), 2 B H u {size}"


def _projected_sizes(op: Op) -> dict[str, int]:
    q, _, v = _hidden(op)
    heads = _heads(op)
    return {"H": heads, "D": q // heads, "d": q // heads, "E": v // heads}


def _resize_projected(node: Sized) -> Resized:
    op, kept = node.op, node.kept[1]
    assert kept is not None
    q, k, _ = _hidden(op)
    size, ends = q // _heads(op), [q, q + k]
    parts = np.split(kept[1], np.searchsorted(kept[1], ends))
    heads, new = _count(parts[0], size)
    sizes = [len(part) for part in parts]
    attrs = {"num_heads": heads, **_scaled(op, size, new)}
    if "qkv_hidden_sizes" in op.node.attrs or len(set(sizes)) > 1:
        attrs["qkv_hidden_sizes"] = sizes
    return Resized(attrs=attrs)


def _projected_macs(op: Op) -> list[Product]:
    """The projection; then every element of the output meets every key, for scores and values."""
    rank = range(len(op.shape()))
    output = [(-1, k) for k in range(len(op.out_shape()))]
    keys = (-2, 3) if len(op.out_shapes) > 1 and op.out_shapes[1] else (0, len(op.shape()) - 2)
    return [[*((0, k) for k in rank), (1, 1)], [*output, keys], [*output, keys]]


for _op, _states, _zero in (
    ("Attention", {4: 1}, "0 1 + 2 + 4"),
    ("PackedAttention", {}, "0 1 + 2"),
):
    declare(
        _op,
        _projected,
        zero=_zero,
        inexact=lambda op: "D" if op.speaks((1,), (2,)) else "",
        sizes=_projected_sizes,
        kinds=_kinds,
        resize=_resize_projected,
        macs=_projected_macs,
        states=_states,
        domain=MICROSOFT,
    )


# Attention on queries, keys and values ---------------------------------------------------------


def _size(op: Op) -> int:
    """The size of a head of queries, whichever way they are laid out."""
    if op.has(1) or len(op.shape()) > 3:
        return op.shape()[-1] // (_heads(op) if len(op.shape()) <= 3 else 1)
    return op.shape()[-1] // (_heads(op) + 2 * _keys(op))


def _sizes(op: Op) -> dict[str, int]:
    return {"H": _keys(op), "G": _heads(op) // _keys(op)}


def _multi_head(op: Op) -> str:
    """B s (H D), B t (H D), B t (H E), (H D + H D + H E), *, B H *, B H p D, B H p E
    -> B s (H E), B H u D, B H u E, B H *"""
    # Caches hold keys and values of one size.
    apart = op.node.op_type == "MultiHeadAttention" and op.has(2) and not op.has(6)
    value = "E" if apart and len(op.shape(1)) == 3 else "D"
    bias = f"({_PACKED})".replace("E", value)
    q = "B s (H D)" if op.has(1) else "B s H 3 D" if len(op.shape()) == 5 else f"B s {bias}"
    laid = {3: "B t (H {})", 4: "B H t {}", 5: "B t H 2 {}"}  # flat, as in a cache, both in one
    k, v = (laid[len(op.shape(k))] if op.has(k) else "*" for k in (1, 2))
    inputs = [q, k.format("D"), v.format(value)]
    past = [f"B H p {size}" for size in ("D", value)]
    if op.node.op_type == "MultiHeadAttention":
        inputs += [bias, "*", "B H *", *past, "*", "*"]
    else:
        inputs += ["*", "B H *", *past, "*", "*", "*", bias]
    return f"{', '.join(inputs)} -> B s (H {value}), B H u D, B H u {value}, B H *"


def _packed(op: Op) -> str:
    """t (H D), t (H D), t (H E), (H D + H D + H E), *, *, b H * -> t (H E)   (t H 3 D in one)"""
    if op.has(1):
        return f"t (H D), t (H D), t (H E), ({_PACKED}), *, *, b H * -> t (H E)"
    return f"t H 3 D, *, *, ({_PACKED.replace('E', 'D')}), *, *, b H * -> t (H D)"


def _grouped(op: Op) -> str:
    """B s (H G D 8), B t (H D 8), B t (H D 8), B H p (D 8), B H p (D 8), B -> B s (H G D 8),
    B H u (D 8), B H u (D 8)   (H G 2 D 8 where positions are turned)"""
    if op.has(12) or op.has(13):
        return ", ".join("*" for _ in op.axes) + " -> *, *, *, *"  # caches in eight bits
    size, cache = _turned(op)
    k, past = f"B t (H {size})", f"B H p ({size})"
    q = f"B s (H G {size})" if op.has(1) else f"B s (H G {size} + H {size} + H {size})"
    lengths = "B" if len(op.shape(5)) == 1 else "B 1"
    scores = "B (H G) *" if op.has(10) and op.shape(10)[1] > 1 else "B h *"  # of all heads alike
    inputs = [q, k, k, past, past, lengths, "*", cache, cache, "*", scores]
    inputs += ["(H G)", "*", "*", f"({size})", f"({size})", "B"]
    return f"{', '.join(inputs)} -> B s (H G {size}), B H u ({size}), B H u ({size}), B (H G) *"


def _turned(op: Op) -> tuple[str, str]:
    """A head and a row of cosines; its size has to be a multiple of 8, of 16 where it is turned."""
    size = _size(op)
    if not op.attr("do_rotary", 0):
        return ("D 8", "*") if size % 8 == 0 else ("d", "*")
    if 2 * op.shape(7)[1] != size:
        return "d", "*"
    return "D 8 2" if op.attr("rotary_interleaved", 0) else "2 D 8", "c (D 8)"


def _grouped_sizes(op: Op) -> dict[str, int]:
    size = _size(op)
    block = 16 if op.attr("do_rotary", 0) else 8
    return {**_sizes(op), "D": size // block, "d": size}


def _resize(node: Sized) -> Resized:
    op, kept = node.op, node.kept[0]
    assert kept is not None
    size, heads, rank = _size(op), _heads(op), len(op.shape())
    if rank > 3:
        at = 2 if rank == 5 else 1
        count, new = len(kept[at]), len(kept[-1])
    else:
        count, new = _count(kept[-1][kept[-1] < heads * size], size)
    attrs = {"num_heads": count, **_scaled(op, size, new)}
    if "kv_num_heads" in op.node.attrs:
        attrs["kv_num_heads"] = _kept_keys(node, size)
    return Resized(attrs=attrs)


def _kept_keys(node: Sized, size: int) -> int:
    """How many heads of keys are kept."""
    op, (q, k) = node.op, node.kept[:2]
    assert q is not None
    ends = np.asarray([_heads(op), _heads(op) + _keys(op)]) * size
    flat = k[-1] if k is not None else q[-1][(q[-1] >= ends[0]) & (q[-1] < ends[1])]
    return _count(flat, size)[0]


def _macs(op: Op) -> list[Product]:
    """Every element of a query, and every element of the output, meets every key once."""
    output = [(-1, k) for k in range(len(op.out_shape()))]
    steps = len(op.shape(1)) - 2 if op.has(1) and len(op.shape(1)) != 5 else 1
    if len(op.out_shape()) == 2:
        steps = 0  # tokens without padding
    keys = (-2, 2) if len(op.out_shapes) > 1 and op.out_shapes[1] else (int(op.has(1)), steps)
    query = [(0, k) for k in range(len(op.shape()))] if op.has(1) else output
    return [[*query, keys], [*output, keys]]


def _inexact(added: tuple[tuple[int, ...], ...], op: Op) -> str:
    """Queries and keys are multiplied along D, which values may have too.

    added: what else goes into the scores, a bias of both or keys that are remembered.
    """
    both = (0, 1) if op.has(1) else (0,)
    return "D" if op.speaks(both, *added) or op.has(14) else ""  # 14 scales queries


for _op, _pattern, _each, _states, _added, _zero in (
    ("MultiHeadAttention", _multi_head, _sizes, {6: 1, 7: 2}, ((3,), (0, 6)),
     "0 1 + 2 + 3 + 6 + 7, 1 + 3 + 6, 2 + 3 + 7, "),
    ("DecoderMaskedMultiHeadAttention", _multi_head, _sizes, {5: 1, 6: 2}, ((10,), (0, 5)),
     "0 1 + 2 + 5 + 6 + 10, 1 + 5 + 10, 2 + 6 + 10, "),
    ("PackedMultiHeadAttention", _packed, _sizes, {}, ((3,),), "0 1 + 2 + 3"),
    ("GroupQueryAttention", _grouped, _grouped_sizes, {3: 1, 4: 2}, ((0, 3),),
     "0 1 + 2 + 3 + 4, 1 + 3, 2 + 4, "),
):  # fmt: skip
    declare(
        _op,
        _pattern,
        zero=_zero,
        inexact=partial(_inexact, _added),
        sizes=_each,
        kinds=_kinds,
        resize=_resize,
        macs=_macs,
        states=_states,
        domain=MICROSOFT,
    )


# Rotary positions ------------------------------------------------------------------------------


def _turns(op: Op) -> tuple[int, int, int]:
    """The number of heads, the size of each, and how much of that is turned."""
    part = int(op.attr("rotary_embedding_dim", 0))
    if len(op.shape()) == 4:
        heads, size = op.shape()[1], op.shape()[3]
    else:
        given = int(op.attr("num_heads", 0))
        size = op.shape()[-1] // given if given else 2 * op.shape(2)[1]
        heads = op.shape()[-1] // size
    return heads, size, part or size


def _rotary(op: Op) -> str:
    """B S (H 2 D), B S, p D, p D -> B S (H 2 D)   (D 2 where interleaved; d where a part turns)"""
    _, size, part = _turns(op)
    # Of three kinds of positions each turns a stretch of the head.
    fixed = part != size or op.node.op_type == "MRotaryEmbedding"
    turned = "d" if fixed else "D 2" if op.attr("interleaved", 0) else "2 D"
    x = f"B S (H {turned})" if len(op.shape()) == 3 else f"B H S ({turned})"
    places = "B S" if len(op.shape(1)) == 2 else "*"
    cache = "*" if fixed else "c D"
    return f"{x}, {places}, {cache}, {cache} -> {x}"


def _resize_rotary(node: Sized) -> Resized:
    op, kept = node.op, node.kept[0]
    assert kept is not None
    _, size, part = _turns(op)
    apart = len(kept) == 4
    count, new = (len(kept[1]), len(kept[-1])) if apart else _count(kept[-1], size)
    attrs = {}
    if op.attr("num_heads", 0):
        attrs["num_heads"] = count
    if op.attr("rotary_embedding_dim", 0):
        attrs["rotary_embedding_dim"] = min(part, new)
    return Resized(attrs=attrs)


declare(
    "RotaryEmbedding MRotaryEmbedding",
    _rotary,
    zero="0",
    sizes=lambda op: {"H": _turns(op)[0]},
    kinds=_kinds,
    resize=_resize_rotary,
    domain=MICROSOFT,
)
