"""Branches that go with one index of an axis: y = sum over e of p[e] f_e(x), without some of the e.

Where every index of an axis is taken out alone (Gather, Slice, Split), and what is made from each
is zero where it is zero, up to sums that go on without it, an index can go: the sums pass on their
other side, and what only the branch needed goes with it. The axis is that of a router, and f_e an
expert, in a mixture of experts written out one by one; but no pattern of layers is looked for.
What is zero where something else is, the rules say, see `spa.silence`.

The law for such an index: the smaller graph computes what the graph computes with the stored slices
of the index at zero and with zero in place of what its branch adds.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from spa.axes import Pick
from spa.graph import Block, Graph
from spa.rules import Op
from spa.shapes import Shapes
from spa.silence import silent

SUMS = {"Add", "Sub", "Sum"}


@dataclass(frozen=True)
class Zeros:
    """What follows from some tensors that are zero.

    nodes: those that make nothing but zero then. blocks: the sums that pass on their other side.
    stuck: whether something else is made of a zero.
    """

    nodes: frozenset[int]
    blocks: tuple[Block, ...]
    stuck: bool


class Finder:
    """Follows zeros through a graph.

    Args:
        ops: what the rules were given. unclear: nodes of which nothing is known.
    """

    def __init__(
        self, graph: Graph, shapes: Shapes, ops: dict[int, Op], unclear: Collection[int]
    ) -> None:
        self.graph, self.shapes, self.ops = graph, shapes.shapes, ops
        self.unclear = frozenset(unclear)
        self._known: dict[tuple[int, tuple[int, ...]], bool] = {}

    def apart(self, picks: Iterable[Pick]) -> frozenset[int]:
        """The nodes that pick what can go with all that is made from it."""
        by_axis: dict[bytes, list[Pick]] = {}
        for pick in picks:
            by_axis.setdefault(pick.ids.tobytes(), []).append(pick)
        return frozenset(
            pick.node for some in by_axis.values() if self._can_go(some) for pick in some
        )

    def _can_go(self, picks: Sequence[Pick]) -> bool:
        """Whether all are picked, and any choice of them may be zero that leaves one."""
        every = set(range(len(picks[0].ids)))
        if {pick.at for pick in picks} != every:
            return False
        if any(self.follow(self.tensors(p for p in picks if p.at == e)).stuck for e in every):
            return False
        if not self.follow(self.tensors(picks)).stuck:
            return True
        # What zeros lead to only grows with them.
        return not any(
            self.follow(self.tensors(p for p in picks if p.at != e)).stuck for e in every
        )

    def tensors(self, picks: Iterable[Pick]) -> set[str]:
        return {self.graph.nodes[p.node].outputs[p.output] for p in picks}

    def follow(self, names: set[str]) -> Zeros:
        """What follows where these tensors are zero."""
        graph, zero, nodes = self.graph, set(names), set[int]()
        blocks, stuck = list[Block](), not zero.isdisjoint(self.graph.outputs)
        waiting = [k for name in names for k in graph.readers.get(name, ())]
        heapq.heapify(waiting)
        last = -1
        while waiting and not stuck:
            at = heapq.heappop(waiting)
            if at == last:
                continue
            last, node = at, graph.nodes[at]
            held = [k for k, name in enumerate(node.inputs) if name in zero]
            if self._is_silent(at, held):
                nodes.add(at)
                zero.add(node.outputs[0])
                stuck = node.outputs[0] in graph.outputs
                for reader in graph.readers.get(node.outputs[0], ()):
                    heapq.heappush(waiting, reader)
            else:
                block = self._block(at, held)
                blocks += [block] if block else []
                stuck = block is None
        return Zeros(frozenset(nodes), tuple(blocks), stuck)

    def dying(self, picks: Sequence[Pick]) -> frozenset[int]:
        """The nodes that nothing needs any more without these branches."""
        found = set(self.follow(self.tensors(picks)).nodes) | {p.node for p in picks}
        graph, outputs = self.graph, set(self.graph.outputs)
        waiting = [graph.makers.get(n, -1) for k in found for n in graph.nodes[k].inputs]
        while waiting:
            at = waiting.pop()
            if at < 0 or at in found:
                continue
            made = [n for n in graph.nodes[at].outputs if n]
            if outputs.isdisjoint(made) and found.issuperset(
                k for name in made for k in graph.readers.get(name, ())
            ):
                found.add(at)
                waiting += [graph.makers.get(n, -1) for n in graph.nodes[at].inputs]
        return frozenset(found)

    def _is_silent(self, at: int, held: list[int]) -> bool:
        node = self.graph.nodes[at]
        if at in self.unclear or at not in self.ops or node.home or node.bodies or not held:
            return False
        if len(node.outputs) != 1:
            return False
        key = at, tuple(held)
        if key not in self._known:
            self._known[key] = silent(self.ops[at], held)
        return self._known[key]

    def _block(self, at: int, held: list[int]) -> Block | None:
        """A sum that goes on without one of its two sides."""
        node = self.graph.nodes[at]
        plain = node.op_type in SUMS and node.domain in ("", "ai.onnx") and not node.home
        if not plain or len(node.inputs) != 2 or len(held) != 1:
            return None
        branch, skip, total = node.inputs[held[0]], node.inputs[1 - held[0]], node.outputs[0]
        alike = total in self.shapes and self.shapes[total] == self.shapes.get(skip)
        if not alike or (node.op_type == "Sub" and held == [0]):
            return None
        return Block(branch, skip, total, at, frozenset())
