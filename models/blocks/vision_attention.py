"""Makes attention over maps: windows of all kinds, reduced keys, convolved projections."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.blocks.attention import D, H, merge_heads, project, scores
from models.blocks.table import block
from models.builder import Net, Tensor

B = 2
MAP = (B, 9, 4, 4)
PIXELS = (B, 16, 10)  # the same as tokens


def _attend_map(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of maps [B, H * D, h, w] -> [B, H * D, h * w], heads split on the channel axis."""
    q, k, v = (net.reshape(y, [B, H, y.shape[1] // H, -1]) for y in (q, k, v))
    a = net.softmax(net.div(net.matmul(net.transpose(q, 0, 1, 3, 2), k), D**0.5))
    y = net.matmul(v, net.transpose(a, 0, 1, 3, 2))
    return net.reshape(y, [B, H * D, 4, 4])


@block("in 7, reduced 8~, heads 4, qk 6, v 6", PIXELS)
def spatial_reduction(net: Net, x: Tensor) -> Any:
    """PVT: tokens become a map, a strided convolution shrinks it, and it becomes tokens again."""
    x = net.linear(x, 7)
    y = net.reshape(net.transpose(x, 0, 2, 1), [B, 7, 4, 4])
    y = net.reshape(net.conv(y, 8, 2, 2, pad=0), [B, 8, -1])
    y = net.layer_norm(net.transpose(y, 0, 2, 1))
    q, k, v = project(net, x), project(net, y), project(net, y)
    return merge_heads(net, net.matmul(net.softmax(scores(net, q, k)), v))


@block("in 7, heads 4, qk 6, v 6", PIXELS)
def local_groups(net: Net, x: Tensor) -> Any:
    """Twins: windows stay an axis of their own, so attention has five axes."""
    y = net.reshape(net.linear(x, 7), [B, 2, 2, 2, 2, 7])
    y = net.reshape(net.transpose(y, 0, 1, 3, 2, 4, 5), [B, 4, 4, 7])
    q, k, v = (
        net.transpose(net.reshape(net.linear(y, H * D), [B, 4, 4, H, D]), 0, 1, 3, 2, 4)
        for _ in "qkv"
    )
    y = net.transpose(net.matmul(net.softmax(scores(net, q, k)), v), 0, 1, 3, 2, 4)
    y = net.transpose(net.reshape(y, [B, 2, 2, 2, 2, H * D]), 0, 1, 3, 2, 4, 5)
    return net.reshape(y, [B, 16, H * D])


@block("in 7, heads 4, qk 6, v 6", MAP)
def convolved_projections(net: Net, x: Tensor) -> Any:
    """CvT: depthwise convolutions before q, k and v all belong to the channels that come in."""
    x = net.conv(x, 7, 1)

    def convolved(stride: int) -> Tensor:
        y = net.bn(net.conv(x, 7, 3, stride, groups=7, bias=False))
        return project(net, net.transpose(net.reshape(y, [B, 7, -1]), 0, 2, 1))

    q, k, v = convolved(1), convolved(2), convolved(2)
    return merge_heads(net, net.matmul(net.softmax(scores(net, q, k)), v))


@block("heads 4, qk 6, v 10", PIXELS)
def flattened_norm(net: Net, x: Tensor) -> Any:
    """LeViT: BatchNormalization on (B * N, C), heads of q, k, v split by 6, 6, 10, a bias table."""
    y = net.reshape(net.linear(x, H * 22, bias=False), [-1, H * 22])
    y = net.reshape(net.bn(y), [B, 16, H, 22])
    q, k, v = (net.transpose(p, 0, 2, 1, 3) for p in net.split(y, [6, 6, 10], axis=3))
    index = np.abs(np.arange(16)[:, None] - np.arange(16))
    bias = net.gather(net.weight(H, 16, fan=1, name="attention_biases"), index, axis=1)
    y = net.matmul(net.softmax(net.add(scores(net, q, k), bias)), v)
    return net.hard_swish(merge_heads(net, y))


@block("heads 4, qk 6, v 6", MAP)
def channels_first(net: Net, x: Tensor) -> Any:
    """EfficientFormer: heads are split on axis 1 of maps, so the head size stands before space."""
    return _attend_map(net, *(net.conv_bn(x, H * D, 1) for _ in "qkv"))


@block("heads 4, qk 6, v 6", MAP)
def channels_first_fused(net: Net, x: Tensor) -> Any:
    """Restormer-like: one 1x1 convolution, reshaped to (B, 3, H, D, N) and picked by Gather."""
    y = net.reshape(net.conv(x, 3 * H * D, 1), [B, 3, H, D, 16])
    q, k, v = (net.gather(y, np.int64(i), 1) for i in range(3))
    a = net.softmax(net.matmul(net.transpose(q, 0, 1, 3, 2), k))
    return net.reshape(net.matmul(v, net.transpose(a, 0, 1, 3, 2)), [B, H * D, 4, 4])


@block("in 8, heads 4, qk 6, v 6", MAP)
def unfolded_patches(net: Net, x: Tensor) -> Any:
    """MobileViT: channels are merged with batch and rows, moved, and split off again."""
    y = net.reshape(net.conv(x, 8, 1), [B * 8 * 2, 2, 2, 2])
    y = net.reshape(net.transpose(y, 0, 2, 1, 3), [B, 8, 4, 4])
    y = net.reshape(net.transpose(y, 0, 3, 2, 1), [B * 4, 4, 8])
    q, k, v = (
        net.transpose(net.reshape(net.linear(y, H * D), [B * 4, 4, H, D]), 0, 2, 1, 3)
        for _ in "qkv"
    )
    return merge_heads(net, net.matmul(net.softmax(scores(net, q, k)), v))


@block("embed 7~, out 6", MAP)
def patch_merging(net: Net, x: Tensor) -> Any:
    """Swin: four strided slices of space are joined, so a channel goes from all four."""
    y = net.transpose(net.conv(x, 7, 1), 0, 2, 3, 1)
    parts = [
        net.slice(net.slice(y, i, 2**62, 1, step=2), j, 2**62, 2, step=2)
        for j in (0, 1)
        for i in (0, 1)
    ]
    y = net.layer_norm(net.concat(*parts, axis=3))
    return net.linear(net.reshape(y, [B, 4, 28]), 6)


@block("embed 7", MAP)
def resized_positions(net: Net, x: Tensor) -> Any:
    """A table of positions is resized as a map before it is added; a class token is joined."""
    table = net.weight(1, 10, 7, fan=1, name="position_embeddings")
    first, grid = net.split(table, [1, 9], axis=1)
    grid = net.transpose(net.reshape(grid, [1, 3, 3, 7]), 0, 3, 1, 2)
    grid = net.node("Resize", grid, None, None, [1, 7, 4, 4], mode="linear")
    grid = net.reshape(net.transpose(grid, 0, 2, 3, 1), [1, 16, 7])
    y = net.transpose(net.reshape(net.conv(x, 7, 1), [B, 7, 16]), 0, 2, 1)
    token = net.node("Expand", net.weight(1, 1, 7, fan=1), [B, 1, 7])
    return net.add(net.concat(token, y), net.concat(first, grid))


@block("embed 7, heads 4, qk 6, v 6", MAP)
def pooled_query(net: Net, x: Tensor) -> Any:
    """CLIP: the mean of all pixels is a token of its own and the only query."""
    y = net.transpose(net.reshape(net.conv(x, 7, 1), [B, 7, 16]), 0, 2, 1)
    y = net.concat(net.mean(y, 1), y)
    y = net.add(y, net.weight(1, 17, 7, fan=1, name="positional_embedding"))
    q, k, v = project(net, net.slice(y, 0, 1)), project(net, y), project(net, y)
    return net.squeeze(merge_heads(net, net.matmul(net.softmax(scores(net, q, k)), v)), 1)


@block("key 6, value 5", MAP)
def non_local(net: Net, x: Tensor) -> Any:
    """Attention between all pixels, without heads, divided by their number."""
    theta, phi = (net.reshape(net.conv(x, 6, 1), [B, 6, -1]) for _ in "qk")
    g = net.reshape(net.pool(net.conv(x, 5, 1), 1, 1), [B, 5, -1])
    a = net.div(net.matmul(net.transpose(theta, 0, 2, 1), phi), 16.0)
    y = net.transpose(net.matmul(a, net.transpose(g, 0, 2, 1)), 0, 2, 1)
    return net.reshape(y, [B, 5, 4, 4])


@block("in 7, squeezed 5~", MAP)
def global_context(net: Net, x: Tensor) -> Any:
    """GCNet: pixels are weighed by one channel's softmax, summed by MatMul, and added to all."""
    x = net.conv(x, 7, 1)
    weights = net.softmax(net.reshape(net.conv(x, 1, 1), [B, 1, 16]))
    y = net.matmul(net.reshape(x, [B, 7, 16]), net.transpose(weights, 0, 2, 1))
    y = net.transpose(net.conv(net.unsqueeze(y, 3), 5, 1), 0, 2, 3, 1)
    y = net.relu(net.transpose(net.layer_norm(y), 0, 3, 1, 2))
    return net.add(x, net.conv(y, 7, 1))


@block("heads 4, v 6, points 3~", (B, 5, 10))
def sampled_values(net: Net, x: Tensor) -> Any:
    """Deformable DETR: values merged with the batch are sampled at places made per head."""
    memory = net.input("memory", (B, 16, 7))
    v = net.reshape(net.linear(memory, H * D), [B, 16, H, D])
    v = net.reshape(net.transpose(v, 0, 2, 3, 1), [B * H, D, 4, 4])
    grid = net.reshape(net.node("Tanh", net.linear(x, H * 3 * 2)), [B, 5, H, 3, 2])
    grid = net.reshape(net.transpose(grid, 0, 2, 1, 3, 4), [B * H, 5, 3, 2])
    weights = net.softmax(net.reshape(net.linear(x, H * 3), [B, 5, H, 3]))
    weights = net.reshape(net.transpose(weights, 0, 2, 1, 3), [B * H, 1, 5, 3])
    sampled = net.node("GridSample", v, grid, align_corners=0)
    y = net.node("ReduceSum", net.mul(sampled, weights), [-1], keepdims=0)
    return net.transpose(net.reshape(y, [B, H * D, 5]), 0, 2, 1)


@block("in 8, heads 4, qk 6, v 6", MAP)
def neighbourhoods(net: Net, x: Tensor) -> Any:
    """HaloNet, NAT: keys and values of each window are cut from a padded map by stored places."""
    x = net.conv(x, 8, 1)

    def halo(y: Tensor) -> Tensor:
        """[B, H * D, 4, 4] -> [B, H, windows, pixels, D]"""
        y = net.node("Pad", y, [0, 0, 1, 1, 0, 0, 1, 1])
        places = np.arange(2)[:, None] * 2 + np.arange(4)
        y = net.gather(net.gather(y, places, 2), places, 4)  # B C 2 4 2 4
        y = net.reshape(net.transpose(y, 0, 1, 2, 4, 3, 5), [B, H, D, 4, 16])
        return net.transpose(y, 0, 1, 3, 4, 2)

    q = net.reshape(net.conv(x, H * D, 1), [B, H, D, 2, 2, 2, 2])
    q = net.reshape(net.transpose(q, 0, 1, 3, 5, 4, 6, 2), [B, H, 4, 4, D])
    k, v = halo(net.conv(x, H * D, 1)), halo(net.conv(x, H * D, 1))
    y = net.matmul(net.softmax(scores(net, q, k)), v)
    return net.reshape(net.transpose(y, 0, 1, 4, 2, 3), [B, H * D, 4, 4])
