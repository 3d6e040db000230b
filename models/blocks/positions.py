"""Makes attention that knows positions: bias tables, rotations, masks, windows."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.blocks.attention import (
    B,
    D,
    H,
    S,
    attend,
    biased,
    merge_heads,
    project,
    scores,
)
from models.blocks.table import TOKENS, block
from models.builder import Net, Tensor

DISTANCE = np.arange(S)[:, None] - np.arange(S)[None] + S - 1  # relative positions, from 0


# --- tables of biases


@block("heads 4, qk 6, v 6", TOKENS)
def bias_buckets(net: Net, x: Tensor) -> Any:
    """T5: a table (buckets, H) picked by stored buckets, then transposed to (1, H, S, S)."""
    y = net.gather(net.weight(2 * S - 1, H, fan=1, name="relative_attention_bias"), DISTANCE)
    return biased(net, x, net.unsqueeze(net.transpose(y, 2, 0, 1), 0))


@block("heads 4, qk 6, v 6", TOKENS)
def bias_buckets_computed(net: Net, x: Tensor) -> Any:
    """T5: the buckets are computed from Range, Abs, Log and Min at run time."""
    steps = net.node("Range", np.int64(0), net.dim(x, 1), np.int64(1), shape=[S], dtype=np.int64)
    apart = net.node("Abs", net.sub(net.unsqueeze(steps, 1), net.unsqueeze(steps, 0)))
    far = net.node("Log", net.add(net.cast(apart, 1), 1.0))
    bucket = net.node("Min", net.cast(net.mul(far, 3.0), 7), np.int64(7))
    y = net.gather(net.weight(8, H, fan=1), bucket)
    return biased(net, x, net.unsqueeze(net.transpose(y, 2, 0, 1), 0))


@block("heads 4, qk 6, v 6", TOKENS)
def bias_flat_table(net: Net, x: Tensor) -> Any:
    """Swin: a table (positions, H) picked by a flat list, reshaped to (S, S, H), transposed."""
    y = net.gather(net.weight(2 * S - 1, H, fan=1, name="table"), DISTANCE.ravel())
    y = net.transpose(net.reshape(y, [S, S, H]), 2, 0, 1)
    return biased(net, x, net.unsqueeze(y, 0))


@block("heads 4, qk 6, v 6", TOKENS)
def bias_table_joined(net: Net, x: Tensor) -> Any:
    """BEiT: rows for the class token are joined to the table before it is picked from."""
    table = net.concat(net.weight(5, H, fan=1), net.weight(3, H, fan=1), axis=0)
    index = np.pad(DISTANCE[1:, 1:] - 1, ((1, 0), (1, 0)))
    index[0], index[:, 0], index[0, 0] = 5, 6, 7
    y = net.reshape(net.gather(table, index.ravel()), [S, S, -1])
    return biased(net, x, net.unsqueeze(net.transpose(y, 2, 0, 1), 0))


@block("heads 4, qk 6, v 6, hidden 8", TOKENS)
def bias_by_network(net: Net, x: Tensor) -> Any:
    """Swin V2: a small network on stored coordinates makes the table, under 16 * Sigmoid."""
    steps = net.const(np.linspace(-1, 1, 2 * S - 1, dtype=np.float32)[:, None])
    table = net.matmul(net.relu(net.linear(steps, 8)), net.weight(8, H))
    y = net.reshape(net.gather(net.mul(net.sigmoid(table), 16.0), DISTANCE.ravel()), [S, S, H])
    return biased(net, x, net.unsqueeze(net.transpose(y, 2, 0, 1), 0))


@block("heads 4, qk 6, v 6", TOKENS)
def bias_of_heads(net: Net, x: Tensor) -> Any:
    """LeViT: a table (H, offsets) is picked along its second axis."""
    return biased(net, x, net.gather(net.weight(H, 2 * S - 1, fan=1), DISTANCE, axis=1))


@block("heads 4, qk 6, v 6", TOKENS)
def bias_full(net: Net, x: Tensor) -> Any:
    """A learned parameter (1, H, S, S), as after constant folding."""
    return biased(net, x, net.weight(1, H, S, S, fan=1))


@block("heads 4, qk 6, v 6", TOKENS)
def bias_slopes(net: Net, x: Tensor) -> Any:
    """ALiBi: a stored slope per head times the distance."""
    slopes = net.const((2.0 ** -np.arange(1, H + 1)).astype(np.float32)[:, None, None], "slopes")
    return biased(net, x, net.mul(slopes, net.const(-np.abs(DISTANCE - S + 1.0, dtype=np.float32))))


@block("heads 4, qk 6, v 6", TOKENS)
def bias_slopes_to_batch(net: Net, x: Tensor) -> Any:
    """Bloom: ALiBi merged with the batch to (B*H, 1, S), and the scores with it."""
    slopes = net.const((2.0 ** -np.arange(1, H + 1)).astype(np.float32)[:, None], "slopes")
    steps = net.node("Expand", net.const(np.arange(S, dtype=np.float32)[None, None]), [B, 1, S])
    alibi = net.reshape(net.mul(slopes, steps), [B * H, 1, S])
    q, k, v = (net.reshape(project(net, x), [B * H, S, D]) for _ in "qkv")
    a = net.reshape(net.add(scores(net, q, k), alibi), [B, H, S, S])
    y = net.matmul(net.reshape(net.softmax(a), [B * H, S, S]), v)
    return merge_heads(net, net.reshape(y, [B, H, S, D]))


@block("heads 4, qk 6, v 6, c2p-places 7, p2c-places 7", TOKENS)
def bias_by_content(net: Net, x: Tensor) -> Any:
    """DeBERTa: queries meet a projected table of positions; GatherElements picks distances."""
    q, k, v = (project(net, x) for _ in "qkv")
    places = project(net, net.weight(1, 2 * S, 7, fan=1, name="rel_embeddings"))
    by_place = net.matmul(q, net.transpose(places, 0, 1, 3, 2))
    index = net.node("Expand", DISTANCE[None, None], [B, H, S, S])
    c2p = net.node("GatherElements", by_place, index, axis=3)
    places = project(net, net.weight(1, 2 * S, 7, fan=1, name="rel_embeddings"))
    by_place = net.matmul(k, net.transpose(places, 0, 1, 3, 2))
    p2c = net.node("GatherElements", by_place, index, axis=3)
    a = net.add(net.add(scores(net, q, k), c2p), net.transpose(p2c, 0, 1, 3, 2))
    return merge_heads(net, net.matmul(net.softmax(a), v))


@block("heads 4, qk 6, v 6, places 7", TOKENS)
def bias_by_shift(net: Net, x: Tensor) -> Any:
    """Transformer-XL: learned vectors (H, D) are added to q; scores shift by Pad and Reshape."""
    q = net.reshape(net.linear(x, H * D), [0, 0, H, D])
    k, v = project(net, x), project(net, x)
    content, place = (net.transpose(net.add(q, net.uniform(-1, 1, H, D)), 0, 2, 1, 3) for _ in "uv")
    r = project(net, net.weight(1, S, 7, fan=1, name="positions"))
    shifted = net.matmul(place, net.transpose(r, 0, 1, 3, 2))
    shifted = net.node("Pad", shifted, [0, 0, 0, 1, 0, 0, 0, 0])
    shifted = net.slice(net.reshape(shifted, [B, H, S + 1, S]), 1, 2**62, axis=2)
    a = net.add(net.matmul(content, net.transpose(k, 0, 1, 3, 2)), shifted)
    return merge_heads(net, net.matmul(net.softmax(a), v))


@block("heads 4, qk 6, v 6", TOKENS)
def bias_decomposed(net: Net, x: Tensor) -> Any:
    """ViTDet, SAM: queries meet a table per direction, both sums broadcast onto the scores."""
    q, k, v = (project(net, x) for _ in "qkv")
    maps = net.reshape(q, [B, H, 2, 2, D])
    rows, columns = (net.weight(2, 2, D, fan=1, name=n) for n in ("rel_h", "rel_w"))
    down = net.node("Einsum", maps, rows, equation="bhyxd,ykd->bhyxk")
    across = net.node("Einsum", maps, columns, equation="bhyxd,xkd->bhyxk")
    a = net.reshape(scores(net, q, k), [B, H, 2, 2, 2, 2])
    a = net.add(net.add(a, net.unsqueeze(down, 5)), net.unsqueeze(across, 4))
    a = net.softmax(net.reshape(a, [B, H, S, S]))
    return merge_heads(net, net.matmul(a, v))


@block("heads 4, qk 6, v 6, places 3", TOKENS)
def bias_gated_per_head(net: Net, x: Tensor) -> Any:
    """ConViT: a gate per head mixes two softmaxes."""
    q, k, v = (project(net, x) for _ in "qkv")
    places = net.linear(net.weight(1, S, S, 3, fan=1, name="rel_indices"), H)
    places = net.softmax(net.transpose(places, 0, 3, 1, 2))
    gate = net.sigmoid(net.reshape(net.uniform(-1, 1, H, name="gating"), [1, -1, 1, 1]))
    a = net.mul(net.sub(1.0, gate), net.softmax(scores(net, q, k)))
    a = net.add(a, net.mul(gate, places))
    a = net.div(a, net.unsqueeze(net.node("ReduceSum", a, [-1], keepdims=0), 3))
    return merge_heads(net, net.matmul(a, v))


# --- rotations


def _tables(net: Net, size: int, doubled: bool = True) -> list[Tensor]:
    angles = np.outer(np.arange(S), 1e4 ** (-np.arange(0, size, 2) / size)).astype(np.float32)
    angles = np.concatenate([angles, angles], 1) if doubled else angles
    return [net.const(np.cos(angles), "cos"), net.const(np.sin(angles), "sin")]


def _rotate(net: Net, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[3] // 2
    swapped = [net.node("Neg", net.slice(x, half, 2**62, axis=3)), net.slice(x, 0, half, axis=3)]
    return net.add(net.mul(x, cos), net.mul(net.concat(*swapped, axis=3), sin))


@block("heads 4, qk-pairs 3, v 6", TOKENS)
def rotary_half(net: Net, x: Tensor) -> Any:
    """GPT-NeoX, Llama: index i turns with i + D/2, so they go together."""
    q, k, v = (project(net, x) for _ in "qkv")
    tables = _tables(net, D)
    return attend(net, _rotate(net, q, *tables), _rotate(net, k, *tables), v)


@block("heads 4, qk-pairs 3, v 6", TOKENS)
def rotary_halves_apart(net: Net, x: Tensor) -> Any:
    """Split halves, four products, then joined: each half meets a table of half the size."""
    cos, sin = _tables(net, D, doubled=False)

    def turn(y: Tensor) -> Tensor:
        a, b = net.split(y, [D // 2] * 2, axis=3)
        left = net.sub(net.mul(a, cos), net.mul(b, sin))
        return net.concat(left, net.add(net.mul(b, cos), net.mul(a, sin)), axis=3)

    q, k, v = (project(net, x) for _ in "qkv")
    return attend(net, turn(q), turn(k), v)


@block("heads 4, qk-pairs 3, v 6", TOKENS)
def rotary_interleaved(net: Net, x: Tensor) -> Any:
    """GPT-J: neighbours turn together; strided slices, stacked again on an axis of 2."""
    cos, sin = (net.const(np.repeat(t.values[:, : D // 2], 2, 1)) for t in _tables(net, D))

    def turn(y: Tensor) -> Tensor:
        even = net.slice(y, 0, 2**62, axis=3, step=2)
        odd = net.node("Neg", net.slice(y, 1, 2**62, axis=3, step=2))
        pairs = net.concat(net.unsqueeze(odd, 4), net.unsqueeze(even, 4), axis=4)
        return net.add(net.mul(y, cos), net.mul(net.reshape(pairs, [B, H, S, D]), sin))

    q, k, v = (project(net, x) for _ in "qkv")
    return attend(net, turn(q), turn(k), v)


@block("heads 4, qk-pairs 3, v 6", TOKENS)
def rotary_pairs(net: Net, x: Tensor) -> Any:
    """Complex numbers written out: heads are reshaped to (D/2, 2), and its two parts gathered."""
    cos, sin = _tables(net, D, doubled=False)

    def turn(y: Tensor) -> Tensor:
        y = net.reshape(y, [B, H, S, D // 2, 2])
        a, b = (net.gather(y, np.int64(i), 4) for i in (0, 1))
        left = net.sub(net.mul(a, cos), net.mul(b, sin))
        right = net.add(net.mul(b, cos), net.mul(a, sin))
        pairs = net.concat(net.unsqueeze(left, 4), net.unsqueeze(right, 4), axis=4)
        return net.reshape(pairs, [B, H, S, D])

    q, k, v = (project(net, x) for _ in "qkv")
    return attend(net, turn(q), turn(k), v)


@block("heads 4, qk-pairs 2, qk-rest 2, v 6", TOKENS)
def rotary_partial(net: Net, x: Tensor) -> Any:
    """GPT-NeoX, Phi: only the first part of each head turns."""
    tables = _tables(net, 4)

    def turn(y: Tensor) -> Tensor:
        turned = _rotate(net, net.slice(y, 0, 4, axis=3), *tables)
        return net.concat(turned, net.slice(y, 4, 2**62, axis=3), axis=3)

    q, k, v = (project(net, x) for _ in "qkv")
    return attend(net, turn(q), turn(k), v)


@block("heads 4, qk-pairs 3, v 6", TOKENS)
def rotary_tables_picked(net: Net, x: Tensor) -> Any:
    """Rows of the tables are picked by positions that are an input."""
    places = net.input("position_ids", (B, S), np.int64)
    places = net.node("Clip", places, np.int64(0), np.int64(S - 1))
    tables = [net.unsqueeze(net.gather(t, places), 1) for t in _tables(net, D)]
    q, k, v = (project(net, x) for _ in "qkv")
    return attend(net, _rotate(net, q, *tables), _rotate(net, k, *tables), v)


@block("heads 4, qk-pairs 3, v 6", TOKENS)
def rotary_computed(net: Net, x: Tensor) -> Any:
    """Llama: positions times stored frequencies, doubled by Concat, under Cos and Sin."""
    places = net.input("positions", (B, 1, S))
    frequencies = net.const((1e4 ** (-np.arange(0, D, 2) / D)).astype(np.float32)[None, :, None])
    half = net.transpose(net.matmul(frequencies, places), 0, 2, 1)
    angles = net.unsqueeze(net.concat(half, half, axis=2), 1)
    tables = net.node("Cos", angles), net.node("Sin", angles)
    q, k, v = (project(net, x) for _ in "qkv")
    return attend(net, _rotate(net, q, *tables), _rotate(net, k, *tables), v)


# --- masks and windows


@block("heads 4, qk 6, v 6", TOKENS)
def mask_causal(net: Net, x: Tensor) -> Any:
    """A stored triangle of minus infinity."""
    return biased(net, x, net.const(np.triu(np.full((1, 1, S, S), -1e9, np.float32), 1)))


@block("heads 4, qk 6, v 6", TOKENS)
def mask_where(net: Net, x: Tensor) -> Any:
    """GPT-2: Where(stored triangle, scores, the lowest number)."""
    q, k, v = (project(net, x) for _ in "qkv")
    seen = net.const(np.tril(np.ones((1, 1, S, S), bool)))
    a = net.node("Where", seen, scores(net, q, k), np.float32(-3.4e38))
    return merge_heads(net, net.matmul(net.softmax(a), v))


@block("heads 4, qk 6, v 6", TOKENS)
def mask_per_head(net: Net, x: Tensor) -> Any:
    """A mask that is an input is expanded to all heads, and to (B*H, S, S)."""
    mask = net.unsqueeze(net.input("mask", (B, S, S), np.bool_), 1)
    mask = net.reshape(net.node("Expand", mask, [B, H, S, S]), [B * H, S, S])
    q, k, v = (net.reshape(project(net, x), [B * H, S, D]) for _ in "qkv")
    a = net.node("Where", mask, np.float32(-1e9), scores(net, q, k))
    y = net.matmul(net.softmax(a), v)
    return merge_heads(net, net.reshape(y, [B, H, S, D]))


def _roll(net: Net, x: Tensor, by: int) -> Tensor:
    for axis in (1, 2):
        x = net.concat(net.slice(x, by, 2**62, axis), net.slice(x, 0, by, axis), axis=axis)
    return x


def _windows(net: Net, x: Tensor, shift: int) -> Tensor:
    """Attention in 2x2 windows of a 4x4 map of 2 images: (B, 4, 4, C) -> (B * 4, 4, C)."""
    x = _roll(net, x, shift) if shift else x
    x = net.transpose(net.reshape(x, [2, 2, 2, 2, 2, -1]), 0, 1, 3, 2, 4, 5)
    x = net.reshape(x, [8, 4, -1])
    q, k, v = (
        net.transpose(net.reshape(net.linear(x, H * D), [8, 4, H, D]), 0, 2, 1, 3) for _ in "qkv"
    )
    a = scores(net, q, k)
    if shift:
        mask = net.const(np.where(np.arange(64).reshape(1, 4, 1, 4, 4) % 3, 0, -100.0).astype("f4"))
        a = net.reshape(net.add(net.reshape(a, [2, 4, H, 4, 4]), mask), [-1, H, 4, 4])
    y = net.transpose(net.matmul(net.softmax(a), v), 0, 2, 1, 3)
    y = net.linear(net.reshape(y, [8, 4, H * D]), x.shape[2])
    y = net.transpose(net.reshape(y, [2, 2, 2, 2, 2, -1]), 0, 1, 3, 2, 4, 5)
    y = net.reshape(y, [2, 4, 4, -1])
    return _roll(net, y, -shift) if shift else y


@block("heads 4, qk 6, v 6, out 7", (2, 4, 4, 7))
def windows(net: Net, x: Tensor) -> Any:
    """Swin: windows are merged with the batch, with all live axes behind them."""
    return net.transpose(_windows(net, x, 0), 0, 3, 1, 2)


@block("heads 4, qk 6, v 6, out 7", (2, 4, 4, 7))
def windows_shifted(net: Net, x: Tensor) -> Any:
    """Swin: roll by Slice and Concat; scores take a window axis of their own for the mask."""
    return net.transpose(_windows(net, x, 1), 0, 3, 1, 2)


@block("heads 4, qk 6, v 6, hidden 9~", (2, 4, 4, 7))
def windows_residual(net: Net, x: Tensor) -> Any:
    """A shifted block behind a plain one: both residual sums are one hidden group."""
    x = net.linear(x, 9)
    x = net.add(x, _windows(net, net.layer_norm(x), 0))
    return net.transpose(x, 0, 3, 1, 2)
