"""Makes detectors, segmentation and keypoint heads, and the pyramids beneath them."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.blocks.table import block
from models.builder import Net, Tensor

B = 2


def _up(net: Net, x: Tensor, by: float = 2.0) -> Tensor:
    return net.node("Resize", x, None, [1.0, 1.0, by, by], mode="nearest")


def _levels(net: Net, x: Tensor) -> list[Tensor]:
    """Maps of 4, 5 and 6 channels, each half the size of the one before."""
    found = [net.relu(net.conv(x, 4))]
    for width in (5, 6):
        found.append(net.relu(net.conv(net.pool(found[-1]), width)))
    return found


LEVELS = "c3 4, c4 5, c5 6"


def _sum_of_pools(net: Net, *xs: Tensor) -> Tensor:
    """One head on several maps: their means are joined."""
    return net.flatten(net.concat(*(net.global_avg_pool(x) for x in xs)))


@block(f"{LEVELS}, width 7, p3 3, p4 3, p5 3")
def top_down_sums(net: Net, x: Tensor) -> Any:
    """FPN: laterals and upsampled maps are added, so all levels have one width; smoothed apart."""
    a, b, c = (net.conv(level, 7, 1) for level in _levels(net, x))
    b = net.add(b, _up(net, c))
    a = net.add(a, _up(net, b))
    return _sum_of_pools(net, *(net.conv(level, 3) for level in (a, b, c)))


@block(f"{LEVELS}, down 5, up 6, out 7")
def down_and_up(net: Net, x: Tensor) -> Any:
    """PAN: joined from the top down, then again from the bottom up, with strided convolutions."""
    a, b, c = _levels(net, x)
    b = net.relu(net.conv(net.concat(b, _up(net, c)), 5))
    a = net.concat(a, _up(net, b))
    a = net.relu(net.conv(a, 6, 3, 2))
    return net.conv(net.concat(a, b), 7)


@block(f"{LEVELS}, width 7, p3 7, p4 7")
def weighed_sums(net: Net, x: Tensor) -> Any:
    """BiFPN: learned weights, rectified and divided by their sum, scale what is added."""
    a, b, c = (net.conv(level, 7, 1) for level in _levels(net, x))

    def fused(*xs: Tensor) -> Tensor:
        w = net.relu(net.uniform(0.5, 1, len(xs), name="fusion"))
        w = net.div(w, net.add(net.node("ReduceSum", w, [0], keepdims=1), 1e-4))
        terms = [net.mul(net.gather(w, np.int64(k)), y) for k, y in enumerate(xs)]
        y = net.silu(net.node("Sum", *terms))
        return net.conv(net.conv(y, 7, groups=7), 7, 1)

    b2 = fused(b, _up(net, c))
    return _sum_of_pools(net, fused(a, _up(net, b2)), fused(b, b2, _up(net, fused(c))))


@block("in 8, inner 6")
def anchors(net: Net, x: Tensor) -> Any:
    """YOLOv5: channels are (anchors, outputs); sigmoids meet stored grids and anchor sizes."""
    y = net.conv(net.relu(net.conv(net.relu(net.conv(x, 8)), 6)), 3 * 7, 1)
    y = net.transpose(net.reshape(y, [B, 3, 7, 8, 8]), 0, 1, 3, 4, 2)
    place, size, rest = net.split(net.sigmoid(y), [2, 2, 3], axis=4)
    grid = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), -1).astype(np.float32)
    place = net.mul(net.add(net.mul(place, 2.0), grid[None, None]), 8.0)
    sizes = net.const(np.arange(1.0, 7.0, dtype=np.float32).reshape(1, 3, 1, 1, 2), "anchor_grid")
    size = net.mul(net.node("Pow", net.mul(size, 2.0), 2.0), sizes)
    return (net.reshape(net.concat(place, size, rest, axis=4), [B, -1, 7]),)


@block("in 8, boxes 6, bins 4~, classes 5")
def distances(net: Net, x: Tensor) -> Any:
    """YOLOv8: softmax over bins, a stored 1x1 convolution as their mean, anchors, two branches."""
    x = net.relu(net.conv(x, 8))
    boxes = net.conv(net.relu(net.conv(x, 6)), 4 * 4, 1)
    classes = net.conv(net.relu(net.conv(x, 5)), 3, 1)
    y = net.reshape(net.concat(boxes, classes), [B, 19, 64])
    boxes, classes = net.split(y, [16, 3])
    bins = net.softmax(net.transpose(net.reshape(boxes, [B, 4, 4, 64]), 0, 2, 1, 3), axis=1)
    mean = net.node("Conv", bins, net.const(np.arange(4, dtype=np.float32)[None, :, None, None]))
    near, far = net.split(net.reshape(mean, [B, 4, 64]), [2, 2])
    grid = net.const(np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0))).reshape(1, 2, 64)
                     .astype(np.float32))  # fmt: skip
    corners = net.concat(net.sub(grid, near), net.add(grid, far))
    return (net.concat(net.mul(corners, 8.0), net.sigmoid(classes)),)


@block("in 8, boxes 6, classes 5")
def suppressed(net: Net, x: Tensor) -> Any:
    """NonMaxSuppression inside the model: what stands before it is free, all behind is not."""
    x = net.relu(net.conv(x, 8))
    boxes = net.conv(net.relu(net.conv(x, 6)), 4, 1)
    classes = net.conv(net.relu(net.conv(x, 5)), 3, 1)
    boxes = net.transpose(net.reshape(boxes, [B, 4, 64]), 0, 2, 1)
    scores = net.sigmoid(net.reshape(classes, [B, 3, 64]))
    limits = np.array([5], np.int64), np.array([0.5], np.float32), np.array([0.1], np.float32)
    kept = net.node("NonMaxSuppression", boxes, scores, *limits, shape=[None, 3], dtype=np.int64)
    return boxes, scores, kept


@block("in 8, inner 6")
def peaks(net: Net, x: Tensor) -> Any:
    """CenterNet: a heat map is kept where it equals its own maximum pool; the best by TopK."""
    y = net.sigmoid(net.conv(net.relu(net.conv(net.relu(net.conv(x, 8)), 6)), 3, 1))
    top = net.cast(net.node("Equal", net.pool(y, 3, 1, 1), y), 1)
    scores, places = net.nodes("TopK", [net.reshape(net.mul(y, top), [B, -1]), [4]], 2, axis=1)
    return scores, places


@block("in 8, one 4, two 5, three 6, pooled 3, out 7")
def pools_of_rates(net: Net, x: Tensor) -> Any:
    """ASPP: dilated branches, and the mean of the map, resized to its size at run time."""
    x = net.relu(net.conv(x, 8))
    parts = [net.relu(net.conv_bn(x, 4, 1))]
    parts += [net.relu(net.conv(x, width, 3, dilation=d)) for d, width in ((2, 5), (3, 6))]
    y = net.relu(net.conv(net.global_avg_pool(x), 3, 1))
    size = net.slice(net.node("Shape", x), 2, 4, axis=0)
    size = net.concat(net.slice(net.node("Shape", y), 0, 2, axis=0), size, axis=0)
    parts.append(net.node("Resize", y, None, None, size, mode="linear", shape=[B, 3, 8, 8]))
    return net.conv(net.concat(*parts), 7)


@block("in 8, pooled1 3, pooled2 3, out 7")
def pools_of_sizes(net: Net, x: Tensor) -> Any:
    """PSPNet: pools of several sizes, each convolved and resized, joined with the map itself."""
    x, parts = net.relu(net.conv(x, 8)), []
    for k in (4, 8):
        y = net.relu(net.conv(net.pool(x, k, k, op="AveragePool"), 3, 1))
        parts.append(_up(net, y, float(k)))
    return net.conv(net.concat(x, *parts), 7)


@block("in 8, low 4, reduced 3, out 6")
def low_level_skip(net: Net, x: Tensor) -> Any:
    """DeepLab V3+: an early map is reduced and joined with the late one."""
    low = net.relu(net.conv(x, 4))
    high = net.relu(net.conv(net.pool(low), 8))
    return net.conv(net.concat(_up(net, high), net.relu(net.conv(low, 3, 1))), 6)


@block("in 8, inner 6")
def expected_places(net: Net, x: Tensor) -> Any:
    """Soft-argmax: heat maps under a softmax over space, times stored coordinates, summed."""
    y = net.conv(net.relu(net.conv_transpose(net.relu(net.conv(x, 8)), 6)), 3, 1)
    y = net.reshape(net.softmax(net.reshape(y, [B, 3, 256])), [B, 3, 16, 16])
    steps = np.linspace(0, 1, 16, dtype=np.float32)
    along = [net.node("ReduceSum", y, [axis], keepdims=0) for axis in (2, 3)]
    sums = [net.node("ReduceSum", net.mul(a, steps), [2], keepdims=1) for a in along]
    return (net.concat(*sums, axis=2),)


@block("in 8, prototypes 5, coefficients 6")
def prototype_masks(net: Net, x: Tensor) -> Any:
    """YOLACT: masks are products of coefficients and prototypes, which go together."""
    x = net.relu(net.conv(x, 8))
    prototypes = net.relu(net.conv(x, 5))
    coefficients = net.flatten(net.pool(net.node("Tanh", net.conv(net.relu(net.conv(x, 6)), 5)), 8))
    y = net.matmul(net.reshape(coefficients, [B, 1, 5]), net.reshape(prototypes, [B, 5, 64]))
    return (net.sigmoid(net.reshape(y, [B, 1, 8, 8])),)


@block("in 8, memory 7, width 7~, heads 4, qk 6, v 6")
def queries_on_map(net: Net, x: Tensor) -> Any:
    """DETR: learned queries attend to a map; a stored encoding of places is added to keys."""
    y = net.conv(net.relu(net.conv(x, 8)), 7, 1)
    y = net.transpose(net.reshape(y, [B, 7, 64]), 2, 0, 1)
    keys = net.add(y, net.uniform(-1, 1, 64, 1, 7, name="places"))
    queries = net.node("Expand", net.unsqueeze(net.weight(3, 7, fan=1), 1), [3, B, 7])
    q, k, v = (
        net.transpose(net.reshape(net.linear(p, 24), [p.shape[0], B * 4, 6]), 1, 0, 2)
        for p in (queries, keys, y)
    )
    y = net.matmul(net.softmax(net.matmul(q, net.transpose(k, 0, 2, 1))), v)
    y = net.linear(net.reshape(net.transpose(y, 1, 0, 2), [3, B, 24]), 7)
    return net.layer_norm(net.add(queries, y))
