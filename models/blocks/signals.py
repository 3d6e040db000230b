"""Makes nets over time: audio, video, series, and generative and tabular models."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.blocks.table import ROWS, TOKENS, block
from models.builder import Net, Tensor

B = 2
SIGNAL = (B, 3, 16)
VIDEO = (B, 3, 4, 8, 8)


def _pooled(net: Net, x: Tensor) -> Tensor:
    return net.flatten(net.global_avg_pool(net.relu(x)))


# --- audio and series


@block("residual 6, gated 5, gated-wider 5, skip 4, inner 7", SIGNAL)
def gated_dilations(net: Net, x: Tensor) -> Any:
    """WaveNet: halves under tanh and sigmoid meet, then part into a residual and a skip."""
    x, skips = net.conv(x, 6, 1), []
    for dilation in (1, 2):
        y = net.conv(net.node("Pad", x, [0, 0, dilation, 0, 0, 0]), 10, 2, pad=0, dilation=dilation)
        a, b = net.split(y, [5, 5])
        y = net.mul(net.node("Tanh", a), net.sigmoid(b))
        skips.append(net.conv(y, 4, 1))
        x = net.add(x, net.conv(y, 6, 1))
    return _pooled(net, net.conv(net.relu(net.add(*skips)), 7, 1))


@block("width 6, inner 5", SIGNAL)
def chomped(net: Net, x: Tensor) -> Any:
    """TCN: padding on both sides, the future is sliced off again, a 1x1 shortcut."""
    y = net.relu(net.slice(net.conv(x, 5, 3, pad=2), 0, -2, axis=2))
    y = net.relu(net.slice(net.conv(y, 6, 3, pad=4, dilation=2), 0, -4, axis=2))
    return _pooled(net, net.add(y, net.conv(x, 6, 1)))


@block("in 6, halves 4, out 5", SIGNAL)
def gated_linear_units(net: Net, x: Tensor) -> Any:
    """Demucs: GLU over the channels of a 1x1 convolution, then a transposed convolution."""
    a, b = net.split(net.conv(net.relu(net.conv(x, 6, 8, 4, 2)), 8, 1), [4, 4])
    return _pooled(net, net.conv_transpose(net.mul(a, net.sigmoid(b)), 5, 8, 4, 2))


@block("in 6, scored 4, out 5", SIGNAL)
def attentive_statistics(net: Net, x: Tensor) -> Any:
    """ECAPA: weighted mean and deviation over time are joined; softmax over time, per channel."""
    x = net.relu(net.conv(x, 6, 5))
    a = net.softmax(net.conv(net.node("Tanh", net.conv(x, 4, 1)), 6, 1), axis=2)
    mean = net.node("ReduceSum", net.mul(a, x), [2], keepdims=0)
    square = net.node("ReduceSum", net.mul(a, net.mul(x, x)), [2], keepdims=0)
    spread = net.node("Clip", net.sub(square, net.mul(mean, mean)), 1e-5)
    return net.gemm(net.concat(mean, net.node("Sqrt", spread)), 5)


@block("basis 7, mask 5~")
def masked_encoder(net: Net, x: Tensor) -> Any:
    """Conv-TasNet: a mask per source on the encoder's basis; the decoder overlaps and adds."""
    basis = net.relu(net.conv(net.input("wave", (B, 1, 32)), 7, 4, 2, 0))
    y = net.transpose(net.layer_norm(net.transpose(net.conv(basis, 5, 1), 0, 2, 1)), 0, 2, 1)
    mask = net.sigmoid(net.reshape(net.conv(y, 2 * 7, 1), [B, 2, 7, 15]))
    sources = net.reshape(net.mul(net.unsqueeze(basis, 1), mask), [B * 2, 7, 15])
    wave = net.conv_transpose(sources, 1, 4, 2)
    return net.reshape(wave, [B, 2, 32]), net.relu(x)


