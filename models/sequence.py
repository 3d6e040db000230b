"""Makes small transformers, mixers and 1-D and 3-D convolution nets, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from models.builder import Dim, Net, Tensor

LONGEST = 64  # positions in tables of embeddings, rotations and causal masks


class Shaper:
    """Reshapes of a [batch, seq, ...] tensor, in the form that exporters give them.

    Fixed sizes are written as numbers. Free ones (strings) are 0, "as in the input", or with
    `legacy` read at run time, as PyTorch's TorchScript exporter writes all of them.
    """

    def __init__(self, net: Net, source: Tensor, legacy: bool) -> None:
        self.net, self.source, self.legacy = net, source, legacy
        self.sizes: list[Dim] = list(source.shape[:2])

    @property
    def computed(self) -> bool:
        return self.legacy and any(isinstance(s, str) for s in self.sizes)

    def size(self, axis: int) -> Any:
        """Batch (0) or sequence length (1): a number, or a scalar read at run time."""
        fixed = self.sizes[axis]
        return fixed if isinstance(fixed, int) else self.net.dim(self.source, axis)

    def reshape(self, x: Tensor, dims: Sequence[int | str]) -> Tensor:
        """`dims` may name "batch" and "seq"."""
        axes = {"batch": 0, "seq": 1}
        shape = [self.sizes[axes[d]] if isinstance(d, str) else d for d in dims]
        if self.computed:
            vector = [self.size(axes[d]) if isinstance(d, str) else d for d in dims]
            return self.net.node("Reshape", x, self.net.shape_vector(*vector), shape=shape)
        free = [i for i, s in enumerate(shape) if isinstance(s, str)]
        if any(x.shape[i] != shape[i] for i in free):  # moved: 0 would copy another axis
            return self.net.reshape(x, [-1 if isinstance(s, str) else s for s in shape])
        return self.net.reshape(x, [0 if isinstance(s, str) else s for s in shape])

    def table(self, values: np.ndarray, name: str, *axes: int) -> Tensor:
        """A constant cut to the sequence length along axes."""
        length = self.sizes[1]
        if isinstance(length, int):
            cut = [slice(0, length if a in axes else None) for a in range(values.ndim)]
            return self.net.const(values[tuple(cut)], name)
        out = self.net.const(values, name)
        for axis in axes:
            end = self.net.unsqueeze(self.net.dim(self.source, 1), 0)
            shape = [*out.shape[:axis], length, *out.shape[axis + 1 :]]
            dtype = values.dtype
            out = self.net.node("Slice", out, [0], end, [axis], [1], shape=shape, dtype=dtype)
        return out


def _attend(net: Net, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention of [batch, head, seq, d], as exporters write it when nothing fuses it."""
    scores = net.div(net.matmul(q, net.transpose(k, 0, 1, 3, 2)), sqrt(q.shape[-1]))
    scores = net.add(scores, mask) if mask is not None else scores
    return net.matmul(net.softmax(scores), v)


def _merge_heads(net: Net, shaper: Shaper, x: Tensor) -> Tensor:
    _, heads, _, d = x.shape
    return shaper.reshape(net.transpose(x, 0, 2, 1, 3), ["batch", "seq", heads * d])


