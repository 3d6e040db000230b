"""Read before it is spread what is spread to be read by operators that broadcast anyway.

A mask of [B, 1, Q, K] that is expanded to all heads once, and added to the scores of every layer,
would couple the heads of all layers. Equal values along an axis need no axis: where the other
inputs of a reader have it, the reader gets what was expanded, and the numbers stay the same.
"""

from __future__ import annotations

from math import prod

import numpy as np
from onnx import NodeProto

from spa.axes import Axes, is_whole
from spa.graph import Graph, Node, without_dead
from spa.index import other_form
from spa.protos import copy_without, unused, with_inputs
from spa.shapes import Shapes

_ALONE = {"Abs", "Cast", "Identity", "Neg", "Not"}
_BROADCAST = {"Add", "And", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual",
              "Max", "Min", "Mod", "Mul", "Or", "Pow", "Sub", "Where", "Xor"}  # fmt: skip


def spread(graph: Graph, shapes: Shapes, axes: dict[str, Axes]) -> Graph | None:
    """The graph with these readers, or None where nothing is shared so.

    Args:
        axes: the ids of every tensor; what is kept whole is left alone.
    """
    if graph.opset("") < 8:  # where not all of these broadcast
        return None
    builder = _Builder(graph, shapes)
    narrow: dict[tuple[str, int], str] = {}  # (tensor, reader) -> what it reads instead
    for node in graph.nodes:
        for name in _shared(graph, shapes, axes, node):
            readers = [k for k in set(graph.readers[name]) if builder.fits(name, graph.nodes[k])]
            narrow.update({(name, k): builder.before(name) for k in readers if len(readers) > 1})
    return builder.graph_with(narrow) if narrow else None


def _shared(graph: Graph, shapes: Shapes, axes: dict[str, Axes], node: Node) -> list[str]:
    """What an Expand spreads along an axis that may lose indices, and what is made of that alone,
    as far as several read it."""
    if not _is(node, {"Expand"}):
        return []
    found, waiting = list[str](), [node.outputs[0]]
    old, new = (shapes.shapes.get(n, ()) for n in (node.inputs[0], node.outputs[0]))
    grown = [k for k, n in enumerate(new) if n > 1 and ((1,) * len(new) + old)[k - len(new)] == 1]
    if not any(not is_whole(axes[node.outputs[0]][k]) for k in grown):
        return []
    while waiting:
        name = waiting.pop()
        readers = [graph.nodes[k] for k in set(graph.readers.get(name, ()))]
        if len(readers) > 1 and name not in graph.outputs:
            found.append(name)
        waiting += [r.outputs[0] for r in readers if _is_alone(shapes, r, name)]
    return found


def _is(node: Node, op_types: set[str]) -> bool:
    return node.op_type in op_types and node.is_standard and not node.home


def _is_alone(shapes: Shapes, node: Node, name: str) -> bool:
    """Whether a node makes of a tensor and single numbers what has its shape."""
    others = (prod(shapes.shapes.get(n, (0,))) == 1 for n in node.inputs if n != name)
    return _is(node, _ALONE | _BROADCAST) and all(others)


class _Builder:
    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self.graph, self.shapes = graph, shapes
        self.taken = graph.names()
        self.known: dict[str, str] = {}
        self.behind: dict[int, NodeProto] = {}  # node -> its copy, which reads less

    def _shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor before it is spread."""
        node = self.graph.nodes[self.graph.makers[name]]
        if _is(node, {"Expand"}):
            return self.shapes.shapes[node.inputs[0]]
        return self._shape(self._of(node))

    def _of(self, node: Node) -> str:
        """The one input that is more than a number."""
        return max(node.inputs, key=lambda n: prod(self.shapes.shapes.get(n, ())))

    def fits(self, name: str, reader: Node) -> bool:
        """Whether a reader makes the same of what it would read instead."""
        if not _is(reader, _BROADCAST) or reader.inputs.count(name) != 1:
            return False
        others = [self.shapes.shapes.get(n) for n in reader.inputs if n != name]
        made = self.shapes.shapes.get(reader.outputs[0])
        if made is None or any(shape is None for shape in others):
            return False
        given = [shape for shape in others if shape is not None]
        return np.broadcast_shapes(self._shape(name), *given) == made

    def before(self, name: str) -> str:
        """What a tensor is before it is spread."""
        node = self.graph.nodes[self.graph.makers[name]]
        if _is(node, {"Expand"}):
            return str(node.proto.input[0])
        if name not in self.known:
            of = self._of(node)
            inputs = (
                self.before(of) if own == of else given
                for own, given in zip(node.inputs, node.proto.input, strict=True)
            )
            copy = with_inputs(node.proto, inputs)
            self.known[name] = copy.output[0] = unused(name, self.taken)
            copy.name = unused(node.name, self.taken)
            self.behind[node.index] = copy
        return self.known[name]

    def graph_with(self, narrow: dict[tuple[str, int], str]) -> Graph:
        """The graph in which readers read this."""
        model = copy_without(self.graph.model, "node")
        nodes: list[NodeProto] = []
        for node in self.graph.own:
            pairs = zip(node.inputs, node.proto.input, strict=False)
            nodes.append(
                with_inputs(node.proto, (narrow.get((n, node.index), own) for n, own in pairs))
            )
            if node.index in self.behind:
                nodes.append(self.behind[node.index])
        names = [name for name, _ in narrow]
        model.graph.node.extend(without_dead(self.graph, nodes, names))
        return other_form(self.graph, model)