@block("in 5, hidden 4, out 6")
def map_to_sequence(net: Net, x: Tensor) -> Any:
    """CRNN: columns of a map become steps of a bidirectional LSTM, channels times height."""
    y = net.pool(net.relu(net.conv(x, 5)))
    y = net.reshape(net.transpose(y, 3, 0, 1, 2), [4, B, 20])
    w, r = net.weight(2, 16, 20, fan=20), net.weight(2, 16, 4, fan=4)
    y, *_ = net.nodes("LSTM", [y, w, r, net.uniform(-1, 1, 2, 32)], 3, hidden_size=4,
                      direction="bidirectional")  # fmt: skip
    y = net.reshape(net.transpose(y, 0, 2, 1, 3), [4, B, 8])
    return net.relu(net.linear(y, 6))


@block("embed 7, hidden 4, second 5")
def stacked_recurrence(net: Net, x: Tensor) -> Any:
    """An LSTM and a GRU on embeddings; the last step by Slice and Squeeze."""
    ids = net.node("Clip", net.input("ids", (6, B), np.int64), np.int64(0), np.int64(8))
    y = net.gather(net.weight(9, 7, fan=1), ids)
    y, *_ = net.nodes("LSTM", [y, net.weight(1, 16, 7), net.weight(1, 16, 4)], 3, hidden_size=4)
    y, _ = net.nodes(
        "GRU", [net.squeeze(y, 1), net.weight(1, 15, 4), net.weight(1, 15, 5)], 2, hidden_size=5
    )
    return net.gemm(net.squeeze(net.slice(y, -1, 2**62, axis=0), 0, 1), 5), net.relu(x)


@block("trend 5, season 6, hidden 7", (B, 12))
def basis_expansion(net: Net, x: Tensor) -> Any:
    """N-BEATS: coefficients times a stored basis, one part taken from the input, one summed."""
    y = net.relu(net.gemm(x, 7))
    back = net.matmul(net.gemm(y, 5), net.weight(5, 12))
    forecast = net.matmul(net.gemm(y, 6), net.weight(6, 4))
    return net.sub(x, back), forecast


@block("state 5, out 6")
def unrolled_gates(net: Net, x: Tensor) -> Any:
    """ConvLSTM: one convolution of input and state makes four gates; two steps, zeros at first."""
    w, b = net.weight(20, 8, 3, 3), net.uniform(-1, 1, 20)
    h = c = net.const(np.zeros((B, 5, 8, 8), np.float32), "zeros")
    for _ in range(2):
        gates = net.node("Conv", net.concat(x, h), w, b, pads=[1] * 4)
        i, f, o, g = net.split(gates, [5] * 4)
        c = net.add(net.mul(net.sigmoid(f), c), net.mul(net.sigmoid(i), net.node("Tanh", g)))
        h = net.mul(net.sigmoid(o), net.node("Tanh", c))
    return net.conv(h, 6)


# --- video


@block("middle 6, out 5", VIDEO)
def space_then_time(net: Net, x: Tensor) -> Any:
    """R(2+1)D: a kernel of 1x3x3, then one of 3x1x1."""
    y = net.node("Conv", x, net.weight(6, 3, 1, 3, 3), pads=[0, 1, 1, 0, 1, 1])
    return net.node("Conv", net.relu(y), net.weight(5, 6, 3, 1, 1), pads=[1, 0, 0, 1, 0, 0])


@block("back 2, forth 2, rest 4, out 5", (8, 3, 6, 6))
def shifted_in_time(net: Net, x: Tensor) -> Any:
    """TSM: frames merged with the batch; parts of the channels come from the frame beside."""
    y = net.reshape(net.conv(x, 8), [2, 4, 8, 6, 6])
    back, forth, rest = net.split(y, [2, 2, 4], axis=2)
    back = net.slice(net.node("Pad", back, [0] * 6 + [1, 0, 0, 0]), 1, 2**62, axis=1)
    forth = net.slice(net.node("Pad", forth, [0, 1] + [0] * 8), 0, 4, axis=1)
    y = net.reshape(net.concat(back, forth, rest, axis=2), [8, 8, 6, 6])
    return net.conv(y, 5)


