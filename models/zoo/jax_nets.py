"""JAX functions and modules of flax (nnx and linen) and equinox, by jax2onnx.

A variant is written ``jax18``, ``jax23d``: opset, and ``d`` for a free batch.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from jax2onnx import to_onnx

from models.zoo.registry import add

OPSETS = (23, 21, 18, 20, 22, 19)


@dataclass(frozen=True)
class Sample:
    """A callable, the shapes of its inputs, and whether the file takes and gives NCHW."""

    call: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    integer: bool = False
    nchw: bool = False


Make = Callable[[nnx.Rngs], Sample]


def tell_apart(module: nnx.Module, seed: int) -> None:
    """Biases, scales and running statistics in which no two indices are equal."""
    random = np.random.default_rng(seed)
    state = nnx.state(module)
    for path, leaf in nnx.to_flat_state(state):
        value = leaf.get_value()
        if value.ndim != 1 or not jnp.issubdtype(value.dtype, jnp.floating):
            continue
        low, high = (0.6, 1.4) if path[-1] in ("scale", "var") else (-0.2, 0.2)
        leaf.set_value(jnp.asarray(random.uniform(low, high, value.shape), value.dtype))
    nnx.update(module, state)


def _export(make: Make, variant: str, path: Path) -> None:
    matched = re.fullmatch(r"jax(\d+)(d?)", variant)
    if matched is None:
        raise ValueError(f"{variant!r} is not a variant")
    seed = zlib.crc32(variant.encode())
    sample = make(nnx.Rngs(seed))
    if isinstance(sample.call, nnx.Module):
        tell_apart(sample.call, seed)
        sample.call.eval()
    shapes = [("B", *s[1:]) if matched[2] else s for s in sample.shapes]
    dtype = jnp.int32 if sample.integer else jnp.float32
    model = to_onnx(
        sample.call,
        [jax.ShapeDtypeStruct(s, dtype) for s in shapes] if sample.integer else shapes,
        opset=int(matched[1]),
        inputs_as_nchw=[0] if sample.nchw else None,
    )
    path.write_bytes(model.SerializeToString())


def net(make: Make) -> Make:
    """Register a maker twice, once with a free batch; the name decides the opsets."""
    name = make.__name__
    k = zlib.crc32(name.encode()) % len(OPSETS)
    for opset, dynamic in ((OPSETS[k], ""), (OPSETS[(k + 1) % len(OPSETS)], "d")):
        variant = f"jax{opset}{dynamic}"
        add(f"jax-{name}@{variant}", partial(_export, make, variant))
    return make


class Stack(nnx.Module):
    """Layers in a row."""

    def __init__(self, *layers: Any) -> None:
        self.layers = nnx.List(layers)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


def _conv_bn(i: int, o: int, rngs: nnx.Rngs, k: int = 3, **options: Any) -> list[Any]:
    conv = nnx.Conv(i, o, (k, k), use_bias=False, rngs=rngs, **options)
    return [conv, nnx.BatchNorm(o, rngs=rngs)]


def _mean(x: Any) -> Any:
    return x.mean(axis=(1, 2))


# Perceptrons.


@net
def mlp(rngs: nnx.Rngs) -> Sample:
    return Sample(
        Stack(nnx.Linear(10, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 24, rngs=rngs), nnx.gelu,
              nnx.Linear(24, 5, rngs=rngs)), ((3, 10),))  # fmt: skip


@net
def mlp_norm_tokens(rngs: nnx.Rngs) -> Sample:
    return Sample(
        Stack(nnx.Linear(10, 32, rngs=rngs), nnx.LayerNorm(32, rngs=rngs), nnx.silu,
              nnx.Linear(32, 24, rngs=rngs), nnx.RMSNorm(24, rngs=rngs),
              nnx.Linear(24, 5, rngs=rngs)), ((2, 7, 10),))  # fmt: skip


class Gated(nnx.Module):
    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs) -> None:
        self.gate = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, hidden, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(hidden, width, use_bias=False, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.down(nnx.silu(self.gate(x)) * self.up(x))


@net
def gated_mlp(rngs: nnx.Rngs) -> Sample:
    return Sample(Stack(Gated(16, 48, rngs), Gated(16, 40, rngs)), ((2, 7, 16),))


@net
def glu_halves(rngs: nnx.Rngs) -> Sample:
    return Sample(
        Stack(nnx.Linear(12, 48, rngs=rngs), nnx.glu, nnx.Linear(24, 6, rngs=rngs)), ((3, 12),)
    )


@net
def linear_general(rngs: nnx.Rngs) -> Sample:
    into = nnx.LinearGeneral(24, (4, 8), rngs=rngs)
    return Sample(
        Stack(into, nnx.relu, nnx.LinearGeneral((4, 8), 10, axis=(-2, -1), rngs=rngs)),
        ((2, 5, 24),),
    )


# Convolutions, channels last.


@net
def convnet(rngs: nnx.Rngs) -> Sample:
    pool = partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
    return Sample(
        Stack(nnx.Conv(3, 16, (3, 3), rngs=rngs), nnx.relu, pool,
              nnx.Conv(16, 32, (3, 3), rngs=rngs), nnx.relu, pool,
              lambda x: x.reshape(x.shape[0], -1), nnx.Linear(512, 40, rngs=rngs), nnx.relu,
              nnx.Linear(40, 10, rngs=rngs)), ((2, 16, 16, 3),))  # fmt: skip


@net
def convnet_nchw(rngs: nnx.Rngs) -> Sample:
    pool = partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
    layers = [*_conv_bn(3, 16, rngs), nnx.relu, pool, *_conv_bn(16, 24, rngs), nnx.relu, _mean]
    return Sample(Stack(*layers, nnx.Linear(24, 10, rngs=rngs)), ((2, 16, 16, 3),), nchw=True)


class Block(nnx.Module):
    """A residual block; with a projection where the width changes."""

    def __init__(self, i: int, o: int, rngs: nnx.Rngs, stride: int = 1) -> None:
        self.body = Stack(*_conv_bn(i, o, rngs, strides=stride), nnx.relu, *_conv_bn(o, o, rngs))
        self.short = Stack(*(_conv_bn(i, o, rngs, 1, strides=stride) if i != o else ()))

    def __call__(self, x: Any) -> Any:
        return nnx.relu(self.body(x) + self.short(x))


@net
def resnet(rngs: nnx.Rngs) -> Sample:
    return Sample(
        Stack(*_conv_bn(3, 16, rngs, 7, strides=2), nnx.relu, Block(16, 16, rngs),
              Block(16, 32, rngs, 2), Block(32, 32, rngs), _mean,
              nnx.Linear(32, 10, rngs=rngs)), ((2, 32, 32, 3),))  # fmt: skip


@net
def resnet_nchw(rngs: nnx.Rngs) -> Sample:
    return Sample(
        Stack(*_conv_bn(3, 16, rngs), nnx.relu, Block(16, 16, rngs), Block(16, 24, rngs, 2),
              _mean, nnx.Linear(24, 10, rngs=rngs)), ((2, 16, 16, 3),), nchw=True)  # fmt: skip


class Inverted(nnx.Module):
    """An inverted residual with a depthwise convolution and a squeeze-and-excite gate."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs) -> None:
        self.up = Stack(*_conv_bn(width, hidden, rngs, 1))
        self.deep = Stack(*_conv_bn(hidden, hidden, rngs, feature_group_count=hidden))
        self.squeeze = nnx.Linear(hidden, 8, rngs=rngs)
        self.excite = nnx.Linear(8, hidden, rngs=rngs)
        self.down = Stack(*_conv_bn(hidden, width, rngs, 1))

    def __call__(self, x: Any) -> Any:
        y = jax.nn.relu6(self.deep(jax.nn.relu6(self.up(x))))
        gate = y.mean(axis=(1, 2), keepdims=True)
        gate = nnx.sigmoid(self.excite(nnx.relu(self.squeeze(gate))))
        return x + self.down(y * gate)


