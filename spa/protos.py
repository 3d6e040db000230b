"""Small things done to ONNX's protobuf messages."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    external_data_helper,
    helper,
    numpy_helper,
)

# What holds the data of a tensor, not what is said about it.
_DATA = {"dims", "name", "data_type", "data_location", "external_data", "raw_data"} | {
    f"{kind}_data" for kind in ("float", "double", "int32", "int64", "uint64", "string")
}

# Element types of which a byte holds several.
PACKED = frozenset(
    kind
    for name, kind in TensorProto.DataType.items()
    if name.endswith(("INT2", "INT4")) or name.startswith(("FLOAT2", "FLOAT4"))
)


def copy_fields(source: Any, target: Any, but: Iterable[str]) -> None:
    """Copy every field that is set, known to us or not, but the named ones."""
    for field, value in source.ListFields():
        if field.name in but:
            continue
        if field.is_repeated:
            getattr(target, field.name).extend(value)
        elif field.message_type is not None:
            getattr(target, field.name).CopyFrom(value)
        else:
            setattr(target, field.name, value)


def copy_without(model: ModelProto, *fields: str) -> ModelProto:
    """A copy of a model without these fields of its graph."""
    copy = ModelProto()
    copy_fields(model, copy, but=("graph",))
    copy_fields(model.graph, copy.graph, but=fields)
    return copy


def unused(base: str, taken: set[str]) -> str:
    """A name made from another that is not taken; it is from now on."""
    n = 1
    while f"{base}.{n}" in taken:
        n += 1
    taken.add(f"{base}.{n}")
    return f"{base}.{n}"


def bodies(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that a node holds as attributes (If, Loop, Scan)."""
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def stored_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    """Every tensor stored in a graph and in the bodies of its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == AttributeProto.TENSORS:
                yield from attribute.tensors
        for body in bodies(node):
            yield from stored_tensors(body)


def is_external(tensor: TensorProto) -> bool:
    return tensor.data_location == TensorProto.EXTERNAL


def external(tensor: TensorProto) -> dict[str, str]:
    """Where the data of an external tensor lies: location, offset, length."""
    return {entry.key: entry.value for entry in tensor.external_data}


def read(tensor: TensorProto, folder: Path) -> NDArray[Any]:
    """The value of a stored tensor; a file beside the model is mapped into memory, not read."""
    if not is_external(tensor):
        return numpy_helper.to_array(tensor)
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    entry, size = external(tensor), math.prod(tensor.dims)
    offset = int(entry.get("offset", 0))
    if tensor.data_type in PACKED or not size or offset % dtype.itemsize:
        copy = TensorProto()
        copy.CopyFrom(tensor)
        external_data_helper.load_external_data_for_tensor(copy, str(folder))
        return numpy_helper.to_array(copy)
    return np.memmap(folder / entry["location"], dtype, "r", offset, tuple(tensor.dims))


LIMIT = 2**31 - 2**20  # what protobuf can serialise in one piece, less room to spare


def stored_bytes(model: ModelProto) -> int:
    """The size of a model with all its weights, to within some bytes per tensor.

    Protobuf's own answer costs as much as writing the model out.
    """
    plain = copy_without(model, "initializer")
    return int(plain.ByteSize()) + sum(tensor_bytes(t) for t in model.graph.initializer)


def tensor_bytes(tensor: TensorProto) -> int:
    if tensor.data_type == TensorProto.STRING:
        return int(tensor.ByteSize())
    wide = int(np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize)
    name = TensorProto.DataType.Name(tensor.data_type)
    bits = (2 if name.endswith("INT2") else 4) if tensor.data_type in PACKED else 8 * wide
    elements: int = math.prod(tensor.dims)
    return elements * bits // 8 + len(tensor.name) + 16


def serialize(model: ModelProto) -> bytes | None:
    """The bytes of a model, or None where protobuf cannot write it in one piece."""
    return bytes(model.SerializeToString()) if stored_bytes(model) < LIMIT else None


def with_inputs(proto: NodeProto, inputs: Iterable[str]) -> NodeProto:
    """The node as it is now, reading the per-reader names that values are filed under."""
    copy = NodeProto()
    copy.CopyFrom(proto)
    del copy.input[:]
    copy.input.extend(inputs)
    return copy


def from_front(proto: NodeProto, rank: int) -> NodeProto:
    """The node with the axes that its attributes count from the end of so many counted from the
    front, which was the only way before opset 11; exporters and onnxruntime have both."""
    copy = NodeProto()
    copy.CopyFrom(proto)
    for a in copy.attribute:
        if a.name == "axis" and a.i < 0:
            a.i += rank
        elif a.name == "axes":
            a.ints[:] = [k + rank if k < 0 else k for k in a.ints]
    return copy


def as_tensor(name: str, value: NDArray[Any], like: TensorProto | None) -> TensorProto:
    """A stored tensor; its type and what else is said about it as those of another."""
    tensor = numpy_helper.from_array(np.ascontiguousarray(value).reshape(value.shape), name)
    if like is not None:
        tensor.data_type = like.data_type
        copy_fields(like, tensor, but=_DATA)
    return tensor


def set_value(node: NodeProto, tensor: TensorProto) -> None:
    tensor.name = next((a.t.name for a in node.attribute if a.name == "value"), "")
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("value", tensor))


def set_attribute(node: NodeProto, name: str, value: Any) -> None:
    kept: list[AttributeProto] = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))