@block("slow 6, fast 4, across 3, out 5", VIDEO)
def two_rates(net: Net, x: Tensor) -> Any:
    """SlowFast: a strided convolution brings the fast path to the rate of the slow one."""
    fast = net.relu(net.conv(x, 4))
    across = net.node("Conv", fast, net.weight(3, 4, 3, 1, 1), pads=[1, 0, 0, 1, 0, 0],
                      strides=[2, 1, 1])  # fmt: skip
    slow = net.relu(net.conv(net.slice(x, 0, 4, axis=2, step=2), 6))
    return net.conv(net.concat(slow, across), 5)


# --- generative


@block("hidden 8, latent 4, decoded 7", ROWS)
def variational(net: Net, x: Tensor) -> Any:
    """VAE: one layer is split into mean and log variance, which meet with noise from outside."""
    mean, spread = net.split(net.gemm(net.relu(net.gemm(x, 8)), 8), [4, 4])
    noise = net.mul(net.node("Exp", net.mul(spread, 0.5)), net.input("noise", (B, 1)))
    return (net.gemm(net.relu(net.gemm(net.add(mean, noise), 7)), 6),)


@block("hidden 8", ROWS)
def coupling(net: Net, x: Tensor) -> Any:
    """RealNVP: half of the input makes scale and shift of the rest; only the inside is free."""
    a, b = net.split(x, [3, 3])
    scale, shift = net.split(net.gemm(net.relu(net.gemm(a, 8)), 6), [3, 3])
    b = net.add(net.mul(b, net.node("Exp", net.node("Tanh", scale))), shift)
    return (net.concat(b, a),)


@block("seed 4, first 6, second 5", ROWS)
def generator(net: Net, x: Tensor) -> Any:
    """DCGAN: a layer is reshaped to a map (C 4 4), grown by transposed convolutions."""
    y = net.reshape(net.relu(net.gemm(x, 4 * 16)), [-1, 4, 4, 4])
    y = net.relu(net.bn(net.conv_transpose(y, 6, 4, 2, 1)))
    y = net.relu(net.bn(net.conv_transpose(y, 5, 4, 2, 1)))
    return (net.node("Tanh", net.conv(y, 3)),)


@block("rates 3, width 7, inner 6, view 4", ROWS)
def skip_of_input(net: Net, x: Tensor) -> Any:
    """NeRF: sines and cosines of the input, joined again in the middle; two inputs in all."""
    rates = net.const(2.0 ** np.arange(3, dtype=np.float32))
    angles = net.reshape(net.mul(net.unsqueeze(x, 2), rates), [B, 18])
    code = net.concat(x, net.node("Sin", angles), net.node("Cos", angles))
    y = net.relu(net.gemm(net.concat(code, net.relu(net.gemm(code, 7))), 6))
    return net.gemm(net.concat(y, net.gemm(net.input("view", (B, 3)), 4)), 3), net.gemm(y, 1)


# --- tables and recommendation


def _field(net: Net, name: str, width: int) -> Tensor:
    """An embedding of that width for an input of indices."""
    ids = net.node("Clip", net.input(name, (B,), np.int64), np.int64(0), np.int64(6))
    return net.gather(net.weight(7, width, fan=1), ids)


@block("user 4, item 5, hidden 7")
def several_embeddings(net: Net, x: Tensor) -> Any:
    """Wide and deep: embeddings of several widths are joined with plain numbers."""
    parts = [net.input("numbers", (B, 2)), _field(net, "user", 4), _field(net, "item", 5)]
    return net.gemm(net.relu(net.gemm(net.concat(*parts), 7)), 1), net.relu(x)


def _fields(net: Net) -> list[Tensor]:
    return [_field(net, f"field{k}", 6) for k in range(3)]


@block("dim 6, bottom 5, top 7")
def pairwise_products(net: Net, x: Tensor) -> Any:
    """DLRM: all embeddings meet in a product of the stack with itself; the lower part is picked."""
    bottom = net.relu(net.gemm(net.relu(net.gemm(net.input("numbers", (B, 2)), 5)), 6))
    stack = net.concat(*(net.unsqueeze(f, 1) for f in [bottom, *_fields(net)]), axis=1)
    z = net.reshape(net.matmul(stack, net.transpose(stack, 0, 2, 1)), [B, 16])
    z = net.gather(z, [4, 8, 9, 12, 13, 14], axis=1)
    return net.gemm(net.relu(net.gemm(net.concat(bottom, z), 7)), 1), net.relu(x)


