"""Makes attention whose queries, keys and values come from one weight, in every memory order."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.blocks.attention import (
    B,
    D,
    E,
    H,
    S,
    attend,
    merge_heads,
    project,
    scores,
    split_heads,
)
from models.blocks.table import TOKENS, block
from models.builder import Net, Tensor

FUSED = "heads 4, qk 6, v 6"


def _fused(net: Net, x: Tensor) -> Tensor:
    return net.linear(x, 3 * H * D)


@block(FUSED, TOKENS)
def fused_stack_gathered(net: Net, x: Tensor) -> Any:
    """timm: (3 H D), the stack moved to the front and picked apart by Gather."""
    y = net.transpose(net.reshape(_fused(net, x), [0, 0, 3, H, D]), 2, 0, 3, 1, 4)
    return attend(net, *(net.gather(y, np.int64(i)) for i in range(3)))


@block(FUSED, TOKENS)
def fused_stack_unbound(net: Net, x: Tensor) -> Any:
    """(3 H D), the stack picked apart by Split and Squeeze."""
    y = net.transpose(net.reshape(_fused(net, x), [0, 0, 3, H, D]), 2, 0, 3, 1, 4)
    return attend(net, *(net.squeeze(part, 0) for part in net.split(y, [1, 1, 1], axis=0)))


@block(FUSED, TOKENS)
def fused_stack_sliced(net: Net, x: Tensor) -> Any:
    """(3 H D), the stack picked apart by Slice and Reshape."""
    y = net.transpose(net.reshape(_fused(net, x), [0, 0, 3, H, D]), 2, 0, 3, 1, 4)
    return attend(
        net, *(net.reshape(net.slice(y, i, i + 1, axis=0), [B, H, S, D]) for i in range(3))
    )


@block(FUSED, TOKENS)
def fused_stack_in_place(net: Net, x: Tensor) -> Any:
    """(3 H D), picked where it stands on axis 2; the heads move to the front afterwards."""
    y = net.reshape(_fused(net, x), [0, 0, 3, H, D])
    return attend(
        net, *(net.transpose(net.gather(y, np.int64(i), 2), 0, 2, 1, 3) for i in range(3))
    )


@block(FUSED, (S, B, E))
def fused_stack_legacy(net: Net, x: Tensor) -> Any:
    """nn.MultiheadAttention: (3 E) is unflattened; heads are split later, beside the batch."""
    y = net.unsqueeze(net.reshape(_fused(net, x), [S, B, 3, H * D]), 0)
    y = net.squeeze(net.transpose(y, 3, 1, 2, 0, 4), 3)
    q, k, v = (
        net.reshape(
            net.transpose(net.reshape(net.gather(y, np.int64(i)), [S, B * H, D]), 1, 0, 2),
            [B, H, S, D],
        )
        for i in range(3)
    )
    y = net.matmul(net.softmax(scores(net, q, k)), v)
    return net.reshape(net.transpose(y, 2, 0, 1, 3), [S, B, H * D])


@block(FUSED, TOKENS)
def fused_halves_split(net: Net, x: Tensor) -> Any:
    """GPT-2: (3 H D) split in three before the heads are."""
    parts = net.split(_fused(net, x), [H * D] * 3, axis=2)
    return attend(net, *(split_heads(net, part) for part in parts))


@block(FUSED, TOKENS)
def fused_halves_sliced(net: Net, x: Tensor) -> Any:
    """(3 H D) cut by three Slices, the last one to the end."""
    y = _fused(net, x)
    ends = [H * D, 2 * H * D, 2**62]
    return attend(
        net, *(split_heads(net, net.slice(y, i * H * D, ends[i], axis=2)) for i in range(3))
    )


@block(FUSED, TOKENS)
def fused_per_head_gathered(net: Net, x: Tensor) -> Any:
    """Bloom: (H 3 D), every head holds its q, k and v, picked by Gather."""
    y = net.reshape(_fused(net, x), [0, 0, H, 3, D])
    return attend(
        net, *(net.transpose(net.gather(y, np.int64(i), 3), 0, 2, 1, 3) for i in range(3))
    )


@block(FUSED, TOKENS)
def fused_per_head_split(net: Net, x: Tensor) -> Any:
    """GPT-NeoX: (H (3 D)), every head is split in three."""
    y = net.transpose(net.reshape(_fused(net, x), [0, 0, H, 3 * D]), 0, 2, 1, 3)
    return attend(net, *net.split(y, [D] * 3, axis=3))


@block(FUSED, TOKENS)
def fused_per_head_sliced(net: Net, x: Tensor) -> Any:
    """(H (3 D)) with wide values: slices of unequal size inside every head."""
    y = net.reshape(net.linear(x, H * 18), [0, 0, H, 18])
    cuts = [(0, 6), (6, 12), (12, 2**62)]
    return attend(net, *(net.transpose(net.slice(y, *c, axis=3), 0, 2, 1, 3) for c in cuts))


@block(FUSED, TOKENS)
def fused_innermost(net: Net, x: Tensor) -> Any:
    """(H D 3): q, k and v lie next to each other, one number apart."""
    y = net.transpose(net.reshape(_fused(net, x), [0, 0, H, D, 3]), 4, 0, 2, 1, 3)
    return attend(net, *(net.gather(y, np.int64(i)) for i in range(3)))


@block("kv-groups 2, queries-in-group 2, qk 6, v 6", TOKENS)
def fused_per_group(net: Net, x: Tensor) -> Any:
    """Falcon-40B: (K (G + 2) D), every group holds its queries, its key and its value."""
    y = net.reshape(net.linear(x, 2 * 4 * D), [0, 0, 2, 4, D])
    q = net.slice(y, 0, -2, axis=3)
    k, v = (net.node("Expand", net.gather(y, [i], 3), [B, S, 2, 2, D]) for i in (-2, -1))
    q, k, v = (net.transpose(net.reshape(p, [B, S, H, D]), 0, 2, 1, 3) for p in (q, k, v))
    return attend(net, q, k, v)


@block("heads 4, qk 6, v 6", TOKENS)
def fused_one_key(net: Net, x: Tensor) -> Any:
    """Falcon-7B: ((H + 2) D) on one axis of heads, of which the last two are key and value."""
    y = net.reshape(net.linear(x, (H + 2) * D), [0, 0, H + 2, D])
    q = net.slice(y, 0, -2, axis=2)
    k, v = (net.gather(y, [i], 2) for i in (-2, -1))
    return attend(net, *(net.transpose(p, 0, 2, 1, 3) for p in (q, k, v)))


@block("heads 4, qk 6, v 6", TOKENS)
def fused_one_key_gather_nd(net: Net, x: Tensor) -> Any:
    """The same as PyTorch's dynamo exporter writes it: GatherND on the transposed axis."""
    y = net.reshape(net.linear(x, (H + 2) * D), [0, 0, H + 2, D])
    q = net.transpose(net.slice(y, 0, -2, axis=2), 0, 2, 1, 3)
    y = net.transpose(y, 2, 0, 1, 3)
    k, v = (net.transpose(net.node("GatherND", y, [[i]]), 1, 0, 2, 3) for i in (-2, -1))
    return attend(net, q, k, v)


