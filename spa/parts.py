"""A model whose large weights stand beside it as arrays, so that sessions share them uncopied."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from spa.graph import Graph, Node
from spa.protos import bodies, copy_without, read, stored_tensors

_LARGE = 1024  # bytes
_KINDS = "fiu"  # of the arrays that onnxruntime takes from outside


@dataclass(frozen=True)
class Parts:
    """A model in two parts; neither is ever changed.

    model: everything but its large initializers.
    weights: those, by name.
    graph: the index of the model, where there is one.
    """

    model: ModelProto
    weights: Mapping[str, NDArray[Any]]
    graph: Graph | None = None

    def node(self, index: int) -> NodeProto:
        """A node by its index."""
        return (
            self.graph.proto_of(index, self.model) if self.graph else self.model.graph.node[index]
        )

    def showing(self, names: Iterable[str]) -> Parts:
        """The same model with more outputs: tensors, and ``name.rounds`` for one of a loop's body
        (see `in_rounds`), of all rounds along a new first axis."""
        copy = replace(self, model=_copy(self.model))
        for name in names:
            owner = in_rounds(self.graph, name) if self.graph else None
            if owner is not None and self.graph is not None:
                name = _show_rounds(self.graph, owner, name, copy)
            copy.model.graph.output.add(name=name)
        return copy

    def reading(
        self,
        values: Mapping[str, NDArray[Any]],
        reads: Mapping[tuple[int, int], str],
        silenced: Iterable[tuple[int, int]] = (),
        moved: Mapping[tuple[int, int], str] = MappingProxyType({}),
    ) -> Parts:
        """The same model with more initializers.

        Args:
            reads: (node, position) -> which of them it reads there from now on.
            silenced: the (node, position) of what is made zero before it is read.
            moved: (node, position) -> which of them is added to what is read there.
        """
        copy = replace(self, model=_copy(self.model))
        model = copy.model
        for (node, position), name in reads.items():
            proto = copy.node(node)
            if position < len(proto.input):
                proto.input[position] = name
            elif self.graph is not None:
                _leave(self.graph, node, position, name, model)
        for node, position in silenced:  # onnxruntime puts nodes in order; the others keep places
            proto, own = copy.node(node), f"{node}.{position}@silenced"
            model.graph.node.add(op_type="Sub", input=[proto.input[position]] * 2, output=[own])
            proto.input[position] = own
        for (node, position), name in moved.items():
            proto, own = copy.node(node), f"{node}.{position}@moved"
            model.graph.node.add(op_type="Add", input=[proto.input[position], name], output=[own])
            proto.input[position] = own
        large = {name: value for name, value in values.items() if _is_large(value)}
        model.graph.initializer.extend(
            onnx.numpy_helper.from_array(value, name)
            for name, value in values.items()
            if name not in large
        )
        return _only_read(replace(copy, weights={**self.weights, **large}))

    def whole(self) -> ModelProto:
        """The model with its large initializers as references to memory."""
        model = _copy(self.model)
        for name, value in self.weights.items():
            kind = onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
            tensor = model.graph.initializer.add(name=name, data_type=kind, dims=value.shape)
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="memory")
        model.ir_version = max(model.ir_version, 4)  # before, each had to be an input as well
        return model


def parts(model: ModelProto | Graph) -> Parts:
    """Take a model apart; weights in external files are mapped, not read."""
    proto = model.model if isinstance(model, Graph) else model
    folder = model.path.parent if isinstance(model, Graph) and model.path else Path()
    shell = copy_without(proto, "initializer")
    weights = {}
    for tensor in stored_tensors(shell.graph):  # in bodies and nodes
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.CopyFrom(onnx.numpy_helper.from_array(read(tensor, folder), tensor.name))
    for tensor in proto.graph.initializer:
        value = None if tensor.data_type == TensorProto.STRING else read(tensor, folder)
        if value is not None and _is_large(value):
            weights[tensor.name] = value
        elif value is not None and tensor.data_location == TensorProto.EXTERNAL:
            shell.graph.initializer.append(onnx.numpy_helper.from_array(value, tensor.name))
        else:
            shell.graph.initializer.append(tensor)
    return _only_read(Parts(shell, weights, model if isinstance(model, Graph) else None))


def in_rounds(graph: Graph, name: str) -> Node | None:
    """The loop outside of all bodies in whose rounds a tensor is made, if it can be shown."""
    home = graph.nodes[graph.makers[name]].home if name in graph.makers else 0
    owner = graph.nodes[graph.bodies[home].owner] if home else None
    looped = owner is not None and owner.op_type in ("Loop", "Scan") and not owner.home
    fixed = owner is not None and any(a.startswith("scan_output") for a in owner.attrs)
    return owner if looped and not fixed else None


def _show_rounds(graph: Graph, owner: Node, name: str, copy: Parts) -> str:
    """Let a loop put out, in a copy of the model, what its rounds make of a tensor."""
    shown, own = f"{name}.rounds", f"{name}.round"
    body = graph.graph_of(owner.bodies[0], copy.model)
    body.node.add(op_type="Identity", input=[graph.spelled(name)], output=[own])
    body.output.add(name=own)
    copy.node(owner.index).output.append(shown)
    return shown


def _leave(graph: Graph, node: int, position: int, name: str, model: ModelProto) -> None:
    """Let a body leave an outer tensor at one of its outputs, in a copy of the model."""
    owner = graph.nodes[node]
    at = position - owner.given
    for home in owner.bodies:
        body = graph.graph_of(home, model)
        if at < len(body.output):
            own = f"{name}.{position}"
            body.node.add(op_type="Identity", input=[name], output=[own])
            body.output[at].name = own
            return
        at -= len(body.output)


def _only_read(apart: Parts) -> Parts:
    """Without large initializers that nothing reads: onnxruntime drops those and then asks."""
    graph = apart.model.graph
    read = {*(o.name for o in graph.output), *_reads(graph)}
    unread = {name for name in apart.weights if name not in read}
    for k in reversed(range(len(graph.input))):
        if graph.input[k].name in unread:  # in old files an initializer is an input as well
            del graph.input[k]
    return replace(apart, weights={n: v for n, v in apart.weights.items() if n not in unread})


def _reads(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for body in bodies(node):
            yield from (o.name for o in body.output)
            yield from _reads(body)


def _is_large(value: NDArray[Any]) -> bool:
    known = value.dtype.kind in _KINDS and value.dtype.isbuiltin == 1
    return known and value.nbytes > _LARGE


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy
