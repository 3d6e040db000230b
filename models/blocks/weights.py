"""Makes layers whose weights are computed in the graph, shared, or stored in another form."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.blocks.table import ROWS, block
from models.builder import Net, Tensor

B = 2


def _conv(net: Net, x: Tensor, w: Tensor, *bias: Tensor, group: int = 1) -> Tensor:
    k = w.shape[2]
    return net.node("Conv", x, w, *bias, kernel_shape=[k, k], pads=[k // 2] * 4, group=group)


def _standardised(net: Net, w: Tensor) -> Tensor:
    centred = net.sub(w, net.node("ReduceMean", w, axes=[1, 2, 3], keepdims=1))
    square = net.node("ReduceMean", net.mul(centred, centred), axes=[1, 2, 3], keepdims=1)
    return net.div(centred, net.node("Sqrt", net.add(square, 1e-5)))


@block("in 8, out 6")
def standardised_weight(net: Net, x: Tensor) -> Any:
    """Weight standardisation: statistics run over input channels, of what is stored alone."""
    for width in (8, 6):
        x = net.relu(_conv(net, x, _standardised(net, net.weight(width, x.shape[1], 3, 3))))
    return x


@block("in 8, out 6")
def normalised_weight(net: Net, x: Tensor) -> Any:
    """Weight norm: a length per output channel times a direction, divided by its norm."""
    for width in (8, 6):
        v = net.weight(width, x.shape[1], 3, 3, name="weight_v")
        norm = net.node("ReduceL2", v, axes=[1, 2, 3], keepdims=1)
        w = net.mul(v, net.div(net.uniform(1, 2, width, 1, 1, 1, name="weight_g"), norm))
        x = net.relu(_conv(net, x, w))
    return x


@block("in 8, out 6")
def spectral_weight(net: Net, x: Tensor) -> Any:
    """Spectral norm: u W v with stored vectors, one of which runs over (I k k)."""
    for width in (8, 6):
        w = net.weight(width, x.shape[1], 3, 3)
        flat = net.reshape(w, [width, -1])
        v = net.matmul(flat, net.weight(flat.shape[1], fan=1, name="v"))
        sigma = net.matmul(net.weight(width, fan=1, name="u"), v)
        x = net.relu(_conv(net, x, net.div(w, sigma)))
    return x


@block("in 8, out 6")
def folded_in_graph(net: Net, x: Tensor) -> Any:
    """BatchNormalization folded by nodes: the weight times scale / sqrt(variance)."""
    for width in (8, 6):
        w = net.weight(width, x.shape[1], 3, 3)
        scale = net.div(net.uniform(1, 2, width), net.node("Sqrt", net.uniform(1, 2, width)))
        bias = net.mul(net.uniform(-1, 1, width), scale)
        x = net.relu(_conv(net, x, net.mul(w, net.reshape(scale, [-1, 1, 1, 1])), bias))
    return x


@block("in 8, out 8")
def summed_kernels(net: Net, x: Tensor) -> Any:
    """RepVGG before merging: a 3x3 kernel, a padded 1x1 kernel and an identity are added."""
    x = net.relu(net.conv(x, 8))
    small = net.node("Pad", net.weight(8, 8, 1, 1), [0, 0, 1, 1, 0, 0, 1, 1])
    eye = np.zeros((8, 8, 3, 3), np.float32)
    eye[np.arange(8), np.arange(8), 1, 1] = 1
    return net.relu(_conv(net, x, net.add(net.add(net.weight(8, 8, 3, 3), small), eye)))


@block("in 8, out 6")
def masked_weight(net: Net, x: Tensor) -> Any:
    """A stored mask of zeros and ones times the weight, as unstructured pruning leaves it."""
    x = net.relu(net.conv(x, 8))
    mask = net.const((np.arange(6 * 8 * 9).reshape(6, 8, 3, 3) % 3 > 0).astype(np.float32))
    return _conv(net, x, net.mul(net.weight(6, 8, 3, 3), mask))


@block("in 8, out 6, rank 3")
def factored_weight(net: Net, x: Tensor) -> Any:
    """LoRA merged at run time: the product of two small matrices is added to the weight."""
    x = net.relu(net.conv(x, 8))
    update = net.matmul(net.weight(6, 3), net.weight(3, 8 * 9))
    return _conv(net, x, net.add(net.weight(6, 8, 3, 3), net.reshape(update, [6, 8, 3, 3])))


@block("in 8, out 6")
def quantised_weight(net: Net, x: Tensor) -> Any:
    """int8 weights under DequantizeLinear with a scale per output channel."""
    for width in (8, 6):
        values = net.rng.integers(-90, 90, (width, x.shape[1], 3, 3)).astype(np.int8)
        scale, zero = net.uniform(0.001, 0.01, width), np.zeros(width, np.int8)
        w = net.node("DequantizeLinear", net.const(values, "quantised"), scale, zero, axis=0)
        x = net.relu(_conv(net, x, w))
        y = net.node("QuantizeLinear", x, np.float32(0.05), np.uint8(3))
        x = net.node("DequantizeLinear", y, np.float32(0.05), np.uint8(3))
    return x


# --- weights that depend on the input


def _by_image(net: Net, x: Tensor, w: Tensor) -> Tensor:
    """Convolve each image with its own kernel: [B * O, I, k, k], images as groups of channels."""
    out = w.shape[0] // B
    y = _conv(net, net.reshape(x, [1, -1, 8, 8]), w, group=B)
    return net.reshape(y, [B, out, 8, 8])


@block("in 8, experts 4, out 6")
def experts_of_kernels(net: Net, x: Tensor) -> Any:
    """CondConv: kernels are rows (O I k k) of a matrix, mixed per image, images as groups."""
    x = net.relu(net.conv(x, 8))
    routing = net.sigmoid(net.gemm(net.flatten(net.global_avg_pool(x)), 4))
    w = net.matmul(routing, net.weight(4, 6 * 8 * 9, fan=72, name="experts"))
    return _by_image(net, x, net.reshape(w, [B * 6, 8, 3, 3]))


@block("in 8, experts 4~, out 6")
def experts_stacked(net: Net, x: Tensor) -> Any:
    """Dynamic convolution: a stored axis of experts, softmax attention, summed."""
    x = net.relu(net.conv(x, 8))
    a = net.softmax(net.gemm(net.flatten(net.global_avg_pool(x)), 4))
    w = net.mul(net.weight(1, 4, 6, 8, 3, 3, fan=72), net.reshape(a, [B, 4, 1, 1, 1, 1]))
    w = net.node("ReduceSum", w, [1], keepdims=0)
    return _by_image(net, x, net.reshape(w, [B * 6, 8, 3, 3]))


@block("style 5, in 8, out 6")
def modulated_kernel(net: Net, x: Tensor) -> Any:
    """StyleGAN 2: a style scales the input channels of a kernel, which is normalised again."""
    x = net.conv(x, 8)
    style = net.gemm(net.relu(net.gemm(net.input("style", (B, 4)), 5)), 8)
    w = net.mul(net.weight(1, 6, 8, 3, 3, fan=72), net.reshape(style, [B, 1, 8, 1, 1]))
    total = net.node("ReduceSum", net.mul(w, w), [2, 3, 4], keepdims=1)
    w = net.div(w, net.node("Sqrt", net.add(total, 1e-8)))
    return _by_image(net, x, net.reshape(w, [B * 6, 8, 3, 3]))


@block("code 4, hidden 5, in 8, out 6")
def predicted_kernel(net: Net, x: Tensor) -> Any:
    """A hypernetwork: a linear layer makes a whole kernel (O I k k) from a stored code."""
    x = net.conv(x, 8)
    code = net.relu(net.gemm(net.weight(1, 4, fan=1, name="code"), 5))
    w = net.reshape(net.gemm(code, 6 * 8 * 9, gain=0.2), [6, 8, 3, 3])
    return _conv(net, x, w)


@block("in 8, middle 7")
def filter_per_image(net: Net, x: Tensor) -> Any:
    """Trackers: the features of one image are the depthwise kernel for those of another."""
    y = net.relu(net.conv(x, 8))
    kernel = net.reshape(net.pool(y, 4, 2), [B * 8, 1, 3, 3])
    y = _conv(net, net.reshape(net.conv(net.relu(net.conv(x, 7)), 8), [1, B * 8, 8, 8]), kernel,
              group=B * 8)  # fmt: skip
    return net.reshape(y, [B, 8, 8, 8])


# --- shared weights


@block("first 8, second 6")
def siamese(net: Net, x: Tensor) -> Any:
    """Two inputs through the same weights; the distance of their features is scored."""
    ws = net.weight(8, 3, 3, 3), net.weight(6, 8, 3, 3)
    ys = []
    for image in (x, net.input("other", tuple(x.shape))):
        ys.append(net.relu(_conv(net, net.relu(_conv(net, image, ws[0])), ws[1])))
    return net.node("Abs", net.sub(*(net.global_avg_pool(y) for y in ys)))


@block("width 8, inner 5")
def unrolled(net: Net, x: Tensor) -> Any:
    """A residual block that runs three times with the same weights."""
    x, ws = net.conv(x, 8), (net.weight(5, 8, 3, 3, gain=0.5), net.weight(8, 5, 3, 3, gain=0.5))
    for _ in range(3):
        x = net.add(x, _conv(net, net.relu(_conv(net, x, ws[0])), ws[1]))
    return x


@block("hidden 8", ROWS)
def tied_decoder(net: Net, x: Tensor) -> Any:
    """An autoencoder whose decoder is the encoder's weight transposed."""
    w = net.weight(8, 6)
    y = net.relu(net.node("Gemm", x, w, net.uniform(-1, 1, 8), transB=1))
    return (net.node("Gemm", y, w),)


