"""Makes normalisations of maps, as operators and written out, and the affine layers beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.blocks.table import block
from models.builder import Net, Tensor

B = 2


def _affine(net: Net, x: Tensor, *shape: int) -> Tensor:
    scale, bias = net.uniform(0.8, 1.2, *shape), net.uniform(-0.2, 0.2, *shape)
    return net.add(net.mul(x, scale), bias)


def _standardised(net: Net, x: Tensor, *axes: int) -> Tensor:
    """(x - mean) / sqrt(variance + eps) over axes."""
    centred = net.sub(x, net.node("ReduceMean", x, axes=list(axes), keepdims=1))
    variance = net.node("ReduceMean", net.mul(centred, centred), axes=list(axes), keepdims=1)
    return net.div(centred, net.node("Sqrt", net.add(variance, 1e-5)))


@block("in 8~, out 6")
def layer_norm_by_permutes(net: Net, x: Tensor) -> Any:
    """ConvNeXt: channels move to the end for a LayerNormalization and back again."""
    y = net.layer_norm(net.transpose(net.conv(x, 8), 0, 2, 3, 1))
    return net.conv(net.transpose(y, 0, 3, 1, 2), 6)


@block("in 8~, out 6")
def layer_norm_of_maps(net: Net, x: Tensor) -> Any:
    """SAM's LayerNorm2d: mean and variance over axis 1, written out, scale (C, 1, 1)."""
    y = net.conv(x, 8)
    centred = net.sub(y, net.mean(y, 1))
    variance = net.mean(net.node("Pow", centred, 2.0), 1)
    y = net.div(centred, net.node("Sqrt", net.add(variance, 1e-6)))
    return net.conv(_affine(net, y, 8, 1, 1), 6)


@block("in 8~, out 6")
def pixel_norm(net: Net, x: Tensor) -> Any:
    """ProGAN: each pixel is divided by the root mean square of its channels."""
    y = net.conv(x, 8)
    mean = net.mean(net.node("Pow", y, 2.0), 1)
    inverse = net.node("Reciprocal", net.node("Sqrt", net.add(mean, 1e-8)))
    return net.conv(net.mul(y, inverse), 6)


@block("in 8, inner 12~, out 6")
def response_norm(net: Net, x: Tensor) -> Any:
    """ConvNeXt V2's GRN: the norm of each map is divided by the mean of all of them."""
    y = net.transpose(net.conv(x, 8), 0, 2, 3, 1)
    y = net.gelu(net.linear(y, 12))
    norm = net.node("ReduceL2", y, axes=[1, 2], keepdims=1)
    norm = net.div(norm, net.add(net.mean(norm), 1e-6))
    y = net.add(_affine(net, net.mul(y, norm), 1, 1, 1, 12), y)
    return net.transpose(net.linear(y, 6), 0, 3, 1, 2)


@block("in 8, out 6")
def filter_response_norm(net: Net, x: Tensor) -> Any:
    """FRN and TLU: mean of squares over space, and a maximum with a threshold per channel."""
    y = net.conv(x, 8)
    mean = net.node("ReduceMean", net.mul(y, y), axes=[2, 3], keepdims=1)
    y = _affine(net, net.div(y, net.node("Sqrt", net.add(mean, 1e-6))), 1, 8, 1, 1)
    return net.conv(net.node("Max", y, net.uniform(-1, 0, 1, 8, 1, 1)), 6)


@block("in 8, out 6")
def instance_norm_written_out(net: Net, x: Tensor) -> Any:
    """Mean and variance over space only: exact."""
    return net.conv(_affine(net, _standardised(net, net.conv(x, 8), 2, 3), 1, 8, 1, 1), 6)


@block("in 8, out 6")
def instance_norm_in_batch(net: Net, x: Tensor) -> Any:
    """Instance norm by an InstanceNormalization of (1, B * C, H, W), with no scale of its own."""
    y = net.reshape(net.conv(x, 8), [1, B * 8, 8, 8])
    ones = net.const(np.ones(B * 8, np.float32)), net.const(np.zeros(B * 8, np.float32))
    y = net.node("InstanceNormalization", y, *ones, epsilon=1e-5)
    return net.conv(net.reshape(y, [B, 8, 8, 8]), 6)


