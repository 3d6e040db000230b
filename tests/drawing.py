"""Random graphs out of all families of operators, for the law and for over-tying.

Two kinds: images [batch, channels, height, width] and tokens [batch, sequence, width], the latter
with free sizes and shapes computed from them at run time in half of the graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from hypothesis import strategies as st
from onnx import ModelProto

from models.builder import Net, Tensor
from models.graph import graphs_of
from models.vision import channel_shuffle

CHANNELS = (4, 6, 8, 12)  # colliding with each other's halves and with the image
Draw = st.DrawFn
Block = Callable[["Drawing", Tensor], Tensor]
BLOCKS: dict[str, Block] = {}  # on images
TOKENS: dict[str, Block] = {}  # on tokens


def block(body: Block) -> Block:
    BLOCKS[body.__name__] = body
    return body


def on_tokens(body: Block) -> Block:
    TOKENS[body.__name__] = body
    return body


class Drawing:
    """A graph being drawn: the net, and the images or tokens made so far.

    free: whether batch and sequence are free in the model that comes out.
    """

    def __init__(self, draw: Draw, opset: int = 17) -> None:
        self.draw, self.net = draw, Net("random", draw(st.integers(0, 99)), opset)
        self.opset, self.free = opset, False
        self.batch = self.of(1, 2, 3)
        self.images: list[Tensor] = []
        self.inputs = 0

    def of(self, *choices: int) -> int:
        return self.draw(st.sampled_from(choices))

    def one(self, *names: str) -> str:
        return self.draw(st.sampled_from(names))

    def halves(self, x: Tensor, axis: int) -> list[Tensor]:
        more = {"num_outputs": 2} if self.opset >= 18 else {}
        return self.net.nodes("Split", [x], 2, axis=axis, **more)

    def reduce(self, op: str, x: Tensor, axes: list[int], keepdims: int = 1) -> Tensor:
        if self.opset >= 18 or op == "ReduceSum":
            return self.net.node(op, x, axes, keepdims=keepdims)
        return self.net.node(op, x, axes=axes, keepdims=keepdims)

    def reshape(self, x: Tensor, *dims: int | str) -> Tensor:
        """A Reshape; "2" stands for the size that axis 2 of x has.

        The sizes are written as numbers, as 0 and -1, or computed from the shape of x.
        """
        sizes = [int(x.shape[int(d)]) if isinstance(d, str) else d for d in dims]
        copied = [0 if d == str(k) else n for k, (d, n) in enumerate(zip(dims, sizes, strict=True))]
        named = [k for k, d in enumerate(dims) if isinstance(d, str) and copied[k] != 0]
        unknown = -1 in sizes
        forms = ["computed"]
        if not self.free:
            forms.append("numbers")
        if len(named) + unknown <= 1:
            forms.append("signs")
        match self.one(*forms):
            case "numbers":
                return self.net.reshape(x, sizes)
            case "signs":
                for k in named:
                    copied[k] = -1
                return self.net.reshape(x, copied)
        parts = [self.net.dim(x, int(d)) if isinstance(d, str) else d for d in dims]
        rest = prod(x.shape) // -prod(sizes) if unknown else 1
        shape = [rest if n == -1 else n for n in sizes]
        return self.net.node("Reshape", x, self.net.shape_vector(*parts), shape=shape)

    def channels(self) -> int:
        return self.of(*CHANNELS)

    def input(self, channels: int, height: int, width: int) -> Tensor:
        self.inputs += 1
        return self.net.input(f"x{self.inputs}", [self.batch, channels, height, width])

    def like(self, x: Tensor) -> Tensor:
        """Another image of the same shape: one that is there, or one made for the purpose."""
        same = [y for y in self.images if list(y.shape) == list(x.shape) and y is not x]
        if same and self.of(0, 1):
            return self.draw(st.sampled_from(same))
        if self.of(0, 0, 0, 1):
            return self.input(*x.shape[1:])
        return self.net.conv(x, x.shape[1], self.of(1, 3))

    def beside(self, x: Tensor) -> Tensor:
        """Another image of the same height and width."""
        same = [y for y in self.images if list(y.shape[2:]) == list(x.shape[2:])]
        return self.draw(st.sampled_from(same)) if same else x

    def tokens(self, x: Tensor) -> Tensor:
        n, c, *image = x.shape
        return self.net.transpose(self.net.reshape(x, [n, c, prod(image)]), 0, 2, 1)

    def image(self, tokens: Tensor, x: Tensor) -> Tensor:
        y = self.net.transpose(tokens, 0, 2, 1)
        return self.net.reshape(y, [self.batch, -1, *x.shape[2:]])


# --- layers


@block
def conv(g: Drawing, x: Tensor) -> Tensor:
    return g.net.conv(x, g.channels(), g.of(1, 3), bias=bool(g.of(0, 1)))


@block
def grouped(g: Drawing, x: Tensor) -> Tensor:
    groups = g.of(*(d for d in (2, 3, 4) if x.shape[1] % d == 0), 1)
    return g.net.conv(x, groups * g.of(2, 3, 4), 3, groups=groups)


@block
def depthwise(g: Drawing, x: Tensor) -> Tensor:
    return g.net.conv(x, x.shape[1] * g.of(1, 2), 3, groups=x.shape[1])


@block
def transposed(g: Drawing, x: Tensor) -> Tensor:
    groups = g.of(*(d for d in (1, 2) if x.shape[1] % d == 0))
    return g.net.conv_transpose(x, groups * g.of(2, 3, 4), 1, 1, groups=groups)


@block
def shared_weight(g: Drawing, x: Tensor) -> Tensor:
    w = g.net.weight(x.shape[1], x.shape[1], 1, 1)
    return g.net.node("Conv", g.net.relu(g.net.node("Conv", x, w)), w)


@block
def siamese_weight(g: Drawing, x: Tensor) -> Tensor:
    w = g.net.weight(g.channels(), x.shape[1], 1, 1)
    y = g.like(x)
    return g.net.concat(g.net.node("Conv", x, w), g.net.relu(g.net.node("Conv", y, w)))


@block
def batch_norm(g: Drawing, x: Tensor) -> Tensor:
    return g.net.relu(g.net.bn(x))


@block
def linear(g: Drawing, x: Tensor) -> Tensor:
    return g.image(g.net.linear(g.tokens(x), g.channels(), bias=bool(g.of(0, 1))), x)


@block
def rows(g: Drawing, x: Tensor) -> Tensor:
    """Flattened, a Gemm, and an image again."""
    c, pixels = g.channels(), prod(x.shape[2:])
    flat = g.net.reshape(x, [g.batch, -1]) if g.of(0, 1) else g.net.flatten(x)
    y = g.net.relu(g.net.gemm(flat, c * pixels, bias=bool(g.of(0, 1))))
    return g.net.reshape(y, [g.batch, c, *x.shape[2:]])


# --- attention, normalisation


@block
def layer_norm(g: Drawing, x: Tensor) -> Tensor:
    return g.image(g.net.layer_norm(g.tokens(x), bool(g.of(0, 1))), x)


@block
def group_norm(g: Drawing, x: Tensor) -> Tensor:
    groups = g.of(*(d for d in (1, 2, 4) if x.shape[1] % d == 0))
    return g.net.group_norm(x, groups)


@block
def softmax(g: Drawing, x: Tensor) -> Tensor:
    return g.net.softmax(x, g.of(1, 2, 3, -1))


@block
def single_head(g: Drawing, x: Tensor) -> Tensor:
    d, tokens = g.channels(), g.tokens(x)
    q, k, v = g.net.split(g.net.linear(tokens, 3 * d), [d, d, d], axis=2)
    scores = g.net.softmax(g.net.div(g.net.matmul(q, g.net.transpose(k, 0, 2, 1)), 3.0))
    return g.image(g.net.matmul(scores, v), x)


@block
def multi_head(g: Drawing, x: Tensor) -> Tensor:
    heads, d, tokens = g.of(2, 3, 4), g.of(2, 3, 4), g.tokens(x)
    fused = bool(g.of(0, 1))
    if fused:
        y = g.net.reshape(g.net.linear(tokens, 3 * heads * d), [0, 0, 3, heads, d])
        y = g.net.transpose(y, 2, 0, 3, 1, 4)
        q, k, v = (g.net.gather(y, np.int64(i)) for i in range(3))
    else:
        q, k, v = (
            g.net.transpose(
                g.net.reshape(g.net.linear(tokens, heads * d), [0, 0, heads, d]), 0, 2, 1, 3
            )
            for _ in "qkv"
        )
    scores = g.net.softmax(g.net.div(g.net.matmul(q, g.net.transpose(k, 0, 1, 3, 2)), 3.0))
    y = g.net.transpose(g.net.matmul(scores, v), 0, 2, 1, 3)
    return g.image(g.net.reshape(y, [0, 0, heads * d]), x)


# --- single values and branches


@block
def activation(g: Drawing, x: Tensor) -> Tensor:
    op = g.draw(st.sampled_from(["Relu", "Sigmoid", "Tanh", "HardSwish", "Elu", "Softplus"]))
    return g.net.node(op, x)


@block
def channel_scale(g: Drawing, x: Tensor) -> Tensor:
    constant = g.net.uniform(-1, 1, x.shape[1], 1, 1)
    return g.net.node(g.draw(st.sampled_from(["Add", "Mul", "PRelu"])), x, constant)


@block
def scalar(g: Drawing, x: Tensor) -> Tensor:
    return g.net.node(g.draw(st.sampled_from(["Add", "Mul", "Sub"])), x, 0.5)


@block
def add(g: Drawing, x: Tensor) -> Tensor:
    return g.net.add(x, g.like(x))


@block
def mul(g: Drawing, x: Tensor) -> Tensor:
    return g.net.mul(g.net.node("Tanh", x), g.net.node("Tanh", g.like(x)))


@block
def squeeze_excite(g: Drawing, x: Tensor) -> Tensor:
    return g.net.squeeze_excite(x, g.of(2, 4))


@block
def gate(g: Drawing, x: Tensor) -> Tensor:
    return g.net.mul(x, g.net.sigmoid(g.net.mean(x, g.of(1, 2, 3))))


@block
def concat(g: Drawing, x: Tensor) -> Tensor:
    return g.net.concat(x, g.beside(x))


@block
def dense(g: Drawing, x: Tensor) -> Tensor:
    return g.net.concat(x, g.net.conv(g.net.relu(x), g.of(2, 4), 3))


# --- moves


@block
def split(g: Drawing, x: Tensor) -> Tensor:
    if x.shape[1] < 2:
        return x
    first = g.of(*range(1, x.shape[1]))
    a, b = g.net.split(x, [first, x.shape[1] - first])
    return g.net.concat(g.net.conv(a, g.channels(), 1), b)


@block
def gated_halves(g: Drawing, x: Tensor) -> Tensor:
    if x.shape[1] % 2:
        return x
    a, b = g.halves(x, 1)
    return g.net.mul(a, g.net.sigmoid(b))


@block
def slice_(g: Drawing, x: Tensor) -> Tensor:
    if x.shape[1] < 2:
        return x
    start = g.of(*range(x.shape[1] - 1))
    end = g.of(*range(start + 2, x.shape[1] + 1), 2**62)
    return g.net.slice(x, start - x.shape[1] * g.of(0, 1), end)


@block
def gather(g: Drawing, x: Tensor) -> Tensor:
    order = g.draw(st.permutations(range(x.shape[1])))
    return g.net.gather(x, order[: g.of(2, x.shape[1])], axis=1)


@block
def shuffle(g: Drawing, x: Tensor) -> Tensor:
    groups = g.of(*(d for d in (2, 3, 4) if x.shape[1] % d == 0), 1)
    return channel_shuffle(g.net, x, groups)


@block
def channels_last(g: Drawing, x: Tensor) -> Tensor:
    y = g.net.add(g.net.transpose(x, 0, 2, 3, 1), g.net.uniform(-1, 1, x.shape[1]))
    return g.net.transpose(g.net.relu(y), 0, 3, 1, 2)


@block
def pad_channels(g: Drawing, x: Tensor) -> Tensor:
    return g.net.node("Pad", x, [0, g.of(0, 2), 0, 0, 0, g.of(1, 2), 0, 0])


@block
def pool(g: Drawing, x: Tensor) -> Tensor:
    op = g.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    return g.net.pool(x, 3, 1, 1, op)


@block
def resize(g: Drawing, x: Tensor) -> Tensor:
    if x.shape[2] > 8:
        return x
    if g.of(0, 1):
        return g.net.node("Resize", x, None, [1.0, 1.0, 2.0, 2.0])
    sizes = [*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]]
    return g.net.node("Resize", x, None, None, sizes)


@block
def depth_to_space(g: Drawing, x: Tensor) -> Tensor:
    if x.shape[1] % 4 or x.shape[2] > 8:
        return x
    mode = g.draw(st.sampled_from(["DCR", "CRD"]))
    return g.net.node("DepthToSpace", x, blocksize=2, mode=mode)


# --- the rest of the families


@block
def conv_1d(g: Drawing, x: Tensor) -> Tensor:
    pixels = prod(x.shape[2:])
    row = g.net.conv(g.net.reshape(x, [0, -1, pixels]), g.channels(), 3)
    return g.reshape(row, "0", "1", *x.shape[2:])


@block
def strided(g: Drawing, x: Tensor) -> Tensor:
    if min(x.shape[2:]) < 4:
        return x
    return g.net.pool(x) if g.of(0, 1) else g.net.conv(x, g.channels(), 3, 2)


@block
def transposed_stride(g: Drawing, x: Tensor) -> Tensor:
    return g.net.conv_transpose(x, g.channels()) if max(x.shape[2:]) < 6 else x


@block
def bottleneck(g: Drawing, x: Tensor) -> Tensor:
    wide = g.net.relu(g.net.conv_bn(x, g.channels(), 1))
    deep = g.net.relu6(g.net.conv_bn(wide, wide.shape[1], 3, groups=wide.shape[1]))
    return g.net.add(x, g.net.conv_bn(deep, x.shape[1], 1))


@block
def einsum(g: Drawing, x: Tensor) -> Tensor:
    w = g.net.weight(g.channels(), x.shape[1])
    y = g.net.node("Einsum", x, w, equation="bchw,oc->bohw")
    scale = g.net.uniform(-1, 1, y.shape[1])
    return g.net.node("Einsum", y, scale, equation="bohw,o->bohw") if g.of(0, 1) else y


@block
def one_channel_norm(g: Drawing, x: Tensor) -> Tensor:
    c = x.shape[1]
    match g.of(0, 1, 2):
        case 0:
            scale, bias = g.net.uniform(0.5, 1, c), g.net.uniform(-1, 1, c)
            return g.net.node("InstanceNormalization", x, scale, bias)
        case 1:
            return g.net.node("LRN", x, size=3)
        case _:  # a mean-variance normalisation divides by zero where a channel is constant
            axis = g.of(1, 2, 3)
            return g.net.node("LpNormalization", x, axis=axis, p=g.of(1, 2), shape=x.shape)


@block
def rms_norm(g: Drawing, x: Tensor) -> Tensor:
    return g.image(g.net.rms_norm(g.tokens(x)), x)


@block
def binary(g: Drawing, x: Tensor) -> Tensor:
    op, y = g.one("Sub", "Max", "Min", "Mean", "Sum", "Div", "Where", "Pow"), g.like(x)
    match op:
        case "Div":
            return g.net.div(x, g.net.add(g.net.node("Abs", y), 1.0))
        case "Where":
            return g.net.node("Where", g.net.node("Greater", x, 0.0), x, y)
        case "Pow":
            return g.net.node("Pow", x, g.net.const(np.float32(g.of(1, 2))))
        case "Mean" | "Sum" | "Max":
            return g.net.node(op, x, y, g.net.uniform(-1, 1, x.shape[1], 1, 1))
    return g.net.node(op, x, y)


@block
def pixels_constant(g: Drawing, x: Tensor) -> Tensor:
    """A constant for every pixel, or for every channel and pixel."""
    shape = x.shape[1:] if g.of(0, 1) else x.shape[2:]
    return g.net.add(x, g.net.uniform(-1, 1, *shape))


@block
def reduced_gate(g: Drawing, x: Tensor) -> Tensor:
    op = g.one("ReduceSum", "ReduceMax", "ReduceMean", "ReduceL2", "ReduceMin", "ReduceLogSumExp")
    axes = [[1], [2, 3], [3], [-1, -3]][g.of(0, 1, 2, 3)]
    return g.net.mul(x, g.net.node("Tanh", g.reduce(op, x, axes)))


@block
def pooled_gate(g: Drawing, x: Tensor) -> Tensor:
    """Squeezed to rows, through a Gemm, and back."""
    op = g.one("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
    rows = g.net.squeeze(g.net.node(op, x), 2, 3)
    rows = g.net.gemm(g.net.relu(g.net.gemm(rows, g.of(4, 6))), x.shape[1])
    return g.net.mul(x, g.net.unsqueeze(g.net.sigmoid(rows), 2, 3))


@block
def expanded_pool(g: Drawing, x: Tensor) -> Tensor:
    pooled = g.net.conv(g.net.global_avg_pool(x), g.channels(), 1)
    shape = [x.shape[0], pooled.shape[1], *x.shape[2:]]
    if g.of(0, 1):
        return g.net.node("Expand", pooled, shape)
    return g.net.node("Resize", pooled, None, None, shape, mode="nearest")


@block
def tile(g: Drawing, x: Tensor) -> Tensor:
    return g.net.node("Tile", x, [1, 2, 1, 1]) if x.shape[1] <= 12 else x


@block
def pad_pixels(g: Drawing, x: Tensor) -> Tensor:
    if max(x.shape[2:]) > 6:
        return x
    pads = [0, 0, 1, 0, 0, 0, 1, 2]
    mode = g.one("constant", "edge", "reflect")
    y = g.net.node("Pad", x, pads, mode=mode)
    return g.net.slice(y, 0, x.shape[3], axis=3) if g.of(0, 1) else y


@block
def concat_pixels(g: Drawing, x: Tensor) -> Tensor:
    return g.net.concat(x, g.like(x), axis=g.of(2, 3)) if max(x.shape[2:]) < 6 else x


@block
def space_to_depth(g: Drawing, x: Tensor) -> Tensor:
    if x.shape[2] % 2 or x.shape[3] % 2 or x.shape[1] > 8:
        return x
    return g.net.node("SpaceToDepth", x, blocksize=2)


@block
def windows(g: Drawing, x: Tensor) -> Tensor:
    """Windows of 2 x 2 pixels, a linear layer in each, and the image again."""
    n, c, h, w = x.shape
    if h % 2 or w % 2:
        return x
    y = g.net.transpose(g.net.reshape(x, [n, c, h // 2, 2, w // 2, 2]), 0, 2, 4, 3, 5, 1)
    y = g.net.linear(g.net.reshape(y, [n * h * w // 4, 4, -1]), g.channels())
    y = g.net.reshape(y, [n, h // 2, w // 2, 2, 2, -1])
    return g.net.reshape(g.net.transpose(y, 0, 5, 1, 3, 2, 4), [n, -1, h, w])


@block
def quantised_weight(g: Drawing, x: Tensor) -> Tensor:
    """A convolution whose weight is stored in 8 bits, per tensor or per channel."""
    out = g.channels()
    w = g.net.const(g.net.rng.integers(-90, 90, (out, x.shape[1], 1, 1)).astype(np.int8))
    scale = g.net.uniform(0.01, 0.02, *([out] if g.of(0, 1) else []))
    zero = g.net.const(np.zeros(scale.shape, np.int8))
    return g.net.node("Conv", x, g.net.node("DequantizeLinear", w, scale, zero, axis=0))


@block
def flattened_gates(g: Drawing, x: Tensor) -> Tensor:
    """Channel attention from rows that a flatten makes."""
    rows = g.net.gemm(g.net.flatten(x), x.shape[1])
    return g.net.mul(x, g.net.node("Tanh", g.reshape(rows, "0", "1", 1, 1)))


# --- tokens


@on_tokens
def project(g: Drawing, x: Tensor) -> Tensor:
    return g.net.linear(x, g.channels(), bias=bool(g.of(0, 1)))


@on_tokens
def feed_forward(g: Drawing, x: Tensor) -> Tensor:
    hidden = g.net.gelu(g.net.linear(x, g.channels()))
    if g.of(0, 1):
        hidden = g.net.mul(hidden, g.net.linear(x, hidden.shape[-1], bias=False))
    return g.net.add(x, g.net.linear(hidden, x.shape[-1]))


@on_tokens
def gated_feed_forward(g: Drawing, x: Tensor) -> Tensor:
    a, b = g.halves(g.net.linear(x, 2 * g.channels()), -1)
    return g.net.linear(g.net.mul(a, g.net.silu(b)), x.shape[-1])


@on_tokens
def token_norm(g: Drawing, x: Tensor) -> Tensor:
    return g.net.rms_norm(x) if g.of(0, 1) else g.net.layer_norm(x, bool(g.of(0, 1)))


@on_tokens
def attention(g: Drawing, x: Tensor) -> Tensor:
    heads, d = g.of(2, 3, 4), g.of(2, 3, 4)
    match g.of(0, 1, 2):
        case 0:
            y = g.reshape(g.net.linear(x, 3 * heads * d), "0", "1", 3, heads, d)
            y = g.net.transpose(y, 2, 0, 3, 1, 4)
            q, k, v = (g.net.gather(y, np.int64(i)) for i in range(3))
        case 1:
            parts = g.net.split(g.net.linear(x, 3 * heads * d), [heads * d] * 3, axis=2)
            q, k, v = (_heads(g, part, heads, d) for part in parts)
        case _:
            q, k, v = (_heads(g, g.net.linear(x, heads * d), heads, d) for _ in "qkv")
    scores = g.net.div(g.net.matmul(q, g.net.transpose(k, 0, 1, 3, 2)), 3.0)
    y = g.net.matmul(g.net.softmax(scores), v)
    return _joined(g, g.net.transpose(y, 0, 2, 1, 3), x)


def _heads(g: Drawing, x: Tensor, heads: int, d: int) -> Tensor:
    return g.net.transpose(g.reshape(x, "0", "1", heads, d), 0, 2, 1, 3)


def _joined(g: Drawing, y: Tensor, x: Tensor) -> Tensor:
    """[batch, sequence, heads, width] as tokens, projected, and perhaps added to x."""
    y = g.reshape(y, "0", "1", int(prod(y.shape[2:])))
    y = g.net.linear(y, x.shape[-1])
    return g.net.add(x, y) if g.of(0, 1) else y


@on_tokens
def grouped_queries(g: Drawing, x: Tensor) -> Tensor:
    """Two queries share each key and value, which Expand repeats."""
    heads, d = g.of(2, 3), g.of(2, 4)
    q = _heads(g, g.net.linear(x, 2 * heads * d), 2 * heads, d)
    n, s = x.shape[:2]

    def repeated(y: Tensor) -> Tensor:
        y = g.net.unsqueeze(y, 2)
        shape = [n, heads, 2, s, d]
        sizes = [1, 1, 2, 1, 1] if g.of(0, 1) else shape
        if g.free and sizes is shape:
            sizes = g.net.shape_vector(g.net.dim(y, 0), heads, 2, g.net.dim(y, 3), d)
        y = g.net.node("Expand", y, sizes, shape=shape)
        return g.reshape(y, "0", 2 * heads, "3", d)

    k, v = (repeated(_heads(g, g.net.linear(x, heads * d), heads, d)) for _ in "kv")
    scores = g.net.softmax(g.net.matmul(q, g.net.transpose(k, 0, 1, 3, 2)))
    return _joined(g, g.net.transpose(g.net.matmul(scores, v), 0, 2, 1, 3), x)


@on_tokens
def einsum_attention(g: Drawing, x: Tensor) -> Tensor:
    heads, d = g.of(2, 3), g.of(2, 4)
    q, k, v = (g.reshape(g.net.linear(x, heads * d), "0", "1", heads, d) for _ in "qkv")
    scores = g.net.softmax(g.net.node("Einsum", q, k, equation="bqhd,bkhd->bhqk"))
    return _joined(g, g.net.node("Einsum", scores, v, equation="bhqk,bkhd->bqhd"), x)


@on_tokens
def rotary(g: Drawing, x: Tensor) -> Tensor:
    """The two halves change places, one negated, as rotary embeddings do."""
    if x.shape[-1] % 2:
        return x
    a, b = g.halves(x, -1)
    turned = g.net.concat(g.net.node("Neg", b), a, axis=-1)
    cos, sin = (g.net.uniform(-1, 1, x.shape[-1]) for _ in "cs")
    return g.net.add(g.net.mul(x, cos), g.net.mul(turned, sin))


@on_tokens
def recurrent(g: Drawing, x: Tensor) -> Tensor:
    op = g.one("LSTM", "GRU", "RNN")
    gates, h, d = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], g.of(3, 4), g.of(1, 2)
    width = x.shape[-1]
    w, r = g.net.weight(d, gates * h, width, fan=width), g.net.weight(d, gates * h, h, fan=h)
    b = g.net.uniform(-0.1, 0.1, d, 2 * gates * h) if g.of(0, 1) else None
    direction = "bidirectional" if d == 2 else g.one("forward", "reverse")
    seq = g.net.transpose(x, 1, 0, 2)
    outs = g.net.nodes(op, [seq, w, r, b], 2, hidden_size=h, direction=direction)
    if g.of(0, 1):
        y = g.net.transpose(outs[0], 2, 0, 1, 3)  # [batch, sequence, directions, hidden]
        return g.reshape(y, "0", "1", d * h)
    last = g.net.transpose(outs[1], 1, 0, 2)  # [batch, directions, hidden]
    return g.net.mul(x, g.net.node("Tanh", g.net.linear(g.reshape(last, "0", 1, d * h), width)))


@on_tokens
def token_conv(g: Drawing, x: Tensor) -> Tensor:
    y = g.net.conv(g.net.transpose(x, 0, 2, 1), g.channels(), 3)
    return g.net.transpose(g.net.relu(y), 0, 2, 1)


@on_tokens
def token_concat(g: Drawing, x: Tensor) -> Tensor:
    return g.net.concat(x, g.draw(st.sampled_from(g.images)), axis=-1) if x.shape[-1] < 20 else x


@on_tokens
def token_split(g: Drawing, x: Tensor) -> Tensor:
    first = g.of(*range(1, x.shape[-1]))
    a, b = g.net.split(x, [first, x.shape[-1] - first], axis=-1)
    return g.net.concat(g.net.relu(b), g.net.linear(a, g.channels()), axis=-1)


@on_tokens
def token_slice(g: Drawing, x: Tensor) -> Tensor:
    start = g.of(*range(x.shape[-1] - 1))
    return g.net.slice(x, start, g.of(*range(start + 2, x.shape[-1] + 1)), axis=-1)


@on_tokens
def token_add(g: Drawing, x: Tensor) -> Tensor:
    same = [y for y in g.images if y.shape[-1] == x.shape[-1]]
    y = g.draw(st.sampled_from(same)) if g.of(0, 1) and same else g.net.linear(x, x.shape[-1])
    return g.net.node(g.one("Add", "Mul", "Sub", "Max"), x, y)


@on_tokens
def token_activation(g: Drawing, x: Tensor) -> Tensor:
    return g.net.node(g.one("Relu", "Sigmoid", "Tanh", "Elu", "Softsign", "Exp"), x)


@on_tokens
def token_scale(g: Drawing, x: Tensor) -> Tensor:
    return g.net.node(g.one("Add", "Mul"), x, g.net.uniform(-1, 1, x.shape[-1]))


@on_tokens
def positions(g: Drawing, x: Tensor) -> Tensor:
    """Rows of a table, as many as there are tokens."""
    table = g.net.weight(40, x.shape[-1])
    end = g.net.unsqueeze(g.net.dim(x, 1), 0)
    rows = g.net.node("Slice", table, [0], end, [0], shape=[x.shape[1], x.shape[-1]])
    return g.net.add(x, rows)


@on_tokens
def token_gate(g: Drawing, x: Tensor) -> Tensor:
    op, axis = g.one("ReduceMean", "ReduceMax", "ReduceSum"), g.of(1, 2)
    pooled = g.reduce(op, x, [axis])
    if axis == 1 and g.of(0, 1):
        pooled = g.net.linear(pooled, x.shape[-1])
    return g.net.mul(x, g.net.sigmoid(pooled))


@on_tokens
def first_token(g: Drawing, x: Tensor) -> Tensor:
    row = g.net.gather(x, np.int64(0), axis=1)
    row = g.net.gemm(row, x.shape[-1])
    return g.net.add(x, g.net.unsqueeze(g.net.node("Tanh", row), 1))


@on_tokens
def class_token(g: Drawing, x: Tensor) -> Tensor:
    """A token of its own, expanded over the batch, joins; then the first ones are cut off again."""
    width = x.shape[-1]
    batch = g.net.dim(x, 0) if g.free else x.shape[0]
    sizes = g.net.shape_vector(batch, 1, width) if g.free else [x.shape[0], 1, width]
    shape = [x.shape[0], 1, width]
    token = g.net.node("Expand", g.net.weight(1, 1, width), sizes, shape=shape)
    return g.net.slice(g.net.concat(token, x, axis=1), 1, 2**62, axis=1)


@on_tokens
def token_image(g: Drawing, x: Tensor) -> Tensor:
    """Tokens as an image of one row, through a grouped convolution."""
    y = g.net.unsqueeze(g.net.transpose(x, 0, 2, 1), 2)
    groups = 2 if x.shape[-1] % 2 == 0 else 1
    y = g.net.conv(y, groups * g.of(2, 3), 1, groups=groups)
    return g.net.transpose(g.net.squeeze(y, 2), 0, 2, 1)


@on_tokens
def mixture(g: Drawing, x: Tensor) -> Tensor:
    """Branches with shares: added, summed at once, or stacked."""
    count, net = g.of(2, 3, 4), g.net
    logits = net.linear(x, count + g.of(0, 0, 0, 1))
    shares = net.sigmoid(logits) if g.of(0, 1) else net.softmax(logits)
    made = [net.linear(net.relu(net.linear(x, g.channels())), x.shape[-1]) for _ in range(count)]
    if g.of(0, 0, 0, 1):
        g.images.append(made[g.of(0, 1)])
    form = g.one("add", "sum", "stack", "weigh", "multiply", "reduce")
    if form in ("weigh", "multiply") and logits.shape[-1] == count:
        stack = net.concat(*(net.unsqueeze(part, 2) for part in made), axis=2)
        if form == "weigh":
            return g.reduce("ReduceSum", net.mul(stack, net.unsqueeze(shares, 3)), [2], 0)
        return net.squeeze(net.matmul(net.unsqueeze(shares, 2), stack), 2)
    parts = [net.mul(net.slice(shares, e, e + 1, axis=2), part) for e, part in enumerate(made)]
    if g.of(0, 1):
        parts.append(x)
    if form in ("stack", "reduce"):
        op = "ReduceSum" if form == "stack" else g.one("ReduceMean", "ReduceMax")
        stack = net.concat(*(net.unsqueeze(part, 0) for part in parts), axis=0)
        return g.reduce(op, stack, [0], 0)
    if form == "sum":
        return net.node("Sum", *parts)
    total = parts[0]
    for part in parts[1:]:
        total = net.add(total, part) if g.of(0, 0, 1) == 0 else net.add(part, total)
    return total


# --- whole graphs


@st.composite
def images(draw: Draw) -> ModelProto:
    g = Drawing(draw, draw(st.sampled_from([17, 17, 18, 21])))
    x = g.net.conv(g.input(3, g.of(4, 6), g.of(4, 6, 8)), g.channels(), 1)
    g.images.append(x)
    for name in draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=7)):
        x = g.images[-1] if g.of(0, 0, 1) == 0 else draw(st.sampled_from(g.images))
        g.images.append(BLOCKS[name](g, x))
    x = g.images[-1]
    outputs = [g.net.conv(x, 3, 1) if g.of(0, 1) else g.net.gemm(g.net.flatten(x), 3)]
    return _finished(g, outputs)


@st.composite
def sequences(draw: Draw) -> ModelProto:
    g = Drawing(draw, draw(st.sampled_from([17, 17, 18, 21])))
    g.free, sizes = bool(g.of(0, 1)), [g.of(1, 2), 5]
    if g.of(0, 0, 1):
        table = g.net.weight(10, g.channels(), name="embedding")
        x = g.net.gather(table, g.net.input("ids", sizes, np.int64))
    else:
        x = g.net.linear(g.net.input("x", [*sizes, 3]), g.channels())
    g.images.append(x)
    for name in draw(st.lists(st.sampled_from(sorted(TOKENS)), min_size=1, max_size=6)):
        x = g.images[-1] if g.of(0, 0, 1) == 0 else draw(st.sampled_from(g.images))
        g.images.append(TOKENS[name](g, x))
    x = g.images[-1]
    if g.of(0, 1):
        x = g.net.gather(x, np.int64(0), axis=1)
    return _finished(g, [g.net.linear(x, 3)])


@st.composite
def branching(draw: Draw) -> ModelProto:
    """Images, with blocks in the branches of an If and in the rounds of a Loop."""
    g = Drawing(draw, draw(st.sampled_from([17, 17, 18, 21])))
    x = g.net.conv(g.input(3, g.of(4, 6), g.of(4, 6, 8)), g.channels(), 1)
    g.images.append(x)
    flag = g.net.input("flag", [], np.bool_)
    kinds = st.sampled_from([_forked, _looped, _inside])
    for kind in draw(st.lists(kinds, min_size=1, max_size=3)):
        g.images.append(kind(g, g.images[-1], flag))
    x = g.images[-1]
    return _finished(g, [g.net.conv(x, 3, 1) if g.of(0, 1) else g.net.gemm(g.net.flatten(x), 3)])


def _inside(g: Drawing, x: Tensor, flag: Tensor) -> Tensor:
    """A block, or an If or a Loop around one."""
    return g.draw(st.sampled_from([_drawn, _drawn, _forked, _looped]))(g, x, flag)


def _drawn(g: Drawing, x: Tensor, flag: Tensor) -> Tensor:
    return BLOCKS[g.draw(st.sampled_from(sorted(BLOCKS)))](g, x)


def _shaped(g: Drawing, x: Tensor, y: Tensor, channels: int) -> Tensor:
    """An image like x with so many channels: y, if it can be."""
    if list(y.shape[2:]) != list(x.shape[2:]):
        y = x
    if y.shape[1] != channels or g.of(0, 1):
        y = g.net.conv(y, channels, 1)
    return g.net.relu(y)


def _forked(g: Drawing, x: Tensor, flag: Tensor) -> Tensor:
    outer, channels, bodies = list(g.images), g.channels(), {}
    for name in ("then_branch", "else_branch"):
        with g.net.body() as body:
            body.outputs = [_shaped(g, x, _inside(g, x, flag), channels)]
        bodies[name], g.images = body, list(outer)
    return g.net.node("If", flag, shape=[*x.shape[:1], channels, *x.shape[2:]], **bodies)


def _looped(g: Drawing, x: Tensor, flag: Tensor) -> Tensor:
    outer, n = list(g.images), len(g.net.main.nodes) + len(g.net.graph.nodes)
    i, on, state = (
        gs.Variable(f"{x.name}.{n}.{name}", np.dtype(kind), shape)
        for name, kind, shape in (("i", np.int64, []), ("on", np.bool_, []), ("s", "f", x.shape))
    )
    g.images = [*outer, state]
    with g.net.body(i, on, state) as body:
        y = _shaped(g, x, _inside(g, state, flag), x.shape[1])
        body.outputs = [g.net.node("Identity", on), y]
    g.images = outer
    rounds = np.int64(g.of(1, 2, 3))
    return g.net.node("Loop", rounds, np.array(True), x, shape=x.shape, body=body)


def _finished(g: Drawing, outputs: list[Tensor]) -> ModelProto:
    if g.of(0, 0, 0, 1):
        outputs.append(g.draw(st.sampled_from(g.images)))
    model = g.net.model(*outputs, ir_version=8 if g.opset < 19 else 10)
    if g.of(0, 1) or g.free:
        for graph in graphs_of(model.graph):
            del graph.value_info[:]
    if g.free:
        for info in (*model.graph.input, *model.graph.output):
            _free(info.type.tensor_type.shape.dim, info in list(model.graph.output))
    return model


def _free(dims: Any, is_output: bool) -> None:
    """Name the batch and the sequence."""
    for dim, name in zip(dims[: 2 if len(dims) == 3 or not is_output else 1], "ns", strict=False):
        dim.Clear()
        dim.dim_param = name


def graphs() -> st.SearchStrategy[ModelProto]:
    return st.one_of(images(), sequences())