@block("width 8, first 5, second 6, inner 8")
def shared_head(net: Net, x: Tensor) -> Any:
    """RetinaNet: one head reads every level of a pyramid, so the levels have one width."""
    levels = [net.conv(x, 5)]
    levels.append(net.relu(net.conv(net.pool(levels[0]), 6)))
    levels = [net.conv(level, 8, 1) for level in levels]
    inner, outer = net.weight(8, 8, 3, 3), net.weight(4, 8, 3, 3)
    made = [_conv(net, net.relu(_conv(net, level, inner)), outer) for level in levels]
    return (net.concat(*(net.reshape(y, [B, 4, -1]) for y in made), axis=2),)


@block("features 8", ROWS)
def normalised_classes(net: Net, x: Tensor) -> Any:
    """ArcFace: features and class vectors are divided by their norms, which are sums."""
    y = net.gemm(x, 8)
    y = net.div(y, net.node("Clip", net.node("ReduceL2", y, axes=[1], keepdims=1), 1e-12))
    w = net.weight(5, 8)
    w = net.div(w, net.node("Clip", net.node("ReduceL2", w, axes=[1], keepdims=1), 1e-12))
    return (net.mul(net.matmul(y, net.transpose(w, 1, 0)), 30.0),)


@block("features 8", ROWS)
def prototypes(net: Net, x: Tensor) -> Any:
    """Distances to stored class vectors: squares, a broadcast difference, a sum."""
    y = net.unsqueeze(net.gemm(x, 8), 1)
    square = net.node("Pow", net.sub(y, net.weight(1, 5, 8, fan=1)), 2.0)
    return (net.node("Neg", net.node("ReduceSum", square, [2], keepdims=0)),)


@block("features 8, codes 7~", ROWS)
def codebook(net: Net, x: Tensor) -> Any:
    """VQ-VAE: distances as squares and a product, ArgMin, and the nearest code by Gather."""
    z, codes = net.gemm(x, 8), net.weight(7, 8, fan=1, name="codebook")
    near = net.sub(net.node("ReduceSum", net.mul(z, z), [1], keepdims=1),
                   net.mul(net.matmul(z, net.transpose(codes, 1, 0)), 2.0))  # fmt: skip
    near = net.add(near, net.node("ReduceSum", net.mul(codes, codes), [1], keepdims=0))
    return net.gather(codes, net.node("ArgMin", near, axis=1, keepdims=0))
