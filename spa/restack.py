"""Stack what is put together along its channels and split again: [f_0(x), ..., f_n(x)] as (E, d).

Experts whose outputs are put side by side and viewed as experts times channels are a stack: with an
axis of its own from the start, a branch goes with its index (`spa.joins`). The numbers stay the
same, and verification compares both forms.
"""

from __future__ import annotations

from math import prod

import numpy as np
from onnx import NodeProto, helper, numpy_helper

from spa.graph import FLOATS, Graph, Node
from spa.index import other_form
from spa.joins import has_weights
from spa.protos import copy_without, unused, with_inputs
from spa.shapes import Shapes


def restack(graph: Graph, shapes: Shapes) -> Graph | None:
    """The graph with these stacks, or None where it has none."""
    found = {
        reshape.index: (concat, axis)
        for reshape in graph.nodes
        if (concat := _put_together(graph, shapes, reshape)) is not None
        and (axis := _axis(graph, shapes, concat, reshape)) is not None
    }
    if not found:
        return None
    model = copy_without(graph.model, "node", "value_info")
    taken = graph.names()
    gone = {concat.index for concat, _ in found.values()}
    for node in (n for n in graph.own if n.index not in gone):
        if node.index not in found:
            model.graph.node.append(node.proto)
            continue
        stack = _stack(graph, *found[node.index], taken)
        model.graph.node.extend(stack)
        shape = node.proto.input[1]
        model.graph.node.append(with_inputs(node.proto, [stack[-1].output[0], shape]))
    made = {name for node in model.graph.node for name in node.output}
    model.graph.value_info.extend(i for i in graph.model.graph.value_info if i.name in made)
    return other_form(graph, model)


def _put_together(graph: Graph, shapes: Shapes, reshape: Node) -> Node | None:
    """The Concat that a Reshape alone reads."""
    if reshape.op_type != "Reshape" or reshape.home or not reshape.is_standard:
        return None
    (name, *_), made = reshape.inputs, reshape.outputs[0]
    concat = graph.maker(name, "Concat")
    if concat is None or name in graph.outputs or graph.readers[name] != [reshape.index]:
        return None
    known = all(n in shapes.shapes for n in (*concat.inputs, name, made))
    return concat if known and shapes.dtypes.get(name) in FLOATS else None


def _axis(graph: Graph, shapes: Shapes, concat: Node, reshape: Node) -> int | None:
    """The axis along which parts of one size are put together, where the Reshape splits it into
    parts and their size, and a part has weights of its own."""
    old, new = shapes.shapes[concat.outputs[0]], shapes.shapes[reshape.outputs[0]]
    parts = [shapes.shapes[name] for name in concat.inputs]
    at = int(concat.attrs.get("axis", 1)) % len(old)
    count, each = len(parts), parts[0][at]
    first = next((k for k in range(len(new)) if prod(new[:k]) == prod(old[:at])), None)
    if min(count, each) < 2 or any(part != parts[0] for part in parts) or first is None:
        return None
    sizes = shapes.values.get(reshape.inputs[1])
    if sizes is None or (np.ravel(sizes)[at:] == 0).any():  # copied from where they no longer are
        return None
    split = any(prod(new[first + 1 : k]) == each for k in range(first + 2, len(new) + 1))
    if not split or new[first] != count:
        return None
    ends = {(concat.index, k) for k in range(count)}
    return at if any(has_weights(graph, name, ends) for name in concat.inputs) else None


def _stack(graph: Graph, concat: Node, axis: int, taken: set[str]) -> list[NodeProto]:
    """The parts with an axis of one index each, put together along that."""
    nodes: list[NodeProto] = []
    for name in concat.proto.input:
        output, called = unused(name, taken), unused(concat.name, taken)
        if graph.opset("") < 13:
            nodes.append(helper.make_node("Unsqueeze", [name], [output], called, axes=[axis]))
            continue
        where = unused(name, taken)
        value = numpy_helper.from_array(np.asarray([axis], np.int64), where)
        nodes.append(helper.make_node("Constant", [], [where], where, value=value))
        nodes.append(helper.make_node("Unsqueeze", [name, where], [output], called))
    parts = [node.output[0] for node in nodes if node.op_type == "Unsqueeze"]
    stacked = unused(concat.outputs[0], taken)
    nodes.append(helper.make_node("Concat", parts, [stacked], concat.name, axis=axis))
    return nodes
