"""Convolutions of every rank and grouping, and reorderings between channels and space."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto

import spa
from models.builder import Net, Tensor
from tests.ops.cases import (
    CODE,
    SIGNAL,
    UNSEEN,
    VOLUME,
    Body,
    Case,
    case,
    check_axes,
    coded,
    contrib,
    dequantise,
    quantise,
    summed,
)


def _conv(out: int, **options: Any) -> Body:
    return lambda net, a: net.conv(net.relu(a), out, **options)


def _transposed(out: int, **options: Any) -> Body:
    return lambda net, a: net.conv_transpose(net.relu(a), out, **options)


def _block(op: str, channels: int, **attrs: Any) -> Body:
    return lambda net, a: net.node(op, net.conv(net.relu(a), channels, 1), blocksize=2, **attrs)


def _deform(*, groups: int | None = 1, offset_groups: int | None = 1, mask: bool = False) -> Body:
    """Either number may be left to its default, 1."""

    def body(net: Net, a: Tensor) -> Tensor:
        count = offset_groups or 1
        offset = net.uniform(-1, 1, 2, 18 * count, 6, 6)
        more = [net.uniform(0, 1, 2, 9 * count, 6, 6)] if mask else []
        weight, bias = net.weight(6, 8 // (groups or 1), 3, 3), net.uniform(-1, 1, 6)
        return net.node(
            "DeformConv", a, weight, offset, bias, *more, pads=[1] * 4, group=groups,
            offset_group=offset_groups,
        )  # fmt: skip

    return body


def _computed_offsets(net: Net, a: Tensor) -> Tensor:
    offset = net.conv(a, 18)
    return net.node("DeformConv", a, net.weight(6, 8, 3, 3), offset, pads=[1] * 4)


def _col2im(net: Net, a: Tensor) -> Tensor:
    columns = net.reshape(net.conv(a, 16, 1), [2, 16, 36])  # (4 channels of a 2x2 block)
    return net.node("Col2Im", columns, [12, 12], [2, 2], strides=[2, 2])


def _dynamic_weight(net: Net, a: Tensor) -> Tensor:
    """A weight that is computed from another constant."""
    return net.node("Conv", a, net.mul(net.weight(6, 8, 1, 1), 0.5))


def _weight_from_activation(net: Net, a: Tensor) -> Tensor:
    kernel = net.node("ReduceMean", a, axes=[0], keepdims=1)  # [1, 8, 6, 6]
    return net.node("Conv", a, kernel)


def _along_channels(k: int, **options: Any) -> Body:
    """A convolution whose space is the producer's channels and whose channels are pixels."""
    return lambda net, a: net.transpose(
        net.conv(net.transpose(a, 0, 2, 1), a.shape[2], k, **options), 0, 2, 1
    )


def _filtered(k: int, **attrs: Any) -> Body:
    """Mean by channel, a window that slides over the row of means, and a gate: ECA."""

    def body(net: Net, a: Tensor) -> Tensor:
        row = net.reshape(net.global_avg_pool(a), [2, 1, 8])
        made = net.node("Conv", row, net.weight(1, 1, k), **attrs)
        return net.mul(a, net.sigmoid(net.reshape(made, [2, -1, 1, 1])))

    return body


def _summed_row(**attrs: Any) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        row = net.reshape(net.global_avg_pool(a), [2, 1, 8])
        made = net.node("Conv", row, net.weight(1, 1, 3), **attrs)
        return net.add(a, net.node("ReduceSum", net.unsqueeze(made, 1), [3], keepdims=1))

    return body


def _causal(bias: bool = False, past: bool = False, **attrs: Any) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        b = net.uniform(-1, 1, 8) if bias else None
        state = net.uniform(-1, 1, 2, 8, 2) if past else None
        w = net.weight(8, 1, 3)
        return net.nodes("CausalConvWithState", [a, w, b, state], 2, **attrs)[0]

    return body


