"""Makes attention as exporters write it: grouped queries, other queries, positions, norms."""

from __future__ import annotations

from math import sqrt
from typing import Any

import numpy as np

from models.blocks.table import TOKENS, block
from models.builder import Net, Tensor

H, D = 4, 6  # heads, and the size of each
B, S, E = TOKENS


def split_heads(net: Net, x: Tensor, heads: int = H) -> Tensor:
    """[batch, tokens, heads * size] -> [batch, heads, tokens, size]"""
    y = net.reshape(x, [0, 0, heads, x.shape[-1] // heads])
    return net.transpose(y, 0, 2, 1, 3)


def merge_heads(net: Net, x: Tensor) -> Tensor:
    _, heads, _, size = x.shape
    return net.reshape(net.transpose(x, 0, 2, 1, 3), [0, 0, heads * size])


def project(net: Net, x: Tensor, heads: int = H, size: int = D) -> Tensor:
    return split_heads(net, net.linear(x, heads * size), heads)


def scores(net: Net, q: Tensor, k: Tensor) -> Tensor:
    rank = len(k.shape)
    swapped = net.transpose(k, *range(rank - 2), rank - 1, rank - 2)
    return net.div(net.matmul(q, swapped), sqrt(q.shape[-1]))


def attend(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return merge_heads(net, net.matmul(net.softmax(scores(net, q, k)), v))


def biased(net: Net, x: Tensor, bias: Any) -> Tensor:
    """Attention with something added to its scores."""
    q, k, v = (project(net, x) for _ in "qkv")
    return merge_heads(net, net.matmul(net.softmax(net.add(scores(net, q, k), bias)), v))


@block("heads 4, qk 6, v 6", TOKENS)
def self_attention(net: Net, x: Tensor) -> Any:
    """Two live factors on one axis, and the inner one differs between q, k and v."""
    return attend(net, *(project(net, x) for _ in "qkv"))


@block("heads 4, qk 6, v 10", TOKENS)
def wide_values(net: Net, x: Tensor) -> Any:
    """Heads of v are wider than those of q and k."""
    return attend(net, project(net, x), project(net, x), project(net, x, size=10))


@block("heads 4, qk 6, v 6", TOKENS)
def cross_attention(net: Net, x: Tensor) -> Any:
    """Keys and values come from another input, of another length and width."""
    memory = net.input("memory", (B, 7, 12))
    return attend(net, project(net, x), project(net, memory), project(net, memory))


@block("heads 4, qk 6, v 6, latent 7~", TOKENS)
def perceiver_latents(net: Net, x: Tensor) -> Any:
    """Queries come from a learned array that has no batch axis, expanded to the batch."""
    latents = net.node("Expand", net.weight(1, 3, 7, fan=1, name="latents"), [B, 3, 7])
    q = project(net, net.layer_norm(latents))
    return attend(net, q, project(net, x), project(net, x))


@block("heads 4, qk 6, v 6", (S, B, E))
def legacy_layout(net: Net, x: Tensor) -> Any:
    """nn.MultiheadAttention keeps (L, B, E) and merges the heads with the batch: (L, B*H, D)."""
    q, k, v = (
        net.transpose(net.reshape(net.linear(x, H * D), [S, B * H, D]), 1, 0, 2) for _ in "qkv"
    )
    y = net.matmul(net.softmax(scores(net, q, k)), v)
    return net.reshape(net.transpose(y, 1, 0, 2), [S, B, H * D])


@block("heads 4, qk 6, v 6", TOKENS)
def merged_batch_and_heads(net: Net, x: Tensor) -> Any:
    """BMM on (B*H, S, D): the live axis is the inner factor behind the batch."""
    q, k, v = (net.reshape(project(net, x), [B * H, S, D]) for _ in "qkv")
    y = net.matmul(net.softmax(scores(net, q, k)), v)
    return merge_heads(net, net.reshape(y, [B, H, S, D]))


# --- grouped queries: two keys and values for four queries


def _grouped(net: Net, x: Tensor, repeat: Any) -> Tensor:
    q, k, v = project(net, x, H), project(net, x, 2), project(net, x, 2)
    return attend(net, q, repeat(k), repeat(v))


GROUPED = "kv-groups 2, queries-in-group 2, qk 6, v 6"
TILED = "the copies of a Tile have no ids beside those copied"


@block(GROUPED, TOKENS)
def grouped_by_expand(net: Net, x: Tensor) -> Any:
    """Llama: each key is expanded over its queries; a group goes, or a query of every group."""

    def repeat(y: Tensor) -> Tensor:
        y = net.node("Expand", net.unsqueeze(y, 2), [B, 2, 2, S, D])
        return net.reshape(y, [B, H, S, D])

    return _grouped(net, x, repeat)


@block(GROUPED, TOKENS, today=3, why="places of a stored list have no ids beside those picked")
def grouped_by_gather(net: Net, x: Tensor) -> Any:
    """repeat_interleave: each key is picked twice by a list of positions."""
    return _grouped(net, x, lambda y: net.gather(y, [0, 0, 1, 1], axis=1))


@block(GROUPED, TOKENS)
def grouped_by_tile(net: Net, x: Tensor) -> Any:
    """Each key is tiled over its queries on an axis of its own."""

    def repeat(y: Tensor) -> Tensor:
        y = net.node("Tile", net.unsqueeze(y, 2), [1, 1, 2, 1, 1])
        return net.reshape(y, [B, H, S, D])

    return _grouped(net, x, repeat)


@block(GROUPED, TOKENS, today=3, why=TILED)
def grouped_by_tiled_heads(net: Net, x: Tensor) -> Any:
    """The keys are tiled as a whole, so query h meets key h % 2."""
    return _grouped(net, x, lambda y: net.node("Tile", y, [1, 2, 1, 1]))


@block(GROUPED, TOKENS)
def grouped_by_concat(net: Net, x: Tensor) -> Any:
    """Each key is joined with itself: the Concat may go on with one of the two."""

    def repeat(y: Tensor) -> Tensor:
        y = net.unsqueeze(y, 2)
        return net.reshape(net.concat(y, y, axis=2), [B, H, S, D])

    return _grouped(net, x, repeat)


@block(GROUPED, TOKENS)
def grouped_by_broadcast(net: Net, x: Tensor) -> Any:
    """The queries get an axis of their own and the keys broadcast over it; nothing is repeated."""
    q = net.reshape(net.linear(x, H * D), [0, 0, 2, 2, D])
    q = net.transpose(q, 0, 2, 3, 1, 4)
    k, v = (net.unsqueeze(project(net, x, 2), 2) for _ in "kv")
    y = net.transpose(net.matmul(net.softmax(scores(net, q, k)), v), 0, 3, 1, 2, 4)
    return net.reshape(y, [0, 0, H * D])


@block("heads 4, qk 6, v 6", TOKENS)
def one_key_broadcast(net: Net, x: Tensor) -> Any:
    """Multi-query attention: the head axis of k and v has size 1 and broadcasts."""
    return attend(net, project(net, x), project(net, x, 1), project(net, x, 1))


@block("heads 4, qk 6, v 6", TOKENS)
def one_key_expanded(net: Net, x: Tensor) -> Any:
    """Multi-query attention as Llama code writes it: the one key is expanded to all heads."""

    def repeat(y: Tensor) -> Tensor:
        y = net.node("Expand", net.unsqueeze(y, 2), [B, 1, H, S, D])
        return net.reshape(y, [B, H, S, D])

    k, v = (repeat(project(net, x, 1)) for _ in "kv")
    return attend(net, project(net, x), k, v)


@block("heads 4, qk 6, v 6", TOKENS)
def one_key_flat_queries(net: Net, x: Tensor) -> Any:
    """Multi-query attention as one product: the heads are merged with the tokens (B, S*H, D)."""
    q = net.reshape(net.linear(x, H * D), [B, S * H, D])
    k, v = net.linear(x, D), net.linear(x, D)
    y = net.matmul(net.softmax(scores(net, q, k)), v)
    return net.reshape(y, [B, S, H * D])


# --- norms, gates and sinks inside attention


@block("heads 4, qk 6~, v 6", TOKENS)
def qk_layer_norm(net: Net, x: Tensor) -> Any:
    """One LayerNormalization over the head size serves all heads: inexact for q and k only."""
    q, k, v = (project(net, x) for _ in "qkv")
    return attend(net, net.layer_norm(q), net.layer_norm(k), v)


@block("heads 4, qk 6~, v 6", TOKENS)
def qk_rms_norm(net: Net, x: Tensor) -> Any:
    """Qwen 3: RMSNorm written out, its scale on the head size before the heads move forward."""

    def normed(y: Tensor) -> Tensor:
        y = net.rms_norm(net.reshape(y, [0, 0, H, D]))
        return net.transpose(y, 0, 2, 1, 3)

    q, k = (normed(net.linear(x, H * D)) for _ in "qk")
    return attend(net, q, k, project(net, x))


@block("heads 4, qk 6, v 6", TOKENS)
def qk_l2_norm(net: Net, x: Tensor) -> Any:
    """Swin V2: cosine attention, exact as a sum of squares is; a learned scale per head."""

    def unit(y: Tensor) -> Tensor:
        norm = net.node("ReduceL2", y, axes=[-1], keepdims=1)
        return net.div(y, net.node("Expand", net.node("Clip", norm, 1e-6), [B, H, S, D]))

    q, k, v = (project(net, x) for _ in "qkv")
    scale = net.node("Exp", net.node("Clip", net.uniform(1, 3, H, 1, 1), None, 4.6))
    a = net.mul(net.matmul(unit(q), net.transpose(unit(k), 0, 1, 3, 2)), scale)
    return merge_heads(net, net.matmul(net.softmax(a), v))


@block("heads 4, qk 6, v 6", TOKENS)
def attention_sinks(net: Net, x: Tensor) -> Any:
    """gpt-oss: a learned logit per head is expanded, joined to the scores, and sliced off."""
    q, k, v = (project(net, x) for _ in "qkv")
    sink = net.node("Expand", net.uniform(-1, 1, 1, H, 1, 1, name="sinks"), [B, H, S, 1])
    a = net.softmax(net.concat(scores(net, q, k), sink, axis=3))
    return merge_heads(net, net.matmul(net.slice(a, 0, -1, axis=3), v))


@block("heads 4, qk 6, v 6", TOKENS)
def bias_kv(net: Net, x: Tensor) -> Any:
    """nn.MultiheadAttention with add_bias_kv: a learned token is joined to keys and values."""
    q, k, v = (net.linear(x, H * D) for _ in "qkv")
    k, v = (
        net.concat(y, net.node("Tile", net.uniform(-1, 1, 1, 1, H * D), [B, 1, 1])) for y in (k, v)
    )
    return attend(net, *(split_heads(net, y) for y in (q, k, v)))


@block("heads 4, qk 6, v 6", TOKENS)
def gate_per_head(net: Net, x: Tensor) -> Any:
    """A sigmoid gate per head, from a linear layer of as many outputs as there are heads."""
    q, k, v = (project(net, x) for _ in "qkv")
    gate = net.unsqueeze(net.transpose(net.sigmoid(net.linear(x, H)), 0, 2, 1), 3)
    return merge_heads(net, net.mul(net.matmul(net.softmax(scores(net, q, k)), v), gate))


@block("heads 4, qk 6, v 6", TOKENS)
def gate_per_element(net: Net, x: Tensor) -> Any:
    """A sigmoid gate as wide as the merged heads ties one more weight to heads and to v."""
    q, k, v = (project(net, x) for _ in "qkv")
    return net.mul(attend(net, q, k, v), net.sigmoid(net.linear(x, H * D)))


@block("scoring-heads 4, mixed-heads 4, qk 6, v 6", TOKENS)
def talking_heads_linear(net: Net, x: Tensor) -> Any:
    """CaiT: a linear layer over the head axis parts the heads of q, k from those of v."""
    q, k, v = (project(net, x) for _ in "qkv")
    a = net.linear(net.transpose(scores(net, q, k), 0, 2, 3, 1), H)
    a = net.softmax(net.transpose(a, 0, 3, 1, 2))
    return merge_heads(net, net.matmul(a, v))


@block("scoring-heads 4, mixed-heads 4, middle 4, qk 6, v 6", TOKENS)
def talking_heads_conv(net: Net, x: Tensor) -> Any:
    """DeepViT: 1x1 convolutions over the heads before and after the softmax."""
    q, k, v = (project(net, x) for _ in "qkv")
    a = net.conv(net.softmax(net.conv(scores(net, q, k), H, 1)), H, 1)
    return merge_heads(net, net.matmul(a, v))


# --- attention without a softmax over the tokens


@block("heads 4, qk 6, v 6", TOKENS)
def linear_attention(net: Net, x: Tensor) -> Any:
    """Keys meet values first, so the head sizes of q, k and of v meet in one small matrix."""
    q, k, v = net.relu(project(net, x)), net.relu(project(net, x)), project(net, x)
    kv = net.matmul(net.transpose(k, 0, 1, 3, 2), v)
    total = net.unsqueeze(net.node("ReduceSum", k, [2], keepdims=0), 3)
    return merge_heads(net, net.div(net.matmul(q, kv), net.add(net.matmul(q, total), 1e-3)))


@block("heads 4, qk 6, v 6", TOKENS)
def linear_attention_padded(net: Net, x: Tensor) -> Any:
    """EfficientViT: v gets a column of ones, which becomes the divisor, and is sliced off again."""
    q, k, v = net.relu(project(net, x)), net.relu(project(net, x)), project(net, x)
    v = net.node("Pad", v, [0, 0, 0, 0, 0, 0, 0, 1], 1.0)
    y = net.matmul(q, net.matmul(net.transpose(k, 0, 1, 3, 2), v))
    y, total = net.slice(y, 0, -1, axis=3), net.slice(y, -1, 2**62, axis=3)
    return merge_heads(net, net.div(y, net.add(total, 1e-3)))


@block("heads 4, q 6, kv 6~", TOKENS)
def cross_covariance(net: Net, x: Tensor) -> Any:
    """XCiT: channels attend to channels, so q makes the output's and k goes with v."""
    q, k, v = (net.transpose(project(net, x), 0, 1, 3, 2) for _ in "qkv")

    def unit(y: Tensor) -> Tensor:
        norm = net.node("ReduceL2", y, axes=[-1], keepdims=1)
        return net.div(y, net.add(norm, 1e-6))

    a = net.matmul(unit(q), net.transpose(unit(k), 0, 1, 3, 2))
    a = net.softmax(net.mul(a, net.uniform(0.5, 2, H, 1, 1, name="temperature")))
    y = net.transpose(net.matmul(a, v), 0, 3, 1, 2)
    return net.reshape(y, [0, 0, H * D])


# --- unusual partners


@block("pairs 4, qk 6, v 8~", TOKENS)
def differential_attention(net: Net, x: Tensor) -> Any:
    """Two softmaxes per head, an axis of 2, are subtracted; wide values are normalised."""
    q, k, v = project(net, x, 2 * H), project(net, x, 2 * H), project(net, x, H, 8)
    a = net.reshape(net.softmax(scores(net, q, k)), [B, H, 2, S, S])
    first, second = (net.gather(a, np.int64(i), 2) for i in (0, 1))
    y = net.matmul(net.sub(first, net.mul(second, net.uniform(0, 1, 1, name="lambda"))), v)
    return merge_heads(net, net.rms_norm(y))


@block("heads 4, qk 6, v 6", TOKENS)
def shared_queries_and_keys(net: Net, x: Tensor) -> Any:
    """Reformer: keys are the queries, divided by their norm."""
    q, v = project(net, x), project(net, x)
    norm = net.node("ReduceL2", q, axes=[-1], keepdims=1)
    return attend(net, q, net.div(q, net.add(norm, 1e-6)), v)


@block("heads 4, qk 6, v 6, places 3~", TOKENS)
def projected_tokens(net: Net, x: Tensor) -> Any:
    """Linformer: stored matrices shorten keys and values along the tokens, under the softmax."""
    q, k, v = (project(net, x) for _ in "qkv")
    k, v = (net.matmul(net.weight(3, S), y) for y in (k, v))
    return attend(net, q, k, v)
