"""Makes blocks that split, join, shuffle and weigh the channels of a map."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.blocks.table import block
from models.builder import Net, Tensor
from models.vision import channel_shuffle

B = 2


# --- shuffles


@block("in 4, groups 2, shuffled 3, out 4, out-groups 2")
def shuffle_between_groups(net: Net, x: Tensor) -> Any:
    """ShuffleNet V1: a shuffle behind a grouped convolution, a depthwise and a grouped one."""
    y = net.relu(net.conv(net.conv(x, 8), 12, 1, groups=2))
    y = net.conv(channel_shuffle(net, y, 2), 12, groups=12)
    return net.conv(y, 8, 1, groups=2)


@block(
    "blocks 4, groups 4, in-pair 2, out 6",
    today=3,
    why="where a factor is cut again, only the piece with most units is followed: 4 groups, not 2",
)
def shuffle_before_groups(net: Net, x: Tensor) -> Any:
    """A shuffle by 4 before 4 groups: the factors of one straddle those of the other.

    Channel (block 4, group 4, place in pair 2) becomes (group, place in pair, block).
    """
    return net.conv(channel_shuffle(net, net.relu(net.conv(x, 32)), 4), 24, groups=4)


@block("left 6, right 6, inner 7, out 5")
def shuffle_of_branches(net: Net, x: Tensor) -> Any:
    """ShuffleNet V2: one half passes, the other is convolved; the shuffle ties what it joins."""
    left, right = net.split(net.relu(net.conv(x, 12)), [6, 6])
    right = net.conv(net.conv(net.relu(net.conv(right, 7, 1)), 7, groups=7), 6, 1)
    return net.conv(channel_shuffle(net, net.concat(left, right), 2), 5, 1)


@block("pairs 6, left 5, right 5")
def shuffle_into_stack(net: Net, x: Tensor) -> Any:
    """ShuffleNet V2+: pairs of channels, merged with the batch, become a stack of two maps."""
    y = net.reshape(net.conv(x, 12), [B * 6, 2, 64])
    y = net.reshape(net.transpose(y, 1, 0, 2), [2, B, 6, 8, 8])
    return net.concat(*(net.conv(net.gather(y, np.int64(i)), 5) for i in (0, 1)))


# --- gates


@block("in 8, squeezed 4")
def gate_by_rows(net: Net, x: Tensor) -> Any:
    """Squeeze-and-excite on rows: Flatten, two Gemm, and a Reshape back to a map."""
    x = net.conv(x, 8)
    y = net.relu(net.gemm(net.flatten(net.global_avg_pool(x)), 4))
    return net.mul(x, net.reshape(net.sigmoid(net.gemm(y, 8)), [B, 8, 1, 1]))


@block("in 8, squeezed 4")
def gate_by_mean(net: Net, x: Tensor) -> Any:
    """The mean keeps no axes; two more come back by Unsqueeze, and the gate is expanded."""
    x = net.conv(x, 8)
    y = net.node("ReduceMean", x, axes=[2, 3], keepdims=0)
    y = net.unsqueeze(net.sigmoid(net.linear(net.relu(net.linear(y, 4)), 8)), 2, 3)
    return net.mul(x, net.node("Expand", y, net.node("Shape", x), shape=x.shape))


@block("in 8, squeezed 4")
def gate_by_convolutions(net: Net, x: Tensor) -> Any:
    """The mean keeps its axes; 1x1 convolutions, a norm and a hard sigmoid written out."""
    x = net.conv(x, 8)
    y = net.node("ReduceMean", x, axes=[2, 3], keepdims=1)
    y = net.conv(net.relu(net.conv_bn(y, 4, 1)), 8, 1)
    return net.mul(x, net.div(net.relu6(net.add(y, 3.0)), 6.0))


@block("in 8, squeezed 4")
def gate_hard(net: Net, x: Tensor) -> Any:
    """MobileNet V3: HardSigmoid as an operator, HardSwish inside."""
    return net.squeeze_excite(net.conv(x, 8), 4, "HardSwish", "HardSigmoid")


@block("in 8~, squeezed 4")
def gate_channels_and_space(net: Net, x: Tensor) -> Any:
    """CBAM: mean and maximum through one pair of weights, then both over the channels."""
    x = net.conv(x, 8)
    inner, outer = net.weight(4, 8, 1, 1), net.weight(8, 4, 1, 1)
    gates = [
        net.node("Conv", net.relu(net.node("Conv", net.node(op, x), inner)), outer)
        for op in ("GlobalAveragePool", "GlobalMaxPool")
    ]
    x = net.mul(x, net.sigmoid(net.add(*gates)))
    largest = net.node("ReduceMax", x, axes=[1], keepdims=1)
    return net.mul(x, net.sigmoid(net.conv(net.concat(largest, net.mean(x, 1)), 1, 7)))


@block("in 8~, out 6")
def gate_by_neighbours(net: Net, x: Tensor) -> Any:
    """ECA: a 1-D convolution along the channels; where one goes, its neighbours meet others."""
    x = net.conv(x, 8)
    y = net.transpose(net.squeeze(net.global_avg_pool(x), 3), 0, 2, 1)
    y = net.unsqueeze(net.transpose(net.sigmoid(net.conv(y, 1, 3, bias=False)), 0, 2, 1), 3)
    return net.conv(net.mul(x, y), 6)


@block("in 8, squeezed 4")
def gate_by_direction(net: Net, x: Tensor) -> Any:
    """Coordinate attention: means along rows and columns joined, convolved, and split again."""
    x = net.conv(x, 8)
    down, across = net.mean(x, 3), net.transpose(net.mean(x, 2), 0, 1, 3, 2)
    y = net.hard_swish(net.conv_bn(net.concat(down, across, axis=2), 4, 1))
    down, across = net.split(y, [8, 8], axis=2)
    across = net.conv(net.transpose(across, 0, 1, 3, 2), 8, 1)
    return net.mul(net.mul(x, net.sigmoid(net.conv(down, 8, 1))), net.sigmoid(across))


@block("branches 8, squeezed 4")
def gate_of_branches(net: Net, x: Tensor) -> Any:
    """SKNet: a softmax over two branches, whose weights come from one layer, stacked."""
    parts = [net.relu(net.conv_bn(x, 8, k)) for k in (3, 5)]
    y = net.relu(net.conv(net.global_avg_pool(net.add(*parts)), 4, 1))
    y = net.softmax(net.reshape(net.conv(y, 16, 1), [B, 2, 8, 1, 1]), axis=1)
    stack = net.concat(*(net.unsqueeze(p, 1) for p in parts), axis=1)
    return net.node("ReduceSum", net.mul(stack, y), [1], keepdims=0)


@block("in 4, radix 2~, width 6, squeezed 4, out 5")
def gate_of_splits(net: Net, x: Tensor) -> Any:
    """ResNeSt: a grouped convolution makes the branches; softmax over an axis of 2."""
    y = net.relu(net.conv_bn(net.conv(x, 8), 12, groups=2))
    y = net.reshape(y, [B, 2, 6, 8, 8])
    total = net.node("ReduceSum", y, [1], keepdims=0)
    a = net.conv(net.relu(net.conv(net.global_avg_pool(total), 4, 1)), 12, 1)
    a = net.softmax(net.transpose(net.reshape(a, [B, 1, 2, 6]), 0, 2, 1, 3), axis=1)
    a = net.reshape(net.reshape(a, [B, 12]), [B, 2, 6, 1, 1])
    return net.conv(net.node("ReduceSum", net.mul(y, a), [1], keepdims=0), 5)


@block("in 8")
def gate_without_weights(net: Net, x: Tensor) -> Any:
    """SimAM: a gate from each pixel's distance to the mean."""
    x = net.conv(x, 8)
    y = net.node("ReduceMean", x, axes=[2, 3], keepdims=1)
    y = net.node("Pow", net.sub(x, y), 2.0)
    total = net.div(net.node("ReduceSum", y, [2, 3], keepdims=1), 63.0)
    y = net.add(net.div(y, net.mul(net.add(total, 1e-4), 4.0)), 0.5)
    return net.mul(x, net.sigmoid(y))


