"""Find the residual branches that can be removed whole: y = x + f(x) becomes y = x.

The law for a branch is that of every other removal: the graph without it computes what the graph
computes with the *closing weights* of the branch at zero. These are the weights and biases of the
last sums, scales or norms before the Add, as many as it takes for the branch to add exactly zero;
that they do is what the rules know of zeros, see `spa.rules.declare`. No pattern of layers is
looked for: attention, feed-forward nets, convolutions, adapters and what holds several of them are
all one thing, a sum whose one side is made from the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from spa import rules
from spa.graph import WEIGHTS, Block, Graph, Node
from spa.groups import Groups
from spa.picks import SUMS
from spa.rules import Op
from spa.silence import silent

_DEEP = 100  # nodes between the closing weights and the Add, at most


@dataclass(frozen=True)
class Branches:
    """blocks: what can be removed. held: name of a node that adds a branch -> why that stays."""

    blocks: tuple[Block, ...]
    held: dict[str, str]


def find(groups: Groups) -> Branches:
    """Every residual branch with a weighted sum in it."""
    finder, blocks, held = _Finder(groups), list[Block](), dict[str, str]()
    for node in groups.graph.nodes:
        for skip, branch in finder.sides(node):
            found = finder.block(node, skip, branch)
            if isinstance(found, Block):
                blocks.append(found)
            elif found:
                held[node.name] = found
    return Branches(tuple(blocks), held)


class _Finder:
    def __init__(self, groups: Groups) -> None:
        self.graph, self.shapes = groups.graph, groups.shapes.shapes
        self.ops = groups.views[0].ties.ops
        self.unclear = {*groups.views[0].ties.unknown, *groups.views[0].ties.refused}
        self.closer = _Closer(self.graph, self.ops, self.unclear)

    def sides(self, node: Node) -> Iterator[tuple[str, str]]:
        """(skip, branch): the ways to read a node as a sum of a branch and something else."""
        if node.home or node.op_type not in SUMS or len(node.inputs) != 2:
            return
        if not node.is_standard:
            return
        a, b = node.inputs
        if a != b and self.graph.activations.issuperset((a, b)):
            if b in self.graph.makers:
                yield a, b
            if a in self.graph.makers and node.op_type != "Sub":
                yield b, a

    def block(self, node: Node, skip: str, branch: str) -> Block | str:
        """The block, or what speaks against it; nothing where this is not a residual branch, or
        no weighted sum would go with it."""
        found = Block(branch, skip, node.outputs[0], node.index, frozenset())
        dead = self.graph.dead_without([found])
        alike = found.sum in self.shapes and self.shapes[found.sum] == self.shapes.get(skip)
        if not alike or not any(map(self._sums, dead)):
            return ""
        sources = self._sources(self._beside(node, skip))
        if not self._is_made_from(branch, sources, dead):
            return ""
        closing = self.closer.close(branch)
        if closing is None:
            return "no weights at the end of the branch make it zero"
        alive = next((k for k in sorted(self.closer.way(branch)) if k not in dead), None)
        if alive is not None:
            return f"what {self.graph.nodes[alive].name!r} makes at its end is read elsewhere"
        return replace(found, closing=closing)

    def _sums(self, node: int) -> bool:
        op = self.ops.get(node)
        rule = rules.find(op.node.op_type, op.node.domain) if op else None
        return node not in self.unclear and rule is not None and rule.macs is not None

    def _beside(self, node: Node, skip: str) -> Iterator[str]:
        """All else that goes into the same sum, other sums that take only this one included."""
        yield skip
        while (read := self.graph.readers.get(node.outputs[0], ())) and len(read) == 1:
            above = self.graph.nodes[read[0]]
            if above.op_type not in SUMS or node.outputs[0] in self.graph.outputs:
                return
            yield from (name for name in above.inputs if name != node.outputs[0])
            node = above

    def _sources(self, names: Iterable[str]) -> set[str]:
        """These tensors, those that they are only another view of, and what they are sums of."""
        found, waiting = set[str](), list(names)
        while waiting:
            for name in self._origins(waiting.pop()):
                if name not in found:
                    found.add(name)
                    made = self.graph.makers.get(name, -1)
                    if made >= 0 and self.graph.nodes[made].op_type in SUMS:
                        waiting += self.graph.nodes[made].inputs
        return found

    def _origins(self, name: str) -> Iterator[str]:
        """A tensor, and those that it is only another view of."""
        yield name
        while name in self.graph.makers:
            node = self.graph.nodes[self.graph.makers[name]]
            data = [n for n in node.inputs if n in self.graph.activations and self._is_data(n)]
            if len(data) != 1 or any(map(self._is_weight, node.inputs)):
                return
            name = data[0]
            yield name

    def _is_data(self, name: str) -> bool:
        return len(self.shapes.get(name, ())) > 1

    def _is_weight(self, name: str) -> bool:
        constant = self.graph.constants.get(name)
        stored = constant is not None and constant.tensor.data_type in WEIGHTS
        return stored and constant is not None and max(constant.shape, default=1) > 1

    def _is_made_from(self, name: str, sources: set[str], dead: frozenset[int]) -> bool:
        """Whether a way leads there from a source on which no weighted sum stays.

        What a mask does to a layer leads to the scores of the next one, to which it is added as
        well; that is no branch of the mask.
        """
        seen, waiting = set[int](), [name]
        while waiting:
            at = waiting.pop()
            if at in sources:
                return True
            k = self.graph.makers.get(at, -1)
            if k >= 0 and k not in seen and (k in dead or not self._sums(k)):
                seen.add(k)
                waiting += [*self.graph.nodes[k].inputs, *self.graph.nodes[k].captured]
        return False


class _Closer:
    """Which stored weights, at zero, make a tensor exactly zero, by what the rules say of zeros."""

    def __init__(self, graph: Graph, ops: dict[int, Op], unclear: set[int]) -> None:
        self.graph, self.ops, self.unclear = graph, ops, unclear
        self._known: dict[str, tuple[frozenset[tuple[int, int]], tuple[str, ...]] | None] = {}

    def close(self, name: str, depth: int = 0) -> frozenset[tuple[int, int]] | None:
        """The inputs of nodes that hold them; None where there are no such weights."""
        if name not in self._known:
            self._known[name] = None
            self._known[name] = self._find(name, depth)
        known = self._known[name]
        return known[0] if known else None

    def way(self, name: str) -> set[int]:
        """The nodes from those with the closing weights to the one that makes a tensor."""
        found, waiting = set[int](), [name]
        while waiting:
            at = waiting.pop()
            known = self._known[at]
            found.add(self.graph.makers[at])
            waiting += [n for n in (known[1] if known else ()) if self.graph.makers[n] not in found]
        return found

    def _find(
        self, name: str, depth: int
    ) -> tuple[frozenset[tuple[int, int]], tuple[str, ...]] | None:
        at = self.graph.makers.get(name, -1)
        if at not in self.ops or at in self.unclear or depth > _DEEP:
            return None
        node = self.graph.nodes[at]
        if node.home or node.bodies:
            return None
        stored = [k for k, n in enumerate(node.inputs) if self._is_stored(n)]
        chosen = set(stored)
        if not self._silent(at, chosen, name):
            made = [
                k
                for k, n in enumerate(node.inputs)
                if n in self.graph.makers
                and n not in self.graph.constants
                and self.close(n, depth + 1) is not None
            ]
            chosen.update(made)
            if not self._silent(at, chosen, name):
                return None
            stored = [*made, *stored]  # a way through stored weights is the shorter one
        for k in stored:
            if self._silent(at, chosen - {k}, name):
                chosen.remove(k)
        places, ways = set[tuple[int, int]](), list[str]()
        for k in sorted(chosen):
            n = node.inputs[k]
            if self._is_stored(n):
                places.add((at, k))
            else:
                places |= self.close(n) or set()
                ways.append(n)
        return frozenset(places), tuple(ways)

    def _is_stored(self, name: str) -> bool:
        constant = self.graph.constants.get(name)
        return constant is not None and constant.tensor.data_type in WEIGHTS

    def _silent(self, at: int, chosen: set[int], name: str) -> bool:
        """Whether an output of a node is zero where these inputs are."""
        return silent(self.ops[at], chosen, self.ops[at].node.outputs.index(name))
