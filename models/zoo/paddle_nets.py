"""Paddle layers and vision models, by paddle2onnx.

A variant is written ``paddle11``, ``paddle13d``: opset, and ``d`` for a free batch.
"""

from __future__ import annotations

import re
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.static import InputSpec
from paddle.vision import models

from models.zoo.registry import add

OPSETS = (11, 13, 9, 16, 17, 19, 15, 14)


@dataclass(frozen=True)
class Sample:
    """A layer and the shapes of its inputs."""

    layer: nn.Layer
    shapes: tuple[tuple[int, ...], ...]
    dtype: str = "float32"


Make = Callable[[], Sample]


def tell_apart(layer: nn.Layer) -> None:
    """Biases, scales and running statistics in which no two indices are equal."""
    places = [*layer.named_parameters(), *layer.named_buffers()]
    for name, p in places:
        if p.ndim != 1 or p.dtype != paddle.float32:
            continue
        scale = not name.endswith(("bias", "_mean")) and "bias_" not in name
        low, high = (0.6, 1.4) if scale else (-0.2, 0.2)
        p.set_value(paddle.uniform(p.shape, min=low, max=high))


def _export(make: Make, variant: str, path: Path) -> None:
    matched = re.fullmatch(r"paddle(\d+)(d?)", variant)
    if matched is None:
        raise ValueError(f"{variant!r} is not a variant")
    paddle.seed(zlib.crc32(variant.encode()))
    sample = make()
    tell_apart(sample.layer)
    sample.layer.eval()
    shapes = [[None, *s[1:]] if matched[2] else list(s) for s in sample.shapes]
    specs = [InputSpec(s, sample.dtype, f"x{k}") for k, s in enumerate(shapes)]
    with tempfile.TemporaryDirectory() as folder:
        name = f"{folder}/net"
        try:
            paddle.onnx.export(sample.layer, name, input_spec=specs, opset_version=int(matched[1]))
        except SystemExit as error:
            raise RuntimeError("paddle2onnx gave up") from error
        path.write_bytes(Path(f"{name}.onnx").read_bytes())


def net(make: Make, name: str = "") -> Make:
    """Register a maker twice, once with a free batch; the name decides the opsets."""
    name = name or make.__name__
    k = zlib.crc32(name.encode()) % len(OPSETS)
    for opset, dynamic in ((OPSETS[k], ""), (OPSETS[(k + 1) % len(OPSETS)], "d")):
        variant = f"paddle{opset}{dynamic}"
        add(f"paddle-{name}@{variant}", partial(_export, make, variant))
    return make


def _vision(name: str, side: int, settings: dict[str, Any]) -> Sample:
    return Sample(getattr(models, name)(num_classes=10, **settings), ((2, 3, side, side),))


def vision(name: str, side: int = 64, **settings: Any) -> None:
    net(partial(_vision, name, side, settings), name)


vision("resnet18")
vision("mobilenet_v1", scale=0.25)
vision("mobilenet_v2", scale=0.25)
vision("mobilenet_v3_small", scale=0.5)
vision("mobilenet_v3_large", scale=0.35)
vision("shufflenet_v2_x0_25")
vision("shufflenet_v2_swish")
vision("squeezenet1_1")
vision("densenet121")
vision("googlenet", 224)


@net
def resnext_bottleneck() -> Sample:
    from paddle.vision.models.resnet import BottleneckBlock

    block = BottleneckBlock(32, 8, groups=4, base_width=16)
    return Sample(nn.Sequential(nn.Conv2D(3, 32, 3), block, *_head(32)), ((2, 3, 16, 16),))


def _head(width: int) -> list[nn.Layer]:
    return [nn.AdaptiveAvgPool2D(1), nn.Flatten(), nn.Linear(width, 10)]


@net
def lenet() -> Sample:
    return Sample(
        nn.Sequential(nn.Conv2D(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2D(2, 2),
                      nn.Conv2D(6, 16, 5), nn.ReLU(), nn.MaxPool2D(2, 2), nn.Flatten(),
                      nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)),
        ((2, 1, 28, 28),))  # fmt: skip


@net
def activations() -> Sample:
    names = "ReLU6 LeakyReLU ELU GELU Silu Swish Hardswish Hardsigmoid Mish Tanh Sigmoid"
    layers: list[nn.Layer] = [nn.Linear(10, 16)]
    for name in names.split():
        layers += [getattr(nn, name)(), nn.Linear(16, 16)]
    return Sample(nn.Sequential(*layers, nn.PReLU(16), nn.Linear(16, 5)), ((3, 10),))