@net
def mobilenet(rngs: nnx.Rngs) -> Sample:
    return Sample(
        Stack(*_conv_bn(3, 16, rngs, strides=2), nnx.relu, Inverted(16, 48, rngs),
              Inverted(16, 64, rngs), _mean, nnx.Linear(16, 10, rngs=rngs)),
        ((2, 16, 16, 3),))  # fmt: skip


class ConvNext(nnx.Module):
    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        self.deep = nnx.Conv(width, width, (7, 7), feature_group_count=width, rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)
        self.gamma = nnx.Param(jnp.full((width,), 0.1))

    def __call__(self, x: Any) -> Any:
        return x + self.gamma[...] * self.down(nnx.gelu(self.up(self.norm(self.deep(x)))))


@net
def convnext(rngs: nnx.Rngs) -> Sample:
    patch = nnx.Conv(3, 24, (4, 4), strides=4, rngs=rngs)
    return Sample(
        Stack(patch, ConvNext(24, rngs), ConvNext(24, rngs), _mean, nnx.LayerNorm(24, rngs=rngs),
              nnx.Linear(24, 10, rngs=rngs)), ((2, 32, 32, 3),))  # fmt: skip


@net
def group_norm_net(rngs: nnx.Rngs) -> Sample:
    return Sample(
        Stack(nnx.Conv(3, 16, (3, 3), rngs=rngs), nnx.GroupNorm(16, num_groups=4, rngs=rngs),
              nnx.silu, nnx.Conv(16, 24, (3, 3), feature_group_count=4, rngs=rngs), nnx.relu,
              _mean, nnx.Linear(24, 10, rngs=rngs)), ((2, 8, 8, 3),))  # fmt: skip