@block("in 5~, groups 2, out 6", opset=21)
def group_norm_operator(net: Net, x: Tensor) -> Any:
    """GroupNormalization with scale per channel: the same channel of both groups, or a group."""
    scale, bias = net.uniform(0.8, 1.2, 10), net.uniform(-0.2, 0.2, 10)
    y = net.node(
        "GroupNormalization", net.conv(x, 10), scale, bias, num_groups=2, shape=[B, 10, 8, 8]
    )
    return net.conv(y, 6)


@block("in 5~, groups 2, out 6")
def group_norm_written_out(net: Net, x: Tensor) -> Any:
    """Flax: channels last, groups as an axis of their own, statistics over three axes."""
    y = net.transpose(net.conv(x, 10), 0, 2, 3, 1)
    y = _standardised(net, net.reshape(y, [B, 8, 8, 2, 5]), 1, 2, 4)
    y = _affine(net, net.reshape(y, [B, 8, 8, 10]), 10)
    return net.conv(net.transpose(y, 0, 3, 1, 2), 6)


@block("in 10~, out 6")
def group_norm_of_one(net: Net, x: Tensor) -> Any:
    """GroupNorm with one group, as PoolFormer has it: statistics over all channels and pixels."""
    return net.conv(net.group_norm(net.conv(x, 10), 1), 6)


@block("in 8, mean 7, out 6, style 5")
def adaptive_instance_norm(net: Net, x: Tensor) -> Any:
    """AdaIN: a layer of twice the width makes scale and shift, split in halves."""
    style = net.relu(net.gemm(net.input("style", (B, 4)), 5))
    scale, shift = net.split(net.unsqueeze(net.gemm(style, 16), 2, 3), [8, 8])
    y = _standardised(net, net.conv(net.relu(net.conv(x, 7)), 8), 2, 3)
    return net.conv(net.add(net.mul(y, net.add(scale, 1.0)), shift), 6)


@block("in 8, shared 5, out 6")
def spatial_norm(net: Net, x: Tensor) -> Any:
    """SPADE: convolutions of a label map make scale and shift for every pixel."""
    labels = net.input("labels", (B, 3, 4, 4))
    shared = net.relu(net.conv(net.node("Resize", labels, None, [1.0, 1.0, 2.0, 2.0]), 5))
    y = _standardised(net, net.conv(x, 8), 2, 3)
    y = net.add(net.mul(y, net.add(net.conv(shared, 8), 1.0)), net.conv(shared, 8))
    return net.conv(y, 6)


@block("in 8, out 6")
def film(net: Net, x: Tensor) -> Any:
    """FiLM: one layer makes scale and shift, reshaped to (B, 2, C, 1, 1) and taken apart."""
    y = net.reshape(net.gemm(net.input("condition", (B, 4)), 16), [B, 2, 8, 1, 1])
    scale, shift = (net.squeeze(p, 1) for p in net.split(y, [1, 1]))
    return net.conv(net.relu(net.add(net.mul(net.conv(x, 8), scale), shift)), 6)


@block("in 8, rates 3, time 7, out 6")
def time_embedding(net: Net, x: Tensor) -> Any:
    """Diffusion: sines and cosines of a step, two layers, added to every pixel of a map."""
    rates = net.const(np.exp(-np.arange(3, dtype=np.float32))[None])
    angles = net.mul(net.unsqueeze(net.input("step", (B,)), 1), rates)
    y = net.concat(net.node("Sin", angles), net.node("Cos", angles))
    y = net.gemm(net.silu(net.gemm(y, 7)), 8)
    return net.conv(net.silu(net.add(net.conv(x, 8), net.unsqueeze(y, 2, 3))), 6)
