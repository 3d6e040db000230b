"""Index a model: all of its nodes in one list, those in the bodies of If, Loop and Scan among them.

What stands in a body comes right before the node that runs the body, in topological order. A body
reads outer tensors by their names and so ties them as any other node does; how its inputs and
outputs meet those of the node that runs it is for that node's rule to say. The name of a tensor in
a body is the one in the file where that is unique in the file, else ``node/branch/name``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from spa.errors import ModelError
from spa.graph import FLOATS, Body, Constant, Graph, Node, free_names
from spa.protos import bodies, read

_STANDARD = ("", "ai.onnx")
_RECURRENT = {"LSTM", "GRU", "RNN"}
_PICKS = {"Slice", "Split", "Gather"}  # several of these read parts of one thing


def index(model: ModelProto, path: Path | None = None) -> Graph:
    """Index a model.

    Raises:
        ModelError: if a node reads a tensor that nothing makes before it.
    """
    return _Indexer(model).graph(path)


def other_form(graph: Graph, model: ModelProto) -> Graph:
    """The index of a model that computes what another does, whose given form it remembers."""
    return replace(index(model, graph.path), given=graph.given or graph.model)


class _Indexer:
    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.opsets = {
            "" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import
        }
        self.nodes: list[Node] = []
        self.constants: dict[str, Constant] = {}
        self.graphs: list[Body] = []
        self.names: list[dict[str, str]] = []  # of every graph: name in the file -> in the index
        self.outer: list[int] = []  # the graph around every graph
        self.spelling: dict[str, str] = {}
        self.shared: set[str] = set()  # constants that are not split by reader
        nested = any(True for node in model.graph.node for _ in bodies(node))
        self.count = Counter(_declared(model.graph)) if nested else Counter[str]()
        self.taken = set(self.count)

    def graph(self, path: Path | None) -> Graph:
        main = self.model.graph
        self._open(Body(main), 0)
        names = self.names[0]
        names.update({i.name: i.name for i in main.input})
        names.update({t.values.name: t.values.name for t in main.sparse_initializer})
        names[""] = ""
        self._walk(0, "")
        self.shared.update(o.name for o in main.output)
        inputs = tuple(i.name for i in main.input if i.name not in self.constants)
        self._split(path.parent if path else Path())
        outputs = tuple(o.name for o in main.output)
        return Graph(
            self.model, path, tuple(self.nodes), self.constants, inputs, outputs, self.opsets,
            tuple(self.graphs), self.spelling,
        )  # fmt: skip

    def _open(self, body: Body, outer: int) -> int:
        self.names.append({})
        self.outer.append(outer)
        self.graphs.append(replace(body, names=self.names[-1]) if self.graphs else body)
        return len(self.graphs) - 1

    def _walk(self, home: int, path: str) -> None:
        graph = self.graphs[home].proto
        for tensor in graph.initializer:
            self._hold(home, path, tensor.name, tensor, None)
        for at in range(len(graph.node)) if home == 0 else _order(graph):
            proto = graph.node[at]
            label = proto.name or f"{proto.op_type}_{at}"
            if path and (not proto.name or self.count[proto.name] > 1):
                label = f"{path}/{label}"
            if self._is_spliced(proto):
                self._splice(home, path, at, label)
                continue
            inputs = tuple(self._find(home, name, label, at) for name in proto.input)
            captured = {n for body in bodies(proto) for n in free_names(body)}
            held = [self._find(home, name, label, at) for name in captured]
            self.shared.update(held)
            if proto.op_type == "Constant" and proto.domain in _STANDARD:
                tensor = _constant_tensor(proto)
                if tensor is not None:
                    self._hold(home, path, proto.output[0], tensor, len(self.nodes))
            outputs = tuple(self._name(home, path, name) for name in proto.output)
            self._add(home, at, label, proto, inputs, outputs, captured=frozenset(held))

    def _splice(self, home: int, path: str, at: int, label: str) -> None:
        """The bodies of a node, then the node."""
        proto = self.graphs[home].proto.node[at]
        inputs = tuple(self._find(home, name, label, at) for name in proto.input)
        made: list[str] = []
        inner: list[int] = []
        held = [a for a in proto.attribute if a.type == onnx.AttributeProto.GRAPH]
        for attribute in sorted(held, key=lambda a: a.name != "then_branch"):
            branch = attribute.name.removesuffix("_branch")
            body = self._open(Body(attribute.g, -1, attribute.name), home)
            inner.append(body)
            way = f"{label}/{branch}"
            if attribute.g.input:
                given = tuple(self._name(body, way, i.name) for i in attribute.g.input)
                self._add(home, at, label, proto, inputs, given, (body,), enters=True)
            self._walk(body, way)
            made += [self._find(body, o.name, label, at) for o in attribute.g.output]
        self.shared.update(made)
        for body in inner:
            self.graphs[body] = replace(self.graphs[body], owner=len(self.nodes))
        outputs = tuple(self._name(home, path, name) for name in proto.output)
        self._add(home, at, label, proto, (*inputs, *made), outputs, tuple(inner))

    def _add(
        self,
        home: int,
        at: int,
        label: str,
        proto: NodeProto,
        inputs: tuple[str, ...],
        outputs: tuple[str, ...],
        inner: tuple[int, ...] = (),
        enters: bool = False,
        captured: frozenset[str] = frozenset(),
    ) -> None:
        self.nodes.append(
            Node(
                len(self.nodes), label, proto.op_type, proto.domain, inputs, outputs, proto,
                home, at, inner, enters, captured,
            )
        )  # fmt: skip

    def _hold(self, home: int, path: str, name: str, tensor: TensorProto, node: int | None) -> None:
        own = self._name(home, path, name)
        self.constants[own] = Constant(own, own, tensor, node)

    def _name(self, home: int, path: str, name: str) -> str:
        """The name in the index of a tensor that a graph makes."""
        names = self.names[home]
        if name in names or not name:
            return names.get(name, "")
        own = name
        if home and self.count[name] > 1:
            own = f"{path}/{name}"
            while own in self.taken:
                own += "'"
            self.taken.add(own)
            self.spelling[own] = name
        names[name] = own
        return own

    def _find(self, home: int, name: str, reader: str, at: int) -> str:
        if not name:
            return ""
        graph = home
        while name not in self.names[graph]:
            if graph == 0:
                raise ModelError(
                    f"node {reader!r} (number {at}) reads {name!r}, "
                    "which nothing before it makes: the nodes have no topological order"
                )
            graph = self.outer[graph]
        return self.names[graph][name]

    def _is_spliced(self, proto: NodeProto) -> bool:
        """Whether a node runs bodies, and the numbers of their inputs and outputs fit it."""
        if proto.op_type not in _FITS or proto.domain not in _STANDARD:
            return False
        if proto.op_type == "Scan" and self.opsets.get("", 1) < 9:
            return False  # has a batch axis of its own
        graphs = list(bodies(proto))
        sparse = any(graph.sparse_initializer for graph in graphs)
        return bool(graphs) and not sparse and _FITS[proto.op_type](proto, graphs)

    def _split(self, folder: Path) -> None:
        """Make a small constant that several nodes read one for each of them, and so a first state
        of recurrent layers that is one number throughout, which has no width of its own."""
        stored, small = self.constants, {n for n, c in self.constants.items() if is_small(c)}
        states = {n for node in self.nodes if node.op_type in _RECURRENT for n in node.inputs[5:7]}
        small |= {n for n in states & stored.keys() if _is_filled(stored[n].tensor, folder)}
        others = (n for node in self.nodes if node.op_type != "Identity" for n in node.inputs)
        read = {n for n in others if n in stored and n not in small}
        constants = dict(stored)
        entered: dict[int, tuple[str, ...]] = {}  # body -> what the node that enters it reads
        for k, node in enumerate(self.nodes):
            names, alias = list(node.inputs), node.op_type == "Identity"
            before = entered.get(node.bodies[0], ()) if node.bodies else ()
            names[: len(before)] = before
            for position, name in enumerate(names[len(before) :], len(before)):
                whole = alias or (name in small and not (position == 0 and node.op_type in _PICKS))
                if name in stored and name not in self.shared and whole:
                    if name in read:
                        own = f"{name}@{k}.{position}"
                        constants[own] = replace(stored[name], name=own)
                        names[position] = own
                    read.add(name)
            if node.enters:
                entered[node.bodies[0]] = tuple(names)
            if tuple(names) != node.inputs:
                self.nodes[k] = replace(node, inputs=tuple(names))
        self.constants = constants


def _fits_if(proto: NodeProto, graphs: list[GraphProto]) -> bool:
    return len(graphs) == 2 and all(
        not graph.input and len(graph.output) == len(proto.output) for graph in graphs
    )


def _fits_loop(proto: NodeProto, graphs: list[GraphProto]) -> bool:
    (graph,) = graphs
    takes = len(graph.input) == len(proto.input) >= 2
    return takes and len(graph.output) - 1 == len(proto.output) >= len(proto.input) - 2


def _fits_scan(proto: NodeProto, graphs: list[GraphProto]) -> bool:
    (graph,) = graphs
    scanned = next((a.i for a in proto.attribute if a.name == "num_scan_inputs"), 0)
    takes = len(graph.input) == len(proto.input) >= scanned > 0
    return takes and len(graph.output) == len(proto.output) >= len(proto.input) - scanned


_FITS = {"If": _fits_if, "Loop": _fits_loop, "Scan": _fits_scan}


def _declared(graph: GraphProto) -> Iterator[str]:
    """The name of everything that a graph and its bodies make, and of their nodes."""
    yield from dict.fromkeys((*(i.name for i in graph.input), *(t.name for t in graph.initializer)))
    for node in graph.node:
        yield from {*node.output, node.name} - {""}
        for body in bodies(node):
            yield from _declared(body)


def _order(graph: GraphProto) -> list[int]:
    """The nodes of a body in topological order."""
    makers = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    needs = {
        k: {makers[i] for i in (*n.input, *_inner(n)) if i in makers}
        for k, n in enumerate(graph.node)
    }
    if all(k > max(before, default=-1) for k, before in needs.items()):
        return list(needs)
    try:
        return list(TopologicalSorter(needs).static_order())
    except CycleError:
        return list(needs)  # then one reads what nothing before it makes


def _inner(node: NodeProto) -> set[str]:
    return {name for body in bodies(node) for name in free_names(body)}


def is_small(constant: Constant) -> bool:
    """A vector, possibly with broadcast axes of size 1: cheap to store once per reader."""
    size = int(np.prod(constant.shape, dtype=np.int64))
    return size == max(constant.shape, default=1)


def _is_filled(tensor: TensorProto, folder: Path) -> bool:
    if tensor.data_type not in FLOATS or 0 in tensor.dims:
        return False
    value = read(tensor, folder)
    ends = value.ravel()[[0, -1]]
    return bool(ends[0] == ends[1] and (value == ends[0]).all())


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