@block("heads 4, qk 6, v 6", TOKENS)
def fused_uneven_split(net: Net, x: Tensor) -> Any:
    """Multi-query attention: (H D + D + D) split unevenly."""
    q, k, v = net.split(net.linear(x, (H + 2) * D), [H * D, D, D], axis=2)
    k, v = net.unsqueeze(k, 1), net.unsqueeze(v, 1)
    return attend(net, split_heads(net, q), k, v)


@block(FUSED, TOKENS)
def fused_pair(net: Net, x: Tensor) -> Any:
    """PVT: q has a weight of its own, k and v share one as (2 H D)."""
    y = net.reshape(net.linear(x, 2 * H * D), [0, 0, 2, H, D])
    y = net.transpose(y, 2, 0, 3, 1, 4)
    return attend(net, project(net, x), net.gather(y, np.int64(0)), net.gather(y, np.int64(1)))


@block("heads 4, qk 6, v 6", TOKENS)
def fused_bias_of_two(net: Net, x: Tensor) -> Any:
    """BEiT: the bias of the fused weight is joined from those of q and v, with zeros for k."""
    y = net.matmul(x, net.weight(E, 3 * H * D, fan=E))
    bias = [net.uniform(-1, 1, H * D), net.const(np.zeros(H * D, np.float32))]
    y = net.add(y, net.concat(*bias, net.uniform(-1, 1, H * D), axis=0))
    y = net.transpose(net.reshape(y, [0, 0, 3, H, D]), 2, 0, 3, 1, 4)
    return attend(net, *(net.gather(y, np.int64(i)) for i in range(3)))


@block("heads 4, qk 6, v 6", TOKENS)
def fused_weight_in_graph(net: Net, x: Tensor) -> Any:
    """The fused weight of nn.MultiheadAttention is split in the graph, before it is used."""
    w = net.weight(3 * H * D, E, fan=E, name="in_proj_weight")
    b = net.uniform(-0.1, 0.1, 3 * H * D, name="in_proj_bias")
    ws, bs = net.split(w, [H * D] * 3, axis=0), net.split(b, [H * D] * 3, axis=0)
    q, k, v = (
        net.add(net.matmul(x, net.transpose(w, 1, 0)), b) for w, b in zip(ws, bs, strict=True)
    )
    return attend(net, *(split_heads(net, y) for y in (q, k, v)))


@block("heads 4, qk 6, v 6", TOKENS)
def einsum_projections(net: Net, x: Tensor) -> Any:
    """flax: weights (E, H, D) and (H, D, E) have an axis for the heads, nothing is reshaped."""
    q, k, v = (
        net.node("Einsum", x, net.weight(E, H, D, fan=E), equation="bse,ehd->bshd") for _ in "qkv"
    )
    a = net.softmax(net.node("Einsum", q, k, equation="bqhd,bkhd->bhqk"))
    y = net.node("Einsum", a, v, equation="bhqk,bkhd->bqhd")
    return (net.node("Einsum", y, net.weight(H, D, 7, fan=H * D), equation="bshd,hde->bse"),)


@block("latent 5~, kv-latent 7~, heads 4, nope 6, rope 3, v 6", TOKENS)
def latent_attention(net: Net, x: Tensor) -> Any:
    """DeepSeek: q and kv through normed latents; heads are split into parts with other partners."""
    latent = net.rms_norm(net.linear(x, 5))
    q = net.transpose(net.reshape(net.linear(latent, H * 9), [0, 0, H, 9]), 0, 2, 1, 3)
    kv, rope = net.split(net.linear(x, 10), [7, 3], axis=2)
    kv = net.transpose(net.reshape(net.linear(net.rms_norm(kv), H * 12), [0, 0, H, 12]), 0, 2, 1, 3)
    k, v = net.split(kv, [6, 6], axis=3)
    rope = net.node("Expand", net.unsqueeze(rope, 1), [B, H, S, 3])
    k = net.concat(k, rope, axis=3)
    return merge_heads(net, net.matmul(net.softmax(scores(net, q, k)), v))
