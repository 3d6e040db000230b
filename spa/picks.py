"""Branches that go with one index of an axis: y = sum over e of p[e] f_e(x), without some of the e.

Where indices of an axis are taken out alone (Gather, Slice, Split), and what is made from each is
zero where it is zero, up to sums that go on without it, such an index can go: the sums pass on
their other side, and what only the branch needed goes with it. The axis is that of a router, and
f_e an expert, in a mixture of experts written out one by one; but no pattern of layers is looked
for. What is zero where something else is, the rules say, see `spa.silence`.

The law for such an index: the smaller graph computes what the graph computes with the stored slices
of the index at zero and with zero in place of what its branch adds.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from spa import rules
from spa.axes import Ids, Join, Joined, Pick
from spa.graph import Block, Graph, Node
from spa.joins import Places, widen
from spa.rules import Op
from spa.shapes import Shapes
from spa.silence import silent

SUMS = {"Add", "Sub", "Sum"}
_SCATTERS = {"Scatter", "ScatterElements", "ScatterND"}
_LOOK_UP = {"Gather", "GatherElements", "GatherND"}
_MOVES = {"Expand", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}

_REST = "others are picked here with all that is made from them, and one has to stay"

# What is known of a tensor: it holds nothing but zero; it holds no number, as a list of where zeros
# are not; it is computed from the sizes of such a one.
_ZERO, _EMPTY, _SIZES = "zero", "empty", "sizes"


@dataclass(frozen=True)
class Zeros:
    """What follows from some tensors that are zero.

    nodes: those that make nothing but zero then, or nothing at all. blocks: the sums that pass on
        their other side. dropped: the (node, position) of inputs that longer sums and stacks go on
        without. stuck: whether something else is made of them.
    """

    nodes: frozenset[int]
    blocks: tuple[Block, ...]
    dropped: frozenset[tuple[int, int]]
    stuck: bool


class Finder:
    """Follows zeros through a graph.

    Args:
        ops: what the rules were given. unclear: nodes of which nothing is known.
        ends: the (node, position) of inputs that add one index to a stack.
    """

    def __init__(
        self,
        graph: Graph,
        shapes: Shapes,
        ops: dict[int, Op],
        unclear: Collection[int],
        ends: Places,
    ) -> None:
        self.graph, self.shapes, self.ops = graph, shapes.shapes, ops
        self.unclear, self.ends = frozenset(unclear), ends
        self._known: dict[tuple[int, tuple[int, ...]], bool] = {}
        self._followed: dict[frozenset[str], Zeros] = {}

    def apart(self, picks: Iterable[Pick]) -> frozenset[int]:
        """The nodes that pick what can go with all that is made from it."""
        return frozenset(node for some in _by_axis(picks) for node in self._can_go(some))

    def _can_go(self, picks: Sequence[Pick]) -> set[int]:
        """The nodes that pick what may be zero, in any choice that leaves one of them."""
        alone = self._alone(picks)
        held = {p.node for p in picks if alone[p.at].stuck or p.node not in self.graph.needed}
        some = [p for p in picks if p.node not in held]
        free = {p.at for p in some} - {p.at for p in picks if p.node in held}
        some = [p for p in some if p.at in free]
        # What zeros lead to only grows with them.
        if self._hold(some, alone) or all(
            self._hold([p for p in some if p.at != e], alone) for e in free
        ):
            return {p.node for p in some}
        return set()

    def _hold(self, picks: Sequence[Pick], alone: Mapping[int, Zeros]) -> bool:
        """Whether these may all be zero; what goes from a stack goes with an index, not with
        several only.

        Args:
            alone: what follows from every index.
        """
        zeros = self.follow(self.tensors(picks))
        return not zeros.stuck and self._stacks([zeros]) <= self._stacks(
            alone[e] for e in {p.at for p in picks}
        )

    def _alone(self, picks: Iterable[Pick]) -> dict[int, Zeros]:
        return {e: self.follow(self.tensors(some)) for e, some in _by_index(picks).items()}

    def bound(self, picks: Iterable[Pick]) -> list[tuple[Ids, int, str]]:
        """Locks on the other indices of an axis where one of those that are picked has to stay."""
        found = []
        for some in _by_axis(picks):
            rest = sorted(set(range(len(some[0].ids))) - {p.at for p in some})
            if rest and not self._hold(some, self._alone(some)):
                found.append((some[0].ids[rest], some[0].node, _REST))
        return found

    def _stacks(self, found: Iterable[Zeros]) -> set[tuple[int, int]]:
        """The inputs of stacks that are left out."""
        places = (place for zeros in found for place in zeros.dropped)
        return {(at, k) for at, k in places if self.graph.nodes[at].op_type == "Concat"}

    def joined(self, picks: Iterable[Pick]) -> Joined:
        """The inputs of stacks that go with these indices."""
        found: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
        for some in _by_axis(picks):
            first = {p.at: (p.node, p.output) for p in reversed(some)}
            for e, zeros in self._alone(some).items():
                for place in self._stacks([zeros]):
                    found[place] = (*found.get(place, ()), first[e])
        return found

    def hidden(self, picks: Iterable[Pick]) -> list[tuple[Ids, int]]:
        """The ids of what a masked original cannot leave out, as no zero can be put in the place of
        a branch that adds to some places only; with the nodes that add them."""
        return [
            (pick.ids[[pick.at]], block.node)
            for pick in picks
            for block in self.follow(self.tensors([pick])).blocks
            if self.graph.nodes[block.node].op_type not in SUMS
        ]

    def tensors(self, picks: Iterable[Pick]) -> set[str]:
        return {self.graph.nodes[p.node].outputs[p.output] for p in picks}

    def follow(self, names: set[str]) -> Zeros:
        """What follows where these tensors are zero."""
        key = frozenset(names)
        if key not in self._followed:
            self._followed[key] = self._follow(names)
        return self._followed[key]

    def _follow(self, names: set[str]) -> Zeros:
        graph, known = self.graph, dict.fromkeys(names, _ZERO)
        outputs = set(graph.outputs)
        nodes, blocks, stuck = set[int](), list[Block](), not names.isdisjoint(outputs)
        dropped = set[tuple[int, int]]()
        waiting = [k for name in names for k in graph.readers.get(name, ())]
        heapq.heapify(waiting)
        last = -1
        while waiting and not stuck:
            at = heapq.heappop(waiting)
            if at == last:
                continue
            last, node = at, graph.nodes[at]
            held = {k: known[n] for k, n in enumerate(node.inputs) if n in known}
            made = self._made(at, held)
            block = None if made else self._block(at, held)
            if made:
                nodes.add(at)
                known.update((n, made) for n in node.outputs if n)
                stuck = not outputs.isdisjoint(node.outputs)
                for reader in (k for n in node.outputs for k in graph.readers.get(n, ())):
                    heapq.heappush(waiting, reader)
            elif block:
                blocks.append(block)
            elif self._goes_on(at, held):
                dropped |= {(at, k) for k in held}
            else:
                stuck = True
        return Zeros(frozenset(nodes), tuple(blocks), frozenset(dropped), stuck)

    def dying(self, picks: Sequence[Pick], joins: Iterable[Join]) -> frozenset[int]:
        """The nodes that nothing needs any more without these branches."""
        graph, zeros = self.graph, self.follow(self.tensors(picks))
        found = set(zeros.nodes)
        found |= {p.node for p in picks if len(graph.nodes[p.node].outputs) == 1}
        ends = zeros.dropped | {(j.node, j.position) for j in joins}
        names = [n for k in found for n in graph.nodes[k].inputs]
        widen(graph, found, [*names, *(graph.nodes[at].inputs[k] for at, k in ends)], ends)
        return frozenset(found)

    def _made(self, at: int, held: Mapping[int, str]) -> str:
        """What a node makes of inputs that are zero, empty or sizes; "" where that is not known."""
        node = self.graph.nodes[at]
        if at in self.unclear or at not in self.ops or node.home or node.bodies or not held:
            return ""
        kinds = set(held.values())
        if kinds == {_ZERO}:
            return _EMPTY if node.op_type == "NonZero" else _ZERO if self._silent(at, held) else ""
        if kinds == {_SIZES} or (kinds == {_EMPTY} and node.op_type in ("Shape", "Size")):
            return _SIZES
        return _EMPTY if self._is_empty(node, held) else ""

    def _silent(self, at: int, held: Mapping[int, str]) -> bool:
        key = at, tuple(held)
        if key not in self._known:
            alone = len(self.graph.nodes[at].outputs) == 1
            self._known[key] = alone and silent(self.ops[at], held)
        return self._known[key]

    def _is_empty(self, node: Node, held: Mapping[int, str]) -> bool:
        """Whether a node makes a tensor without a number of one, whatever its other inputs are."""
        rule = rules.find(node.op_type, node.domain)
        if rule is None or _ZERO in held.values():
            return False
        if node.op_type in _LOOK_UP and held.get(1) == _EMPTY:
            return 0 not in held
        if node.op_type in ("MatMul", "Gemm"):  # what is summed over is stored, so there is some
            return held.get(0) == _EMPTY and node.inputs[1] in self.graph.constants
        if node.op_type == "Concat":
            return len(held) == len(node.inputs) and set(held.values()) == {_EMPTY}
        if rule.family == "elementwise":
            return _SIZES not in held.values()
        return node.op_type in _MOVES and held.get(0) == _EMPTY

    def _goes_on(self, at: int, held: Mapping[int, str]) -> bool:
        """Whether a node does as well without these inputs."""
        node = self.graph.nodes[at]
        if node.home or at in self.unclear or set(held.values()) != {_ZERO}:
            return False
        if node.op_type != "Sum" or not node.is_standard:
            return all((at, k) in self.ends for k in held)
        total = self.shapes.get(node.outputs[0])
        left = [self.shapes.get(n) for k, n in enumerate(node.inputs) if k not in held]
        return total is not None and total in left

    def _block(self, at: int, held: Mapping[int, str]) -> Block | None:
        """A sum that goes on without one of its sides."""
        node = self.graph.nodes[at]
        if not node.is_standard or node.home or at in self.unclear or not held:
            return None
        if node.op_type in _SCATTERS and 0 not in held and held.get(1) == _EMPTY:
            return self._passing(node, node.inputs[2], node.inputs[0])
        if node.op_type not in SUMS or len(node.inputs) != 2 or list(held.values()) != [_ZERO]:
            return None
        (k,) = held
        skip, total = node.inputs[1 - k], node.outputs[0]
        alike = total in self.shapes and self.shapes[total] == self.shapes.get(skip)
        if not alike or (node.op_type == "Sub" and k == 0):
            return None
        return self._passing(node, node.inputs[k], skip)

    def _passing(self, node: Node, branch: str, skip: str) -> Block | None:
        constant = self.graph.constants.get(skip)
        if constant is not None and constant.source != skip:  # one reader's share of it
            return None
        return Block(branch, skip, node.outputs[0], node.index, frozenset())


def _by_axis(picks: Iterable[Pick]) -> list[list[Pick]]:
    found: dict[bytes, list[Pick]] = {}
    for pick in picks:
        found.setdefault(pick.ids.tobytes(), []).append(pick)
    return list(found.values())


def _by_index(picks: Iterable[Pick]) -> dict[int, list[Pick]]:
    found: dict[int, list[Pick]] = {}
    for pick in picks:
        found.setdefault(pick.at, []).append(pick)
    return found