@net
def norms() -> Sample:
    return Sample(
        nn.Sequential(nn.Conv2D(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv2D(16, 24, 3),
                      nn.InstanceNorm2D(24), nn.ReLU(), nn.Conv2D(24, 16, 1), nn.BatchNorm2D(16),
                      nn.Flatten(2), nn.LayerNorm(16), nn.Flatten(), nn.Linear(256, 10)),
        ((2, 3, 8, 8),))  # fmt: skip


@net
def autoencoder() -> Sample:
    return Sample(
        nn.Sequential(nn.Conv2D(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2D(16, 24, 3, 2, 1), nn.ReLU(),
                      nn.Conv2DTranspose(24, 16, 2, 2), nn.BatchNorm2D(16), nn.ReLU(),
                      nn.Conv2DTranspose(16, 3, 2, 2)), ((2, 3, 16, 16),))  # fmt: skip


@net
def conv1d() -> Sample:
    return Sample(
        nn.Sequential(nn.Conv1D(6, 16, 5), nn.BatchNorm1D(16), nn.ReLU(), nn.Conv1D(16, 24, 3),
                      nn.AdaptiveMaxPool1D(1), nn.Flatten(), nn.Linear(24, 5)),
        ((2, 6, 20),))  # fmt: skip


@net
def conv3d() -> Sample:
    return Sample(
        nn.Sequential(nn.Conv3D(2, 8, 3), nn.BatchNorm3D(8), nn.ReLU(), nn.Conv3D(8, 12, 3),
                      nn.AdaptiveAvgPool3D(1), nn.Flatten(), nn.Linear(12, 5)),
        ((2, 2, 8, 8, 8),))  # fmt: skip


class Unet(nn.Layer):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.a, self.b = nn.Conv2D(3, 16, 3, padding=1), nn.Conv2D(16, 24, 3, 2, 1)
        self.c, self.d = nn.Conv2D(24, 24, 3, padding=1), nn.Conv2D(40, 16, 3, padding=1)
        self.e = nn.Conv2D(16, 2, 1)

    def forward(self, x: Any) -> Any:
        skip = F.relu(self.a(x))
        y = F.relu(self.c(F.relu(self.b(skip))))
        y = F.interpolate(y, size=skip.shape[2:], mode=self.mode)
        return self.e(F.relu(self.d(paddle.concat([y, skip], 1))))


@net
def unet_nearest() -> Sample:
    return Sample(Unet("nearest"), ((2, 3, 16, 16),))


@net
def unet_bilinear() -> Sample:
    return Sample(Unet("bilinear"), ((2, 3, 16, 16),))


class Gate(nn.Layer):
    """Squeeze and excite, with Paddle's hard sigmoid."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2D(width, 8, 1), nn.Conv2D(8, width, 1)

    def forward(self, x: Any) -> Any:
        y = F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))
        return x * F.hardsigmoid(self.up(y), slope=0.2, offset=0.5)


class Lite(nn.Layer):
    """A block of PP-LCNet: depthwise, gate, pointwise."""

    def __init__(self, i: int, o: int, stride: Any = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2D(i, i, 3, stride, 1, groups=i, bias_attr=False), nn.BatchNorm2D(i),
            nn.Hardswish(), Gate(i), nn.Conv2D(i, o, 1, bias_attr=False), nn.BatchNorm2D(o),
            nn.Hardswish())  # fmt: skip

    def forward(self, x: Any) -> Any:
        return self.body(x)


@net
def lcnet() -> Sample:
    layers = [nn.Conv2D(3, 16, 3, 2, 1), Lite(16, 24), Lite(24, 32, 2)]
    return Sample(nn.Sequential(*layers, *_head(32)), ((2, 3, 32, 32),))


class Crnn(nn.Layer):
    """Text recognition: a convolutional trunk, then a recurrent layer over the columns."""

    def __init__(self, recurrent: type[nn.Layer], direction: str) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2D(3, 16, 3, 2, 1), nn.BatchNorm2D(16), nn.Hardswish(), Lite(16, 24, (2, 1)),
            Lite(24, 32, (2, 1)), nn.MaxPool2D((4, 1)))  # fmt: skip
        self.rnn = recurrent(32, 24, num_layers=2, direction=direction)
        self.head = nn.Linear(48 if direction != "forward" else 24, 20)

    def forward(self, x: Any) -> Any:
        y = self.trunk(x).squeeze(2).transpose([0, 2, 1])
        return F.softmax(self.head(self.rnn(y)[0]), -1)


@net
def crnn() -> Sample:
    return Sample(Crnn(nn.LSTM, "bidirect"), ((2, 3, 32, 48),))


@net
def crnn_gru() -> Sample:
    return Sample(Crnn(nn.GRU, "forward"), ((2, 3, 32, 48),))


class Recurrent(nn.Layer):
    def __init__(self, rnn: nn.Layer, width: int) -> None:
        super().__init__()
        self.words, self.rnn, self.head = nn.Embedding(40, 12), rnn, nn.Linear(width, 5)

    def forward(self, ids: Any) -> Any:
        return self.head(self.rnn(self.words(ids))[0][:, -1])


@net
def lstm_words() -> Sample:
    return Sample(Recurrent(nn.LSTM(12, 16, num_layers=2), 16), ((2, 7),), "int64")


@net
def gru_words() -> Sample:
    return Sample(Recurrent(nn.GRU(12, 16, direction="bidirect"), 32), ((2, 7),), "int64")


# Attention.


@net
def transformer_encoder() -> Sample:
    layer = nn.TransformerEncoderLayer(24, 4, 48, activation="gelu")
    encoder = nn.TransformerEncoder(layer, 2)
    return Sample(nn.Sequential(encoder, nn.Linear(24, 6)), ((2, 7, 24),))


class Decoder(nn.Layer):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.TransformerDecoderLayer(24, 4, 48, normalize_before=True)
        self.head = nn.Linear(24, 6)

    def forward(self, x: Any, memory: Any) -> Any:
        return self.head(self.body(x, memory))


@net
def transformer_decoder() -> Sample:
    return Sample(Decoder(), ((2, 7, 24), (2, 5, 24)))


class Words(nn.Layer):
    """BERT in small: words and places, encoder, pooled first token."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(40, 32), nn.Embedding(16, 32)
        self.norm = nn.LayerNorm(32)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64), 2)
        self.pool, self.head = nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, ids: Any) -> Any:
        places = paddle.arange(ids.shape[1], dtype="int64")
        x = self.encoder(self.norm(self.words(ids) + self.places(places)))
        return self.head(F.tanh(self.pool(x[:, 0])))