@net
def conv1d(rngs: nnx.Rngs) -> Sample:
    return Sample(
        Stack(nnx.Conv(6, 16, (5,), rngs=rngs), nnx.relu,
              nnx.Conv(16, 24, (3,), kernel_dilation=2, rngs=rngs), nnx.tanh,
              lambda x: x.max(axis=1), nnx.Linear(24, 5, rngs=rngs)), ((2, 20, 6),))  # fmt: skip


@net
def autoencoder(rngs: nnx.Rngs) -> Sample:
    return Sample(
        Stack(nnx.Conv(3, 16, (3, 3), strides=2, rngs=rngs), nnx.relu,
              nnx.Conv(16, 24, (3, 3), strides=2, rngs=rngs), nnx.relu,
              nnx.ConvTranspose(24, 16, (2, 2), strides=(2, 2), rngs=rngs), nnx.relu,
              nnx.ConvTranspose(16, 3, (2, 2), strides=(2, 2), rngs=rngs)),
        ((2, 16, 16, 3),))  # fmt: skip


class Dense(nnx.Module):
    """A convolution whose output is joined to its input."""

    def __init__(self, i: int, o: int, rngs: nnx.Rngs) -> None:
        self.body = Stack(nnx.BatchNorm(i, rngs=rngs), nnx.relu, nnx.Conv(i, o, (3, 3), rngs=rngs))

    def __call__(self, x: Any) -> Any:
        return jnp.concatenate([x, self.body(x)], axis=-1)


@net
def densenet(rngs: nnx.Rngs) -> Sample:
    return Sample(
        Stack(nnx.Conv(3, 16, (3, 3), rngs=rngs), Dense(16, 8, rngs), Dense(24, 8, rngs),
              *_conv_bn(32, 16, rngs, 1), nnx.relu, Dense(16, 8, rngs), _mean,
              nnx.Linear(24, 10, rngs=rngs)), ((2, 8, 8, 3),))  # fmt: skip


class Unet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.a = nnx.Conv(3, 16, (3, 3), rngs=rngs)
        self.b = nnx.Conv(16, 24, (3, 3), strides=2, rngs=rngs)
        self.c = nnx.Conv(24, 24, (3, 3), rngs=rngs)
        self.d = nnx.Conv(40, 16, (3, 3), rngs=rngs)
        self.e = nnx.Conv(16, 2, (1, 1), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        skip = nnx.relu(self.a(x))
        y = nnx.relu(self.c(nnx.relu(self.b(skip))))
        y = jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2)
        return self.e(nnx.relu(self.d(jnp.concatenate([y, skip], -1))))


@net
def unet(rngs: nnx.Rngs) -> Sample:
    return Sample(Unet(rngs), ((2, 16, 16, 3),))


# Attention.


