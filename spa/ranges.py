"""The range that a model expects of an input, as the first nodes that read it tell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.graph import Graph, Node

Array = NDArray[np.float64]

# Mean and deviation of pictures as bytes, as shares of 255, and standardised.
_BYTES, _SHARES, _STANDARD = (127.5, 49.0), (0.5, 49 / 255), (0.0, 1.0)
_FITS = 2.5  # how far from standardised what the model makes of its input may lie

_PASS = {"Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Dropout"}


@dataclass(frozen=True)
class Range:
    """How standardised values are brought to what an input expects: scale * value + shift.

    Both have one number, or a number for every channel, on the axes of one sample.
    """

    scale: NDArray[np.float32]
    shift: NDArray[np.float32]


@dataclass(frozen=True)
class _Seen:
    """What the model makes of an input x at first: gain * x + bias; mean and deviation of that, as
    a normalisation has stored them."""

    gain: Array
    bias: Array
    stored: tuple[Array, Array] | None = None


def expected_range(graph: Graph, name: str, rank: int, axis: int | None, picture: bool) -> Range:
    """The range of one float input.

    A normalisation with stored statistics says it exactly. With a scale or a shift before the
    first layer a picture comes as bytes, as shares, or standardised: whatever they bring closest to
    mean 0 and deviation 1. Where none of that fits, and for other inputs, they are inverted.

    Args:
        axis: where samples lie, if anywhere.
    """
    seen = _follow(graph, name, rank)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale, shift = _values(seen, picture)
    fits = axis is None or all(v.size == 1 or v.shape[axis] == 1 for v in (scale, shift))
    if not fits or not (np.all(np.isfinite(scale)) and np.all(np.isfinite(shift))):
        scale, shift = np.ones(1), np.zeros(1)
    scale, shift = (
        v if axis is None or v.ndim < rank or rank == 1 else v.squeeze(axis) for v in (scale, shift)
    )
    return Range(scale.astype(np.float32), shift.astype(np.float32))


def _values(seen: _Seen, picture: bool) -> tuple[Array, Array]:
    if seen.stored is not None:
        mean, deviation = seen.stored
        return deviation / seen.gain, (mean - seen.bias) / seen.gain
    if picture:
        ways = [_STANDARD, _SHARES, _BYTES]
        far = [_distance(seen, *way) for way in ways]
        if min(far) < _FITS:
            mean, deviation = (np.full(1, v) for v in ways[int(np.argmin(far))])
            return deviation, mean
    return 1 / seen.gain, -seen.bias / seen.gain


def _distance(seen: _Seen, mean: float, deviation: float) -> float:
    """How far from mean 0 and deviation 1 the model brings an input of these."""
    off = np.median(np.abs(seen.gain * mean + seen.bias))
    return float(off + np.abs(np.log(np.median(np.abs(seen.gain)) * deviation)))


def _follow(graph: Graph, name: str, rank: int) -> _Seen:
    """Multiply and add up along the nodes that read the input one after the other."""
    seen = _Seen(np.ones([1] * rank), np.zeros([1] * rank))
    order = tuple(range(rank))  # order[k]: the axis of the input that axis k is here
    while True:
        readers = graph.readers.get(name, [])
        if len(readers) != 1 or name in graph.outputs:
            return seen
        node = graph.nodes[readers[0]]
        if node.op_type == "Transpose" and len(node.attrs.get("perm", ())) == rank:
            order = tuple(order[k] for k in node.attrs["perm"])
        elif node.op_type == "BatchNormalization":
            stored = _statistics(graph, node, rank, order)
            return _Seen(seen.gain, seen.bias, stored) if stored else seen
        elif node.op_type not in _PASS:
            further = _step(graph, node, name, seen, order)
            if further is None:
                return seen
            seen = further
        name = node.outputs[0]


def _step(graph: Graph, node: Node, name: str, seen: _Seen, order: tuple[int, ...]) -> _Seen | None:
    """One node with a constant further; None where it is something else."""
    if node.op_type == "Scaler":  # (x - offset) * scale
        offset, scale = (np.asarray(node.attrs.get(k, d)) for k, d in (("offset", 0), ("scale", 1)))
        a, b = _laid(scale, order), _laid(offset, order)
        return None if a is None or b is None else _Seen(seen.gain * a, (seen.bias - b) * a)
    if node.op_type not in ("Add", "Sub", "Mul", "Div") or len(node.inputs) != 2:
        return None
    first = node.inputs[0] == name
    other = node.inputs[1 if first else 0]
    if other not in graph.constants:
        return None
    value = _laid(graph.array(other), order)
    if value is None or not np.all(np.isfinite(value)):
        return None
    if node.op_type == "Mul":
        return _Seen(seen.gain * value, seen.bias * value)
    if node.op_type == "Div":
        fits = first and bool(np.all(value))
        return _Seen(seen.gain / value, seen.bias / value) if fits else None
    if node.op_type == "Add":
        return _Seen(seen.gain, seen.bias + value)
    if first:
        return _Seen(seen.gain, seen.bias - value)
    return _Seen(-seen.gain, value - seen.bias)


def _laid(value: NDArray[Any], order: tuple[int, ...]) -> Array | None:
    """A constant on the axes of the input; None where it is more than a number per channel."""
    rank = len(order)
    if value.ndim > rank or value.size != max(value.shape, default=1):
        return None
    here = np.asarray(value, np.float64).reshape([1] * (rank - value.ndim) + list(value.shape))
    return np.asarray(here.transpose(np.argsort(order)))


def _statistics(
    graph: Graph, node: Node, rank: int, order: tuple[int, ...]
) -> tuple[Array, Array] | None:
    if rank < 2 or any(name not in graph.constants for name in node.inputs[3:5]):
        return None
    mean, variance = (
        _laid(graph.array(name).reshape(-1, *[1] * (rank - 2)), order) for name in node.inputs[3:5]
    )
    if mean is None or variance is None or not np.all(variance > 0):
        return None
    return mean, np.sqrt(variance)
