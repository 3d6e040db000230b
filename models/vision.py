"""Makes the vision networks of torchvision, at any width, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Protocol

from onnx import ModelProto

from models.builder import Dim, Net, Tensor

Width = Callable[[float], int]
Body = Callable[[Net, Tensor, Width, int], Tensor]
LINEAR = 1.0  # gain of a convolution that no ReLU follows
BRANCH = 0.5  # gain of the last convolution of a residual branch
SWISH = 1.5  # gain of a convolution after a swish
GATED = 2.5  # gain after a swish and a squeeze-and-excite, whose gate is near 0.5


class Maker(Protocol):
    def __call__(
        self,
        width: float = 1.0,
        image: int = 224,
        classes: int = 1000,
        seed: int = 0,
        batch: Dim = 1,
        bn: bool = True,
    ) -> ModelProto: ...


MAKERS: dict[str, Maker] = {}


def maker(body: Body) -> Maker:
    """A maker from a body (net, image, width scale, classes) -> output."""

    def make(
        width: float = 1.0,
        image: int = 224,
        classes: int = 1000,
        seed: int = 0,
        batch: Dim = 1,
        bn: bool = True,
    ) -> ModelProto:
        def scaled(channels: float) -> int:
            return int(channels) if width == 1 else max(8, round(channels * width / 8) * 8)

        net = Net(body.__name__, seed, norm=bn)
        x = net.input("image", [batch, 3, image, image])
        return net.model(body(net, x, scaled, classes))

    MAKERS[body.__name__] = make
    return make


def _classify(net: Net, x: Tensor, classes: int) -> Tensor:
    return net.gemm(net.flatten(net.global_avg_pool(x)), classes)


# --- ResNet, ResNeXt


def _stem(net: Net, x: Tensor, channels: int) -> Tensor:
    return net.pool(net.relu(net.conv_bn(x, channels, 7, 2)), 3, 2, 1)


def _basic(net: Net, x: Tensor, inner: int, out: int, stride: int, groups: int) -> Tensor:
    y = net.relu(net.conv_bn(x, inner, 3, stride))
    return net.conv_bn(y, out, 3, gain=BRANCH)


def _bottleneck(net: Net, x: Tensor, inner: int, out: int, stride: int, groups: int) -> Tensor:
    y = net.relu(net.conv_bn(x, inner, 1))
    y = net.relu(net.conv_bn(y, inner, 3, stride, groups))
    return net.conv_bn(y, out, 1, gain=BRANCH)


Block = Callable[[Net, Tensor, int, int, int, int], Tensor]


def _resnet(
    net: Net, x: Tensor, block: Block, depths: list[int], inner: list[int], out: list[int],
    groups: int = 1,
) -> Tensor:  # fmt: skip
    for stage, depth in enumerate(depths):
        for i in range(depth):
            stride = 2 if stage and not i else 1
            with net.scope(f"layer{stage + 1}.{i}"):
                y = block(net, x, inner[stage], out[stage], stride, groups)
                if stride > 1 or x.shape[1] != out[stage]:
                    x = net.conv_bn(x, out[stage], 1, stride, gain=LINEAR)
                x = net.relu(net.add(y, x))
    return x


@maker
def resnet18(net: Net, x: Tensor, width: Width, classes: int) -> Tensor:
    sizes = [width(c) for c in (64, 128, 256, 512)]
    x = _resnet(net, _stem(net, x, sizes[0]), _basic, [2, 2, 2, 2], sizes, sizes)
    return _classify(net, x, classes)


@maker
def resnet50(net: Net, x: Tensor, width: Width, classes: int) -> Tensor:
    inner = [width(c) for c in (64, 128, 256, 512)]
    out = [4 * c for c in inner]
    x = _resnet(net, _stem(net, x, inner[0]), _bottleneck, [3, 4, 6, 3], inner, out)
    return _classify(net, x, classes)


@maker
def resnext50(net: Net, x: Tensor, width: Width, classes: int) -> Tensor:
    groups = width(32)
    inner = [groups * n for n in (4, 8, 16, 32)]
    out = [width(c) for c in (256, 512, 1024, 2048)]
    x = _resnet(net, _stem(net, x, width(64)), _bottleneck, [3, 4, 6, 3], inner, out, groups)
    return _classify(net, x, classes)


# --- inverted residuals


@maker
def mobilenet_v2(net: Net, x: Tensor, width: Width, classes: int) -> Tensor:
    x = net.relu6(net.conv_bn(x, width(32), 3, 2))
    settings = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                (6, 160, 3, 2), (6, 320, 1, 1)]  # fmt: skip
    for stage, (expand, out, depth, stride) in enumerate(settings):
        for i in range(depth):
            with net.scope(f"features.{stage}.{i}"):
                y, inner = x, x.shape[1] * expand
                if expand > 1:
                    y = net.relu6(net.conv_bn(y, inner, 1))
                y = net.relu6(net.conv_bn(y, inner, 3, 1 if i else stride, groups=inner))
                y = net.conv_bn(y, width(out), 1, gain=LINEAR)
                x = net.add(x, y) if i else y
    x = net.relu6(net.conv_bn(x, width(1280), 1))
    return _classify(net, x, classes)


@maker
def mobilenet_v3(net: Net, x: Tensor, width: Width, classes: int) -> Tensor:
    x = net.hard_swish(net.conv_bn(x, width(16), 3, 2))
    settings = [(3, 16, 16, 0, 0, 1), (3, 64, 24, 0, 0, 2), (3, 72, 24, 0, 0, 1),
                (5, 72, 40, 1, 0, 2), (5, 120, 40, 1, 0, 1), (5, 120, 40, 1, 0, 1),
                (3, 240, 80, 0, 1, 2), (3, 200, 80, 0, 1, 1), (3, 184, 80, 0, 1, 1),
                (3, 184, 80, 0, 1, 1), (3, 480, 112, 1, 1, 1), (3, 672, 112, 1, 1, 1),
                (5, 672, 160, 1, 1, 2), (5, 960, 160, 1, 1, 1), (5, 960, 160, 1, 1, 1)]  # fmt: skip
    for i, (k, expanded, out, excite, swish, stride) in enumerate(settings):
        inner, act = width(expanded), net.hard_swish if swish else net.relu
        with net.scope(f"features.{i + 1}"):
            y = act(net.conv_bn(x, inner, 1, gain=LINEAR)) if expanded != 16 else x
            y = act(net.conv_bn(y, inner, k, stride, groups=inner, gain=SWISH))
            if excite:
                y = net.squeeze_excite(y, _divisible(inner / 4), gate="HardSigmoid")
            y = net.conv_bn(y, width(out), 1, gain=0.8 * (GATED if excite else SWISH))
            x = net.add(x, y) if stride == 1 and x.shape[1] == y.shape[1] else y
    x = net.hard_swish(net.conv_bn(x, width(960), 1))
    x = net.hard_swish(net.gemm(net.flatten(net.global_avg_pool(x)), width(1280)))
    return net.gemm(x, classes)


@maker
def efficientnet_b0(net: Net, x: Tensor, width: Width, classes: int) -> Tensor:
    x = net.silu(net.conv_bn(x, width(32), 3, 2))
    settings = [(1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3),
                (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)]  # fmt: skip
    for stage, (expand, k, stride, out, depth) in enumerate(settings):
        for i in range(depth):
            with net.scope(f"features.{stage + 1}.{i}"):
                y, inner = x, x.shape[1] * expand
                if expand > 1:
                    y = net.silu(net.conv_bn(y, inner, 1, gain=LINEAR))
                y = net.silu(net.conv_bn(y, inner, k, 1 if i else stride, groups=inner, gain=SWISH))
                y = net.squeeze_excite(y, max(1, x.shape[1] // 4), inner="SiLU")
                y = net.conv_bn(y, width(out), 1, gain=GATED)
                x = net.add(x, y) if i else y
    x = net.silu(net.conv_bn(x, width(1280), 1))
    return _classify(net, x, classes)


def _divisible(channels: float) -> int:
    """torchvision's rounding to multiples of 8 that loses at most 10 %."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


