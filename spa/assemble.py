"""Put a model together from its nodes and tensors as they are after the cut, bodies included."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from spa.borders import tensor_of
from spa.graph import Graph, Node
from spa.protos import as_tensor, copy_fields, copy_without
from spa.shapes import Shape


@dataclass(frozen=True)
class Pieces:
    """What is new in a model.

    nodes: every node of the index as it is to be, see `loose`.
    inserted: what is put before a node, or at the end of a body: its number in `Graph.bodies`,
        negative.
    stored: new content of initializers, by their names in the index.
    added: more initializers. All graphs of the file see them.
    """

    nodes: Sequence[NodeProto]
    inserted: dict[int, list[NodeProto]] = field(default_factory=dict)
    stored: dict[str, TensorProto] = field(default_factory=dict)
    added: list[TensorProto] = field(default_factory=list)


def loose(graph: Graph, node: Node) -> NodeProto:
    """A copy of a node that may be changed; one with bodies reads what they leave as well, and
    they are empty."""
    copy = NodeProto()
    if not node.bodies:
        copy.CopyFrom(node.proto)
        return copy
    held = {graph.bodies[home].attribute for home in node.bodies}
    copy_fields(node.proto, copy, but=("attribute",))
    for attribute in node.proto.attribute:
        if attribute.name in held:
            copy.attribute.add(name=attribute.name, type=attribute.type)
        else:
            copy.attribute.append(attribute)
    for home in node.bodies:
        copy.input.extend(o.name for o in graph.bodies[home].proto.output)
    return copy


def place(graph: Graph, node: Node, position: int) -> int:
    """Where to insert what is to come before an input of a node, see `Pieces.inserted`."""
    at = position - node.given
    if at < 0 or not node.bodies:
        return node.index
    for home in node.bodies:
        count = len(graph.bodies[home].proto.output)
        if at < count:
            return -home
        at -= count
    raise IndexError(position)


def assemble(
    graph: Graph,
    pieces: Pieces,
    old: Mapping[str, Shape],
    new: Mapping[str, Shape],
    unused: Callable[[str], str],
) -> ModelProto:
    """The model.

    Args:
        old, new: the shapes of all tensors before and after.
        unused: a name that nothing has, made from another.
    """
    return _Assembly(graph, pieces, old, new, unused).model()


class _Assembly:
    def __init__(
        self,
        graph: Graph,
        pieces: Pieces,
        old: Mapping[str, Shape],
        new: Mapping[str, Shape],
        unused: Callable[[str], str],
    ) -> None:
        self.graph, self.pieces, self.unused = graph, pieces, unused
        self.old, self.new = old, new
        self.dead = self._dead()
        self.standing: dict[int, list[Node]] = {}  # graph -> its nodes
        for node in graph.nodes:
            if not node.enters:
                self.standing.setdefault(node.home, []).append(node)

    def model(self) -> ModelProto:
        source = self.graph.model
        model = copy_without(source, "node", "initializer")
        self._hold(0, model.graph)
        if source.ir_version >= 4:
            model.graph.initializer.extend(self.pieces.added)
        else:  # there every initializer must be a graph input; a node is not
            model.graph.node.extend(
                onnx.helper.make_node("Constant", [], [t.name], name=t.name, value=t)
                for t in self.pieces.added
            )
        self._run(0, model.graph)
        return model

    def _hold(self, home: int, graph: GraphProto) -> None:
        """The initializers of one graph."""
        body = self.graph.bodies[home]
        for tensor in body.proto.initializer:
            name = self.graph.known(home, tensor.name)
            if name in self.dead:
                continue
            if name in self.pieces.stored:
                graph.initializer.append(self.pieces.stored[name])
            elif tensor.data_location == TensorProto.EXTERNAL:
                graph.initializer.append(as_tensor(tensor.name, self.graph.array(name), tensor))
            else:
                graph.initializer.append(tensor)

    def _run(self, home: int, graph: GraphProto) -> None:
        """The nodes of one graph, with the bodies in them."""
        for node in sorted(self.standing.get(home, []), key=lambda node: node.at):
            graph.node.extend(self.pieces.inserted.get(node.index, []))
            graph.node.append(self.pieces.nodes[node.index])
            if node.bodies:
                self._fill(node, graph.node[-1])
        self._update_types(graph, home)

    def _fill(self, node: Node, written: NodeProto) -> None:
        """Write the bodies of a node, which leave what it is said to read."""
        names = list(written.input)[node.given :]
        del written.input[node.given :]
        added = {tensor.name for tensor in self.pieces.added}
        for home in node.bodies:
            body = self.graph.bodies[home]
            graph = next(a.g for a in written.attribute if a.name == body.attribute)
            copy_fields(body.proto, graph, but=("node", "initializer"))
            self._hold(home, graph)
            self._run(home, graph)
            graph.node.extend(self.pieces.inserted.get(-home, []))
            for output in graph.output:
                output.name = names.pop(0)
                if output.name in added:  # what a body leaves must stand in it
                    own = self.unused(output.name)
                    graph.node.append(onnx.helper.make_node("Identity", [output.name], [own]))
                    output.name = own

    def _dead(self) -> set[str]:
        """Initializers that lost their last reader to a constant of its own."""
        graph = self.graph
        read = {name for node in self.pieces.nodes for name in node.input}
        kept = {*graph.outputs, *(i.name for i in graph.model.graph.input)}
        kept.update(name for node in graph.nodes for name in node.captured)
        sources = {c.source for c in graph.constants.values() if graph.readers.get(c.source)}
        return {name for name in sources - kept if graph.spelled(name) not in read}

    def _update_types(self, graph: GraphProto, home: int) -> None:
        for info in (*graph.input, *graph.value_info, *graph.output):
            name = self.graph.known(home, info.name)
            old, new = self.old.get(name), self.new.get(name)
            if old == new or old is None or new is None:
                continue
            dims = tensor_of(info.type).tensor_type.shape.dim
            for dim, size, before in zip(dims, new, old, strict=False):
                if size == before:
                    continue
                if dim.HasField("dim_value"):
                    dim.dim_value = size
                else:  # a name such as "4*batch", which other tensors may go on to bear
                    dim.Clear()
