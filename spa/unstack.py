"""Take apart what only stacks tensors: (3 H D), reshaped to an axis of 3 and picked from it.

Queries, keys and values that come from one weight pass through one tensor with an axis of 3. Its
other axes have one size for all three, so it would couple head sizes that nothing else couples.
Here every pick gets a slice, a Reshape and the moves in between of its own, before anything is
analysed; the numbers stay the same, and verification compares both forms. What moves nothing
(`spa.inorder`) goes as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto

from spa.axes import Axes, is_whole
from spa.graph import Graph, Node, without_dead
from spa.index import other_form
from spa.inorder import in_order
from spa.protos import copy_without, unused
from spa.shapes import Shapes

_SAME = {"Identity", "Cast", "QuantizeLinear", "DequantizeLinear"}
_PASSES = _SAME | {"Transpose", "Unsqueeze", "Squeeze"}


@dataclass(frozen=True)
class _Pick:
    """One tensor picked from the stack.

    path: the nodes from the Reshape to the one that picks, that one left out.
    node, output: what picks, and the tensor that it makes.
    first, count: which indices of the stack, all in a row.
    at: the axis of the stack there. drops: whether the axis is gone in the output.
    """

    path: tuple[Node, ...]
    node: Node
    output: str
    first: int
    count: int
    at: int
    drops: bool


@dataclass(frozen=True)
class _Stack:
    """An axis that a Reshape splits off: axis ``before`` of its input is (outer, size, inner).

    at: the axis of the stack in the output.
    """

    node: Node
    before: int
    at: int
    outer: int
    size: int
    inner: int
    picks: tuple[_Pick, ...]


def unstack(graph: Graph, shapes: Shapes, axes: dict[str, Axes]) -> Graph | None:
    """The graph without its stacks, or None where it has none.

    Args:
        axes: the ids of every tensor; an axis that is kept whole is left alone.
    """
    stacks = {}
    for node in graph.nodes:
        if node.op_type == "Reshape" and not node.home and node.is_standard:
            found = next(_stacks(graph, shapes, axes, node), None)
            if found is not None:
                stacks[node.index] = found
    same = in_order(graph, shapes)
    model = _Builder(graph, shapes, stacks, same).model() if stacks or same else None
    if model is None:
        return None
    return other_form(graph, model)


def _stacks(graph: Graph, shapes: Shapes, axes: dict[str, Axes], node: Node) -> Iterator[_Stack]:
    """The ways to see a Reshape as one that splits off a stack."""
    source, result = node.inputs[0], node.outputs[0]
    old, new = shapes.shapes.get(source), shapes.shapes.get(result)
    if old is None or new is None or source not in axes or result in graph.outputs:
        return
    for before, n in enumerate(old):
        first = next((k for k in range(len(new)) if prod(new[:k]) == prod(old[:before])), None)
        if first is None or n < 2 or is_whole(axes[source][before]):
            continue
        last = next((k for k in range(first, len(new)) if prod(new[first : k + 1]) == n), None)
        for at in range(first, -1 if last is None else last + 1):
            if not 1 < new[at] < n:
                continue
            picks = _picks(graph, shapes, result, at, new[at])
            if picks and len({(p.first, p.count) for p in picks}) > 1:
                outer, inner = prod(new[first:at]), prod(new[at + 1 : (last or at) + 1])
                yield _Stack(node, before, at, outer, new[at], inner, tuple(picks))


def _picks(
    graph: Graph, shapes: Shapes, name: str, at: int, size: int, path: tuple[Node, ...] = ()
) -> list[_Pick] | None:
    """Everything that is picked from an axis; None where it is put to another use."""
    found: list[_Pick] = []
    if name in graph.outputs:
        return None
    for node in (graph.nodes[k] for k in graph.readers.get(name, [])):
        here: list[_Pick] | None = None
        if (
            name in node.captured
            or node.home
            or node.bodies
            or node.inputs[0] != name
            or name in node.inputs[1:]
        ):
            return None
        if node.op_type in _PASSES:
            moved = _moved(shapes, node, at)
            if moved is not None:
                here = _picks(graph, shapes, node.outputs[0], moved, size, (*path, node))
        else:
            here = _picked(graph, shapes, node, at, size, path)
        if here is None:
            return None
        found += here
    return found


def _moved(shapes: Shapes, node: Node, at: int) -> int | None:
    """Where an axis is behind a node that passes it."""
    rank = len(shapes.shapes[node.inputs[0]])
    if node.op_type in _SAME:
        alike = all(prod(shapes.shapes.get(name, (0,))) == 1 for name in node.inputs[1:] if name)
        return at if alike else None
    if node.op_type == "Transpose":
        return list(node.attrs.get("perm", range(rank)[::-1])).index(at)
    axes = _static(shapes, node, 1, "axes")
    if axes is None:
        return None
    if node.op_type == "Unsqueeze":
        new = {int(a) % (rank + len(axes)) for a in axes}
        return [k for k in range(rank + len(axes)) if k not in new][at]
    gone = {int(a) % rank for a in axes}
    return None if at in gone else at - sum(a < at for a in gone)


def _picked(
    graph: Graph, shapes: Shapes, node: Node, at: int, size: int, path: tuple[Node, ...]
) -> list[_Pick] | None:
    """What a node picks along an axis, or None where it does something else."""
    rank = len(shapes.shapes[node.inputs[0]])
    axis = int(node.attrs.get("axis", 0)) % max(rank, 1)
    if node.op_type == "Split" and axis == at:
        sizes = [shapes.shapes[name][at] for name in node.outputs]
        starts = np.cumsum([0, *sizes[:-1]]).tolist()
        return [
            _Pick(path, node, name, start, n, at, False)
            for name, start, n in zip(node.outputs, starts, sizes, strict=True)
            if name
        ]
    where = None
    if (node.op_type == "Gather" and axis == at) or (node.op_type == "GatherND" and at == 0):
        where = _static(shapes, node, 1)
        nested = node.op_type == "GatherND"
        if where is None or (nested and (where.shape[1:] != (1,) or node.attrs.get("batch_dims"))):
            return None
        where = where.ravel() if nested else where
    elif node.op_type == "Slice":
        given = [_static(shapes, node, k, a) for k, a in ((1, "starts"), (2, "ends"), (3, "axes"))]
        steps = _static(shapes, node, 4) if len(node.inputs) > 4 else np.ones(1, int)
        lists = [None if v is None else np.ravel(v).tolist() for v in (*given, steps)]
        if any(v is None or len(v) != 1 for v in lists) or lists[3] != [1]:
            return None
        (start,), (end,), (along,), _ = (v or [0] for v in lists)
        where = np.arange(size)[start:end] if along % rank == at else None
    if where is None or where.ndim > 1 or not where.size:
        return None
    run = np.ravel(where) % size
    if (np.diff(run) != 1).any():
        return None
    return [_Pick(path, node, node.outputs[0], int(run[0]), len(run), at, where.ndim == 0)]


def _static(shapes: Shapes, node: Node, k: int, attr: str = "") -> Any:
    if attr in node.attrs:
        return np.asarray(node.attrs[attr])
    name = node.inputs[k] if k < len(node.inputs) else ""
    return None if name in shapes.moving else shapes.values.get(name)


class _Builder:
    """Writes the nodes that take the place of stacks."""

    def __init__(
        self, graph: Graph, shapes: Shapes, stacks: dict[int, _Stack], same: dict[int, str]
    ) -> None:
        self.graph, self.shapes, self.stacks, self.same = graph, shapes, stacks, same
        self.names = {*shapes.shapes, *graph.constants, *graph.makers, *graph.spelling.values()}
        self.nodes: list[NodeProto] = []
        self.opset = graph.opset("")

    def model(self) -> ModelProto | None:
        gone: set[int] = set()
        instead: dict[int, list[NodeProto]] = {}
        for node in self.graph.own:
            stack = self.stacks.get(node.index)
            if stack is not None and node.index not in gone:
                parts = self._apart(stack)
                for pick, part in zip(stack.picks, parts or [], strict=False):
                    # Where the pick stood, so that all that its part reads has been made.
                    instead.setdefault(pick.node.index, []).extend(part)
                    gone.update(n.index for n in (node, *pick.path, pick.node))
            self.nodes += instead.get(node.index, [])
            if node.index in self.same and node.index not in gone:
                gone.add(node.index)
                source = self.same[node.index]
                passed = onnx.helper.make_node("Identity", [source], node.outputs, name=node.name)
                self.nodes.append(passed)
            elif node.index not in gone:
                self.nodes.append(node.proto)
        if not gone:
            return None
        led = [n for k in self.same for n in self.graph.nodes[k].inputs]
        self.nodes = without_dead(self.graph, self.nodes, led)
        given = self.graph.model
        model = copy_without(given, "node", "value_info")
        model.graph.node.extend(self.nodes)
        made = {name for node in model.graph.node for name in node.output}
        known = [info for info in given.graph.value_info if info.name in made]
        model.graph.value_info.extend(known)
        return model

    def _apart(self, stack: _Stack) -> list[list[NodeProto]] | None:
        """The nodes that take the place of each pick."""
        found = []
        for pick in stack.picks:
            part = self._part(stack, pick)
            if part is None:
                return None
            found.append(part)
        return found

    def _part(self, stack: _Stack, pick: _Pick) -> list[NodeProto] | None:
        """The slice that one pick needs, in the shape that it had."""
        nodes: list[NodeProto] = []
        reshape, at = stack.node, stack.before
        name = reshape.inputs[0]
        edges = pick.first * stack.inner, (pick.first + pick.count) * stack.inner
        if stack.outer > 1 and stack.inner == 1:
            table = np.arange(stack.outer * stack.size).reshape(stack.outer, stack.size)
            places = self._hold(nodes, name, table[:, slice(*edges)].ravel().tolist())
            name = self._add(nodes, reshape, "Gather", name, places, axis=at)
        elif stack.outer > 1:
            split = self._split(stack)
            if split is None:
                return None
            name = self._add(nodes, reshape, "Reshape", name, self._hold(nodes, name, split))
            name = self._slice(nodes, reshape, name, at + 1, edges)
        else:
            name = self._slice(nodes, reshape, name, at, edges)
        sizes = self._sizes(nodes, stack, pick.count)
        if sizes is None:
            return None
        name = self._add(nodes, reshape, "Reshape", name, sizes)
        for node in pick.path:
            copy = NodeProto()
            copy.CopyFrom(node.proto)
            copy.input[0], copy.name = name, unused(node.name, self.names)
            copy.output[0] = name = unused(node.outputs[0], self.names)
            nodes.append(copy)
        if pick.drops and self.opset >= 13:
            self._add(nodes, pick.node, "Squeeze", name, self._hold(nodes, name, [pick.at]))
        elif pick.drops:
            self._add(nodes, pick.node, "Squeeze", name, axes=[pick.at])
        nodes[-1].output[0] = pick.output
        return nodes

    def _split(self, stack: _Stack) -> list[int] | None:
        """The shape with the axis of the stack's input as (outer, size * inner)."""
        behind = len(self.shapes.shapes[stack.node.inputs[0]]) - stack.before - 1
        if behind > 1:
            return None  # their sizes may be free, and a Reshape can leave but one open
        return [0] * stack.before + [stack.outer, stack.size * stack.inner] + [-1] * behind

    def _sizes(self, nodes: list[NodeProto], stack: _Stack, count: int) -> str | None:
        """The shape that the Reshape reads, with another size of the stack."""
        name = stack.node.inputs[1]
        if name in self.graph.constants:
            stored = self.graph.array(name).tolist()
            if stack.outer > 1 and 0 in stored[stack.before :]:
                return None
            stored[stack.at] = count
            return self._hold(nodes, name, stored)
        maker = self.graph.makers.get(name)
        node = self.graph.nodes[maker] if maker is not None else None
        if node is None or node.op_type != "Concat":
            return None
        at = 0
        for k, piece in enumerate(node.inputs):
            size = prod(self.shapes.shapes.get(piece, (0,)))
            if at <= stack.at < at + size:
                if piece not in self.graph.constants:
                    return None
                value = self.graph.array(piece).ravel().tolist()
                value[stack.at - at] = count
                copy = NodeProto()
                copy.CopyFrom(node.proto)
                copy.input[k] = self._hold(nodes, piece, value)
                copy.name, copy.output[0] = unused(node.name, self.names), unused(name, self.names)
                nodes.append(copy)
                return str(copy.output[0])
            at += size
        return None

    def _slice(
        self, nodes: list[NodeProto], near: Node, name: str, at: int, edges: tuple[int, int]
    ) -> str:
        if self.opset < 10:
            return self._add(
                nodes, near, "Slice", name, axes=[at], starts=[edges[0]], ends=[edges[1]]
            )
        lists = [self._hold(nodes, name, [k]) for k in (*edges, at)]
        return self._add(nodes, near, "Slice", name, *lists)

    def _add(
        self, nodes: list[NodeProto], near: Node, op_type: str, *inputs: str, **attrs: Any
    ) -> str:
        """One node more, named after a node that it belongs to; the name of its output."""
        output = unused(near.outputs[0], self.names)
        name = unused(near.name, self.names)
        nodes.append(onnx.helper.make_node(op_type, inputs, [output], name=name, **attrs))
        return output

    def _hold(self, nodes: list[NodeProto], near: str, value: Sequence[int]) -> str:
        name = unused(near, self.names)
        tensor = onnx.numpy_helper.from_array(np.asarray(value, np.int64), name)
        nodes.append(onnx.helper.make_node("Constant", [], [name], name=name, value=tensor))
        return name
