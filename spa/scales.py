"""Find the scale and the zero point of what is quantised.

The rule of a reader names where they are (`spa.rules.Quantised`). Between a constant and its reader
may stand what only moves numbers, such as a Transpose; or Cast, Sub and Mul are written out instead
of such a reader.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from spa import rules, values
from spa.graph import Graph, Node
from spa.rules import Quantised

Value = NDArray[Any]

_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")


@dataclass(frozen=True)
class Coding:
    """What turns stored numbers into real ones: scale * (unpack(stored) - point).

    scale, point: one for all or one for every number; None for 1 and 0. unpack, and pack back to
    the nearest: None for nothing.
    """

    scale: Value | None
    point: Value | None
    unpack: Callable[[Value], Value] | None = None
    pack: Callable[[Value], Value] | None = None


@dataclass(frozen=True)
class _Read:
    """Where a constant is read as quantised numbers.

    moved: the position in the constant of every number that the node reads; None where they are as
        stored.
    """

    node: Node
    position: int
    how: Quantised
    moved: Value | None


def coding(graph: Graph, name: str, value: Value) -> Coding | None:
    """How a constant holds numbers; None where nothing that reads it says.

    Args:
        value: what it holds.
    """
    if not is_quantised(graph, name):
        return None
    read = _read(graph, name, value.shape)
    if read is None:
        return _written_out(graph, name, value.shape)
    node, how = read.node, read.how
    unpack = partial(how.unpack, node, read.position) if how.unpack is not None else None
    pack = partial(how.pack, node) if how.pack is not None else None
    shape = value.shape if unpack is None else unpack(value).shape
    scale, point = _scale(graph, read), _held(graph, read, how.point)
    if unpack is not None and scale is not None and point is not None:
        point = point[tuple(map(slice, scale.shape))]  # a last byte may hold more than there are
    scale, point = (_at_each(graph, read, shape, v) for v in (scale, point))
    return Coding(scale, point, unpack, pack)


def of_data(graph: Graph, node: Node, position: int) -> Coding | None:
    """How the data that a node reads there hold numbers; None where its scale is not stored or not
    one for all."""
    rule = rules.find(node.op_type, node.domain)
    if rule is None or position not in rule.quantised:
        return Coding(None, None)
    read = _Read(node, position, rule.quantised[position], None)
    places = (*read.how.scales, read.how.point)
    given = [k for k in places if 0 <= k < len(node.inputs) and node.inputs[k]]
    held = [_held(graph, read, k) for k in given]
    if not read.how.scales or not all(v is not None and v.size == 1 for v in held):
        return None
    return Coding(_scale(graph, read), _held(graph, read, read.how.point))


def carrier(graph: Graph, node: Node) -> int | None:
    """The input whose numbers, one by one, are what the node makes real ones of, if any."""
    if node.op_type in ("Identity", "DequantizeLinear"):
        return 0
    name = node.inputs[0] if node.inputs else ""
    while name in graph.makers and graph.nodes[graph.makers[name]].op_type in ("Cast", "Sub"):
        name = graph.nodes[graph.makers[name]].inputs[0]
    stored = name in graph.constants and is_quantised(graph, name)
    return 0 if stored and node.op_type in ("Cast", "Sub", "Mul") else None


def _written_out(graph: Graph, name: str, shape: tuple[int, ...]) -> Coding | None:
    """The scale and the zero point that Mul and Sub apply behind a Cast."""
    point: Value | None = None
    for op_types in (("Cast",), ("Sub", "Mul"), ("Cast", "Mul")):
        nodes = [graph.nodes[k] for k in graph.readers.get(name, [])]
        if len(nodes) != 1 or nodes[0].op_type not in op_types or nodes[0].inputs[0] != name:
            return None
        (node,) = nodes
        name = node.outputs[0]
        if node.op_type == "Cast":
            continue
        other = _constant(graph, node.inputs[1])
        try:
            other = None if other is None else np.broadcast_to(other, shape)
        except ValueError:
            return None
        if node.op_type == "Mul" or other is None:
            return None if other is None else Coding(other, point)
        point = other
    return None


def is_beside(graph: Graph, name: str) -> bool:
    """Whether a constant is but the scale or the zero point of others."""
    return _beside(graph, name, _scales) or is_point(graph, name)


def is_point(graph: Graph, name: str) -> bool:
    """Whether a constant is but the zero point of others."""
    return _beside(graph, name, _points)


def is_read_as_quantised(node: Node, position: int) -> bool:
    """Whether the rule of a node says that an input of it holds quantised numbers."""
    rule = rules.find(node.op_type, node.domain)
    return rule is not None and position in rule.quantised


def is_quantised(graph: Graph, name: str) -> bool:
    """Whether the type of a constant is one that holds numbers by a scale."""
    kind = TensorProto.DataType.Name(graph.constants[name].tensor.data_type)
    return "64" not in kind and ("INT" in kind or kind.startswith(("FLOAT8", "FLOAT4", "FLOAT6")))


def _beside(graph: Graph, name: str, places: Callable[[Quantised], tuple[int, ...]]) -> bool:
    nodes = [graph.nodes[k] for k in graph.readers.get(name, [])]
    return bool(nodes) and all(
        any(n == name and k in _all(node, places) for k, n in enumerate(node.inputs))
        for node in nodes
    )


def _scales(how: Quantised) -> tuple[int, ...]:
    return how.scales


def _points(how: Quantised) -> tuple[int, ...]:
    return (how.point,)


def _all(node: Node, places: Callable[[Quantised], tuple[int, ...]]) -> set[int]:
    rule = rules.find(node.op_type, node.domain)
    return {k for how in (rule.quantised if rule else {}).values() for k in places(how)}


def _read(graph: Graph, name: str, shape: tuple[int, ...] | None) -> _Read | None:
    """The first reader of a tensor that says how its numbers are meant.

    Args:
        shape: of the tensor; None where it is no longer known which of its numbers are which.
    """
    for node in (graph.nodes[k] for k in graph.readers.get(name, [])):
        rule = rules.find(node.op_type, node.domain)
        for position, how in (rule.quantised if rule else {}).items():
            if position < len(node.inputs) and node.inputs[position] == name:
                return _Read(node, position, how, None)
        if rule is None or rule.family not in ("movement", "reshape"):
            continue
        order = None
        if shape is not None and node.op_type in _MOVES:
            places = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
            order = _moved(graph, node, name, places)
        for out in node.outputs if node.inputs[0] == name else ():
            found = _read(graph, out, None if order is None else order.shape)
            if found is None or (order is None and not _is_for_all(graph, found)):
                continue
            if order is None:
                return replace(found, moved=None)
            inner = order if found.moved is None else order.ravel()[found.moved]
            return replace(found, moved=inner)
    return None


def _is_for_all(graph: Graph, read: _Read) -> bool:
    """Whether there is one scale and one zero point for all numbers."""
    held = (_scale(graph, read), _held(graph, read, read.how.point))
    return read.how.unpack is None and all(v is None or v.size == 1 for v in held)


def _moved(graph: Graph, node: Node, name: str, places: Value) -> Value | None:
    """Where a node moves the numbers of a constant."""
    feeds = {
        n: places if i == name else np.asarray(graph.array(i))
        for n, i in zip(node.proto.input, node.inputs, strict=True)
        if i == name or i in graph.constants
    }
    made = values.run(graph, node, feeds)
    return made[0] if made else None


def _held(graph: Graph, read: _Read, position: int) -> Value | None:
    name = read.node.inputs[position] if 0 <= position < len(read.node.inputs) else ""
    value = _constant(graph, name)
    if value is not None and read.how.unpack is not None:
        return read.how.unpack(read.node, position, value)
    return value


def _constant(graph: Graph, name: str) -> Value | None:
    while name not in graph.constants and name in graph.makers:
        node = graph.nodes[graph.makers[name]]
        if node.op_type not in ("Identity", "Reshape", "Unsqueeze", "Squeeze"):
            return None
        name = node.inputs[0]
    return np.asarray(graph.array(name)) if name in graph.constants else None


def _scale(graph: Graph, read: _Read) -> Value | None:
    if read.how.behind:
        return _behind(graph, read.node)
    found = [v for k in read.how.scales if (v := _held(graph, read, k)) is not None]
    return np.asarray(np.prod(np.broadcast_arrays(*found), axis=0)) if found else None


def scaled_by(graph: Graph, node: Node) -> Node | None:
    """The node itself, or the Mul that brings what it makes to its scale; None where none does."""
    rule = rules.find(node.op_type, node.domain)
    if rule is None or not any(how.behind for how in rule.quantised.values()):
        return node
    name = node.outputs[0]
    while len(graph.readers.get(name, ())) == 1:
        after = graph.nodes[graph.readers[name][0]]
        if after.op_type != "Cast":
            return after if after.op_type == "Mul" else None
        name = after.outputs[0]
    return None


def _behind(graph: Graph, node: Node) -> Value | None:
    """The stored factors of what a node makes."""
    last = scaled_by(graph, node)
    if last is None:
        return None
    factors = [f for n in last.inputs if (f := _factor(graph, n)) is not None]
    return factors[0].ravel() if len(factors) == 1 else None


def _factor(graph: Graph, name: str) -> Value | None:
    value = _constant(graph, name)
    if value is not None or name not in graph.makers:
        return value
    node = graph.nodes[graph.makers[name]]
    if node.op_type != "Mul":
        return None
    known = [f for n in node.inputs if (f := _factor(graph, n)) is not None]
    return np.asarray(np.prod(np.broadcast_arrays(*known), axis=0)) if known else None


def _at_each(
    graph: Graph, read: _Read, shape: tuple[int, ...], value: Value | None
) -> Value | None:
    """A scale or zero point at every number of a constant; None where there is none that fits."""
    if value is None:
        return None
    try:
        there = along(value, shape if read.moved is None else read.moved.shape, _axes(read))
    except ValueError:
        return None
    if read.moved is None:
        return there
    found = np.zeros(shape, value.dtype)
    found.ravel()[read.moved.ravel()] = there.ravel()
    return found


def _axes(read: _Read) -> tuple[int, ...]:
    axes = read.how.axes
    return axes(read.node) if callable(axes) else axes


def along(value: Value, shape: tuple[int, ...], axes: tuple[int, ...]) -> Value:
    """One for all, one for every index of some axes, or one for every block.

    Raises:
        ValueError: if it fits none of these.
    """
    if value.size == 1:
        return np.broadcast_to(value.reshape(()), shape)
    if value.ndim < len(shape):
        laid = np.ones(len(shape), int)
        laid[list(axes[: value.ndim])] = value.shape
        value = value.reshape(laid)
    for k, n in enumerate(shape):
        if value.shape[k] not in (1, n):
            value = value.repeat(-(-n // value.shape[k]), k).take(range(n), axis=k)
    return np.broadcast_to(value, shape)
