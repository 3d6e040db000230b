"""Make what is filled with one number once for every reader.

The first states of all layers of a recurrent network may be slices of one tensor of zeros, whose
one size would couple their widths. A number has no width: every reader gets a copy of the node that
spreads it, and the numbers stay the same.
"""

from __future__ import annotations

from math import prod

from onnx import NodeProto

from spa.axes import Axes, is_whole
from spa.graph import Graph, Node
from spa.index import other_form
from spa.protos import copy_without, unused, with_inputs


def fills(graph: Graph, axes: dict[str, Axes]) -> Graph | None:
    """The graph with these copies, or None where none is needed.

    Args:
        axes: the ids of every tensor; what is kept whole is left alone.
    """
    shared = {node.index for node in graph.nodes if _is_shared(graph, axes, node)}
    if not shared:
        return None
    model = copy_without(graph.model, "node")
    taken = {name for node in graph.nodes for name in (node.name, *node.outputs)}
    taken.update(graph.constants, graph.inputs)
    own: dict[tuple[str, int], str] = {}  # (tensor, reader) -> what it reads instead
    for node in (n for n in graph.nodes if not n.home and not n.enters):
        inputs = (own.get((name, node.index), name) for name in node.proto.input)
        model.graph.node.append(with_inputs(node.proto, inputs))
        if node.index in shared:
            (output,) = node.proto.output
            for reader in sorted(set(graph.readers[output]))[1:]:
                copy = NodeProto()
                copy.CopyFrom(node.proto)
                copy.name = unused(node.name, taken)
                copy.output[0] = own[output, reader] = unused(output, taken)
                model.graph.node.append(copy)
    return other_form(graph, model)


def _is_shared(graph: Graph, axes: dict[str, Axes], node: Node) -> bool:
    """Whether several nodes read what one number is spread to, on axes that may lose indices."""
    if node.domain not in ("", "ai.onnx"):
        return False
    if node.op_type == "Expand":
        constant = graph.constants.get(node.inputs[0])
        if constant is None or prod(constant.shape) != 1:
            return False
    elif node.op_type != "ConstantOfShape":
        return False
    (output,) = node.outputs
    readers = [graph.nodes[k] for k in set(graph.readers.get(output, ()))]
    live = any(not is_whole(axis) for axis in axes.get(output, ()))
    inside = any(reader.home or reader.bodies or output in reader.captured for reader in readers)
    return live and len(readers) > 1 and output not in graph.outputs and not inside