@block("dim 6, deep 7, fields 3")
def factorisation(net: Net, x: Tensor) -> Any:
    """DeepFM: the square of a sum less the sum of squares, beside a deep net on all of it; a whole
    field may go."""
    stack = net.concat(*(net.unsqueeze(f, 1) for f in _fields(net)), axis=1)
    total = net.node("ReduceSum", stack, [1], keepdims=0)
    squares = net.node("ReduceSum", net.mul(stack, stack), [1], keepdims=0)
    second = net.sub(net.mul(total, total), squares)
    second = net.mul(net.node("ReduceSum", second, [1], keepdims=1), 0.5)
    deep = net.relu(net.gemm(net.reshape(stack, [B, 18]), 7))
    return net.add(second, net.gemm(deep, 1)), net.relu(x)


@block("user 4, item 5, deep 7")
def cross_network(net: Net, x: Tensor) -> Any:
    """DCN: the joined embeddings times a scalar made of them, added to themselves."""
    start = net.concat(_field(net, "user", 4), _field(net, "item", 5))
    y = start
    for _ in range(2):
        scalar = net.matmul(y, net.weight(9, 1, fan=9))
        y = net.add(net.add(net.mul(start, scalar), net.uniform(-1, 1, 9)), y)
    return net.gemm(net.concat(y, net.relu(net.gemm(start, 7))), 1), net.relu(x)


@block("dim 6~, layer 5")
def compressed_products(net: Net, x: Tensor) -> Any:
    """xDeepFM: pairs of fields are channels of a 1x1 convolution, dims its space; a sum."""
    stack = net.concat(*(net.unsqueeze(f, 1) for f in _fields(net)), axis=1)
    y = net.mul(net.unsqueeze(stack, 2), net.unsqueeze(stack, 1))
    y = net.relu(net.conv(net.reshape(y, [B, 9, 6]), 5, 1))
    return net.gemm(net.node("ReduceSum", y, [2], keepdims=0), 1), net.relu(x)


@block("dim 6, scored 5", TOKENS)
def target_attention(net: Net, x: Tensor) -> Any:
    """DIN: history and target, their difference and product are joined and scored."""
    history = net.linear(x, 6)
    target = net.node("Expand", net.unsqueeze(_field(net, "target", 6), 1), [B, 4, 6])
    both = [target, history, net.sub(target, history), net.mul(target, history)]
    scores = net.linear(net.sigmoid(net.linear(net.concat(*both, axis=2), 5)), 1)
    y = net.matmul(net.transpose(scores, 0, 2, 1), history)
    return net.squeeze(y, 1)


@block("hidden 7, experts 3~", ROWS)
def gated_experts(net: Net, x: Tensor) -> Any:
    """MMoE: experts of one width, each a node, are stacked; a softmax per task weighs them."""
    experts = net.concat(*(net.unsqueeze(net.relu(net.gemm(x, 7)), 1) for _ in range(3)), axis=1)
    outputs = []
    for _ in range(2):
        gate = net.unsqueeze(net.softmax(net.gemm(x, 3)), 1)
        outputs.append(net.gemm(net.squeeze(net.matmul(gate, experts), 1), 1))
    return tuple(outputs)


@block("embed 7~, inner 8", ROWS)
def feature_tokens(net: Net, x: Tensor) -> Any:
    """FT-Transformer: every number times a learned vector, a class token joined in front."""
    y = net.add(net.mul(net.unsqueeze(x, 2), net.weight(6, 7, fan=1)), net.weight(6, 7, fan=1))
    token = net.node("Expand", net.weight(1, 1, 7, fan=1), [B, 1, 7])
    y = net.concat(token, y)
    y = net.add(y, net.linear(net.relu(net.linear(net.layer_norm(y), 8)), 7))
    return net.gather(y, np.int64(0), 1)
