"""The model as the stages read it: nodes, constants, who makes and who reads each tensor.

A `Graph` never changes the model it was made from. It differs from the file in one way: a small
constant (a bias, a scale) that several nodes read, and any constant that they read through an
Identity, counts as one constant per reader, because exporters that merge equal values would
otherwise couple layers that have nothing to do with each other. The rewriter splits such a
constant only where its readers keep different indices.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from spa.errors import ModelError
from spa.protos import bodies, read

AttrValue = Any

# Element types that hold weights, quantised ones included; the others hold sizes and indices.
WEIGHTS = frozenset(
    kind
    for name, kind in TensorProto.DataType.items()
    if name.startswith(("FLOAT", "DOUBLE", "BFLOAT", "INT4", "UINT4", "INT8", "UINT8"))
)


@dataclass(frozen=True)
class Node:
    """One node; ``inputs`` name constants by their per-reader names, see `Constant.name`."""

    index: int
    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    proto: NodeProto

    @cached_property
    def attrs(self) -> dict[str, AttrValue]:
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.proto.attribute}

    @cached_property
    def captured(self) -> frozenset[str]:
        """Names that the bodies of this node (If, Loop, Scan) may read from the outer graph."""
        return frozenset(name for body in bodies(self.proto) for name in free_names(body))


@dataclass(frozen=True)
class Constant:
    """A value stored in the file.

    name: unique for each reader of a shared small constant, else the name in the file.
    source: the name in the file.
    tensor: the stored tensor.
    node: index of the Constant node that holds it; None for an initializer.
    """

    name: str
    source: str
    tensor: TensorProto
    node: int | None

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.dims)


@dataclass(frozen=True)
class Order:
    """Where the parts of a constant come from, see `spa.align`: in every block of axis 0, index k
    of ``axis`` is what was index ``order[block][k]``."""

    axis: int
    order: tuple[tuple[int, ...], ...]

    def put(self, value: NDArray[Any]) -> NDArray[Any]:
        """A value in this order."""
        if len(self.order) == 1:
            return np.asarray(value.take(self.order[0], axis=self.axis))
        blocks = zip(np.split(value, len(self.order)), self.order, strict=True)
        return np.concatenate([block.take(order, axis=self.axis) for block, order in blocks])


@dataclass(frozen=True)
class Block:
    """A residual branch that can be removed as a whole, see `spa.depth`: sum = skip + branch.

    branch: the tensor that the branch adds, which names it.
    node: index of the node that adds it.
    closing: the (node, position of an input) that hold zero where it adds nothing.
    """

    branch: str
    skip: str
    sum: str
    node: int
    closing: frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Graph:
    """A model, indexed.

    model: the model as it is analysed; never changed.
    given: the model as it came, where `model` is another form of it.
    changed: constant -> the value it is to have instead of the stored one, of the same shape.
    blocks: the branches that are to be removed.
    path: the file it came from, if any; external data is looked for beside it.
    """

    model: ModelProto
    path: Path | None
    nodes: tuple[Node, ...]
    constants: dict[str, Constant]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opsets: dict[str, int]
    given: ModelProto | None = None
    changed: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    orders: tuple[tuple[str, Order], ...] = ()

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Tensor name -> indices of the nodes that read it, bodies included."""
        found: dict[str, list[int]] = {}
        for node in self.nodes:
            for name in {*node.inputs, *node.captured}:
                found.setdefault(name, []).append(node.index)
        return found

    @cached_property
    def makers(self) -> dict[str, int]:
        """Tensor name -> index of the node that makes it."""
        return {name: node.index for node in self.nodes for name in node.outputs if name}

    @cached_property
    def activations(self) -> frozenset[str]:
        """Tensors that depend on a graph input."""
        found = set(self.inputs)
        for node in self.nodes:
            if not found.isdisjoint(node.inputs) or not found.isdisjoint(node.captured):
                found.update(node.outputs)
        return frozenset(found)

    @cached_property
    def dead(self) -> frozenset[int]:
        """Nodes that no output needs any more once the blocks are removed."""
        return self.dead_without(self.blocks)

    def dead_without(self, blocks: Sequence[Block]) -> frozenset[int]:
        """Nodes that an output needs, and none does without these blocks; and those that no output
        needs and that read what such nodes make."""
        if not blocks:
            return frozenset()
        passed = {b.sum: b.skip for b in blocks}
        dead = set(self._needed - self._lead_to_outputs(passed))
        for node in self.nodes if len(self._needed) < len(self.nodes) else ():
            if node.index not in self._needed:
                read = (*node.inputs, *node.captured)
                if any(self.makers.get(behind(name, passed), -1) in dead for name in read):
                    dead.add(node.index)
        return frozenset(dead)

    @cached_property
    def _needed(self) -> frozenset[int]:
        return self._lead_to_outputs({})

    def _lead_to_outputs(self, passed: Mapping[str, str]) -> frozenset[int]:
        """The nodes that outputs need where some tensors are others instead."""
        found: set[int] = set()
        waiting = list(self.outputs)
        while waiting:
            node = self.makers.get(behind(waiting.pop(), passed), -1)
            if node >= 0 and node not in found:
                found.add(node)
                waiting += [*self.nodes[node].inputs, *self.nodes[node].captured]
        return frozenset(found)

    @cached_property
    def forgotten(self) -> frozenset[str]:
        """Constants that only dead nodes read."""
        return frozenset(
            name
            for name in self.constants
            if self.dead.issuperset(read := self.readers.get(name, ()))
            and read
            and name not in self.outputs
        )

    def array(self, name: str) -> NDArray[Any]:
        """The value of a constant, in its stored shape; external data is mapped, not read."""
        if name in self.changed:
            return self.changed[name]
        folder = self.path.parent if self.path else Path()
        return read(self.constants[name].tensor, folder)

    def opset(self, domain: str) -> int:
        return self.opsets.get("" if domain == "ai.onnx" else domain, 1)