def _causal_stored(net: Net, a: Tensor) -> Tensor:
    """A batch out of the file, of which some may go, and what comes after it."""
    x, past = net.weight(2, 8, 8), net.uniform(-1, 1, 2, 8, 2)
    y, state = net.nodes("CausalConvWithState", [x, net.weight(8, 1, 3), None, past], 2)
    total = net.node("ReduceSum", y, [0], keepdims=1)
    return net.add(a, net.add(total, net.node("ReduceSum", state, [0, 2], keepdims=1)))


def _causal_of_what_speaks(net: Net, a: Tensor) -> Tensor:
    bias = net.sigmoid(net.uniform(-1, 1, 8))
    return summed(net, net.nodes("CausalConvWithState", [a, net.weight(8, 1, 3), bias], 2)[0])


def _speaking(op: str, which: str) -> Body:
    """Where a channel is removed its input still speaks, or its weight."""

    def body(net: Net, a: Tensor) -> Tensor:
        shape = (8, 6, 3, 3) if op == "ConvTranspose" else (6, 8, 3, 3)
        x, w = a, net.weight(*shape)
        x, w = net.sigmoid(x) if "x" in which else x, net.sigmoid(w) if "w" in which else w
        more = [net.uniform(-1, 1, 2, 18, 6, 6)] if op == "DeformConv" else []
        return net.node(op, x, w, *more, pads=[1] * 4)

    return body


def _stored(net: Net, *shape: int, kind: Any = np.int8) -> Tensor:
    """Seven bits: onnxruntime's kernels for older machines saturate sums of eight."""
    low, high = (68, 188) if kind is np.uint8 else (-60, 60)
    return net.const(net.rng.integers(low, high, shape).astype(kind), "stored")


def _per(value: float, n: int | None, kind: Any) -> Any:
    """The value once, or a little different for every one of n channels."""
    spread = np.zeros(()) if n is None else np.arange(n) % 3
    return (value + spread * (1 if np.issubdtype(kind, np.integer) else value / 8)).astype(kind)


