"""Write without sequences what puts tensors into a list and takes them out again in plain sight.

Scripted PyTorch writes torch.cat of a list that it appends to (the features of a DenseNet), unbind
and split as sequences, whose elements would have one shape. Where every element is known, what
reads them reads the tensors instead, and the numbers stay the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from spa.graph import Graph, Node, without_dead
from spa.index import other_form
from spa.protos import copy_without, unused
from spa.shapes import Shapes


def lists(graph: Graph, shapes: Shapes) -> Graph | None:
    """The graph without these sequences, or None where it has none."""
    if not any("Sequence" in node.op_type for node in graph.nodes):
        return None
    builder = _Builder(graph, shapes)
    nodes: list[NodeProto] = []
    for node in graph.own:
        nodes += builder.instead(node)
    if not builder.done:
        return None
    model = copy_without(graph.model, "node")
    model.graph.initializer.extend(builder.stored)
    model.graph.node.extend(without_dead(graph, nodes, builder.done))
    return other_form(graph, model)


class _Builder:
    """elements: sequence -> the tensors in it. parts: sequence -> the node that splits a tensor
    into it. done: the sequences that some node now does without. stored: new constants."""

    def __init__(self, graph: Graph, shapes: Shapes) -> None:
        self.graph, self.shapes, self.opset = graph, shapes, graph.opset("")
        self.elements: dict[str, list[str]] = {}
        self.parts: dict[str, Node] = {}
        self.done: list[str] = []
        self.stored: list[TensorProto] = []
        self.taken = graph.names()

    def instead(self, node: Node) -> list[NodeProto]:
        """What stands in the place of a node: itself, where its sequence is not known."""
        if not node.is_standard:
            return [node.proto]
        self._follow(node)
        reads = node.proto.input[0] if node.proto.input else ""
        made: list[NodeProto] = []
        if node.op_type == "SequenceAt":
            made = [*self._at(node, reads)]
        elif node.op_type == "ConcatFromSequence":
            made = [*self._concat(node, reads)]
        if not made:
            return [node.proto]
        self.done.append(reads)
        made[-1].name = node.proto.name
        return made

    def _follow(self, node: Node) -> None:
        """What a node that makes a sequence puts into it."""
        inputs, known = list(node.proto.input), self.elements.get(next(iter(node.proto.input), ""))
        if node.op_type == "SequenceEmpty":
            self.elements[node.proto.output[0]] = []
        elif node.op_type == "SequenceConstruct":
            self.elements[node.proto.output[0]] = inputs
        elif node.op_type == "SequenceInsert" and known is not None:
            at = self._number(node, 2) if len(inputs) > 2 else len(known)
            if at is not None and -len(known) <= at <= len(known):
                self.elements[node.proto.output[0]] = [*known[:at], inputs[1], *known[at:]]
        elif node.op_type == "SequenceErase" and known:
            at = self._number(node, 1) if len(inputs) > 1 else -1
            if at is not None and -len(known) <= at < len(known):
                left = [name for k, name in enumerate(known) if k != at % len(known)]
                self.elements[node.proto.output[0]] = left
        elif node.op_type == "Identity" and known is not None:
            self.elements[node.proto.output[0]] = known
        elif node.op_type == "SplitToSequence":
            self.parts[node.proto.output[0]] = node

    def _number(self, node: Node, k: int) -> int | None:
        """A stored position."""
        name = node.inputs[k]
        stored = name in self.graph.constants and not self.shapes.shapes.get(name)
        return int(self.graph.array(name).item()) if stored else None

    def _hold(self, near: str, value: Any) -> str:
        name = unused(near, self.taken)
        self.stored.append(numpy_helper.from_array(np.asarray(value, np.int64), name))
        return name

    def _at(self, node: Node, sequence: str) -> Iterator[NodeProto]:
        at, output = self._number(node, 1), node.proto.output[0]
        known, split = self.elements.get(sequence), self.parts.get(sequence)
        if at is None:
            return
        if known is not None and -len(known) <= at < len(known):
            yield helper.make_node("Identity", [known[at]], [output])
        elif split is not None and self._is_single(split):
            where = at if not split.attrs.get("keepdims", 1) else [at]
            reads = [split.proto.input[0], self._hold(output, where)]
            yield helper.make_node("Gather", reads, [output], axis=int(split.attrs.get("axis", 0)))

    def _is_single(self, split: Node) -> bool:
        """Whether every element is one index of the axis that is split."""
        return not split.inputs[1:] or not split.inputs[1]

    def _concat(self, node: Node, sequence: str) -> Iterator[NodeProto]:
        axis, new, output = (
            int(node.attrs["axis"]),
            node.attrs.get("new_axis", 0),
            node.proto.output,
        )
        known, split = self.elements.get(sequence), self.parts.get(sequence)
        if known:
            parts = []
            for name in known if new else ():
                parts.append(unused(name, self.taken))
                if self.opset < 13:
                    yield helper.make_node("Unsqueeze", [name], parts[-1:], axes=[axis])
                else:
                    reads = [name, self._hold(name, [axis])]
                    yield helper.make_node("Unsqueeze", reads, parts[-1:])
            yield helper.make_node("Concat", parts or known, output, axis=axis)
        elif split is not None and new and self._is_single(split):
            shape = self.shapes.shapes.get(split.inputs[0])
            if shape is not None and not split.attrs.get("keepdims", 1):
                rank, first = len(shape), int(split.attrs.get("axis", 0)) % len(shape)
                perm = [k for k in range(rank) if k != first]
                perm.insert(axis % rank, first)
                yield helper.make_node("Transpose", split.proto.input[:1], output, perm=perm)