# --- parts of the channels


@block("in 8, one 6, other 5, inner 4, out 7")
def cross_stage_partial(net: Net, x: Tensor) -> Any:
    """CSPNet: two convolutions of one input, one with a residual bottleneck, joined."""
    x = net.silu(net.conv_bn(x, 8))
    one, other = net.silu(net.conv_bn(x, 6, 1)), net.silu(net.conv_bn(x, 5, 1))
    inner = net.silu(net.conv_bn(net.silu(net.conv_bn(one, 4, 1)), 6))
    return net.silu(net.conv_bn(net.concat(net.add(one, inner), other), 7, 1))


@block("first 6, second 6, inner 4, inner2 5, third 6, out 7")
def chunks_and_bottlenecks(net: Net, x: Tensor) -> Any:
    """YOLOv8's C2f: halves, each bottleneck reads the last part, all parts are joined."""
    parts = net.split(net.silu(net.conv(x, 12, 1)), [6, 6])
    y = net.silu(net.conv(net.silu(net.conv(parts[1], 4)), 6))
    parts.append(net.add(parts[1], y))
    parts.append(net.silu(net.conv(net.silu(net.conv(parts[2], 5)), 6)))
    return net.silu(net.conv(net.concat(*parts), 7, 1))


@block("first 4, second 4, third 4, convolved 4, last 4, out 7")
def scales_in_steps(net: Net, x: Tensor) -> Any:
    """Res2Net: quarters, each added to the convolved one before it; the last one passes."""
    parts = net.split(net.relu(net.conv_bn(x, 16, 1)), [4] * 4)
    made: list[Tensor] = []
    for part in parts[:3]:
        made.append(net.relu(net.conv_bn(net.add(part, made[-1]) if made else part, 4)))
    return net.conv(net.concat(*made, parts[3]), 7, 1)