def bert_like(
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    inner: int = 64,
    vocab: int = 100,
    classes: int = 5,
    batch: Dim = 1,
    seq: Dim = 8,
    legacy: bool = False,
    decomposed: bool = False,
    seed: int = 0,
) -> ModelProto:
    """`decomposed` writes LayerNormalization as ReduceMean, Sub, Pow, Sqrt, Div."""
    net = Net("bert_like", seed)
    ids = net.input("input_ids", [batch, seq], np.int64)
    attended = net.input("attention_mask", [batch, seq], np.int64)
    shaper = Shaper(net, ids, legacy)

    positions = shaper.table(np.arange(LONGEST)[None], "position_ids", 1)
    words = net.gather(net.weight(vocab, hidden, fan=1, gain=1, name="word_embeddings"), ids)
    places = net.weight(LONGEST, hidden, fan=1, gain=0.3, name="position_embeddings")
    x = net.layer_norm(net.add(words, net.gather(places, positions)), decomposed)
    mask = net.cast(net.unsqueeze(net.unsqueeze(attended, 1), 2), TensorProto.FLOAT)
    mask = net.mul(net.sub(1.0, mask), -1e4)

    for i in range(layers):
        with net.scope(f"layer.{i}"):
            q, k, v = (
                net.transpose(
                    shaper.reshape(net.linear(x, hidden), ["batch", "seq", heads, hidden // heads]),
                    0, 2, 1, 3,
                )
                for _ in "qkv"
            )  # fmt: skip
            y = _merge_heads(net, shaper, _attend(net, q, k, v, mask))
            x = net.layer_norm(net.add(net.linear(y, hidden), x), decomposed)
            y = net.linear(net.gelu(net.linear(x, inner)), hidden)
            x = net.layer_norm(net.add(y, x), decomposed)
    pooled = net.node("Tanh", net.gemm(net.gather(x, np.int64(0), axis=1), hidden))
    return net.model(net.gemm(pooled, classes))


def vit(
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    inner: int = 64,
    image: int = 32,
    patch: int = 8,
    classes: int = 5,
    batch: Dim = 1,
    legacy: bool = False,
    split: bool = False,
    seed: int = 0,
) -> ModelProto:
    """`split` takes q, k, v out of the fused projection by Split and Squeeze, not by Gather."""
    net = Net("vit", seed)
    pixels = net.input("image", [batch, 3, image, image])
    tokens, d = (image // patch) ** 2 + 1, hidden // heads
    x = net.conv(pixels, hidden, patch, patch, pad=0, gain=1)
    sizes = Shaper(net, pixels, legacy)
    x = net.transpose(sizes.reshape(x, ["batch", hidden, tokens - 1]), 0, 2, 1)

    token = net.weight(1, 1, hidden, fan=1, gain=1, name="class_token")
    shape = net.shape_vector(sizes.size(0), 1, hidden)
    token = net.node("Expand", token, shape, shape=[batch, 1, hidden])
    x = net.concat(token, x)
    x = net.add(x, net.weight(1, tokens, hidden, fan=1, gain=0.3, name="position_embeddings"))

    shaper = Shaper(net, x, legacy)
    for i in range(layers):
        with net.scope(f"blocks.{i}"):
            y = net.linear(net.layer_norm(x), 3 * hidden)
            y = shaper.reshape(y, ["batch", "seq", 3, heads, d])
            y = net.transpose(y, 2, 0, 3, 1, 4)
            if split:
                q, k, v = (net.squeeze(part, 0) for part in net.split(y, [1, 1, 1], axis=0))
            else:
                q, k, v = (net.gather(y, np.int64(j)) for j in range(3))
            y = _merge_heads(net, shaper, _attend(net, q, k, v, None))
            x = net.add(x, net.linear(y, hidden))
            y = net.gelu(net.linear(net.layer_norm(x), inner))
            x = net.add(x, net.linear(y, hidden))
    return net.model(net.gemm(net.gather(net.layer_norm(x), np.int64(0), axis=1), classes))


def llama_like(
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    kv_heads: int = 2,
    inner: int = 64,
    vocab: int = 100,
    batch: Dim = 1,
    seq: Dim = 8,
    legacy: bool = False,
    seed: int = 0,
    net: Net | None = None,
) -> ModelProto:
    net = net or Net("llama_like", seed)
    ids = net.input("input_ids", [batch, seq], np.int64)
    shaper, d = Shaper(net, ids, legacy), hidden // heads
    angles = np.outer(np.arange(LONGEST), 1e4 ** (-np.arange(0, d, 2) / d))
    angles = np.concatenate([angles, angles], 1).astype(np.float32)
    cos, sin = shaper.table(np.cos(angles), "cos", 0), shaper.table(np.sin(angles), "sin", 0)
    causal = np.triu(np.full((1, 1, LONGEST, LONGEST), -1e4, np.float32), 1)
    mask = shaper.table(causal, "causal_mask", 2, 3)

    def project(x: Tensor, count: int) -> Tensor:
        y = shaper.reshape(net.linear(x, count * d, bias=False), ["batch", "seq", count, d])
        return net.transpose(y, 0, 2, 1, 3)

    def rotate(x: Tensor) -> Tensor:
        half = net.slice(x, 0, d // 2, axis=3)
        other = net.node("Neg", net.slice(x, d // 2, d, axis=3))
        return net.add(net.mul(x, cos), net.mul(net.concat(other, half, axis=3), sin))

    def repeat(x: Tensor) -> Tensor:
        """Each key and value head for every query head of its group."""
        copies = heads // kv_heads
        y = net.unsqueeze(x, 2)
        shape = [*shaper.sizes[:1], kv_heads, copies, shaper.sizes[1], d]
        if shaper.computed:
            sizes = net.shape_vector(shaper.size(0), kv_heads, copies, shaper.size(1), d)
            y = net.node("Expand", y, sizes, shape=shape)
        else:
            y = net.node("Expand", y, [1 if isinstance(s, str) else s for s in shape])
        return _merge_copies(net, shaper, y)

    x = net.gather(net.weight(vocab, hidden, fan=1, gain=1, name="embed_tokens"), ids)
    for i in range(layers):
        with net.scope(f"layers.{i}"):
            y = net.rms_norm(x)
            q, k = rotate(project(y, heads)), rotate(project(y, kv_heads))
            v = project(y, kv_heads)
            y = _merge_heads(net, shaper, _attend(net, q, repeat(k), repeat(v), mask))
            x = net.add(x, net.linear(y, hidden, bias=False))
            y = net.rms_norm(x)
            gate = net.silu(net.linear(y, inner, bias=False))
            y = net.mul(gate, net.linear(y, inner, bias=False))
            x = net.add(x, net.linear(y, hidden, bias=False))
    return net.model(net.linear(net.rms_norm(x), vocab, bias=False))


def _merge_copies(net: Net, shaper: Shaper, x: Tensor) -> Tensor:
    """[batch, kv, copies, seq, d] -> [batch, kv * copies, seq, d]"""
    _, kv, copies, _, d = x.shape
    if shaper.computed or isinstance(shaper.sizes[1], int):
        return shaper.reshape(x, ["batch", kv * copies, "seq", d])
    shape = [shaper.sizes[0], kv * copies, shaper.sizes[1], d]
    return net.node("Reshape", x, [0, kv * copies, -1, d], shape=shape)


def mlp_mixer(
    layers: int = 2,
    hidden: int = 32,
    inner: int = 64,
    mixed: int = 24,
    image: int = 32,
    patch: int = 8,
    classes: int = 5,
    batch: Dim = 1,
    seed: int = 0,
) -> ModelProto:
    net = Net("mlp_mixer", seed)
    pixels = net.input("image", [batch, 3, image, image])
    tokens = (image // patch) ** 2
    x = net.reshape(net.conv(pixels, hidden, patch, patch, pad=0, gain=1), [0, hidden, tokens])
    x = net.transpose(x, 0, 2, 1)
    for i in range(layers):
        with net.scope(f"blocks.{i}"):
            y = net.transpose(net.layer_norm(x), 0, 2, 1)
            y = net.linear(net.gelu(net.linear(y, mixed)), tokens)
            x = net.add(x, net.transpose(y, 0, 2, 1))
            y = net.gelu(net.linear(net.layer_norm(x), inner))
            x = net.add(x, net.linear(y, hidden))
    y = net.node("ReduceMean", net.layer_norm(x), axes=[1], keepdims=0)
    return net.model(net.gemm(y, classes))


def _conv_net(name: str, image: list[Dim], channels: int, seed: int, bn: bool) -> ModelProto:
    """A stem, two residual blocks and a strided convolution, over any number of axes."""
    net = Net(name, seed, norm=bn)
    x = net.relu(net.conv_bn(net.input("signal", image), channels, 5))
    for i in range(2):
        with net.scope(f"block{i}"):
            y = net.relu(net.conv_bn(x, 2 * channels, 3))
            x = net.relu(net.add(x, net.conv_bn(y, channels, 3, gain=0.5)))
    x = net.relu(net.conv_bn(net.pool(x), 2 * channels, 3, 2))
    return net.model(net.gemm(net.flatten(net.global_avg_pool(x)), 5))


def conv1d_net(
    channels: int = 16, length: int = 64, batch: Dim = 1, seed: int = 0, bn: bool = True
) -> ModelProto:
    return _conv_net("conv1d_net", [batch, 2, length], channels, seed, bn)


def conv3d_net(
    channels: int = 8, length: int = 12, batch: Dim = 1, seed: int = 0, bn: bool = True
) -> ModelProto:
    return _conv_net("conv3d_net", [batch, 2, length, length, length], channels, seed, bn)


MAKERS: dict[str, Callable[..., ModelProto]] = {
    f.__name__: f for f in (bert_like, vit, llama_like, mlp_mixer, conv1d_net, conv3d_net)
}