def _qlinear(
    out: int = 6, *, channels: bool = False, kind: Any = np.int8, bias: bool = True,
    one: bool = False, vectors: bool = False, **attrs: Any,
) -> Body:  # fmt: skip
    """A convolution in eight bits, between a float producer and a float consumer.

    one: one zero point for all channels. vectors: scales and zero points are vectors of one.
    """

    def body(net: Net, a: Tensor) -> Tensor:
        n, scale, point = out if channels else None, np.float32(0.03), np.uint8(117)
        w = _stored(net, out, a.shape[1] // attrs.get("group", 1), 3, 3, kind=kind)
        zero = (
            np.zeros((n,) if n and not one else (), np.int8) if kind is np.int8 else np.uint8(128)
        )
        factor = _per(0.01, n, np.float32)
        if vectors:
            zero, factor = zero.reshape(1), factor.reshape(1)
        more = [net.const(net.rng.integers(-500, 500, out).astype(np.int32))] if bias else []
        x = net.node("QuantizeLinear", a, scale, point)
        y = net.node(
            "QLinearConv", x, scale, point, w, factor, zero, np.float32(0.05),
            np.uint8(91), *more, pads=[1] * 4, **attrs,
        )  # fmt: skip
        return net.node("DequantizeLinear", y, np.float32(0.05), np.uint8(91))

    return body


def _qlinear_of_onnxruntime(last: bool, out: int = 6, group: int = 1) -> Body:
    """Its own form of QLinearConv, which may have the channels last."""

    def body(net: Net, a: Tensor) -> Tensor:
        shape = [*a.shape[:1], out, *a.shape[2:]]
        x = quantise(net, a)
        x = net.transpose(x, 0, 2, 3, 1) if last else x
        w = _stored(net, out, a.shape[1] // group, 3, 3)
        bias = net.const(net.rng.integers(-500, 500, out).astype(np.int32))
        y = coded(
            net, "QLinearConv", x, *CODE, w, _per(0.01, out, np.float32), np.zeros(out, np.int8),
            *CODE, bias, pads=[1] * 4, group=group, channels_last=int(last),
            shape=[shape[k] for k in (0, 2, 3, 1)] if last else shape,
        )  # fmt: skip
        return dequantise(net, net.transpose(y, 0, 3, 1, 2) if last else y)

    return body


def _batch(made: Body, out: int = 6) -> Body:
    """Made of a batch out of the file, of which some may go."""

    def body(net: Net, a: Tensor) -> Tensor:
        y = made(net, net.uniform(-1, 1, 2, 8, 6, 6))
        return net.add(net.conv(a, out, 1), net.node("ReduceSum", y, [0], keepdims=1))

    return body


def _integer(points: bool, channels: bool = False, **attrs: Any) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        scale, point = np.float32(0.03), np.uint8(117)
        x = net.node("QuantizeLinear", a, scale, point if points else np.uint8(0))
        w = _stored(net, 6, a.shape[1] // attrs.get("group", 1), 3, 3, kind=np.uint8)
        more = [point, _per(128, 6 if channels else None, np.uint8)] if points else []
        y = net.node("ConvInteger", x, w, *more, pads=[1] * 4, **attrs)
        return net.mul(net.cast(y, TensorProto.FLOAT), 1e-3)

    return body


CASES = [
    case("window-of-one", 1, _along_channels(1), shape=SIGNAL, exact=True),
    case("window-of-three", 0, _along_channels(3), shape=SIGNAL),
    case("window-of-one-with-stride", 0, lambda net, a: (
        net.conv(net.transpose(a, 0, 2, 1), 8, 1, 2),), shape=SIGNAL),
    case("window-of-one-and-three", 1, lambda net, a: net.transpose(net.node(
        "Conv", net.transpose(a, 0, 2, 1, 3), net.weight(6, 6, 1, 3), pads=[0, 1, 0, 1],
    ), 0, 2, 1, 3), exact=True),
    case("window-of-one-padded", 2, lambda net, a: net.node(
        "Conv", a, net.weight(6, 8, 1, 1), pads=[1] * 4), exact=True),
    case("window-of-one-padded-before", 0, lambda net, a: (net.node(
        "Conv", net.transpose(a, 0, 2, 1), net.weight(8, 8, 1), pads=[1, 0]),), shape=SIGNAL),
    case("window-of-one-padded-behind", 0, lambda net, a: (net.node(
        "Conv", net.transpose(a, 0, 2, 1), net.weight(8, 8, 1), pads=[0, 1]),), shape=SIGNAL),
    case("window-of-one-grouped", 3, lambda net, a: net.node(
        "Conv", a, net.weight(6, 4, 1, 3), net.uniform(-1, 1, 6), group=2, pads=[0, 1, 0, 1])),
    case("filter-batch", 3, _batch(_filtered(3, pads=[1, 1]), 8)),
    # One row of one channel is filtered along its length, in shape only.
    case("filter", 1, _filtered(3, pads=[1, 1]), exact=False),
    case("filter-auto-pad", 1, _filtered(5, auto_pad="SAME_UPPER"), exact=False),
    case("filter-of-one", 1, _filtered(1), exact=True),
    case("filter-that-shortens", 0, _summed_row()),
    case("filter-that-strides", 0, _summed_row(strides=[2], pads=[5, 4])),
    case("2d", 2, _conv(6), exact=True),
    case("1d", 2, _conv(6), shape=SIGNAL, exact=True),
    case("3d", 2, _conv(6), shape=VOLUME, exact=True),
    case("no-bias", 2, _conv(6, bias=False), exact=True),
    case("strided", 2, _conv(6, stride=2), exact=True),
    case("dilated", 2, _conv(6, dilation=2), exact=True),
    case("one-channel-out", 1, _conv(1), exact=True),
    case("opset-7", 2, _conv(6), opset=7, exact=True),
    case("opset-11", 2, _conv(6), opset=11, exact=True),
    case("opset-22", 2, _conv(6), opset=22, exact=True),
    case("auto-pad", 2, lambda net, a: net.node(
        "Conv", a, net.weight(6, 8, 3, 3), auto_pad="SAME_UPPER"), exact=True),
    case("computed-weight", 2, _dynamic_weight, exact=True),
    case("weight-from-activation", 1, _weight_from_activation),
    # Grouped: the same index of every group of inputs; likewise of outputs; and whole groups.
    case("grouped-2", 3, _conv(6, groups=2), exact=True),
    case("grouped-4", 3, _conv(12, groups=4), exact=True),
    case("grouped-1d", 3, _conv(6, groups=2), shape=SIGNAL, exact=True),
    case("grouped-3d", 3, _conv(6, groups=2), shape=VOLUME, exact=True),
    # Of the second 8 = (2 groups) x 2 x 2, which the third cuts to pairs, each factor is a group.
    case("grouped-twice", 5, lambda net, a: net.conv(net.conv(a, 8, groups=2), 12, groups=4)),
    case("depthwise", 1, _conv(8, groups=8), exact=True),
    case("depthwise-no-bias", 1, _conv(8, groups=8, bias=False), exact=True),
    case("depthwise-1d", 1, _conv(8, groups=8), shape=SIGNAL, exact=True),
    case("depthwise-3d", 1, _conv(8, groups=8), shape=VOLUME, exact=True),
    # Three outputs per channel: a channel goes with its own, or the same one of every channel.
    case("depthwise-multiplier", 2, _conv(24, groups=8), exact=True),
    # 4 groups of 2 in, 1 out each: whole groups, or the same input of each.
    case("groups-of-one-output", 2, _conv(4, groups=4), exact=True),
    # Transposed.
    case("transposed", 2, _transposed(6), exact=True),
    case("transposed-1d", 2, _transposed(6), shape=SIGNAL, exact=True),
    case("transposed-3d", 2, _transposed(6), shape=VOLUME, exact=True),
    case("transposed-grouped", 3, _transposed(6, groups=2), exact=True),
    case("transposed-depthwise", 1, _transposed(8, groups=8), exact=True),
    case("transposed-depthwise-multiplier", 2, _transposed(16, groups=8), exact=True),
    case("transposed-opset-7", 3, _transposed(6, groups=2), opset=7, exact=True),
    case("transposed-output-shape", 2, lambda net, a: net.node(
        "ConvTranspose", a, net.weight(8, 6, 2, 2), strides=[2, 2], output_shape=[12, 12])),
    # Deformable.
    case("deformable", 2, _deform(), opset=19, exact=True),
    case("deformable-mask", 2, _deform(mask=True), opset=19, exact=True),
    case("deformable-grouped", 3, _deform(groups=2), opset=19, exact=True),
    case("deformable-grouped-mask", 3, _deform(groups=2, mask=True), opset=19, exact=True),
    case("deformable-offset-groups", 2, _deform(offset_groups=2), opset=19, exact=True),
    case("deformable-by-default", 2, _deform(offset_groups=2, groups=None), opset=19, exact=True),
    case("deformable-grouped-by-default", 3, _deform(groups=2, offset_groups=None), opset=19,
         exact=True),
    case("deformable-both", 0, _deform(groups=2, offset_groups=2), opset=19),
    case("deformable-computed-offsets", 2, _computed_offsets, opset=19, exact=True),
    # Between channels and space: 16 channels are 4 units of a 2x2 block.
    case("DepthToSpace-DCR", 2, _block("DepthToSpace", 16, mode="DCR"), exact=True),
    case("DepthToSpace-CRD", 2, _block("DepthToSpace", 16, mode="CRD"), exact=True),
    case("DepthToSpace-opset-7", 2, _block("DepthToSpace", 16), opset=7, exact=True),
    case("DepthToSpace-to-one", 1, _block("DepthToSpace", 4, mode="CRD"), exact=True),
    case("SpaceToDepth", 2, _block("SpaceToDepth", 4), exact=True),
    *(case(f"SpaceToDepth-{mode}", 2, _block("SpaceToDepth", 4, mode=mode), opset=28, exact=True)
      for mode in ("DCR", "CRD")),
    case("SpaceToDepth-and-back", 2, lambda net, a: net.node(
        "DepthToSpace", _block("SpaceToDepth", 4)(net, a), blocksize=2), exact=True),
    case("Col2Im", 2, _col2im, opset=18, exact=True),
    # In eight bits.
    case("QLinearConv", 2, _qlinear(), exact=True),
    case("QLinearConv-no-bias", 2, _qlinear(bias=False), exact=True),
    case("QLinearConv-per-channel", 2, _qlinear(channels=True), exact=True),
    case("QLinearConv-unsigned", 2, _qlinear(kind=np.uint8), exact=True),
    case("QLinearConv-grouped", 3, _qlinear(group=2), exact=True),
    case("QLinearConv-grouped-per-channel", 3, _qlinear(group=2, channels=True), exact=True),
    case("QLinearConv-depthwise", 1, _qlinear(8, group=8, channels=True), exact=True),
    case("QLinearConv-summed", 2, lambda net, a: summed(net, _qlinear()(net, a)), exact=True),
    case("QLinearConv-unsigned-summed", 2, lambda net, a: summed(
        net, _qlinear(kind=np.uint8)(net, a)), exact=True),
    case("QLinearConv-of-what-speaks", 2, lambda net, a: _qlinear(kind=np.uint8)(
        net, net.sigmoid(a)), exact=True),
    case("ConvInteger-of-what-speaks", 2, lambda net, a: _integer(True)(net, net.sigmoid(a)),
         exact=True),
    case("ConvInteger", 2, _integer(True), exact=True),
    case("ConvInteger-no-points", 2, _integer(False), exact=True),
    case("QLinearConv-of-onnxruntime", 2, _qlinear_of_onnxruntime(False), exact=True),
    case("QLinearConv-channels-last", 2, _qlinear_of_onnxruntime(True), exact=True),
    case("QLinearConv-channels-last-grouped", 3, _qlinear_of_onnxruntime(True, group=2),
         exact=True),
    case("QLinearConv-channels-last-depthwise", 1, _qlinear_of_onnxruntime(True, 8, 8),
         exact=True),
    case("ConvInteger-grouped", 3, _integer(True, group=2), exact=True),
    case("ConvInteger-per-channel", 2, _integer(True, True), exact=True, runnable=False),
    *(case(f"{op}-where-{which}-speaks", 2, _speaking(op, which), opset=19, exact=True)
      for op in ("Conv", "ConvTranspose", "DeformConv") for which in "xw"),
    *(case(f"{op}-where-both-speak", 2, _speaking(op, "xw"), opset=19)
      for op in ("Conv", "ConvTranspose", "DeformConv")),
    case("QLinearConv-batch", 4, _batch(_qlinear())),
    case("ConvInteger-batch", 4, _batch(_integer(True))),
    *(case(f"QLinearConv-of-onnxruntime-batch-{last}", 4, _batch(_qlinear_of_onnxruntime(last)))
      for last in (False, True)),
    case("QLinearConv-one-point", 2, _qlinear(channels=True, one=True), exact=True),
    case("QLinearConv-vectors-of-one", 2, _qlinear(vectors=True), exact=True),
    # Each channel by itself.
    case("CausalConvWithState", 1, _causal(), shape=SIGNAL, opset=27, exact=True),
    case("CausalConvWithState-bias", 1, _causal(True, activation="silu"), shape=SIGNAL, opset=27,
         exact=True),
    case("CausalConvWithState-past", 1, _causal(True, past=True), shape=SIGNAL, opset=27,
         exact=True),
    case("CausalConvWithState-summed", 1, lambda net, a: summed(net, _causal(True)(net, a)),
         shape=SIGNAL, opset=27, exact=True),
    case("CausalConvWithState-stored", 2, _causal_stored, shape=SIGNAL, opset=27),
    case("CausalConvWithState-of-what-speaks", 1, _causal_of_what_speaks, shape=SIGNAL, opset=27,
         exact=False),
]  # fmt: skip


def _fused(
    out: int = 6, k: int = 3, groups: int = 1, *, add: bool = False, bias: bool = True,
    sums: bool = False, **attrs: Any,
) -> Body:  # fmt: skip
    def body(net: Net, a: Tensor) -> Tensor:
        a = net.relu(a)
        inputs: list[Any] = [a, net.weight(out, 8 // groups, k, k)]
        inputs.append(net.uniform(-1, 1, out) if bias else None)
        inputs.append(net.conv(a, out, 1) if add else None)
        pads = [k // 2] * 4
        y = contrib(net, "FusedConv", inputs, (2, out, 6, 6), pads=pads, group=groups, **attrs)[0]
        return summed(net, y) if sums else y

    return body


def _last(
    op: str, out: int = 6, groups: int = 1, *, add: bool = False, stored: bool = False
) -> Body:
    """Channels last. stored: what is added comes out of the file."""

    def body(net: Net, a: Tensor) -> Tensor:
        a = net.transpose(net.relu(a), 0, 2, 3, 1)
        inputs: list[Any] = [a, net.weight(out, 8 // groups, 3, 3), net.uniform(-1, 1, out)]
        inputs += [net.linear(a, out)] if add else []
        inputs += [net.uniform(-1, 1, 2, 6, 6, out)] if stored else []
        y = contrib(net, op, inputs, (2, 6, 6, out), pads=[1] * 4, group=groups)[0]
        return net.transpose(y, 0, 3, 1, 2)

    return body


def _spread(groups: int = 1, *, bias: bool = True, speaks: str = "") -> Body:
    """speaks: where a channel is removed its input still speaks (x), or its weight (w)."""

    def body(net: Net, a: Tensor) -> Tensor:
        x, w = net.relu(a), net.weight(8, 6 // groups, 2, 2)
        x, w = net.sigmoid(x) if "x" in speaks else x, net.sigmoid(w) if "w" in speaks else w
        inputs: list[Any] = [x, w, net.const(np.zeros(4, np.int64))]
        inputs += [net.uniform(-1, 1, 6)] if bias else []
        attrs = {"strides": [2, 2], "group": groups}
        return contrib(net, "ConvTransposeWithDynamicPads", inputs, (2, 6, 12, 12), **attrs)[0]

    return body


def _state(last: bool = False, past: bool = True, shown: bool = False) -> Body:
    def body(net: Net, a: Tensor) -> Any:
        shape, state = ((2, 8, 8), (2, 2, 8)) if last else ((2, 8, 8), (2, 8, 2))
        x = net.transpose(a, 0, 2, 1) if last else a
        inputs: list[Any] = [x, net.weight(8, 1, 3), net.uniform(-1, 1, 8)]
        inputs.append(net.uniform(-1, 1, *state) if past else None)
        attrs = {"channels_last": 1} if last else {}
        y, present = contrib(net, "CausalConvWithState", inputs, shape, state, **attrs)
        y = net.transpose(y, 0, 2, 1) if last else y
        return (net.conv(y, 5, 1), present) if shown else y

    return body


def _state_summed(which: int, speaks: str = "") -> Body:
    """What comes out (0) or what is left for the next run (1), summed over the channels."""

    def body(net: Net, a: Tensor) -> Tensor:
        given = {"x": a, "w": net.weight(8, 1, 3), "b": net.uniform(-1, 1, 8),
                 "p": net.uniform(-1, 1, 2, 8, 2)}  # fmt: skip
        inputs = [net.sigmoid(t) if name in speaks else t for name, t in given.items()]
        made = contrib(net, "CausalConvWithState", inputs, (2, 8, 8), (2, 8, 2))
        return summed(net, made[which])

    return body


def _state_batch(last: bool) -> Body:
    """Made of a batch out of the file, of which some may go."""

    def body(net: Net, a: Tensor) -> Tensor:
        shape, state = ((2, 8, 8), (2, 2, 8)) if last else ((2, 8, 8), (2, 8, 2))
        inputs = [net.weight(*shape), net.weight(8, 1, 3), net.weight(8), net.weight(*state)]
        attrs = {"channels_last": 1} if last else {}
        y = contrib(net, "CausalConvWithState", inputs, shape, state, **attrs)[0]
        y = net.transpose(y, 0, 2, 1) if last else y
        return net.add(a, net.node("ReduceSum", y, [0], keepdims=1))

    return body


def _window(outputs: int = 2, **attrs: int) -> Body:
    """A form that keeps all of it whole."""

    def body(net: Net, a: Tensor) -> Tensor:
        inputs = [a, net.weight(8, 1, 3), net.uniform(-1, 1, 8), net.uniform(-1, 1, 2, 8, 2)]
        shapes = [(2, 8, 8), (2, 8, 2), (2, 8, 2)][:outputs]
        return contrib(net, "CausalConvWithState", inputs, *shapes, **attrs)[0]

    return body


CONTRIB = [
    case("fused", 2, _fused(), exact=True),
    case("fused-no-bias", 2, _fused(bias=False), exact=True),
    *(
        case(f"fused-{name}", 2, _fused(activation=name, activation_params=params, sums=sums),
             exact=True)
        for name, params, sums in (
            ("Relu", None, True), ("Tanh", None, True), ("LeakyRelu", [0.1], True),
            ("Clip", [0.0, 6.0], True), ("Sigmoid", None, False),
            ("HardSigmoid", [0.2, 0.5], False),
        )
    ),
    case("fused-sigmoid-summed", 2, _fused(activation="Sigmoid", sums=True)),
    case("fused-clip-summed", 2, _fused(activation="Clip", activation_params=[0.5, 6.0],
                                        sums=True)),
    case("fused-add", 2, _fused(add=True, activation="Relu"), exact=True),
    case("fused-grouped", 3, _fused(8, groups=2, activation="Relu"), exact=True),
    case("fused-depthwise", 1, _fused(8, groups=8, activation="Relu"), exact=True),
    case("NhwcConv", 2, _last("NhwcConv"), exact=True, typed=True, **UNSEEN),
    case("NhwcConv-depthwise", 1, _last("NhwcConv", 8, 8), exact=True, typed=True, **UNSEEN),
    case("NhwcConv-grouped", 3, _last("NhwcConv", groups=2), exact=True, typed=True, **UNSEEN),
    case("NhwcConv-summed", 2, lambda net, a: summed(net, _last("NhwcConv")(net, a)), exact=True,
         typed=True, **UNSEEN),
    case("NhwcFusedConv-summed", 2, lambda net, a: summed(
        net, _last("NhwcFusedConv", add=True)(net, a)), exact=True, typed=True, **UNSEEN),
    case("NhwcFusedConv-grouped", 3, _last("NhwcFusedConv", groups=2, add=True), exact=True,
         typed=True, **UNSEEN),
    case("NhwcFusedConv-batch", 4, _batch(_last("NhwcFusedConv", stored=True)), typed=True,
         **UNSEEN),
    case("NhwcFusedConv", 2, _last("NhwcFusedConv", add=True), exact=True, typed=True, **UNSEEN),
    case("ConvTransposeWithDynamicPads", 2, _spread(), exact=True),
    case("ConvTransposeWithDynamicPads-grouped", 3, _spread(2), exact=True),
    case("ConvTransposeWithDynamicPads-no-bias", 3, _spread(2, bias=False), exact=True),
    *(case(f"ConvTransposeWithDynamicPads-where-{which}-speaks", 2, _spread(speaks=which),
           exact=True) for which in "xw"),
    *(case(f"state-summed-{k}", 1, _state_summed(k), shape=SIGNAL, typed=True,
           exact=True) for k in (0, 1)),
    *(case(f"state-where-{which}-speaks", 1, _state_summed(k, which), shape=SIGNAL, typed=True,
           exact=exact)
      for which, k, exact in (
          ("x", 0, True), ("w", 0, True), ("b", 0, False), ("x", 1, False), ("w", 1, True),
          ("p", 0, True), ("p", 1, False))),
    *(case(f"state-last-batch-{last}", 2, _state_batch(last), shape=SIGNAL)
      for last in (False, True)),
    case("state-of-a-window", 0, _window(state_window=2), shape=SIGNAL, typed=True, **UNSEEN),
    case("state-of-some-channels", 0, _window(input_channels=8), shape=SIGNAL, typed=True,
         **UNSEEN),
    case("state-updates", 0, _window(outputs=3), shape=SIGNAL, typed=True, **UNSEEN),
    case("state", 1, _state(), shape=SIGNAL, exact=True),
    case("state-new", 1, _state(past=False), shape=SIGNAL, exact=True),
    case("state-channels-last", 1, _state(last=True), shape=SIGNAL, exact=True),
    case("state-is-output", 0, _state(shown=True), shape=SIGNAL),
]  # fmt: skip


@pytest.mark.parametrize("case", [*CASES, *CONTRIB])
def test_conv(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("groups", [1, 2])
def test_channels_last_couple_what_channels_first_couple(groups: int) -> None:
    """onnxruntime has no kernel on the CPU that could tell; a convolution written first has."""
    made = [_fused(groups=groups, add=True), _last("NhwcFusedConv", groups=groups, add=True)]
    first, last = (spa.analyze(case("", 0, body, typed=True).values[0].model()) for body in made)

    def units(groups: spa.Groups) -> list[list[list[int]]]:
        return sorted(
            m.index.tolist()
            for g in groups
            for m in g.members
            if groups.graph.constants[m.tensor].shape[m.axis :] and len(m.index) > 1
        )

    assert units(first) == units(last)


def test_zero_points_per_channel_go_with_the_channels() -> None:
    groups = spa.analyze(case("", 2, _integer(True, True)).values[0].model())
    vectors = [c.name for c in groups.graph.constants.values() if c.shape == (6,)]
    assert {m.tensor for g in groups for m in g.members} >= set(vectors)
    assert vectors


def test_grouped_units_span_the_groups() -> None:
    """8 channels in 2 groups are 4 units of 2 channels each, and 2 units of 4: rows and columns."""
    model = case("grouped", 3, _conv(6, groups=2)).values[0].model()
    groups = spa.analyze(model)
    assert [g.size for g in groups] == [4, 3, 2]
    assert np.array_equal(groups[0].members[0].index, [[0, 4], [1, 5], [2, 6], [3, 7]])
    assert np.array_equal(groups[2].members[0].index, [[0, 1, 2, 3], [4, 5, 6, 7]])
    outputs = next(m for m in groups[2].members if (m.tensor, m.axis) == ("Conv_1.weight", 0))
    assert np.array_equal(outputs.index, [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize(("op", "laid"), [("FusedConv", "NCHW"), ("NhwcFusedConv", "NHWC")])
def test_every_axis_of_a_fused_convolution(op: str, laid: str) -> None:
    order = ["NCHW".index(axis) for axis in laid]

    def body(net: Net, a: Tensor) -> tuple[Tensor, ...]:
        x, y, behind = ([n[k] for k in order] for n in ((2, 8, 6, 6), (2, 5, 4, 4), (2, 5, 1, 1)))
        inputs = [net.weight(*x), net.weight(5, 8, 3, 3), net.uniform(-1, 1, 5)]
        inputs += [net.uniform(-1, 1, *y)]
        made = contrib(net, op, inputs, y, activation="Relu")[0]
        weights = net.const(net.rng.uniform(1, 2, behind).astype(np.float32), "behind")
        return net.linear(a, 3), net.node("ReduceSum", net.mul(made, weights), [0, 1, 2, 3])

    x, y, behind = (" ".join(n[k] for k in order) for n in ("NIhw", "NOhw", "NO11"))
    check_axes(body, op, "NIO", [x, "O I h w", "O", y], [behind])