@block("both 4, single 2, out 7")
def cheap_copies(net: Net, x: Tensor) -> Any:
    """GhostNet: channels and their depthwise copies, cut to a width that drops some copies."""
    y = net.relu(net.conv_bn(x, 6, 1))
    copies = net.relu(net.conv_bn(y, 6, groups=6))
    return net.conv(net.slice(net.concat(y, copies), 0, 10), 7, 1)


@block("first 4, second 5, third 6, fourth 7, out 8")
def dense_by_powers(net: Net, x: Tensor) -> Any:
    """HarDNet: layer k reads the layers k - 1, k - 2, k - 4; the odd ones make the output."""
    layers = [net.relu(net.conv_bn(x, 4))]
    for k, width in ((1, 5), (2, 6), (3, 7)):
        read = [layers[k - step] for step in (1, 2, 4) if k >= step and k % step == 0]
        layers.append(net.relu(net.conv_bn(net.concat(*read) if read[1:] else read[0], width)))
    return net.conv(net.concat(layers[1], layers[3]), 8, 1)


@block("stem 4, one 5, two 6, out 7")
def concat_of_everything(net: Net, x: Tensor) -> Any:
    """VoVNet: every layer is read by the next one and, once more, by the aggregation."""
    parts = [net.relu(net.conv(x, 4))]
    for width in (5, 6):
        parts.append(net.relu(net.conv(parts[-1], width)))
    return net.conv(net.concat(*parts), 7, 1)


@block("residual 6, dense 3, dense2 2, inner 5, out 4")
def dual_paths(net: Net, x: Tensor) -> Any:
    """DPN: one convolution feeds a residual sum with its first part, a Concat with the rest."""
    residual, dense = net.split(net.conv(x, 9), [6, 3])
    y = net.conv(net.relu(net.conv(net.concat(residual, dense), 5)), 8)
    more, wider = net.slice(y, 0, 6), net.slice(y, 6, 2**62)
    return net.conv(net.concat(net.add(residual, more), net.concat(dense, wider)), 4)


