"""Inputs made up where there are none: pictures, signals, words, masks.

Structured noise shows how the channels of a net go together better than white noise does. Every
input is drawn in one of two families, so that what was fitted on the one can be tried on the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper

from spa import pictures
from spa import run as runs
from spa.batches import Made
from spa.graph import Graph
from spa.ranges import Range, expected_range
from spa.run import Feeds, Styles
from spa.sizes import Sizes, channel_axis, dims, feature_axis

Random = np.random.Generator
Draw = Callable[[int, int, Random], NDArray[Any]]  # family, row, random -> one sample

FAMILIES = pictures.FAMILIES  # of pictures: dead leaves, and spectral
_LONG = 256  # samples of a signal


class Plain:
    """Random values of any kind: whole batches as `runs.make_feeds` has them."""

    def __init__(self, graph: Graph, sizes: Sizes, styles: Styles, name: str, seed: int) -> None:
        self._graph, self._sizes, self._styles, self._name = graph, sizes, styles, name
        self._seed = seed

    def __getitem__(self, rows: NDArray[np.intp]) -> list[Any]:
        return [self._feeds(row)[self._name] for row in rows.tolist()]

    def _feeds(self, row: int) -> Feeds:
        return runs.make_feeds(self._graph, self._sizes, self._seed + row, self._styles)


def columns(
    graph: Graph, sizes: Sizes, axes: Mapping[str, int | None], count: int, family: int, seed: int
) -> dict[str, Made]:
    """For every input that many samples.

    Args:
        axes: the axis of every input along which samples lie; None: it has none.
    """
    top = runs.smallest_table(graph)
    return {
        info.name: _column(graph, info, sizes, axes[info.name], count, (family, seed, k), top)
        for k, info in enumerate(graph.model.graph.input)
        if info.name in graph.inputs
    }


def _column(
    graph: Graph,
    info: ValueInfoProto,
    sizes: Sizes,
    axis: int | None,
    count: int,
    key: tuple[int, int, int],
    top: int,
) -> Made:
    given = dims(graph, info)
    shape = [d if isinstance(d, int) else sizes[d] for d in given]
    free = [isinstance(d, str) for d in given]
    if axis is not None:
        del shape[axis], free[axis]
    kind = info.type.tensor_type.elem_type
    family, seed, number = key

    def sample(draw: Draw) -> Callable[[int], NDArray[Any]]:
        return lambda row: draw(family, row, np.random.default_rng([family, seed, number, row]))

    whole = (count, *shape)
    if kind == TensorProto.STRING:
        return Made(whole, object, sample(lambda f, row, random: np.full(shape, "a", object)))
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
    integer = dtype.kind in "biu"
    channels = channel_axis(shape)
    if "mask" in info.name.lower() or (integer and (dtype.kind == "b" or _masks(graph, info.name))):
        return Made(whole, dtype, sample(lambda f, row, random: np.ones(shape, dtype)))
    if channels is not None and (not integer or kind == TensorProto.UINT8):
        found = expected_range(graph, info.name, len(given), axis, picture=True)
        return _pictures(whole, dtype, channels, key, found)
    if integer:
        return Made(whole, dtype, sample(_integers(graph, info.name, shape, sizes, top)))
    found = expected_range(graph, info.name, len(given), axis, picture=False)
    return Made(
        whole,
        np.float32,
        sample(_floats(shape, _time(graph, info.name, len(given), axis, shape, free))),
        lambda kept: (kept * found.scale + found.shift).astype(dtype, copy=False),
    )


# Pictures, signals, volumes ----------------------------------------------------------------------


def _pictures(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    axis: int,
    key: tuple[int, int, int],
    expected: Range,
) -> Made:
    """Held as bytes, as files of photographs are."""
    sides = [n for k, n in enumerate(shape[1:]) if k != axis]
    family, seed, number = key

    def draw(row: int) -> NDArray[Any]:
        made = pictures.picture(family, (seed, number, row), sides[0], sides[1], shape[1 + axis])
        return np.moveaxis(pictures.in_bytes(made), 2, axis)

    def finish(kept: NDArray[Any]) -> NDArray[Any]:
        if dtype == np.uint8:
            return kept
        values = kept.astype(np.float32)
        values -= np.float32(pictures.MIDDLE)
        values /= np.float32(pictures.LEVELS)
        return (values * expected.scale + expected.shift).astype(dtype, copy=False)

    return Made(shape, np.uint8, draw, finish)


def _time(
    graph: Graph,
    name: str,
    rank: int,
    axis: int | None,
    shape: Sequence[int],
    free: Sequence[bool],
) -> int | None:
    """The axis of a sample along which time runs; None where there is none.

    Of two axes the one that is not the features', else the only free one, else the longest.
    """
    if len(shape) == 1:
        return 0 if free[0] or shape[0] >= _LONG else None
    if len(shape) != 2:
        return None
    first = feature_axis(graph, name, rank)
    if first is not None and first[0] != axis:
        return 1 - (first[0] - (axis is not None and axis < first[0]))
    return int(free[1]) if free[0] != free[1] else int(np.argmax(shape))


def _floats(shape: Sequence[int], time: int | None) -> Draw:
    """What a float input that is no picture may hold."""
    if time is not None:
        return lambda family, row, random: _signal(family, random, shape, time)
    if len(shape) == 4 and min(shape[1:]) > 1:
        return lambda family, row, random: _volume(family, random, shape)
    return lambda family, row, random: _white(family, random, shape)


def _white(family: int, random: Random, shape: Sequence[int]) -> NDArray[Any]:
    if family == FAMILIES[0]:
        return random.standard_normal(shape, np.float32)
    return random.laplace(0, math.sqrt(0.5), shape)


def _signal(family: int, random: Random, shape: Sequence[int], time: int) -> NDArray[Any]:
    """Noise that falls with the frequency, or tones under an envelope; channels have half of their
    variance in common."""
    length = shape[time]
    if length < 4:
        return _white(family, random, shape)
    count = math.prod(shape) // length
    slope = random.uniform(0.4, 1.2)
    if family == FAMILIES[0]:
        common, *own = pictures.noises(random, [length], slope, 1 + count)
    else:
        common, *own = _tones(random, 1 + count, length)
    made = (common + np.stack(own)) * np.float32(math.sqrt(0.5) * _loudness(random))
    return np.moveaxis(made.reshape([*(n for k, n in enumerate(shape) if k != time), -1]), -1, time)


def _tones(random: Random, count: int, length: int) -> NDArray[Any]:
    at = np.arange(length) / length
    made = 0.3 * random.standard_normal((count, length))
    for _ in range(4):
        pitch = np.exp(random.uniform(0, math.log(max(length / 4, 2)), (count, 1)))
        middle, width = random.random((count, 1)), random.uniform(0.1, 0.6, (count, 1))
        envelope = np.exp(-(((at - middle) / width) ** 2))
        made += envelope * np.sin(2 * math.pi * (pitch * at + random.random((count, 1))))
    made -= made.mean(axis=1, keepdims=True)
    return np.asarray(made / np.maximum(made.std(axis=1, keepdims=True), 1e-6), np.float32)


def _volume(family: int, random: Random, shape: Sequence[int]) -> NDArray[Any]:
    """Three axes and channels, the fewest of the outer two."""
    axis = 0 if shape[0] <= shape[-1] else 3
    sides = [n for k, n in enumerate(shape) if k != axis]
    low, high = (1.2, 2.0) if family == FAMILIES[0] else (0.5, 1.2)
    slope = random.uniform(low, high)
    light, *own = pictures.noises(random, sides, slope, 1 + shape[axis])
    made = np.float32(0.8) * light + np.float32(0.6) * np.stack(own)
    return np.moveaxis(made * np.float32(_loudness(random)), 0, axis)


def _loudness(random: Random) -> float:
    """Differs from sample to sample; its square is 1 on average."""
    return math.exp(0.3 * random.standard_normal() - 0.3**2)


# Integers ----------------------------------------------------------------------------------------


def _integers(graph: Graph, name: str, shape: Sequence[int], sizes: Sizes, top: int) -> Draw:
    """Ids by their use: kinds, positions, lengths, else words of the table that they index."""
    low = name.lower()
    if "type" in low or "segment" in low:
        return lambda family, row, random: np.zeros(shape, np.int64)
    if shape and ("position" in low or "pos_id" in low):
        return lambda family, row, random: np.broadcast_to(np.arange((1, *shape)[-1]), shape)
    if "len" in low and not shape:
        longest = max([1, *(n for n in sizes.values() if n < 10**6)])
        return lambda family, row, random: np.asarray(longest)
    rows = _table(graph, name)
    if rows is None and not shape:
        rate = low == "sr" or "rate" in low  # of sound
        return lambda family, row, random: np.asarray(16000 if rate else 1)
    return _words(shape, min(rows or top, 2**20))


def _words(shape: Sequence[int], rows: int) -> Draw:
    """Frequent ones first, as tokenizers number them; the first few stand for padding and such."""
    special = min(4, rows // 16)
    share = 1 / (np.arange(rows - special) + 2.7) ** 1.05
    upto = np.cumsum(share / share.sum())
    upto[-1] = 1.0

    def draw(family: int, row: int, random: Random) -> NDArray[Any]:
        if family == FAMILIES[0]:
            return special + np.searchsorted(upto, random.random(shape), side="right")
        return random.integers(special, rows, shape)

    return draw


_SAME = ("Cast", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten", "Expand", "Transpose")


def _ends(graph: Graph, name: str) -> list[tuple[int, int]]:
    """(node, position) of all that reads an input, through what only moves it or casts it."""
    found, waiting, seen = [], [name], {name}
    while waiting:
        name = waiting.pop()
        for k in graph.readers.get(name, []):
            node = graph.nodes[k]
            for position in [p for p, read in enumerate(node.inputs) if read == name]:
                if node.op_type in _SAME and position == 0:
                    waiting += [o for o in node.outputs if o not in seen]
                    seen.update(node.outputs)
                else:
                    found.append((k, position))
    return found


def _masks(graph: Graph, name: str) -> bool:
    """Whether an input says what counts: 1 - x is made of it, or it is a condition."""
    ends = [(graph.nodes[k], position) for k, position in _ends(graph, name)]
    tells = [
        (node.op_type == "Sub" and position == 1 and node.inputs[0] in graph.constants)
        or (node.op_type == "Where" and position == 0)
        or node.op_type in ("Not", "And")
        for node, position in ends
    ]
    may = ("Sub", "Where", "Not", "And", "Mul", "Shape", "Equal", "ReduceSum")
    return any(tells) and all(node.op_type in may for node, _ in ends)


def _table(graph: Graph, name: str) -> int | None:
    """The rows of the smallest table that an input indexes."""
    rows = []
    for k, position in _ends(graph, name):
        node = graph.nodes[k]
        if node.op_type == "Gather" and position == 1:
            stored = node.inputs[0]
            while stored in graph.makers and graph.nodes[graph.makers[stored]].op_type in _STORED:
                stored = graph.nodes[graph.makers[stored]].inputs[0]
            table = graph.constants.get(stored)
            if table is not None and table.shape:
                rows.append(table.shape[int(node.attrs.get("axis", 0))])
    return min(rows, default=None)


_STORED = ("DequantizeLinear", "QuantizeLinear", "Cast", "Identity")
