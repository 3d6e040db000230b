"""What stored numbers stand for, and back: scale * (stored - point), see `spa.scales`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from spa.graph import Graph
from spa.scales import Coding, Value, coding, is_point, is_quantised

Floats = NDArray[np.floating[Any]]


def real(graph: Graph, name: str, stored: Value | None = None) -> Floats:
    """The numbers that a constant stands for, as floats that do not overflow.

    Of packed numbers an axis that is kept whole may be longer than what is stored.

    Args:
        stored: what it holds; None for what it holds in the file.
    """
    value = np.asarray(graph.array(name)) if stored is None else stored
    if value.dtype in (np.float32, np.float64):
        return value
    return decoded(coding(graph, name, value) or Coding(None, None), value)


def decoded(how: Coding, value: Value) -> Floats:
    """What stored numbers stand for."""
    found = (how.unpack(value) if how.unpack else value).astype(np.float32)
    if how.point is not None:
        found = found - how.point.astype(np.float32)
    return found if how.scale is None else found * how.scale.astype(np.float32)


def stored(graph: Graph, name: str, numbers: Floats) -> Value:
    """The nearest that can be stored, by the scales and zero points that are there."""
    old = np.asarray(graph.array(name))
    if not is_quantised(graph, name):
        return numbers.astype(old.dtype)
    how = coding(graph, name, old) or Coding(None, None)
    per = np.float32(1) if how.scale is None else np.where(how.scale, how.scale, 1)
    zero = np.float32(0) if how.point is None else how.point.astype(np.float32)
    codes = numbers / per.astype(np.float32) + zero
    if how.unpack is not None:
        assert how.pack is not None
        return how.pack(codes)
    codes = np.clip(codes, *_limits(graph, name, old))
    whole = "INT" in TensorProto.DataType.Name(graph.constants[name].tensor.data_type)
    return np.asarray((np.rint(codes) if whole else codes).astype(old.dtype))


def nothing(graph: Graph, name: str, value: Value) -> Value | None:
    """What stands for zero at every element of a quantised constant; None for any other, and for
    packed numbers that are zero by their scales alone.

    A zero point itself stays what it is.
    """
    if not is_quantised(graph, name) or is_point(graph, name):
        return value if is_quantised(graph, name) else None
    how = coding(graph, name, value)
    if how is None or how.unpack is None:
        return how.point if how is not None else None
    if how.pack is None:
        return None
    numbers = np.zeros(how.unpack(value).shape, np.float32)
    return how.pack(numbers if how.point is None else numbers + how.point.astype(np.float32))


def _limits(graph: Graph, name: str, old: Value) -> tuple[float, float]:
    kind = TensorProto.DataType.Name(graph.constants[name].tensor.data_type)
    if "INT" in kind:
        bits, signed = int(kind.split("INT")[1]), not kind.startswith("U")
        return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    largest = np.abs(np.arange(256, dtype=np.uint8).view(old.dtype).astype(np.float32))
    top = float(largest[np.isfinite(largest)].max())
    return -top, top