@block("in 6, out 7")
def pools_in_a_row(net: Net, x: Tensor) -> Any:
    """SPPF: a map and three maximum pools of it are joined, so a channel goes from all four."""
    parts = [net.silu(net.conv_bn(x, 6, 1))]
    for _ in range(3):
        parts.append(net.pool(parts[-1], 5, 1, 2))
    return net.conv(net.concat(*parts), 7, 1)


@block("convolved 3, convolved-out 3, rest 9, out 5")
def partial_convolution(net: Net, x: Tensor) -> Any:
    """FasterNet: a quarter of the channels is convolved, the rest passes."""
    a, rest = net.split(net.conv(x, 12), [3, 9])
    return net.conv(net.concat(net.conv(a, 3), rest), 5, 1)


@block("small 4, large 6, small-out 3, large-out 5, out 7")
def mixed_kernels(net: Net, x: Tensor) -> Any:
    """MixNet: parts of the channels under depthwise and plain kernels of other sizes."""
    a, b = net.split(net.conv(x, 10), [4, 6])
    a, b = net.conv(a, 4, 3, groups=4), net.conv(b, 6, 5, groups=6)
    a, b = net.split(net.concat(a, b), [4, 6])
    return net.conv(net.concat(net.conv(a, 3, 1), net.conv(b, 5, 1)), 7, 1)


@block("high 6, low 4, high-out 5, low-out 3")
def octaves(net: Net, x: Tensor) -> Any:
    """Octave convolution: two resolutions exchange through pools and resizes."""
    high, low = net.conv(x, 6), net.conv(net.pool(x, op="AveragePool"), 4)
    up = net.node("Resize", net.conv(low, 5), None, [1.0, 1.0, 2.0, 2.0])
    made = net.relu(net.add(net.conv(high, 5), up))
    down = net.conv(net.pool(high, op="AveragePool"), 3)
    made_low = net.relu(net.add(down, net.conv(low, 3)))
    return net.concat(net.global_avg_pool(made), net.global_avg_pool(made_low))


@block("in 8, out 6")
def signs_apart(net: Net, x: Tensor) -> Any:
    """CReLU: a map and its negative are joined, so the layer behind reads each channel twice."""
    y = net.conv(x, 8)
    return net.conv(net.relu(net.concat(y, net.node("Neg", y))), 6)


@block("pieces 6, in-piece 2~, out 5")
def largest_of_pieces(net: Net, x: Tensor) -> Any:
    """Maxout: channels in pairs on an axis of 2, of which the maximum stays."""
    y = net.reshape(net.conv(x, 12), [0, 6, 2, 8, 8])
    return net.conv(net.node("ReduceMax", y, axes=[2], keepdims=0), 5)


@block("left 6, right 6, out 5")
def halves_by_stack(net: Net, x: Tensor) -> Any:
    """The halves of the channels as an axis of 2, taken apart by Gather."""
    y = net.reshape(net.conv(x, 12), [0, 2, 6, 8, 8])
    a, b = (net.gather(y, np.int64(i), 1) for i in (0, 1))
    return net.conv(net.concat(net.relu(a), b), 5)


@block("left 2, right 2, up 2, down 2, rest 3, out 5")
def shifted_parts(net: Net, x: Tensor) -> Any:
    """ShiftNet: parts of the channels move by one pixel, each by Pad and Slice."""
    *parts, rest = net.split(net.conv(x, 11), [2, 2, 2, 2, 3])
    moved = []
    for part, (axis, by) in zip(parts, ((3, -1), (3, 1), (2, -1), (2, 1)), strict=True):
        pads = [0] * 8
        pads[axis + (4 if by < 0 else 0)] = 1
        start, end = (1, 2**62) if by < 0 else (0, 8)
        moved.append(net.slice(net.node("Pad", part, pads), start, end, axis=axis))
    return net.conv(net.concat(*moved, rest), 5, 1)
