"""What stored numbers stand for: scale * (stored - point), as the operator that reads them says.

The rule of a reader names where scale and zero point are (`spa.rules.Quantised`). Between a constant
and its reader may stand what only moves numbers, such as a Transpose; between it and what scales it
may stand a Cast.
"""

from __future__ import annotations

from collections.abc import Iterator
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
    codes = numbers if scale is None else numbers / np.where(scale, scale, 1).astype(np.float32)
    if point is not None:
        codes = codes + point.astype(np.float32)
    low, high = _limits(graph, name, old)
    codes = np.clip(codes, low, high)
    whole = "INT" in TensorProto.DataType.Name(graph.constants[name].tensor.data_type)
    return (np.rint(codes) if whole else codes).astype(old.dtype)


def nothing(graph: Graph, name: str, value: Value) -> Value | None:
    """What stands for zero at every element of a quantised constant; None for any other.

    A zero point itself stays what it is.
    """
    if "INT" not in TensorProto.DataType.Name(graph.constants[name].tensor.data_type):
        return None
    if _beside(graph, name, "point"):
        return value
    read = _read(graph, name, value.shape)
    if read is None or read.how.unpack is not None:
        return None  # zero by its scales
    return _at_each(graph, read, value.shape, _held(graph, read, read.how.point))


def is_beside(graph: Graph, name: str) -> bool:
    """Whether a constant is but the scale or the zero point of others."""
    return _beside(graph, name, "scale") or _beside(graph, name, "point")


def is_quantised(graph: Graph, name: str) -> bool:
    """Whether the type of a constant is one that holds numbers by a scale."""
    kind = TensorProto.DataType.Name(graph.constants[name].tensor.data_type)
    return "INT" in kind or kind.startswith(("FLOAT8", "FLOAT4", "FLOAT6"))


def _beside(graph: Graph, name: str, what: str) -> bool:
    nodes = [graph.nodes[k] for k in graph.readers.get(name, [])]
    return bool(nodes) and all(
        any(node.inputs[k] == name for k in _places(node, what)) for node in nodes
    )


def _places(node: Node, what: str) -> Iterator[int]:
    rule = rules.find(node.op_type, node.domain)
    for how in (rule.quantised if rule else {}).values():
        at = getattr(how, what)
        if 0 <= at < len(node.inputs):
            yield at


def _read(graph: Graph, name: str, shape: tuple[int, ...]) -> _Read | None:
    """The first reader of a constant that says how its numbers are meant."""
    for node in (graph.nodes[k] for k in graph.readers.get(name, [])):
        rule = rules.find(node.op_type, node.domain)
        for position, how in (rule.quantised if rule else {}).items():
            if position < len(node.inputs) and node.inputs[position] == name:
                return _Read(node, position, how, None)
        if rule is None or rule.family not in ("movement", "reshape", "elementwise"):
            continue
        if any(n in graph.activations for n in node.outputs):
            continue
        places = np.arange(int(np.prod(shape)), dtype=np.int64).reshape(shape)
        moved = _moved(graph, node, name, places)
        for out, order in zip(node.outputs, moved, strict=False):
            found = _read(graph, out, order.shape)
            if found is not None:
                inner = order if found.moved is None else order.ravel()[found.moved]
                return replace(found, moved=inner)
    return None


def _moved(graph: Graph, node: Node, name: str, places: Value) -> list[Value]:
    """What a node makes of the positions of a constant; nothing where it does more than move."""
    if node.op_type not in ("Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten"):
        return []
    feeds = {
        n: places if i == name else np.asarray(graph.array(i))
        for n, i in zip(node.proto.input, node.inputs, strict=True)
        if i == name or i in graph.constants
    }
    return shapes.run(graph, node, feeds) or []


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
    return _behind(graph, read.node) if read.how.behind else _held(graph, read, read.how.scale)


def scaled_by(graph: Graph, node: Node) -> Node | None:
    """The Mul that brings what a node makes of quantised numbers to its scale."""
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
    import ml_dtypes

    info = ml_dtypes.finfo(old.dtype)
    return float(info.min), float(info.max)
