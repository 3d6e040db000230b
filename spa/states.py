"""Which axes of inputs and outputs are those of a state, and the part of them that a cut leaves.

A state goes into a model as one input and comes back, brought up to date, as an output: the caches
of keys and values of a decoder, the hidden state of a recurrence. Whoever runs the model carries it
from one run to the next, so that its axes may lose indices like inner ones, on both sides at once.
No name tells a state. Its input is only moved about on the way to the output, and there either
joined with what does not come from it (a Concat of past and new keys), or taken for a state by an
operator that has some (`Rule.states`); and the ids of both go together. What passes a sum on the
way, as in a residual stream or an image that is corrected, is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from onnx import ValueInfoProto

from spa import rules
from spa.axes import AxisName, Released
from spa.graph import FLOATS, Graph, Node
from spa.groups import Groups, Kept, View
from spa.shapes import Shapes
from spa.sizes import dims

Pair = tuple[str, str]  # an input, an output
Value = TypeVar("Value")

_MOVES = {
    *("Cast", "Expand", "Gather", "Identity", "Reshape"),
    *("Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"),
}


def pairs(graph: Graph) -> list[Pair]:
    """The inputs that states come in by, each with the outputs that they leave by."""
    infos = [i for i in graph.model.graph.input if i.name in graph.inputs]
    return [
        (info.name, output)
        for info in infos
        if info.type.tensor_type.elem_type in FLOATS and len(dims(graph, info)) > 2
        for output in graph.outputs
        if output in _updated(graph, info.name)
    ]


def _updated(graph: Graph, name: str) -> set[str]:
    """The tensors that hold what an input holds, brought up to date."""
    reached, carried = {name}, {name}  # what comes from it at all, and what it is moved to
    joined, stepped = set[str](), set[str]()
    for node in graph.nodes:
        if not reached.intersection((*node.inputs, *node.captured)):
            continue
        if node.op_type in ("Shape", "Size"):  # a number of steps, as for positions, is no content
            continue
        for output in _stepped(node, carried):
            stepped.add(output)
            carried.add(output)
        read, made = _moved(node), {o for o in node.outputs if o}
        if carried.intersection(read) and all(n in carried or n not in reached for n in read):
            new = not carried.issuperset(read)
            carried |= made
            joined |= made if new or joined.intersection(read) else set()
            stepped |= made if stepped.intersection(read) else set()
        reached |= made
    read_too = reached.intersection(graph.outputs) - carried  # else it is only put together
    return stepped | joined if read_too else stepped


def _moved(node: Node) -> Sequence[str]:
    """What a node that only moves data about takes it from."""
    if node.home or not node.is_standard:
        return ()
    if node.op_type == "Concat":
        return node.inputs
    return node.inputs[:1] if node.op_type in _MOVES else ()


def _stepped(node: Node, carried: set[str]) -> list[str]:
    rule = rules.find(node.op_type, node.domain)
    if rule is None or node.home:
        return []
    held = dict(enumerate(node.inputs))
    made = dict(enumerate(node.outputs))
    return [o for i, k in rule.states.items() if held.get(i) in carried and (o := made.get(k))]


def axes(graph: Graph, shapes: Shapes, found: Sequence[Pair]) -> Released:
    """The axes of states that have a fixed size, the same on both sides."""
    infos = {info.name: info for info in graph.model.graph.input}
    released = set[AxisName]()
    for pair in found:
        before, after = (shapes.shapes.get(name, ()) for name in pair)
        for k, size in enumerate(dims(graph, infos[pair[0]])):
            if len(before) == len(after) and isinstance(size, int) and 1 < size == after[k]:
                released |= {(name, k) for name in pair}
    return frozenset(released)


def together(views: Sequence[View], found: Sequence[Pair], released: Released) -> Released:
    """Those of the released axes that lose the same indices on both sides, and may lose some."""
    left = set[AxisName]()
    for pair in found:
        for k in {k for name, k in released if name == pair[0] and (pair[1], k) in released}:
            came, went = ([v.labels[v.ties.axes[name][k].ids] for v in views] for name in pair)
            free = any((u != v.locked).any() for u, v in zip(came, views, strict=True))
            if free and all(map(np.array_equal, came, went)):
                left |= {(name, k) for name in pair}
    return frozenset(left)


# What a cut leaves ---------------------------------------------------------------------------


def sizes(kept: Kept) -> dict[str, dict[int, int]]:
    """The inputs and outputs that a cut changes: axis -> the new size."""
    return {name: {k: len(v) for k, v in axes.items()} for name, axes in indices(kept).items()}


def indices(kept: Kept) -> dict[str, dict[int, Any]]:
    """The inputs and outputs that a cut changes: axis -> the kept indices."""
    found: dict[str, dict[int, Any]] = {}
    for name, k in sorted(kept.released):
        stays, size = (kept.axes(name) or [])[k], kept.before(name)[k]
        if len(stays) != size:
            found.setdefault(name, {})[k] = stays
    return found


def cut(values: Mapping[str, Value], kept: Kept) -> dict[str, Value]:
    """Inputs or outputs of the original as the pruned model has them."""
    found: dict[str, Any] = dict(values)
    for name, axes in indices(kept).items():
        for k, stays in axes.items():
            if name in found:
                found[name] = found[name].take(stays, axis=k)
    return found


def filled(values: Mapping[str, Value], kept: Kept) -> dict[str, Value]:
    """Outputs of the pruned model in the sizes of the original, with zeros for what is gone."""
    found: dict[str, Any] = dict(values)
    for name, axes in indices(kept).items():
        for k, stays in axes.items():
            if name in found:
                value = np.moveaxis(found[name], k, 0)
                whole = np.zeros((kept.before(name)[k], *value.shape[1:]), value.dtype)
                whole[stays] = value
                found[name] = np.moveaxis(whole, 0, k)
    return found


def judged(values: Mapping[str, Value], kept: Kept) -> dict[str, Value]:
    """The outputs without those that are states, if there are others: what a state loses is gone
    on purpose, and what it keeps shows in the others."""
    state = {name for name, _ in kept.released}
    return {n: v for n, v in values.items() if n not in state} or dict(values)


def resized(info: ValueInfoProto, axes: Mapping[int, int]) -> ValueInfoProto:
    """The type of an input or output with other sizes; one that had a name has none."""
    new = ValueInfoProto()
    new.CopyFrom(info)
    for k, dim in enumerate(new.type.tensor_type.shape.dim):
        if k in axes:
            fixed = dim.HasField("dim_value")
            dim.Clear()
            if fixed:
                dim.dim_value = axes[k]
    return new


def touched(groups: Groups, g: int) -> bool:
    """Whether units of a group are on an axis of a state."""
    group = groups[g]
    view = groups.views[group.view]
    return any(
        bool(np.isin(view.labels[view.ties.axes[name][k].ids], group.units).any())
        for name, k in view.ties.released
    )


def changes(groups: Groups, kept: Kept) -> list[dict[str, Any]]:
    """The inputs and outputs that a cut changes, with their sizes before and after; free sizes by
    their names."""
    rows = []
    graph, new = groups.graph, sizes(kept)
    for what, infos in (("input", graph.model.graph.input), ("output", graph.model.graph.output)):
        for info in infos:
            if info.name not in new:
                continue
            before = _written(info, kept.before(info.name))
            after = [new[info.name].get(k, size) for k, size in enumerate(before)]
            rows.append({"name": info.name, "kind": what, "before": before, "after": after})
    return rows


def _written(info: ValueInfoProto, bound: Sequence[int]) -> list[int | str]:
    """Sizes as the file has them; where an output's is not written, the one it has."""
    found = list(info.type.tensor_type.shape.dim)
    if len(found) != len(bound):
        return list(bound)
    return [d.dim_value or d.dim_param or n for d, n in zip(found, bound, strict=True)]
