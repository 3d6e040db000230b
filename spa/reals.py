"""What stored numbers stand for: scale * (stored - point), as the operator that reads them says.

The rule of a reader names where scale and zero point are (`spa.rules.Quantised`). Between a
constant and its reader may stand what only moves numbers, such as a Transpose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from spa import rules, shapes
from spa.graph import Graph, Node
from spa.rules import Quantised

Floats = NDArray[np.floating[Any]]
Value = NDArray[Any]

_MOVES = ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")


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


def real(graph: Graph, name: str, stored: Value | None = None) -> Floats:
    """The numbers that a constant stands for, as floats that do not overflow.

    Of packed numbers an axis that is kept whole may be longer than what is stored.

    Args:
        stored: what it holds; None for what it holds in the file.
    """
    value = np.asarray(graph.array(name)) if stored is None else stored
    if value.dtype in (np.float32, np.float64):
        return value
    read = _read(graph, name, value.shape) if is_quantised(graph, name) else None
    if read is None:
        return value.astype(np.float32)
    codes = read.how.unpack(read.node, read.position, value) if read.how.unpack else value
    scale = _at_each(graph, read, codes.shape, _scale(graph, read))
    point = _at_each(graph, read, codes.shape, _held(graph, read, read.how.point))
    found = codes.astype(np.float32)
    if point is not None:
        found = found - point.astype(np.float32)
    return found if scale is None else found * scale.astype(np.float32)


def stored(graph: Graph, name: str, numbers: Floats) -> Value:
    """The nearest that can be stored, by the scales and zero points that are there; not for packed
    numbers."""
    old = np.asarray(graph.array(name))
    if old.dtype.kind == "f":
        return numbers.astype(old.dtype)
    read = _read(graph, name, old.shape)
    assert read is not None and read.how.unpack is None
    scale = _at_each(graph, read, old.shape, _scale(graph, read))
    point = _at_each(graph, read, old.shape, _held(graph, read, read.how.point))
    per = np.float32(1) if scale is None else np.where(scale, scale, 1).astype(np.float32)
    zero = np.float32(0) if point is None else point.astype(np.float32)
    codes = np.clip(numbers / per + zero, *_limits(graph, name, old))
    whole = "INT" in TensorProto.DataType.Name(graph.constants[name].tensor.data_type)
    return np.asarray((np.rint(codes) if whole else codes).astype(old.dtype))


def nothing(graph: Graph, name: str, value: Value) -> Value | None:
    """What stands for zero at every element of a quantised constant; None for any other.

    A zero point itself stays what it is.
    """
    if not is_quantised(graph, name):
        return None
    if _beside(graph, name, _points):
        return value
    read = _read(graph, name, value.shape)
    if read is None or read.how.unpack is not None:
        return None  # zero by its scales
    return _at_each(graph, read, value.shape, _held(graph, read, read.how.point))


def is_beside(graph: Graph, name: str) -> bool:
    """Whether a constant is but the scale or the zero point of others."""
    return _beside(graph, name, _scales) or _beside(graph, name, _points)


def is_read_as_quantised(node: Node, position: int) -> bool:
    rule = rules.find(node.op_type, node.domain)
    return rule is not None and position in rule.quantised


def is_known(graph: Graph, node: Node, position: int) -> bool:
    """Whether one stored scale and zero point say what the data of an input stand for, if any."""
    if not is_read_as_quantised(node, position):
        return True
    read = _as_read(node, position)
    return bool(read.how.scales) and all(
        (v := _held(graph, read, k)) is not None and v.size == 1
        for k in (*read.how.scales, read.how.point)
        if k >= 0 and k < len(node.inputs) and node.inputs[k]
    )


def of_data(graph: Graph, node: Node, position: int, codes: Value) -> Floats:
    """What the quantised data of an input stand for, by its scale and zero point."""
    read = _as_read(node, position)
    scale, point = _scale(graph, read), _held(graph, read, read.how.point)
    found = codes.astype(np.float32)
    found = found if point is None else found - point.astype(np.float32).ravel()[0]
    return found if scale is None else found * scale.astype(np.float32).ravel()[0]


def _as_read(node: Node, position: int) -> _Read:
    rule = rules.find(node.op_type, node.domain)
    assert rule is not None
    return _Read(node, position, rule.quantised[position], None)


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
    made = shapes.run(graph, node, feeds)
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


def _limits(graph: Graph, name: str, old: Value) -> tuple[float, float]:
    kind = TensorProto.DataType.Name(graph.constants[name].tensor.data_type)
    if "INT" in kind:
        bits, signed = int(kind.split("INT")[1]), not kind.startswith("U")
        return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    largest = np.abs(np.arange(256, dtype=np.uint8).view(old.dtype).astype(np.float32))
    top = float(largest[np.isfinite(largest)].max())
    return -top, top
