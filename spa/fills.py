"""Make once for every reader what is filled with one number, or a small constant in another form.

The first states of all layers of a recurrent network may be slices of one tensor of zeros, whose
one size would couple their widths. A number has no width: every reader gets a copy of the node that
spreads it, and the numbers stay the same. Neither has a bias that several layers share because it
holds the same numbers (see `spa.graph`), dequantised or cast on its way to them.
"""

from __future__ import annotations

from math import prod

from onnx import NodeProto

from spa import rules
from spa.axes import Axes, is_whole
from spa.graph import Graph, Node
from spa.index import is_small, other_form
from spa.protos import copy_without, unused, with_inputs

_DOMAINS = ("", "ai.onnx", rules.MICROSOFT)
_FORMS = {"Cast", "DequantizeLinear"}  # what says the same in another form


def fills(graph: Graph, axes: dict[str, Axes]) -> Graph | None:
    """The graph with these copies, or None where none is needed.

    Args:
        axes: the ids of every tensor; what is kept whole is left alone.
    """
    shared = {node.index for node in graph.nodes if _is_shared(graph, axes, node)}
    if not shared:
        return None
    model = copy_without(graph.model, "node")
    taken = graph.names()
    own: dict[tuple[str, int], str] = {}  # (tensor, reader) -> what it reads instead
    for node in graph.own:
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
    if node.home or node.domain not in _DOMAINS or len(node.outputs) != 1:
        return False
    if not _spreads(graph, node) and not _is_of_small_constants(graph, node):
        return False
    (output,) = node.outputs
    readers = [graph.nodes[k] for k in set(graph.readers.get(output, ()))]
    live = any(not is_whole(axis) for axis in axes.get(output, ()))
    inside = any(reader.home or reader.bodies or output in reader.captured for reader in readers)
    return live and len(readers) > 1 and output not in graph.outputs and not inside


def _spreads(graph: Graph, node: Node) -> bool:
    if node.op_type == "Expand":
        constant = graph.constants.get(node.inputs[0])
        return constant is not None and prod(constant.shape) == 1
    return node.op_type == "ConstantOfShape"


def _is_of_small_constants(graph: Graph, node: Node) -> bool:
    held = [graph.constants.get(name) for name in node.inputs if name]
    small = all(constant is not None and is_small(constant) for constant in held)
    return node.op_type in _FORMS and bool(held) and small