class Layer(nnx.Module):
    """A transformer layer, norm first."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs, causal: bool = False) -> None:
        self.causal = causal
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            num_heads=heads, in_features=width, decode=False, rngs=rngs
        )
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.body = Stack(
            nnx.Linear(width, 2 * width, rngs=rngs),
            nnx.gelu,
            nnx.Linear(2 * width, width, rngs=rngs),
        )

    def __call__(self, x: Any) -> Any:
        y = self.norm1(x)
        mask = jnp.tril(jnp.ones((1, 1, x.shape[1], x.shape[1]), bool)) if self.causal else None
        x = x + self.attention(y, mask=mask)
        return x + self.body(self.norm2(x))


class Vit(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.patch = nnx.Conv(3, 32, (8, 8), strides=8, padding="VALID", rngs=rngs)
        self.token = nnx.Param(jax.random.normal(rngs.params(), (1, 1, 32)))
        self.place = nnx.Param(jax.random.normal(rngs.params(), (1, 17, 32)))
        self.layers = Stack(Layer(32, 4, rngs), Layer(32, 4, rngs), nnx.LayerNorm(32, rngs=rngs))
        self.head = nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.patch(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...], (x.shape[0], 1, 32))
        x = jnp.concatenate([token, x], 1) + self.place[...]
        return self.head(self.layers(x)[:, 0])


@net
def vit(rngs: nnx.Rngs) -> Sample:
    return Sample(Vit(rngs), ((2, 32, 32, 3),))


@net
def vit_nchw(rngs: nnx.Rngs) -> Sample:
    return Sample(Vit(rngs), ((2, 32, 32, 3),), nchw=True)


@net
def encoder_layer(rngs: nnx.Rngs) -> Sample:
    return Sample(Stack(Layer(24, 4, rngs), nnx.Linear(24, 6, rngs=rngs)), ((2, 7, 24),))


class Gpt(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.words = nnx.Embed(50, 32, rngs=rngs)
        self.places = nnx.Embed(16, 32, rngs=rngs)
        self.layers = Stack(Layer(32, 4, rngs, True), Layer(32, 4, rngs, True))
        self.norm = nnx.LayerNorm(32, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        y = self.words(x) + self.places(jnp.arange(x.shape[1]))
        return self.words.attend(self.norm(self.layers(y)))


@net
def gpt(rngs: nnx.Rngs) -> Sample:
    return Sample(Gpt(rngs), ((2, 9),), integer=True)


class Llama(nnx.Module):
    """Rotary positions, keys and values shared by pairs of heads, a gated MLP."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.words = nnx.Embed(50, 32, rngs=rngs)
        self.norms = nnx.List([nnx.RMSNorm(32, rngs=rngs) for _ in range(3)])
        self.q = nnx.Linear(32, 32, use_bias=False, rngs=rngs)
        self.k = nnx.Linear(32, 16, use_bias=False, rngs=rngs)
        self.v = nnx.Linear(32, 16, use_bias=False, rngs=rngs)
        self.o = nnx.Linear(32, 32, use_bias=False, rngs=rngs)
        self.gated = Gated(32, 64, rngs)
        self.head = nnx.Linear(32, 50, use_bias=False, rngs=rngs)

    def turn(self, x: Any) -> Any:
        angles = jnp.outer(jnp.arange(float(x.shape[1])), 100.0 ** (-jnp.arange(4.0) / 4))
        cos, sin = (jnp.concatenate([f(angles)] * 2, -1)[:, None] for f in (jnp.cos, jnp.sin))
        left, right = jnp.split(x, 2, -1)
        return x * cos + jnp.concatenate([-right, left], -1) * sin

    def __call__(self, ids: Any) -> Any:
        x = self.words(ids)
        b, s, _ = x.shape
        y = self.norms[0](x)
        q, k, v = (f(y).reshape(b, s, -1, 8) for f in (self.q, self.k, self.v))
        q, k = self.turn(q), self.turn(k)
        k, v = (jnp.repeat(t, 2, axis=2) for t in (k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5
        scores = jnp.where(jnp.tril(jnp.ones((s, s), bool)), scores, -1e9)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v).reshape(b, s, 32)
        x = x + self.o(y)
        x = x + self.gated(self.norms[1](x))
        return self.head(self.norms[2](x))


@net
def llama(rngs: nnx.Rngs) -> Sample:
    return Sample(Llama(rngs), ((2, 9),), integer=True)


class Fused(nnx.Module):
    """Query, key and value by one product, attention by jax.nn."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.qkv = nnx.Linear(24, 72, rngs=rngs)
        self.out = nnx.Linear(24, 6, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        b, s, _ = x.shape
        q, k, v = (t.reshape(b, s, 4, 6) for t in jnp.split(self.qkv(x), 3, -1))
        return self.out(jax.nn.dot_product_attention(q, k, v).reshape(b, s, 24))


@net
def fused_attention(rngs: nnx.Rngs) -> Sample:
    return Sample(Fused(rngs), ((2, 7, 24),))


class Mixer(nnx.Module):
    def __init__(self, tokens: int, width: int, rngs: nnx.Rngs) -> None:
        def mlp(n: int, hidden: int) -> Stack:
            return Stack(
                nnx.Linear(n, hidden, rngs=rngs), nnx.gelu, nnx.Linear(hidden, n, rngs=rngs)
            )

        self.norm1, self.norm2 = nnx.LayerNorm(width, rngs=rngs), nnx.LayerNorm(width, rngs=rngs)
        self.tokens, self.channels = mlp(tokens, 24), mlp(width, 64)

    def __call__(self, x: Any) -> Any:
        x = x + self.tokens(self.norm1(x).swapaxes(1, 2)).swapaxes(1, 2)
        return x + self.channels(self.norm2(x))


@net
def mlp_mixer(rngs: nnx.Rngs) -> Sample:
    patch = nnx.Conv(3, 32, (8, 8), strides=8, padding="VALID", rngs=rngs)
    return Sample(
        Stack(patch, lambda x: x.reshape(x.shape[0], -1, 32), Mixer(16, 32, rngs),
              Mixer(16, 32, rngs), nnx.LayerNorm(32, rngs=rngs), lambda x: x.mean(1),
              nnx.Linear(32, 10, rngs=rngs)), ((2, 32, 32, 3),))  # fmt: skip


# Recurrent layers: loops over time.


class Gru(nnx.Module):
    """A GRU by a scan, its three gates in one product."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.x = nnx.Linear(6, 48, rngs=rngs)
        self.h = nnx.Linear(16, 48, use_bias=False, rngs=rngs)
        self.out = nnx.Linear(16, 5, rngs=rngs)

    def step(self, h: Any, x: Any) -> tuple[Any, Any]:
        (rx, zx, nx), (rh, zh, nh) = jnp.split(x, 3, -1), jnp.split(self.h(h), 3, -1)
        r, z = nnx.sigmoid(rx + rh), nnx.sigmoid(zx + zh)
        h = (1 - z) * jnp.tanh(nx + r * nh) + z * h
        return h, h

    def __call__(self, x: Any) -> Any:
        start = jnp.zeros((x.shape[0], 16))
        last, _ = jax.lax.scan(self.step, start, self.x(x).swapaxes(0, 1))
        return self.out(last)


@net
def gru_scan(rngs: nnx.Rngs) -> Sample:
    return Sample(Gru(rngs), ((2, 7, 6),))


class Unrolled(Gru):
    """The same with the loop written out."""

    def __call__(self, x: Any) -> Any:
        h, y = jnp.zeros((x.shape[0], 16)), self.x(x)
        for t in range(3):
            h, _ = self.step(h, y[:, t])
        return self.out(h)


@net
def gru_unrolled(rngs: nnx.Rngs) -> Sample:
    return Sample(Unrolled(rngs), ((2, 3, 6),))


# flax.linen and equinox.


class LinenCnn(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.relu(linen.Conv(16, (3, 3))(x))
        x = linen.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        x = linen.relu(linen.GroupNorm(4)(linen.Conv(24, (3, 3))(x)))
        return linen.Dense(10)(linen.Dense(32)(x.reshape(x.shape[0], -1)))


class LinenTransformer(linen.Module):
    @linen.compact
    def __call__(self, x: Any) -> Any:
        for _ in range(2):
            x = x + linen.MultiHeadDotProductAttention(num_heads=4)(linen.LayerNorm()(x))
            x = x + linen.Dense(24)(linen.gelu(linen.Dense(48)(linen.LayerNorm()(x))))
        return linen.Dense(6)(x)


def _linen(module: linen.Module, rngs: nnx.Rngs, *shape: int) -> Sample:
    tree = module.init(rngs.params(), jnp.zeros(shape))
    return Sample(lambda x: module.apply(tree, x), (shape,))


@net
def linen_cnn(rngs: nnx.Rngs) -> Sample:
    return _linen(LinenCnn(), rngs, 2, 8, 8, 3)


@net
def linen_transformer(rngs: nnx.Rngs) -> Sample:
    return _linen(LinenTransformer(), rngs, 2, 7, 24)


@net
def equinox_mlp(rngs: nnx.Rngs) -> Sample:
    return Sample(jax.vmap(eqx.nn.MLP(10, 5, 32, 2, key=rngs.params())), ((3, 10),))


@net
def equinox_cnn(rngs: nnx.Rngs) -> Sample:
    a, b, c = (rngs.params() for _ in range(3))
    body = eqx.nn.Sequential([
        eqx.nn.Conv2d(3, 16, 3, padding=1, key=a), eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Conv2d(16, 24, 3, stride=2, padding=1, key=b), eqx.nn.Lambda(jax.nn.relu),
        eqx.nn.Lambda(lambda x: x.mean((1, 2))), eqx.nn.Linear(24, 10, key=c),
    ])  # fmt: skip
    return Sample(jax.vmap(body), ((2, 3, 8, 8),))


@net
def numpy_mlp(rngs: nnx.Rngs) -> Sample:
    a, b = (jax.random.normal(rngs.params(), s) for s in ((10, 32), (32, 5)))
    return Sample(lambda x: jnp.maximum(x @ a + 0.1, 0) @ b, ((3, 10),))