# --- dense connections, channel shuffle


@maker
def densenet121(net: Net, x: Tensor, width: Width, classes: int) -> Tensor:
    """Its BN stands before the ReLU of a concatenation: `bn=False` leaves it as Mul and Add."""
    growth = width(32)
    x = _stem(net, x, 2 * growth)
    for block, depth in enumerate([6, 12, 24, 16]):
        for i in range(depth):
            with net.scope(f"denseblock{block + 1}.{i}"):
                y = net.relu(_affine(net, x))
                y = net.relu(net.conv_bn(y, 4 * growth, 1))
                x = net.concat(x, net.conv(y, growth, 3, bias=False))
        if block < 3:
            with net.scope(f"transition{block + 1}"):
                y = net.conv(net.relu(_affine(net, x)), x.shape[1] // 2, 1, bias=False)
                x = net.pool(y, op="AveragePool")
    return _classify(net, net.relu(_affine(net, x)), classes)


def _affine(net: Net, x: Tensor) -> Tensor:
    if net.norm:
        return net.bn(x)
    scale, bias = net.uniform(0.8, 1.2, x.shape[1], 1, 1), net.uniform(-0.2, 0.2, x.shape[1], 1, 1)
    return net.add(net.mul(x, scale), bias)


@maker
def shufflenet_v2(net: Net, x: Tensor, width: Width, classes: int) -> Tensor:
    x = _stem_small(net, x, width(24))
    for stage, (channels, depth) in enumerate([(116, 4), (232, 8), (464, 4)]):
        half = width(channels) // 2
        for i in range(depth):
            with net.scope(f"stage{stage + 2}.{i}"):
                if i == 0:
                    left = net.conv_bn(x, x.shape[1], 3, 2, groups=x.shape[1], gain=LINEAR)
                    left, right = net.relu(net.conv_bn(left, half, 1)), x
                elif stage == 1:  # as chunk() is exported where the size is not a constant
                    left, right = net.slice(x, 0, half), net.slice(x, half, 2 * half)
                else:
                    left, right = net.split(x, [half, half])
                right = net.relu(net.conv_bn(right, half, 1))
                stride = 1 if i else 2
                right = net.conv_bn(right, half, 3, stride, groups=half, gain=LINEAR)
                right = net.relu(net.conv_bn(right, half, 1))
                x = channel_shuffle(net, net.concat(left, right), 2)
    return _classify(net, net.relu(net.conv_bn(x, width(1024), 1)), classes)


def _stem_small(net: Net, x: Tensor, channels: int) -> Tensor:
    return net.pool(net.relu(net.conv_bn(x, channels, 3, 2)), 3, 2, 1)


def channel_shuffle(net: Net, x: Tensor, groups: int) -> Tensor:
    n, c, *image = x.shape
    batch = n if isinstance(n, int) else -1
    split, merged = [groups, c // groups, *image], [c, *image]
    x = net.node("Reshape", x, [batch, *split], shape=[n, *split])
    x = net.transpose(x, 0, 2, 1, *range(3, 3 + len(image)))
    return net.node("Reshape", x, [batch, *merged], shape=[n, *merged])


# --- encoder and decoder, plain chain


@maker
def unet(net: Net, x: Tensor, width: Width, classes: int) -> Tensor:
    def double(x: Tensor, channels: int) -> Tensor:
        for _ in range(2):
            x = net.relu(net.conv_bn(x, channels))
        return x

    return _unet(net, x, [width(c) for c in (64, 128, 256, 512, 1024)], classes, double, False)


@maker
def unet_groupnorm(net: Net, x: Tensor, width: Width, classes: int) -> Tensor:
    """GroupNorm whatever `bn` is; nearest Resize and a convolution on the way up."""

    def double(x: Tensor, channels: int) -> Tensor:
        for _ in range(2):
            x = net.relu(net.group_norm(net.conv(x, channels), ceil(channels / 16)))
        return x

    return _unet(net, x, [width(c) for c in (32, 64, 128, 256)], classes, double, True)


def _unet(
    net: Net, x: Tensor, sizes: list[int], classes: int, double: Callable[[Tensor, int], Tensor],
    resize: bool,
) -> Tensor:  # fmt: skip
    skips: list[Tensor] = []
    for i, channels in enumerate(sizes):
        with net.scope(f"down{i}"):
            x = double(net.pool(x) if i else x, channels)
            skips.append(x)
    for i in range(len(sizes) - 2, -1, -1):
        with net.scope(f"up{i}"):
            if resize:
                up = net.node(
                    "Resize",
                    x,
                    None,
                    [1.0, 1.0, 2.0, 2.0],
                    mode="nearest",
                    coordinate_transformation_mode="asymmetric",
                    nearest_mode="floor",
                )
                x = net.conv(up, sizes[i], 3)
            else:
                x = net.conv_transpose(x, sizes[i])
            x = double(net.concat(skips[i], x), sizes[i])
    return net.conv(x, classes, 1, gain=LINEAR)


@maker
def vgg11_bn(net: Net, x: Tensor, width: Width, classes: int) -> Tensor:
    """The adaptive pool, an identity at 224 pixels, is left out at every size."""
    for channels in (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0):
        x = net.relu(net.conv_bn(x, width(channels))) if channels else net.pool(x)
    x = net.flatten(x)
    for _ in range(2):
        x = net.relu(net.gemm(x, width(4096), gain=2**0.5))
    return net.gemm(x, classes)
