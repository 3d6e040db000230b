"""Draw pictures that have the statistics of photographs, where there are none.

Two families. *Dead leaves*: textured shapes of all sizes that cover one another, so that there are
edges and occlusion (Lee, Mumford and Huang 2001). *Spectral*: noise whose amplitude falls with the
frequency as that of photographs does, over a slow gradient.

A picture has the values of a standardised photograph: over many of them every channel has mean 0
and standard deviation 1, a quarter of the variance is between pictures, channels go together (0.9),
and nothing lies beyond 2.6. Every picture depends on its own seed only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]  # height, width, channel

DEAD_LEAVES, SPECTRAL = FAMILIES = (0, 1)
LEVELS, MIDDLE = 49.0, 127.5  # a standard deviation in 8 bits, and zero

_BRIGHTNESS = 0.5  # deviation of a picture's mean, and of its tint
_TINT = 0.12
_CONTRAST = 0.3  # of the logarithm
_CHROMA = 0.33  # the colour of a leaf beside its lightness: channels correlate at 0.9
_LEAVES, _OLD = 150, 25
_SMALL = 48 * 48  # pixels
_GOLDEN = (math.sqrt(5) - 1) / 2


def picture(family: int, seed: Sequence[int], height: int, width: int, channels: int) -> Picture:
    """One standardised picture.

    Args:
        seed: what the picture depends on; the last number counts the pictures of a set and spreads
            their brightness evenly.
    """
    if height * width <= _SMALL:
        kept: Picture = _small(family, tuple(seed), height, width, channels)
        return np.array(kept)
    return _picture(family, seed, height, width, channels)


@lru_cache(maxsize=4096)
def _small(family: int, seed: tuple[int, ...], height: int, width: int, channels: int) -> Picture:
    """Kept, because small networks come in crowds, and for them a picture is what takes long."""
    return _picture(family, seed, height, width, channels)


def _picture(family: int, seed: Sequence[int], height: int, width: int, channels: int) -> Picture:
    random = np.random.default_rng([family, *seed])
    draw = _dead_leaves if family == DEAD_LEAVES else _spectral
    drawn: Picture = draw(random, height, width, channels)
    drawn -= drawn.mean()
    drawn /= max(float(drawn.std()), 1e-6)
    spread = (0.5 + (seed[-1] + 1) * _GOLDEN) % 1  # as even as chance is not
    brightness = _BRIGHTNESS * NormalDist().inv_cdf(min(max(spread, 1e-4), 1 - 1e-4))
    inside = 1 - _BRIGHTNESS**2 - _TINT**2
    contrast = math.sqrt(inside) * math.exp(_CONTRAST * random.standard_normal() - _CONTRAST**2)
    drawn *= np.float32(contrast)
    tint = _TINT * random.standard_normal(channels) if channels > 1 else np.zeros(1)
    drawn += (brightness + tint).astype(np.float32)
    return drawn


def in_bytes(drawn: Picture) -> NDArray[np.uint8]:
    """A standardised picture as 8 bits: what a photograph's file would hold."""
    return np.asarray(np.clip(np.rint(drawn * LEVELS + MIDDLE), 0, 255), np.uint8)


def _colour(random: np.random.Generator, channels: int, chroma: float = _CHROMA) -> Picture:
    """Mostly light or dark: all channels alike, and a little of their own."""
    light = random.uniform(-1.7, 1.7)
    own = chroma * random.standard_normal(channels) if channels > 1 else 0.0
    return np.asarray(light + own, np.float32).reshape(-1)


# Dead leaves -------------------------------------------------------------------------------------


