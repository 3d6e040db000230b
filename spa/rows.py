"""Write row by row what is written number by number to whole rows.

PyTorch's masked_scatter, by which models of text and pictures put features in the place of tokens,
is exported as a list of single positions and a flat list of numbers: a mask of rows is spread over
the columns, what NonZero finds there is written to, in order. So the columns of all rows would
depend on their positions. Where the numbers come from rows of the same length, whole rows are
written, in the same order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from spa.graph import Graph, Node, without_dead
from spa.index import other_form
from spa.protos import copy_without, unused
from spa.shapes import Shapes


class _Written(NamedTuple):
    """mask: which rows are written to, with an axis of one column. source: the rows written."""

    mask: str
    source: str


def by_rows(graph: Graph, shapes: Shapes) -> Graph | None:
    """The graph in which rows are written, or None where nothing is written so."""
    if graph.opset("") < 11:  # no exporter has written it so before
        return None
    found = {n.index: w for n in graph.nodes if (w := _written(graph, shapes, n)) is not None}
    if not found:
        return None
    model = copy_without(graph.model, "node")
    taken = graph.names()
    nodes: list[NodeProto] = []
    for node in graph.own:
        if node.index in found:
            width = shapes.shapes[node.inputs[0]][-1]
            made, stored = _instead(node, found[node.index], width, graph.opset(""), taken)
            model.graph.initializer.extend(stored)
            nodes += made
        else:
            nodes.append(node.proto)
    led = [name for k in found for name in graph.nodes[k].inputs[1:]]
    model.graph.node.extend(without_dead(graph, nodes, led))
    return other_form(graph, model)


def _written(graph: Graph, shapes: Shapes, node: Node) -> _Written | None:
    """What a ScatterND writes row by row; None where it does not."""
    if node.op_type != "ScatterND" or not node.is_standard or node.home:
        return None
    if node.attrs.get("reduction", b"none") != b"none":
        return None
    data, indices, updates = node.inputs
    turned = graph.maker(indices, "Transpose")
    listed = turned and graph.maker(turned.inputs[0], "NonZero")
    cut = graph.maker(updates, "Slice")  # as long as the list, or this would not run
    flat = graph.maker(cut.inputs[0] if cut else updates, "Reshape")
    shape = shapes.shapes.get(data, ())
    if not listed or not flat or len(shape) < 2 or (cut and _start(graph, shapes, cut) != 0):
        return None
    source = shapes.shapes.get(flat.inputs[0], ())
    if source[-1:] != shape[-1:] or len(shapes.shapes.get(flat.outputs[0], ())) != 1:
        return None
    mask = listed.inputs[0]
    while (spread := graph.maker(mask, "Expand")) and shapes.shapes.get(mask) == shape:
        mask = spread.inputs[0]
    return _Written(mask, flat.inputs[0]) if shapes.shapes.get(mask) == (*shape[:-1], 1) else None


def _start(graph: Graph, shapes: Shapes, cut: Node) -> int | None:
    start = shapes.values.get(cut.inputs[1])
    return int(start.item()) if start is not None and start.size == 1 else None


def _instead(
    node: Node, written: _Written, width: int, opset: int, taken: set[str]
) -> tuple[list[NodeProto], list[TensorProto]]:
    """The nodes that write the rows, and the numbers that they read."""
    data, output = node.proto.input[0], node.proto.output[0]
    own: dict[str, str] = {"data": data, "mask": written.mask, "source": written.source}

    def name(part: str) -> str:
        if part not in own:
            own[part] = unused(output, taken)
        return own[part]

    def make(op_type: str, reads: str, part: str, **attrs: Any) -> NodeProto:
        return helper.make_node(
            op_type, [*map(name, reads.split())], [name(part)], name(part), **attrs
        )

    numbers = {"zero": [0], "one": [1], "last": [-1], "sizes": [-1, width]}
    stored = [numpy_helper.from_array(np.asarray(v, np.int64), name(k)) for k, v in numbers.items()]
    old = opset < 13
    nodes = [
        make("Squeeze", "mask" if old else "mask last", "line", **({"axes": [-1]} if old else {})),
        make("NonZero", "line", "found"),
        make("Transpose", "found", "places"),
        make("Shape", "places", "listed"),
        make("Slice", "listed zero one", "count"),
        make("Reshape", "source sizes", "rows"),
        make("Slice", "rows zero count zero", "written"),
    ]
    inputs = [name(part) for part in ("data", "places", "written")]
    nodes.append(helper.make_node("ScatterND", inputs, [output], node.proto.name))
    return nodes, stored
