"""Small things done to ONNX's protobuf messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto


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


def has_external_data(model: ModelProto) -> bool:
    return any(is_external(t) for t in stored_tensors(model.graph))
