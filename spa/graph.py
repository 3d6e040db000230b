"""The model as the stages read it: nodes, constants, who makes and who reads each tensor.

A `Graph` never changes the model it was made from. It differs from the file in two ways. The
bodies of If, Loop and Scan are part of the one list of nodes, see `spa.index`. And a small
constant (a bias, a scale) that several nodes read, and any constant that they read through an
Identity, counts as one constant per reader, because exporters that merge equal values would
otherwise couple layers that have nothing to do with each other. The rewriter splits such a
constant only where its readers keep different indices.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from spa.protos import bodies, read

AttrValue = Any

# Element types that hold weights, quantised ones included; the others hold sizes and indices.
WEIGHTS = frozenset(
    kind
    for name, kind in TensorProto.DataType.items()
    if name.startswith(("FLOAT", "DOUBLE", "BFLOAT"))
    or name.removeprefix("U") in ("INT2", "INT4", "INT8", "INT16")
)
FLOATS = frozenset(k for k in WEIGHTS if "INT" not in TensorProto.DataType.Name(k))


@dataclass(frozen=True)
class Node:
    """One node; ``inputs`` name constants by their per-reader names, see `Constant.name`.

    A node with bodies comes twice: where it enters one that has inputs, which are its outputs
    there, and behind its bodies, whose outputs follow its own inputs there.

    home: which graph of the file it stands in, see `Graph.bodies`. at: its place there.
    bodies: the bodies that it runs.
    enters: whether this is where it enters its body.
    captured: what bodies that are not part of the list may read from outside.
    """

    index: int
    name: str
    op_type: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    proto: NodeProto
    home: int = 0
    at: int = 0
    bodies: tuple[int, ...] = ()
    enters: bool = False
    captured: frozenset[str] = frozenset()

    @cached_property
    def attrs(self) -> dict[str, AttrValue]:
        return {a.name: onnx.helper.get_attribute_value(a) for a in self.proto.attribute}

    @property
    def is_standard(self) -> bool:
        """Whether its operator is one of ai.onnx, which has two spellings."""
        return self.domain in ("", "ai.onnx")

    @property
    def given(self) -> int:
        """How many of the inputs stand in the file; the outputs of bodies follow."""
        return len(self.proto.input)


@dataclass(frozen=True)
class Body:
    """A graph of the file: the model's own, or a body.

    owner: index of the node that runs it, -1 for the model's own graph.
    attribute: where that node holds it.
    names: its tensors, name in the file -> name in the index; empty where these are the same.
    """

    proto: GraphProto
    owner: int = -1
    attribute: str = ""
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Constant:
    """A value stored in the file.

    name: unique for each reader of a shared small constant, else the same as the source.
    source: the name in the file, where that is unique in it, see `spa.index`.
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
    bodies: the graphs that the nodes stand in, the model's own first.
    spelling: tensor -> its name in the file, where that is another.
    given: the model as it came, where `model` is another form of it.
    changed: constant -> the value it is to have instead of the stored one, of the same shape.
    blocks: the branches that are to be removed.
    dropped: the (node, position of an input) that a Concat or a Sum is to go on without.
    orders: (constant, order): what was put in order to come from `given` to `model`.
    path: the file it came from, if any; external data is looked for beside it.
    """

    model: ModelProto
    path: Path | None
    nodes: tuple[Node, ...]
    constants: dict[str, Constant]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opsets: dict[str, int]
    bodies: tuple[Body, ...]
    spelling: Mapping[str, str] = field(default_factory=dict)
    given: ModelProto | None = None
    changed: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    blocks: tuple[Block, ...] = ()
    dropped: frozenset[tuple[int, int]] = frozenset()
    orders: tuple[tuple[str, Order], ...] = ()

    @cached_property
    def readers(self) -> dict[str, list[int]]:
        """Tensor name -> indices of the nodes that read it."""
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
        """Tensors that depend on a graph input, or on the round of a loop."""
        found = set(self.inputs)
        for node in self.nodes:
            reads = (*node.inputs, *node.captured)
            if node.enters or not found.isdisjoint(reads):
                found.update(node.outputs)
        return frozenset(found)

    @cached_property
    def empty(self) -> frozenset[str]:
        """Sequences that hold nothing, or held nothing when a loop began: then what they hold is
        what its rounds put there."""
        found: set[str] = set()
        for node in self.nodes:
            if node.op_type == "SequenceEmpty":
                found.update(node.outputs)
            elif node.enters:
                pairs = zip(node.inputs, node.outputs, strict=True)
                found.update(inner for name, inner in pairs if name in found)
        return frozenset(found)

    @cached_property
    def hidden(self) -> frozenset[str]:
        """Tensors that are made inside bodies, so that no output can show them."""
        return frozenset(
            name for node in self.nodes if node.home or node.enters for name in node.outputs
        )

    def spelled(self, name: str) -> str:
        """The name of a tensor in the file."""
        return self.spelling.get(name, name)

    def known(self, home: int, name: str) -> str:
        """The tensor that a name in the file means in one of its graphs."""
        while home:
            body = self.bodies[home]
            if name in body.names:
                return body.names[name]
            home = self.nodes[body.owner].home
        return name

    def proto_of(self, index: int, model: ModelProto) -> NodeProto:
        """A node in a copy of the model."""
        node = self.nodes[index]
        found: NodeProto = self.graph_of(node.home, model).node[node.at]
        return found

    def graph_of(self, home: int, model: ModelProto) -> GraphProto:
        """A graph of the file in a copy of the model."""
        body = self.bodies[home]
        if body.owner < 0:
            return model.graph
        owner = self.proto_of(body.owner, model)
        found: GraphProto = next(a.g for a in owner.attribute if a.name == body.attribute)
        return found

    @cached_property
    def dead(self) -> frozenset[int]:
        """Nodes that no output needs any more once the blocks are removed."""
        return self.dead_without(self.blocks, self.dropped)

    def dead_without(
        self, blocks: Sequence[Block], dropped: Collection[tuple[int, int]] = ()
    ) -> frozenset[int]:
        """Nodes that an output needs, and none does without these blocks and inputs; and those that
        no output needs and that read what such nodes make."""
        if not blocks and not dropped:
            return frozenset()
        passed = {b.sum: b.skip for b in blocks}
        dead = set(self.needed - self._lead_to_outputs(passed, dropped))
        for node in self.nodes if len(self.needed) < len(self.nodes) else ():
            if node.index not in self.needed:
                read = (*node.inputs, *node.captured)
                if any(self.makers.get(behind(name, passed), -1) in dead for name in read):
                    dead.add(node.index)
        return frozenset(dead)

    @cached_property
    def needed(self) -> frozenset[int]:
        """Nodes that some output needs."""
        return self._lead_to_outputs({})

    def _lead_to_outputs(
        self, passed: Mapping[str, str], dropped: Collection[tuple[int, int]] = ()
    ) -> frozenset[int]:
        """The nodes that outputs need where some tensors are others instead, and some inputs are
        none."""
        found: set[int] = set()
        waiting = list(self.outputs)
        while waiting:
            node = self.makers.get(behind(waiting.pop(), passed), -1)
            if node >= 0 and node not in found:
                found.add(node)
                read = enumerate(self.nodes[node].inputs)
                waiting += [name for k, name in read if (node, k) not in dropped]
                waiting += self.nodes[node].captured
        return frozenset(found)

    @cached_property
    def forgotten(self) -> frozenset[str]:
        """Constants that only dead nodes read."""
        passed = {b.sum: b.skip for b in self.blocks}
        handed_on = {
            behind(b.sum, passed)
            for b in self.blocks
            if not self.dead.issuperset(self.readers.get(b.sum, ())) or b.sum in self.outputs
        }
        return frozenset(
            name
            for name in self.constants
            if self.dead.issuperset(read := self.readers.get(name, ()))
            and read
            and name not in handed_on
            and name not in self.outputs
        )

    def array(self, name: str) -> NDArray[Any]:
        """The value of a constant, in its stored shape; external data is mapped, not read."""
        if name in self.changed:
            return self.changed[name]
        folder = self.path.parent if self.path else Path()
        return read(self.constants[name].tensor, folder)

    @cached_property
    def own(self) -> tuple[Node, ...]:
        """The nodes of the model's own graph, each once, in order."""
        return tuple(n for n in self.nodes if not n.home and not n.enters)

    def names(self) -> set[str]:
        """All that are taken, in the file or here: for `spa.protos.unused`."""
        given = {name for node in self.nodes for name in (node.name, *node.outputs)}
        return given.union(self.constants, self.inputs, self.spelling.values())

    def maker(self, name: str, *op_types: str) -> Node | None:
        """The node of the model's own graph that makes a tensor, if it is one of ai.onnx, and of
        these operators where some are named."""
        node = self.nodes[self.makers[name]] if name in self.makers else None
        if node is None or node.home or not node.is_standard:
            return None
        return node if not op_types or node.op_type in op_types else None

    def opset(self, domain: str) -> int:
        return self.opsets.get("" if domain == "ai.onnx" else domain, 1)


def behind(name: str, passed: Mapping[str, str]) -> str:
    """What a tensor is where some are others instead."""
    while name in passed:
        name = passed[name]
    return name


def without_dead(graph: Graph, nodes: Iterable[NodeProto], led: Iterable[str]) -> list[NodeProto]:
    """These nodes without those that only led to some tensors, which no node reads any more."""
    found, waiting = set[int](), list(led)
    while waiting:
        maker = graph.makers.get(waiting.pop())
        if maker is not None and maker not in found:
            found.add(maker)
            waiting += graph.nodes[maker].inputs
    names = {n for k in found for n in graph.nodes[k].outputs} - set(graph.outputs)
    every = list(nodes)
    read, kept = Counter(name for node in every for name in _reads(node)), list[NodeProto]()
    for node in reversed(every):
        if all(name in names and not read[name] for name in node.output):
            read.subtract(_reads(node))
        else:
            kept.append(node)
    return kept[::-1]


def _reads(node: NodeProto) -> set[str]:
    return {*node.input, *(name for body in bodies(node) for name in free_names(body))}


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
