"""Pick from the part that holds it what is picked from several parts put together.

Recurrent layers return the last states of all layers in one tensor, of which often only the last
layer's are read. Put together they would have one width. The numbers stay the same.
"""

from __future__ import annotations

from itertools import accumulate

import numpy as np
from onnx import TensorProto, numpy_helper

from spa.graph import Graph, Node
from spa.index import other_form
from spa.protos import copy_without, unused, with_inputs

_RECURRENT = {"LSTM", "GRU", "RNN"}
_STANDARD = ("", "ai.onnx")


def direct(graph: Graph) -> Graph | None:
    """The graph in which these read the parts, or None where nothing is picked so."""
    found = {n.index: part for n in graph.nodes if (part := _part(graph, n)) is not None}
    if not found:
        return None
    model = copy_without(graph.model, "node")
    taken = {*graph.constants, *graph.inputs, *(o for n in graph.nodes for o in n.outputs)}
    left = {graph.makers[graph.nodes[k].inputs[0]] for k in found}  # what put them together
    gone = {
        k
        for k in left
        if not {*graph.nodes[k].outputs} & {*graph.outputs}
        and found.keys() >= {*graph.readers[graph.nodes[k].outputs[0]]}
    }
    for node in (n for n in graph.nodes if not n.home and not n.enters and n.index not in gone):
        proto = node.proto
        if node.index in found:
            name, at = found[node.index]
            at.name = unused(proto.input[1], taken)
            model.graph.initializer.append(at)
            proto = with_inputs(proto, [name, at.name])
        model.graph.node.append(proto)
    return other_form(graph, model)


def _part(graph: Graph, node: Node) -> tuple[str, TensorProto] | None:
    """The part that a Gather picks from, and its positions there; None where these are several
    parts, or where sizes may differ from run to run."""
    source = graph.makers.get(node.inputs[0]) if node.inputs else None
    if node.op_type != "Gather" or node.home or source is None or node.inputs[1] in graph.makers:
        return None
    concat, at = graph.nodes[source], graph.constants.get(node.inputs[1])
    axis = int(node.attrs.get("axis", 0))
    if concat.op_type != "Concat" or concat.home or at is None or axis < 0:
        return None
    if int(concat.attrs["axis"]) != axis or {node.domain, concat.domain} - {*_STANDARD}:
        return None
    sizes = [_size(graph, name, axis) for name in concat.inputs]
    if not all(sizes):
        return None
    ends = [*accumulate(sizes)]
    where = np.asarray(graph.array(at.name), np.int64)
    where = np.where(where < 0, where + ends[-1], where)
    held = set(np.searchsorted(ends, where, side="right").ravel().tolist())
    if len(held) != 1 or not 0 <= (k := held.pop()) < len(sizes):
        return None
    return concat.proto.input[k], numpy_helper.from_array(where - (ends[k] - sizes[k]))


def _size(graph: Graph, name: str, axis: int) -> int:
    """The size that a tensor has by how it is made; 0 where that may differ from run to run."""
    if name not in graph.makers:
        return 0
    node = graph.nodes[graph.makers[name]]
    if node.domain not in _STANDARD:
        return 0
    if node.op_type in _RECURRENT and name in node.outputs[1:] and axis == 0:
        return 2 if node.attrs.get("direction") == b"bidirectional" else 1
    if node.op_type == "Unsqueeze":
        axes = graph.constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
        listed = graph.array(axes.name) if axes else np.asarray(node.attrs.get("axes", ()))
        return int(axis in listed)
    return 0
