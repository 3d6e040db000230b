"""Makes what stands beside attention: feed-forward nets, residual forms, mixers of tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.blocks.attention import B, D, E, H, S, attend, merge_heads, project, scores, split_heads
from models.blocks.table import TOKENS, block
from models.builder import Net, Tensor


@block("inner 12, out 7", TOKENS)
def ffn(net: Net, x: Tensor) -> Any:
    """Two linear layers and a GELU written out."""
    return net.linear(net.gelu(net.linear(x, 12)), 7)


@block("inner 12, out 7", TOKENS)
def ffn_gated(net: Net, x: Tensor) -> Any:
    """Llama: gate and up have weights of their own and meet in a product."""
    return net.linear(net.mul(net.silu(net.linear(x, 12)), net.linear(x, 12)), 7)


@block("inner 12, out 7", TOKENS)
def ffn_gated_fused(net: Net, x: Tensor) -> Any:
    """GEGLU: one weight is split into halves, so index i goes with i + 12."""
    a, b = net.split(net.linear(x, 24), [12, 12], axis=2)
    return net.linear(net.mul(a, net.gelu(b)), 7)


@block("inner 12, out 7", TOKENS)
def ffn_gated_interleaved(net: Net, x: Tensor) -> Any:
    """gpt-oss: gate and up alternate, picked by slices of step 2; 1 is added to one of them."""
    y = net.linear(x, 24)
    gate = net.node("Clip", net.slice(y, 0, 2**62, axis=2, step=2), None, 7.0)
    up = net.node("Clip", net.slice(y, 1, 2**62, axis=2, step=2), -7.0, 7.0)
    glu = net.mul(gate, net.sigmoid(net.mul(gate, 1.702)))
    return net.linear(net.mul(net.add(up, 1.0), glu), 7)


@block("experts 4~, inner 12, out 7", TOKENS)
def ffn_experts(net: Net, x: Tensor) -> Any:
    """A dense mixture: weights with an axis of experts, and a softmax over them in the router."""
    gate = net.softmax(net.matmul(x, net.weight(E, 4, fan=E)))
    y = net.relu(net.matmul(net.unsqueeze(x, 1), net.weight(4, E, 12, fan=E)))
    y = net.matmul(y, net.weight(4, 12, 7, fan=12))
    y = net.mul(y, net.unsqueeze(net.transpose(gate, 0, 2, 1), 3))
    return net.node("ReduceSum", y, [1], keepdims=0)


@block("rank 3, out 7", TOKENS)
def low_rank_update(net: Net, x: Tensor) -> Any:
    """LoRA: the rank is free, what it is added to is shared."""
    update = net.matmul(net.matmul(x, net.weight(E, 3, fan=E)), net.weight(3, 7, fan=3))
    return net.add(net.linear(x, 7), net.mul(update, 0.5))


@block("hidden 9~")
def tied_embeddings(net: Net, x: Tensor) -> Any:
    """One table makes the input by Gather and, transposed, the logits by MatMul."""
    ids = net.input("ids", (B, S), np.int64)
    table = net.weight(11, 9, fan=1, name="embeddings")
    y = net.layer_norm(net.gather(table, net.node("Clip", ids, np.int64(0), np.int64(10))))
    return (net.matmul(y, net.transpose(table, 1, 0)), net.relu(x))


@block("hidden 9~, narrow 5")
def factored_embeddings(net: Net, x: Tensor) -> Any:
    """ALBERT: a narrow table, a projection, and the sum of three tables."""
    ids = net.node("Clip", net.input("ids", (B, S), np.int64), np.int64(0), np.int64(10))
    words = net.gather(net.weight(11, 5, fan=1), ids)
    words = net.add(words, net.gather(net.weight(2, 5, fan=1), np.zeros((1, S), np.int64)))
    y = net.layer_norm(net.linear(net.add(words, net.weight(1, S, 5, fan=1)), 9))
    return (net.linear(y, 5), net.relu(x))


# --- residual forms


@block("hidden 9~, inner 12", TOKENS)
def residual_layer_scale(net: Net, x: Tensor) -> Any:
    """A learned vector scales the branch before it is added."""
    x = net.linear(x, 9)
    y = net.linear(net.gelu(net.linear(net.layer_norm(x), 12)), 9)
    return net.add(x, net.mul(y, net.uniform(0.1, 1, 9, name="gamma")))


@block("hidden 9~, inner 12", TOKENS)
def residual_sandwich(net: Net, x: Tensor) -> Any:
    """Gemma 2: norms before and after the branch."""
    x = net.linear(x, 9)
    y = net.linear(net.gelu(net.linear(net.rms_norm(x), 12)), 9)
    return net.add(x, net.rms_norm(y))


@block("hidden 9~, heads 4, qk 6, v 6, inner 12", TOKENS)
def residual_parallel(net: Net, x: Tensor) -> Any:
    """GPT-J: attention and feed-forward read one norm and are added together."""
    x = net.linear(x, 9)
    y = net.layer_norm(x)
    a = net.linear(attend(net, *(project(net, y) for _ in "qkv")), 9)
    return net.add(x, net.add(a, net.linear(net.gelu(net.linear(y, 12)), 9)))


@block("hidden 9~, heads 4, qk 6, v 6, inner 12", TOKENS)
def residual_parallel_fused(net: Net, x: Tensor) -> Any:
    """ViT-22B: one weight makes q, k, v and the inner width, another reads their Concat."""
    x = net.linear(x, 9)
    y = net.linear(net.layer_norm(x), 3 * H * D + 12, bias=False)
    q, k, v, inner = net.split(y, [H * D] * 3 + [12], axis=2)
    a = attend(net, *(split_heads(net, p) for p in (q, k, v)))
    return net.add(x, net.linear(net.concat(a, net.gelu(inner), axis=2), 9))


@block("hidden 9~, inner 12", TOKENS)
def residual_highway(net: Net, x: Tensor) -> Any:
    """T * H(x) + (1 - T) * x: the gate and both sides are one group."""
    x = net.layer_norm(net.linear(x, 9))
    gate = net.sigmoid(net.linear(x, 9))
    y = net.linear(net.relu(net.linear(x, 12)), 9)
    return net.add(net.mul(gate, y), net.mul(net.sub(1.0, gate), x))


@block("hidden 9, inner 12, condition 8", TOKENS)
def residual_adaptive(net: Net, x: Tensor) -> Any:
    """DiT: a condition makes shift, scale and gate, one weight split in three."""
    x = net.linear(x, 9)
    c = net.unsqueeze(net.silu(net.gemm(net.input("condition", (B, 6)), 8)), 1)
    shift, scale, gate = net.split(net.linear(c, 27), [9] * 3, axis=2)
    y = net.add(net.mul(x, net.add(scale, 1.0)), shift)
    return net.add(x, net.mul(gate, net.linear(net.gelu(net.linear(y, 12)), 9)))


# --- mixers of tokens


@block("inner 12~", TOKENS)
def spatial_gating(net: Net, x: Tensor) -> Any:
    """gMLP: half of the channels, normalised and mixed along the tokens, gate the other half."""
    u, v = net.split(net.gelu(net.linear(x, 24)), [12, 12], axis=2)
    v = net.transpose(net.layer_norm(v), 0, 2, 1)
    return net.mul(u, net.transpose(net.linear(v, S), 0, 2, 1))


@block("inner 12~", TOKENS)
def spatial_gating_conv(net: Net, x: Tensor) -> Any:
    """gMLP: the tokens are the channels of a 1x1 convolution, the live axis its space."""
    u, v = net.split(net.gelu(net.linear(x, 24)), [12, 12], axis=2)
    return net.mul(u, net.conv(net.layer_norm(v), S, 1))


@block("hidden 9~, inner 12", TOKENS)
def token_shift(net: Net, x: Tensor) -> Any:
    """RWKV: the token before by Pad of 1 and -1, mixed in by a learned share per channel."""
    x = net.linear(x, 9)
    y = net.layer_norm(x)
    before = net.node("Pad", y, [0, 1, 0, 0, -1, 0])

    def mixed() -> Tensor:
        share = net.uniform(0, 1, 1, 1, 9, name="mix")
        return net.add(net.mul(y, share), net.mul(before, net.sub(1.0, share)))

    k = net.node("Pow", net.relu(net.linear(mixed(), 12)), 2.0)
    return net.add(x, net.mul(net.sigmoid(net.linear(mixed(), 9)), net.linear(k, 9)))


@block("inner 12, state 5, rank 3", TOKENS)
def selective_scan(net: Net, x: Tensor) -> Any:
    """Mamba, unrolled: a causal depthwise convolution; every channel has states of its own."""
    y, z = net.split(net.linear(x, 24), [12, 12], axis=2)
    y = net.transpose(y, 0, 2, 1)
    y = net.silu(net.slice(net.conv(y, 12, 4, pad=3, groups=12), 0, S, axis=2))
    y = net.transpose(y, 0, 2, 1)
    rank, b, c = net.split(net.matmul(y, net.weight(12, 13, fan=12)), [3, 5, 5], axis=2)
    dt = net.node("Softplus", net.linear(rank, 12))
    a = net.node("Neg", net.node("Exp", net.uniform(0, 1, 12, 5, name="A_log")))
    decay = net.node("Exp", net.mul(net.unsqueeze(dt, 3), a))
    step = net.mul(net.unsqueeze(net.mul(dt, y), 3), net.unsqueeze(b, 2))
    h, outputs = None, []
    for t in range(S):
        now = net.gather(step, np.int64(t), 1)
        h = now if h is None else net.add(net.mul(net.gather(decay, np.int64(t), 1), h), now)
        seen = net.matmul(h, net.unsqueeze(net.gather(c, np.int64(t), 1), 2))
        outputs.append(net.unsqueeze(net.squeeze(seen, 2), 1))
    scanned = net.concat(*outputs, axis=1)
    scanned = net.add(scanned, net.mul(y, net.uniform(0, 1, 12, name="D")))
    return net.mul(scanned, net.silu(z))


@block("hidden 9", TOKENS)
def long_convolution(net: Net, x: Tensor) -> Any:
    """S4, Hyena: a depthwise causal convolution as long as the sequence, and a skip per channel."""
    y = net.transpose(net.linear(x, 9), 0, 2, 1)
    mixed = net.conv(net.node("Pad", y, [0, 0, S - 1, 0, 0, 0]), 9, S, pad=0, groups=9)
    y = net.add(net.gelu(mixed), net.mul(y, net.uniform(0, 1, 9, 1)))
    return net.transpose(y, 0, 2, 1)


@block("heads 4, qk 6, v 6~", TOKENS)
def retention(net: Net, x: Tensor) -> Any:
    """RetNet: a stored decay per head times the scores; every head of the sum is normalised."""
    q, k, v = (project(net, x) for _ in "qkv")
    rates = 1 - 2.0 ** (-5 - np.arange(H))
    power = np.maximum(np.arange(S)[:, None] - np.arange(S), 0)
    decay = np.tril(rates[:, None, None] ** power).astype(np.float32)
    y = net.transpose(net.matmul(net.mul(scores(net, q, k), decay), v), 0, 2, 1, 3)
    centred = net.sub(y, net.mean(y))
    spread = net.node("Sqrt", net.add(net.mean(net.node("Pow", centred, 2.0)), 1e-5))
    y = net.reshape(net.div(centred, spread), [0, 0, H * D])
    return net.mul(y, net.silu(net.linear(x, H * D)))


@block("heads 4, qk 6, v 6, features 8~", TOKENS)
def random_features(net: Net, x: Tensor) -> Any:
    """Performer: one stored projection maps q and k to features, under an exponential."""
    q, k, v = (project(net, x) for _ in "qkv")
    projection = net.weight(D, 8, fan=D, name="projection_matrix")
    q, k = (net.node("Exp", net.matmul(y, projection)) for y in (q, k))
    kv = net.matmul(net.transpose(k, 0, 1, 3, 2), v)
    total = net.node("ReduceSum", k, [2], keepdims=1)
    y = net.matmul(q, kv)
    return merge_heads(net, net.div(y, net.matmul(q, net.transpose(total, 0, 1, 3, 2))))


@block("hidden 4~, groups 2~", TOKENS)
def grouped_positions(net: Net, x: Tensor) -> Any:
    """wav2vec 2: a convolution in 2 groups on the stream: hidden goes in pairs or halves."""
    x = net.linear(x, 8)
    y = net.slice(net.conv(net.transpose(x, 0, 2, 1), 8, 4, pad=2, groups=2), 0, -1, axis=2)
    return net.layer_norm(net.add(x, net.transpose(net.gelu(y), 0, 2, 1)))


@block("hidden 9~, halves 6", TOKENS)
def convolution_module(net: Net, x: Tensor) -> Any:
    """Conformer: GLU over the channels of a 1x1 convolution, a depthwise one, a norm."""
    x = net.linear(x, 9)
    y = net.conv(net.transpose(net.layer_norm(x), 0, 2, 1), 12, 1)
    a, b = net.split(y, [6, 6])
    y = net.conv(net.mul(a, net.sigmoid(b)), 6, groups=6)
    y = net.conv(net.silu(net.bn(y)), 9, 1)
    return net.add(x, net.transpose(y, 0, 2, 1))


@block("hidden 9", TOKENS)
def mean_over_tokens(net: Net, x: Tensor) -> Any:
    """Sentence encoders: a masked mean over the tokens, all of it beside the live axis."""
    mask = net.unsqueeze(net.cast(net.input("mask", (B, S), np.int64), 1), 2)
    y = net.mul(net.linear(x, 9), net.node("Expand", mask, [B, S, 9]))
    total = net.node("ReduceSum", net.node("Expand", mask, [B, S, 9]), [1], keepdims=0)
    return net.div(net.node("ReduceSum", y, [1], keepdims=0), net.node("Clip", total, 1e-9))


@block("", TOKENS)
def fourier_mixing(net: Net, x: Tensor) -> Any:
    """FNet: a Fourier transform along the hidden axis needs it whole."""
    y = net.unsqueeze(net.linear(x, 9), 3)
    y = net.node("DFT", y, axis=2, shape=[B, S, 9, 2])
    return net.gather(y, np.int64(0), 3)
