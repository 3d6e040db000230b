"""Branches of a stack that go with one index of its axis: y = [f_0(x), f_1(x), ...].

Where an input of a Concat adds one index to an axis, and what makes it has weights of its own that
nothing else needs, that index is a unit like any other: without it the Concat goes on with its
other inputs, and the branch goes. The law for it: the smaller graph computes what the graph
computes with the stored slices of the index at zero and with zero in place of that input.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from math import prod

from spa.axes import Joined
from spa.graph import FLOATS, WEIGHTS, Graph
from spa.shapes import Shapes

Places = Collection[tuple[int, int]]  # (node, position of an input)


def _ends(graph: Graph, shapes: Shapes, at: int) -> list[int]:
    node = graph.nodes[at]
    if node.op_type != "Concat" or not node.is_standard or node.home:
        return []
    if at not in graph.needed:
        return []
    known = all(name in shapes.shapes for name in (*node.inputs, *node.outputs))
    if not known or shapes.dtypes.get(node.outputs[0]) not in FLOATS:
        return []
    axis = int(node.attrs.get("axis", 1))  # the default of old files
    return [
        k
        for k, name in enumerate(node.inputs)
        if shapes.shapes[name][axis] == 1 and name in graph.activations
    ]


def every_end(graph: Graph, shapes: Shapes) -> frozenset[tuple[int, int]]:
    """The inputs of all Concats of floats that add one index each."""
    return frozenset((n.index, k) for n in graph.nodes for k in _ends(graph, shapes, n.index))


def standing(graph: Graph, ends: Places) -> Joined:
    """Of these inputs those that may go alone."""
    return {(at, k): () for at, k in ends if has_weights(graph, graph.nodes[at].inputs[k], ends)}


def has_weights(graph: Graph, name: str, ends: Places) -> bool:
    """Whether what makes a tensor has weights that nothing needs but the inputs at the ends."""
    found = set[int]()
    widen(graph, found, [name], ends)
    stored = (graph.constants.get(n) for k in found for n in graph.nodes[k].inputs)
    return any(c and c.tensor.data_type in WEIGHTS and prod(c.shape) > 1 for c in stored)


def widen(graph: Graph, found: set[int], names: Iterable[str], ends: Places = ()) -> None:
    """Add to some nodes those that make a tensor, or what such nodes read, and that nothing needs
    but these nodes and the inputs at the ends."""

    outputs = set(graph.outputs)

    def ended(name: str) -> bool:
        read = [
            (k, p) for k in graph.readers.get(name, ()) for p, n in _read(graph, k) if n == name
        ]
        return bool(read) and name not in outputs and all(place in ends for place in read)

    def unneeded(name: str) -> bool:
        read = graph.readers.get(name, ())
        return name not in outputs and (
            ended(name)
            or all(
                k in found or all(map(ended, filter(None, graph.nodes[k].outputs))) for k in read
            )
        )

    waiting = list(names)
    while waiting:
        at = graph.makers.get(waiting.pop(), -1)
        if at < 0 or at in found:
            continue
        if all(unneeded(name) for name in graph.nodes[at].outputs if name):
            found.add(at)
            waiting += graph.nodes[at].inputs


def _read(graph: Graph, at: int) -> Iterable[tuple[int, str]]:
    """What a node reads, by position; -1 for what its bodies do."""
    node = graph.nodes[at]
    return [*enumerate(node.inputs), *((-1, name) for name in node.captured)]
