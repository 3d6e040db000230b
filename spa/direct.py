"""Pick from the part that holds it what is picked from several parts put together.

Recurrent layers return the last states of all layers in one tensor, of which often only the last
layer's are read. Put together they would have one width. The numbers stay the same.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from spa.graph import Graph, Node, without_dead
from spa.index import other_form
from spa.protos import copy_without, unused

_RECURRENT = {"LSTM", "GRU", "RNN"}


class _Pick(NamedTuple):
    """What one output of a node holds: these positions on an axis of a part."""

    output: str
    part: str
    axis: int
    where: NDArray[np.int64]


def direct(graph: Graph) -> Graph | None:
    """The graph in which these read the parts, or None where nothing is picked so."""
    found = {n.index: picks for n in graph.nodes if (picks := _picks(graph, n))}
    if not found:
        return None
    model = copy_without(graph.model, "node")
    taken = graph.names()
    nodes: list[NodeProto] = []
    for node in graph.own:
        for k, pick in enumerate(found.get(node.index, ())):
            name = unused(node.name, taken) if k else node.proto.name
            at, proto = _gather(pick, name, unused(pick.output, taken))
            model.graph.initializer.append(at)
            nodes.append(proto)
        if node.index not in found:
            nodes.append(node.proto)
    left = [graph.nodes[k].inputs[0] for k in found]  # what was put together
    model.graph.node.extend(without_dead(graph, nodes, left))
    return other_form(graph, model)


def _gather(pick: _Pick, name: str, at: str) -> tuple[TensorProto, NodeProto]:
    """The node that picks from the part, and the positions that it reads."""
    node = helper.make_node("Gather", [pick.part, at], [pick.output], name, axis=pick.axis)
    return numpy_helper.from_array(pick.where, at), node


def _picks(graph: Graph, node: Node) -> list[_Pick]:
    """What a node picks from parts, each output from one; nothing where it is from several, or
    where sizes may differ from run to run."""
    source = graph.makers.get(node.inputs[0]) if node.inputs else None
    if node.op_type not in ("Gather", "Slice", "Split") or source is None or node.home:
        return []
    concat = graph.nodes[source]
    ways = _ways(graph, concat)
    concat = graph.nodes[graph.makers[concat.inputs[0]]] if ways else concat
    if concat.op_type != "Concat" or concat.home or not (node.is_standard and concat.is_standard):
        return []
    axis = int(concat.attrs["axis"])
    sizes = [_size(graph, name, axis) for name in concat.inputs]
    if not all(sizes) or (ways and (axis or sum(sizes) % ways)):
        return []
    found, ends = [], [*accumulate(sizes)]
    for output, where in zip(
        node.proto.output, _positions(graph, node, axis, sum(sizes) // (ways or 1)), strict=False
    ):
        if ways:
            where = where[..., None] * ways + np.arange(ways)
        held = np.unique(np.searchsorted(ends, where, side="right"))
        if len(held) != 1 or not 0 <= (k := held.item()) < len(sizes):
            return []
        found.append(_Pick(output, concat.proto.input[k], axis, where - (ends[k] - sizes[k])))
    return found


def _ways(graph: Graph, node: Node) -> int:
    """The directions of all layers, where a Reshape makes an axis of them behind that of the layers
    of what recurrent layers return; else 0."""
    concat = graph.makers.get(node.inputs[0]) if node.inputs else None
    if node.op_type != "Reshape" or not node.is_standard or node.home or concat is None:
        return 0
    states = {graph.makers.get(name, -1) for name in graph.nodes[concat].inputs}
    widths = {graph.nodes[k].attrs.get("hidden_size", 0) if k >= 0 else 0 for k in states}
    sizes = _sizes(graph, node.inputs[1])
    return sizes[1] if len(sizes) == 4 and sizes[1] > 0 and widths == {sizes[3]} else 0


def _sizes(graph: Graph, name: str) -> list[int]:
    """A shape that is stored or put together; 0 for sizes that are computed."""
    if name in graph.constants:
        return [int(n) for n in graph.array(name).ravel()]
    maker = graph.makers.get(name)
    if maker is None or graph.nodes[maker].op_type != "Concat":
        return []
    stored = [
        graph.array(n).ravel() if n in graph.constants else [0] for n in graph.nodes[maker].inputs
    ]
    return [int(n) for part in stored for n in part]


def _positions(graph: Graph, node: Node, axis: int, size: int) -> list[NDArray[np.int64]]:
    """The positions that every output of a node holds of an axis of this size, if it is along that
    axis alone that it picks."""
    along, every = int(node.attrs.get("axis", 0)), np.arange(size)
    if node.op_type == "Gather":
        at = _stored(graph, node, 1)
        return [] if at is None or along != axis else [np.where(at < 0, at + size, at)]
    if node.op_type == "Slice":
        starts, ends = (_stored(graph, node, k, a) for k, a in ((1, "starts"), (2, "ends")))
        axes, steps = _stored(graph, node, 3, "axes"), _stored(graph, node, 4)
        if starts is None or ends is None or len(starts) != 1:
            return []
        if (0 if axes is None else axes.item()) != axis or (_has(node, 4) and steps is None):
            return []
        return [every[starts.item() : ends.item() : 1 if steps is None else steps.item()]]
    if along != axis or (_has(node, 1) and _stored(graph, node, 1) is None):
        return []
    parts = _stored(graph, node, 1, "split")
    if parts is None and size % len(node.outputs):
        return []
    return np.split(every, len(node.outputs) if parts is None else np.cumsum(parts)[:-1])


def _has(node: Node, k: int) -> bool:
    return bool(node.inputs[k:] and node.inputs[k])


def _stored(graph: Graph, node: Node, k: int, attr: str = "") -> Any:
    """The positions that an input or, in older opsets, an attribute holds; None for none."""
    if attr in node.attrs:
        return np.asarray(node.attrs[attr], np.int64)
    constant = graph.constants.get(node.inputs[k]) if _has(node, k) else None
    return None if constant is None else np.asarray(graph.array(constant.name), np.int64)


def _size(graph: Graph, name: str, axis: int) -> int:
    """The size that a tensor has by how it is made; 0 where that may differ from run to run."""
    if name not in graph.makers:
        return 0
    node = graph.nodes[graph.makers[name]]
    if not node.is_standard:
        return 0
    if node.op_type in _RECURRENT and name in node.outputs[1:] and axis == 0:
        return 2 if node.attrs.get("direction") == b"bidirectional" else 1
    if node.op_type == "Unsqueeze":
        axes = _stored(graph, node, 1, "axes")
        return 0 if axes is None else int(axis in axes)
    return 0
