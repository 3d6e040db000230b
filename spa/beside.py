"""Look up along two axes what is looked up in both laid out as one: x[t, e] at t * E + e.

Exporters write the indexing of two axes at once so. Where e holds positions on an axis of size E, t
and e are put beside each other as GatherND reads them, which ties the axis to what e comes from.
The numbers stay the same, and verification compares both forms.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from spa.axes import Ids
from spa.graph import Graph, Node, without_dead
from spa.index import other_form
from spa.protos import copy_without, unused, with_inputs
from spa.shapes import Shapes

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class _Place:
    """What a Gather looks up.

    data: of shape (T, E, ...). added: the axis of one index that the Gather reads behind these, if
        there is one. rows, index: t and e. total: the node that adds them up.
    """

    data: str
    added: int | None
    rows: str | Numbers
    index: str
    total: Node


def beside(graph: Graph, shapes: Shapes, pointed: Mapping[str, Ids]) -> Graph | None:
    """The graph with these look-ups, or None where it has none.

    Args:
        pointed: tensors that hold positions on an axis -> the ids of that axis.
    """
    if graph.opset("") < 11:  # which brought GatherND
        return None
    found = {
        node.index: place
        for node in graph.nodes
        if (place := _place(graph, shapes, pointed, node)) is not None
    }
    for total in {place.total.index: place.total for place in found.values()}.values():
        readers = (graph.nodes[k] for k in graph.readers[total.outputs[0]])
        if any(n.index not in found and n.op_type != "Shape" for n in readers):
            found = {k: place for k, place in found.items() if place.total is not total}
    if not found:
        return None
    model = copy_without(graph.model, "node")
    taken = graph.names()
    like = {place.total.outputs[0]: place.index for place in found.values()}  # of one shape
    nodes: list[NodeProto] = []
    for node in graph.own:
        if node.index in found:
            nodes += _Writer(graph, node, taken).nodes(found[node.index], shapes)
        elif node.op_type == "Shape" and node.inputs[0] in like:
            nodes.append(with_inputs(node.proto, [like[node.inputs[0]]]))
        else:
            nodes.append(node.proto)
    led = [name for k in found for name in graph.nodes[k].inputs]
    model.graph.node.extend(without_dead(graph, nodes, led))
    return other_form(graph, model)


def _place(graph: Graph, shapes: Shapes, pointed: Mapping[str, Ids], node: Node) -> _Place | None:
    if node.op_type != "Gather" or node.home or not node.is_standard:
        return None
    flat = graph.maker(node.inputs[0], "Flatten", "Reshape")
    total = graph.maker(node.inputs[1], "Add")
    if node.attrs.get("axis", 0) or flat is None:
        return None
    if total is None or total.outputs[0] in graph.outputs:
        return None
    if shapes.dtypes.get(total.outputs[0]) != TensorProto.INT64:
        return None
    old, new = (shapes.shapes.get(name) for name in (flat.inputs[0], flat.outputs[0]))
    if old is None or new is None or len(old) < 2 or new[0] != old[0] * old[1]:
        return None
    if new[1:] not in (old[2:], (*old[2:], 1)):
        return None
    for index, other in (total.inputs, total.inputs[::-1]):
        alike = shapes.shapes.get(index) == shapes.shapes.get(total.outputs[0])
        if alike and index in pointed and len(pointed[index]) == old[1]:
            rows = _rows(graph, shapes, other, old[1])
            if rows is not None:
                added = None if new[1:] == old[2:] else len(old)
                return _Place(flat.proto.input[0], added, rows, index, total)
    return None


def _rows(graph: Graph, shapes: Shapes, name: str, size: int) -> str | Numbers | None:
    """t, where a tensor holds t * size."""
    if name in graph.constants:
        stored = np.asarray(graph.array(name), np.int64)
        return None if (stored % size).any() else stored // size
    product = graph.maker(name, "Mul")
    if product is None:
        return None
    for rows, factor in (product.inputs, product.inputs[::-1]):
        value = shapes.values.get(factor)
        if value is not None and np.size(value) == 1 and int(np.ravel(value)[0]) == size:
            if np.ndim(value) > len(shapes.shapes.get(rows, ())):
                return None
            return np.asarray(graph.array(rows), np.int64) if rows in graph.constants else rows
    return None


class _Writer:
    """Writes the nodes that take the place of a Gather."""

    def __init__(self, graph: Graph, near: Node, taken: set[str]) -> None:
        self.graph, self.near, self.taken = graph, near, taken
        self.written: list[NodeProto] = []

    def nodes(self, place: _Place, shapes: Shapes) -> list[NodeProto]:
        last = len(shapes.shapes[place.index])
        rows = place.rows if isinstance(place.rows, str) else self._hold(place.rows)
        size = self._add("Shape", [place.index])
        rows = self._unsqueeze(self._add("Expand", [rows, size]), last)
        listed = self._add("Concat", [rows, self._unsqueeze(place.index, last)], axis=last)
        data = place.data
        if place.added is not None:
            data = self._unsqueeze(data, place.added)
        self._add("GatherND", [data, listed])
        self.written[-1].name, self.written[-1].output[0] = self.near.name, self.near.outputs[0]
        return self.written

    def _unsqueeze(self, name: str, axis: int) -> str:
        if self.graph.opset("") < 13:
            return self._add("Unsqueeze", [name], axes=[axis])
        return self._add("Unsqueeze", [name, self._hold(np.asarray([axis], np.int64))])

    def _hold(self, value: Numbers) -> str:
        return self._add("Constant", [], value=numpy_helper.from_array(value))

    def _add(self, op_type: str, inputs: Sequence[str], **attrs: Any) -> str:
        output, name = (unused(n, self.taken) for n in (self.near.outputs[0], self.near.name))
        self.written.append(helper.make_node(op_type, inputs, [output], name, **attrs))
        return output