def _dead_leaves(random: np.random.Generator, height: int, width: int, channels: int) -> Picture:
    side = max(height, width)
    least, most = max(1.0, side / 40), max(1.5, side / 2)
    grain = spectrum(random, (height, width), random.uniform(0.7, 1.4))
    scene = np.empty((height, width, channels), np.float32)
    scene[:] = _colour(random, channels) + 0.5 * grain[..., None]
    # The density of radii falls as r^-3, the same at every scale. So few would leave holes: what
    # shows through them is older leaves, laid here as large ones.
    old = most * 2.0 ** random.uniform(-2, 0, min(_OLD, height * width // 16))
    area = math.pi * 2 * least**2 * math.log(most / least)
    count = int(np.clip(1.5 * height * width / area, 8, _LEAVES - len(old)))
    new = least / np.sqrt(1 - random.random(count) * (1 - (least / most) ** 2))
    for radius in [*old.tolist(), *new.tolist()]:
        _leaf(random, scene, grain, radius)
    return _blurred(scene, random.uniform(0.0, 0.35))


def _leaf(random: np.random.Generator, scene: Picture, grain: Picture, radius: float) -> None:
    """Lay one leaf over what is there."""
    height, width, channels = scene.shape
    y, x = random.random() * height, random.random() * width
    reach = radius + 1
    top, bottom = max(0, math.floor(y - reach)), min(height, math.ceil(y + reach) + 1)
    left, right = max(0, math.floor(x - reach)), min(width, math.ceil(x + reach) + 1)
    if top >= bottom or left >= right:
        return
    down = np.arange(top, bottom, dtype=np.float32)[:, None] - np.float32(y)
    across = np.arange(left, right, dtype=np.float32)[None, :] - np.float32(x)
    angle = random.uniform(0, 2 * math.pi)
    sine, cosine = np.float32(math.sin(angle)), np.float32(math.cos(angle))
    u, v = down * sine + across * cosine, down * cosine - across * sine
    cover = np.clip(np.float32(0.5) - _outside(random, u, v, radius), 0, 1)
    leaf = _texture(random, u, v, radius, grain)[..., None] * _weights(random, channels)
    leaf += _colour(random, channels)
    part = scene[top:bottom, left:right]
    leaf -= part
    leaf *= cover[..., None]
    part += leaf


def _outside(random: np.random.Generator, u: Picture, v: Picture, radius: float) -> Picture:
    """How far each pixel lies outside of a shape; below zero inside."""
    shape = random.integers(3)
    if shape == 0:
        squash = random.uniform(0.6, 1.0)
        return np.asarray((np.hypot(u, v / squash) - radius) * squash, np.float32)
    if shape == 1:  # a rectangle whose corners touch the circle
        corner = random.uniform(0.2, math.pi / 2 - 0.2)
        a, b = radius * math.cos(corner), radius * math.sin(corner)
        return np.asarray(np.maximum(np.abs(u) - a, np.abs(v) - b), np.float32)
    turns = np.sort(random.uniform(-0.5, 0.5, 3) + np.arange(3) * (2 * math.pi / 3))
    after_each = [turns[1], turns[2], turns[0] + 2 * math.pi]
    far = np.full(u.shape, -np.inf, np.float32)
    for turn, after in zip(turns, after_each, strict=True):
        middle, half = (turn + after) / 2, (after - turn) / 2
        edge = u * math.cos(middle) + v * math.sin(middle) - radius * math.cos(half)
        np.maximum(far, edge, out=far)
    return far


def _texture(
    random: np.random.Generator, u: Picture, v: Picture, radius: float, grain: Picture
) -> Picture:
    """What a leaf shows beside its colour: grain, a gradient, or stripes."""
    kind, depth = random.integers(4), random.uniform(0.1, 0.6)
    if kind == 0:
        return np.asarray(u * (depth / radius), np.float32)
    if kind == 1:
        period = random.uniform(2.5, max(4.0, radius))
        return np.asarray(depth * np.sin(u * (2 * math.pi / period) + random.uniform(0, 6)), "f4")
    rows, columns = u.shape
    flipped = grain if random.random() < 0.5 else grain[::-1, ::-1]
    top = random.integers(grain.shape[0] - rows + 1)
    left = random.integers(grain.shape[1] - columns + 1)
    return np.asarray(depth * flipped[top : top + rows, left : left + columns], np.float32)


def _weights(random: np.random.Generator, channels: int) -> Picture:
    return np.asarray(1 + 0.15 * random.standard_normal(channels), np.float32)


def _blurred(scene: Picture, weight: float) -> Picture:
    """Each pixel mixed with its neighbours, as a lens does."""
    weight = np.float32(weight)
    for axis in (0, 1):
        if scene.shape[axis] > 2:
            moved = np.moveaxis(scene, axis, 0)
            inner = moved[1:-1] * (1 - weight) + (moved[:-2] + moved[2:]) * (weight / 2)
            moved[1:-1] = inner
    return scene


# Spectral ----------------------------------------------------------------------------------------


def _spectral(random: np.random.Generator, height: int, width: int, channels: int) -> Picture:
    slope = random.uniform(0.8, 1.6)
    light = spectrum(random, (height, width), slope)
    scene = np.repeat(light[..., None], channels, axis=2)
    if channels > 1:
        own = noises(random, (height, width), slope, channels)
        scene += np.float32(_CHROMA) * np.moveaxis(own, 0, 2)
    down, across = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)[None, :]
    angle = random.uniform(0, 2 * math.pi)
    gradient = math.sin(angle) * down + math.cos(angle) * across
    scene += (random.uniform(0, 0.8) * gradient)[..., None] * _weights(random, channels)
    return scene


def spectrum(random: np.random.Generator, shape: Sequence[int], slope: float) -> Picture:
    """Noise whose amplitude falls with the frequency f as f^-slope; mean 0, deviation 1."""
    return np.asarray(noises(random, shape, slope, 1)[0])


def noises(
    random: np.random.Generator, shape: Sequence[int], slope: float, count: int
) -> NDArray[np.float32]:
    """That many on grids of any rank."""
    axes = [np.fft.fftfreq(n) ** 2 for n in shape[:-1]] + [np.fft.rfftfreq(shape[-1]) ** 2]
    squares = np.zeros([len(axis) for axis in axes])
    for axis in np.ix_(*axes):
        squares += axis
    squares.flat[0] = np.inf  # no mean
    parts = random.standard_normal((count, *squares.shape, 2), np.float32)
    waves = parts.view(np.complex64)[..., 0] * (squares ** (-slope / 2)).astype(np.float32)
    inner = tuple(range(1, 1 + len(shape)))
    made = np.fft.irfftn(waves, list(shape), axes=inner).astype(np.float32)
    made -= made.mean(axis=inner, keepdims=True)
    return np.asarray(made / np.maximum(made.std(axis=inner, keepdims=True), 1e-9), np.float32)
