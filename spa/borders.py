"""Types and values where bodies begin and end: what goes into an If, Loop or Scan and comes out.

A state has one shape in all rounds of a loop, or is a list that every round does nothing with but
to add to it along one axis; else its shape is not known. An If has the shape and the value
that both branches have, or those of the branch that is always taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, TypeProto

from spa.graph import Graph, Node

Types = Mapping[str, TypeProto]
Shapes = Mapping[str, tuple[int, ...]]
Values = Mapping[str, NDArray[Any]]

_ENDLESS = 1 << 20  # rounds; a loop that only its condition ends is given more


@dataclass(frozen=True)
class Rounds:
    """What is known of the rounds of loops before their bodies are looked at.

    unsteady: states whose shape is another in later rounds, or not known, by what they start with.
    lists: sequences that start empty -> what they hold later, by their names in the body.
    """

    unsteady: frozenset[str] = frozenset()
    lists: Mapping[str, TypeProto] = field(default_factory=dict)


FIRST = Rounds()


def states(node: Node) -> int:
    """How many tensors a Loop or a Scan carries from round to round."""
    if node.op_type == "Loop":
        return node.given - 2
    return node.given - int(node.attrs["num_scan_inputs"])


def carried(graph: Graph, node: Node) -> list[tuple[str, str, str]]:
    """What every state of a loop starts with, its name in the body, and what a round leaves; of the
    node behind the body."""
    if node.op_type == "If":
        return []
    first = 2 if node.op_type == "Loop" else 0
    behind = node.given + (node.op_type == "Loop")
    count = states(node)
    starts, ends = node.inputs[first : first + count], node.inputs[behind : behind + count]
    body = graph.bodies[node.bodies[0]]
    inside = [body.names[i.name] for i in body.proto.input[first : first + count]]
    return list(zip(starts, inside, ends, strict=True))


def scan_axis(node: Node, which: str, k: int, rank: int) -> int:
    """The axis of scan input or output k that runs over the rounds.

    Args:
        which: input or output. rank: of the tensor outside of the body.
    """
    axes = node.attrs.get(f"scan_{which}_axes", [])
    return (int(axes[k]) if k < len(axes) else 0) % max(rank, 1)


def entered(graph: Graph, node: Node, types: Types) -> dict[str, TypeProto]:
    """The types of what a body is given, for all rounds alike; without those not known."""
    found: dict[str, TypeProto] = {}
    if node.op_type == "Loop":
        declared = graph.bodies[node.bodies[0]].proto.input
        for k, kind in enumerate((TensorProto.INT64, TensorProto.BOOL)):
            rank = len(declared[k].type.tensor_type.shape.dim)
            found[node.outputs[k]] = onnx.helper.make_tensor_type_proto(kind, [1] * (rank == 1))
        pairs = zip(node.inputs[2:], node.outputs[2:], strict=True)
        return found | {inner: types[name] for name, inner in pairs if name in types}
    count = states(node)
    for k, (name, inner) in enumerate(zip(node.inputs, node.outputs, strict=True)):
        if name in types:
            shape = shape_of(types[name])
            if k < count:
                found[inner] = types[name]
            elif shape:
                axis = scan_axis(node, "input", k - count, len(shape))
                found[inner] = _tensor(types[name], shape[:axis] + shape[axis + 1 :])
    return found


def left(
    graph: Graph, node: Node, types: Types, shapes: Shapes, values: Values
) -> dict[str, TypeProto]:
    """The types of what a node with bodies makes; without those not known."""
    found: dict[str, TypeProto] = {}
    if node.op_type == "If":
        for name, ends in zip(node.outputs, branches(node, values), strict=True):
            known = [types[end] for end in ends if end in types]
            if len(known) == len(ends) and len({shape_of(t) for t in known}) == 1:
                found[name] = known[0]
        return found
    pairs = carried(graph, node)
    for name, (start, inner, end) in zip(node.outputs, pairs, strict=False):
        if {start, inner, end} <= types.keys():
            shapes_ = {shape_of(types[n]) for n in (start, inner, end)}
            if len(shapes_ - {None} if start in graph.empty else shapes_) == 1:
                found[name] = types[end]
    rounds = trips(graph, node, shapes, values)
    for name, (start, inner, end) in zip(node.outputs, pairs, strict=False):
        if name in found or rounds is None or not _is_list(graph, node, inner, end):
            continue
        before, after = (shape_of(types[n]) if n in types else None for n in (start, end))
        if before is not None and after is not None:
            added = [n + rounds * (m - n) for n, m in zip(before, after, strict=True)]
            found[name] = _tensor(types[end], added)
    scanned = node.inputs[node.given + (node.op_type == "Loop") + len(pairs) :]
    for k, (name, end) in enumerate(zip(node.outputs[len(pairs) :], scanned, strict=True)):
        shape = shape_of(types[end]) if end in types else None
        if shape is not None and rounds is not None:
            axis = scan_axis(node, "output", k, len(shape) + 1)
            found[name] = _tensor(types[end], (*shape[:axis], rounds, *shape[axis:]))
    return found


def learned(graph: Graph, node: Node, types: Types, rounds: Rounds) -> Rounds:
    """The same, with what the body of a loop shows at its end."""
    unsteady, lists = set(rounds.unsteady), dict(rounds.lists)
    for start, inner, end in carried(graph, node):
        before, after = (shape_of(types[n]) if n in types else None for n in (start, end))
        if start in graph.empty and before is None and start not in unsteady:
            if after is not None and inner not in lists:
                lists[inner] = types[end]
                continue
            before = shape_of(lists[inner]) if inner in lists else None
        if before != after and not _is_list(graph, node, inner, end):
            unsteady.add(start)
    return Rounds(frozenset(unsteady), lists)


def _is_list(graph: Graph, node: Node, inner: str, end: str) -> bool:
    """Whether a round of a loop adds to a state along one axis, and no other node reads it: then it
    does not matter how long it is."""
    maker = graph.nodes[graph.makers[end]] if end in graph.makers else node
    adds = maker.op_type == "Concat" and maker.is_standard
    lone = adds and maker.inputs.count(inner) == 1 and graph.readers[inner] == [maker.index]
    return lone and graph.readers[end] == [node.index] and node.inputs.count(end) == 1


def joined(node: Node, values: Values) -> list[NDArray[Any] | None]:
    """The values of what an If makes, where it follows from sizes alone; else None."""
    if node.op_type != "If":
        return [None] * len(node.outputs)
    found: list[NDArray[Any] | None] = []
    for ends in branches(node, values):
        known = [values[end] for end in ends if end in values]
        same = len(known) == len(ends) and all(np.array_equal(known[0], v) for v in known[1:])
        found.append(known[0] if same else None)
    return found


def branches(node: Node, values: Values) -> list[Sequence[str]]:
    """For every output of an If, what the branches make that may be taken."""
    count = len(node.outputs)
    ends = [node.inputs[1 : 1 + count], node.inputs[1 + count :]]
    if node.inputs[0] in values:
        ends = [ends[is_taken(node, values)]]
    return list(zip(*ends, strict=True))


def is_taken(node: Node, values: Values) -> int:
    """The number of the branch that an If takes: 0 for then, 1 for else."""
    return int(not np.all(values[node.inputs[0]]))


def is_dead(graph: Graph, home: int, values: Values) -> bool:
    """Whether a body stands in a branch that is never taken."""
    while home:
        node = graph.nodes[graph.bodies[home].owner]
        decided = node.op_type == "If" and node.inputs[0] in values
        if decided and node.bodies[is_taken(node, values)] != home:
            return True
        home = node.home
    return False


def trips(graph: Graph, node: Node, shapes: Shapes, values: Values) -> int | None:
    """How often the body of a Loop or a Scan runs, where that is known; behind the body."""
    if node.op_type == "Scan":
        count = states(node)
        for k, name in enumerate(node.inputs[count : node.given]):
            shape = shapes.get(name)
            if shape:
                return shape[scan_axis(node, "input", k, len(shape))]
        return None
    most, goes_on = node.inputs[0], node.inputs[node.given]
    inner = graph.nodes[graph.makers[goes_on]] if goes_on in graph.makers else None
    while inner is not None and inner.op_type in ("Identity", "Cast"):
        goes_on = inner.inputs[0]
        inner = graph.nodes[graph.makers[goes_on]] if goes_on in graph.makers else None
    passes = inner is not None and inner.enters and goes_on == inner.outputs[1]
    first = not node.inputs[1] or bool(np.all(values.get(node.inputs[1], False)))
    always = first and (passes or bool(np.all(values.get(goes_on, False))))
    return int(np.max(values[most])) if most in values and always else None


def repeats(graph: Graph, home: int, shapes: Shapes, values: Values) -> int:
    """How often a body runs when the model runs once; loops of which that is not known count as
    one round, and a branch that is never taken as none."""
    if is_dead(graph, home, values):
        return 0
    times = 1
    while home:
        node = graph.nodes[graph.bodies[home].owner]
        rounds = None if node.op_type == "If" else trips(graph, node, shapes, values)
        times *= rounds if rounds is not None and rounds < _ENDLESS else 1
        home = node.home
    return times


def counts(graph: Graph) -> frozenset[str]:
    """The inputs of the model that say how often a loop runs."""
    found = set()
    for node in graph.nodes:
        name = node.inputs[0] if node.op_type == "Loop" and node.bodies else ""
        while name in graph.makers and graph.nodes[graph.makers[name]].op_type in _SAME:
            name = graph.nodes[graph.makers[name]].inputs[0]
        found.add(name)
    return frozenset(found & set(graph.inputs))


_SAME = {"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape"}


def tensor_of(type_: TypeProto) -> TypeProto:
    """The type of the elements of a sequence; any other as it is."""
    return type_.sequence_type.elem_type if type_.HasField("sequence_type") else type_


def shape_of(type_: TypeProto) -> tuple[int, ...] | None:
    """The shape of a tensor, or of the elements of a sequence, if all of it is known."""
    tensor = tensor_of(type_).tensor_type
    if not tensor.HasField("shape"):
        return None
    known = all(d.HasField("dim_value") for d in tensor.shape.dim)
    return tuple(d.dim_value for d in tensor.shape.dim) if known else None


def _tensor(like: TypeProto, shape: Sequence[int]) -> TypeProto:
    return onnx.helper.make_tensor_type_proto(like.tensor_type.elem_type, shape)