def behind(name: str, passed: Mapping[str, str]) -> str:
    """What a tensor is where some are others instead."""
    while name in passed:
        name = passed[name]
    return name


def free_names(body: GraphProto) -> set[str]:
    """What a body reads from outside."""
    own = {i.name for i in body.input} | {t.name for t in body.initializer}
    read: set[str] = set()
    for node in body.node:
        read.update(node.input)
        for inner in bodies(node):
            read.update(free_names(inner))
        own.update(node.output)
    read.update(o.name for o in body.output)
    return read - own - {""}


def index(model: ModelProto, path: Path | None = None) -> Graph:
    """Index a model.

    Raises:
        ModelError: if a node reads a tensor that nothing makes before it.
    """
    graph = model.graph
    stored = {t.name: Constant(t.name, t.name, t, None) for t in graph.initializer}
    for k, node in enumerate(graph.node):
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            tensor = _constant_tensor(node)
            if tensor is not None:
                stored[node.output[0]] = Constant(node.output[0], node.output[0], tensor, k)
    outputs = tuple(o.name for o in graph.output)
    inputs = tuple(i.name for i in graph.input if i.name not in stored)

    pinned = {*outputs, *(n for node in graph.node for b in bodies(node) for n in free_names(b))}
    constants: dict[str, Constant] = dict(stored)
    known = {*stored, *inputs, *(t.values.name for t in graph.sparse_initializer), ""}
    others = (n for node in graph.node if node.op_type != "Identity" for n in node.input)
    read = {n for n in others if n in stored and not _is_small(stored[n])}
    nodes = []
    for k, proto in enumerate(graph.node):
        names, alias = [], proto.op_type == "Identity"
        for position, name in enumerate(proto.input):
            if name not in known:
                raise ModelError(
                    f"node {proto.name or proto.op_type!r} (number {k}) reads {name!r}, "
                    "which nothing before it makes: the nodes have no topological order"
                )
            if name in stored and name not in pinned and (alias or _is_small(stored[name])):
                if name in read:
                    own = f"{name}@{k}.{position}"
                    constants[own] = Constant(own, name, stored[name].tensor, stored[name].node)
                    name = own
                read.add(name)
            names.append(name)
        known.update(proto.output)
        label = proto.name or f"{proto.op_type}_{k}"
        nodes.append(
            Node(k, label, proto.op_type, proto.domain, tuple(names), tuple(proto.output), proto)
        )
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    return Graph(model, path, tuple(nodes), constants, inputs, outputs, opsets)


def _is_small(constant: Constant) -> bool:
    """A vector, possibly with broadcast axes of size 1: cheap to store once per reader."""
    size = int(np.prod(constant.shape, dtype=np.int64))
    return size == max(constant.shape, default=1)


def _constant_tensor(node: NodeProto) -> TensorProto | None:
    for a in node.attribute:
        if a.name == "value":
            tensor: TensorProto = a.t
            return tensor
        if a.name in ("value_int", "value_ints", "value_float", "value_floats"):
            value = onnx.helper.get_attribute_value(a)
            kind = np.int64 if "int" in a.name else np.float32
            return onnx.numpy_helper.from_array(np.asarray(value, kind), node.output[0])
    return None