@net
def bert() -> Sample:
    return Sample(Words(), ((2, 7),), "int64")


class Attention(nn.Layer):
    """As PaddleClas and PaddleOCR (SVTR) write it: one product, reshape to (3, H, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Any) -> Any:
        n = x.shape[1]
        qkv = self.qkv(x).reshape([0, n, 3, self.heads, self.size]).transpose([2, 0, 3, 1, 4])
        q, k, v = qkv[0] * self.size**-0.5, qkv[1], qkv[2]
        scores = F.softmax(q.matmul(k.transpose([0, 1, 3, 2])), -1)
        y = scores.matmul(v).transpose([0, 2, 1, 3]).reshape([0, n, self.heads * self.size])
        return self.out(y)


class VitLayer(nn.Layer):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, 4)
        self.body = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Any) -> Any:
        x = x + self.attention(self.norm1(x))
        return x + self.body(self.norm2(x))


class Svtr(nn.Layer):
    """A trunk of convolutions, then attention over its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2D(3, 16, 3, 2, 1), nn.GELU(), nn.Conv2D(16, 32, 3, 2, 1), nn.GELU()
        )
        self.layers = nn.Sequential(VitLayer(32), VitLayer(32), nn.LayerNorm(32))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Any) -> Any:
        return self.head(self.layers(self.trunk(x).flatten(2).transpose([0, 2, 1])).mean(1))


@net
def svtr() -> Sample:
    return Sample(Svtr(), ((2, 3, 16, 16),))


class Shuffle(nn.Layer):
    """Upsampling by pixel shuffle, and a chunked gate."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2D(3, 32, 3, padding=1), nn.Conv2D(16, 16, 3, padding=1)
        self.shuffle, self.c = nn.PixelShuffle(2), nn.Conv2D(4, 3, 3, padding=1)

    def forward(self, x: Any) -> Any:
        value, gate = paddle.chunk(self.a(x), 2, 1)
        return self.c(self.shuffle(self.b(value * F.sigmoid(gate))))


@net
def pixel_shuffle() -> Sample:
    return Sample(Shuffle(), ((2, 3, 8, 8),))
