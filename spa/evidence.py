"""What a criterion is, what it is given, and how it reads the weights of a group.

A criterion scores every unit of every group; low goes first. Most look at one stored axis at a
time: `by_axis` makes those out of one small function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa import reals, scales
from spa.graph import WEIGHTS, Graph, Node
from spa.groups import Group, Groups, Index, Member
from spa.measure import Seen
from spa.run import Feeds
from spa.shapes import Shapes
from spa.sites import Floats, Site, sites
from spa.wake import belongings, branches

Scores = NDArray[np.float64]
Matrix = NDArray[np.float64]
Aggregate = Callable[[Scores], Scores]
PerAxis = Callable[[Floats, int, np.random.Generator], Scores]
PerUnit = Callable[[Scores], Scores]
Row = list[tuple[str, ...]]  # for every unit the names of some stored tensors


def _mean(members: Scores) -> Scores:
    return np.asarray(members.mean(axis=0))


@dataclass(frozen=True)
class Evidence:
    """What criteria look at.

    seen: node index of a site -> what calibration inputs showed there; empty where there are none.
    aggregate: scores by member, shape (members, units), to one for every unit.
    inputs: a few batches of calibration inputs.
    """

    groups: Groups
    random: np.random.Generator
    seen: Mapping[int, Seen]
    aggregate: Aggregate = _mean
    inputs: Sequence[Feeds] = ()

    @cached_property
    def readers(self) -> list[list[tuple[Site, Index]]]:
        """For every group the sites that sum its channels, with the inputs of every unit there."""
        by_weight = {(s.weight, s.in_axis): s for s in sites(self.groups.graph)}
        return [
            [
                (by_weight[m.tensor, m.axis], m.index)
                for m in group.members
                if (m.tensor, m.axis) in by_weight
            ]
            for group in self.groups
        ]

    @cached_property
    def makers(self) -> list[list[Member]]:
        """For every group the members whose slices make its channels."""
        axes = {(s.weight, s.out_axis) for s in sites(self.groups.graph)}
        return [[m for m in g.members if (m.tensor, m.axis) in axes] for g in self.groups]

    @cached_property
    def belongings(self) -> dict[int, list[Row]]:
        return matched(self.groups)


@dataclass(frozen=True)
class Criterion:
    """How units are judged.

    score: for every group one array of shape (group.size,); low goes first.
    needs: "nothing", "weights", "calibration inputs" or "gradients".
    source: where it comes from.
    normalized: whether its scores compare across groups as they are.
    """

    name: str
    score: Callable[[Evidence], list[Scores]]
    needs: str
    source: str
    normalized: bool = False


def carriers(shapes: Shapes, node: Node) -> list[str]:
    """The outputs of a node that may carry units on: not the scale of what is quantised."""
    return [n for n in node.outputs if n and shapes.shapes.get(n) != ()]


def stored(graph: Graph, name: str) -> Floats:
    """The numbers of a constant as floats that do not overflow; of quantised ones what they stand
    for."""
    return reals.real(graph, name)


def large(graph: Graph, group: Group) -> list[Member]:
    """The members that count: vectors such as biases and statistics only where nothing is larger,
    scales and zero points not"""
    weights = [m for m in group.members if not scales.is_beside(graph, m.tensor)] or group.members
    return _matrices(graph, weights) or list(weights)


def _matrices(graph: Graph, members: Iterable[Member]) -> list[Member]:
    return [m for m in members if _is_matrix(graph.constants[m.tensor].shape)]


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return int(np.prod(shape)) > max(shape, default=1)


def matched(groups: Groups) -> dict[int, list[Row]]:
    """Group -> rows, each with the matrices of every unit that go as a whole with it: one of each
    unit, as if they stood in a stack, or all of them where units differ in how many they have."""
    graph, found = groups.graph, dict[int, list[Row]]()
    for g, units in belongings(groups, branches(groups)).items():
        held = [
            tuple(
                name
                for name in names
                if graph.constants[name].tensor.data_type in WEIGHTS
                and _is_matrix(graph.constants[name].shape)
                and not scales.is_beside(graph, name)
            )
            for names in units
        ]
        if any(held):
            same = len({len(names) for names in held}) == 1
            rows = zip(*([(n,) for n in names] for names in held), strict=True)
            found[g] = [list(row) for row in rows] if same else [held]
    return found


def slices(graph: Graph, member: Member) -> Floats:
    """The weights of every unit in one member, shape (units, weights)."""
    w = np.moveaxis(stored(graph, member.tensor), member.axis, 0)
    return w[member.index].reshape(len(member.index), -1)


def lengths(graph: Graph, member: Member) -> Scores:
    """The sum of magnitudes at every index that a unit has, shape (units, indices per unit)."""
    w = stored(graph, member.tensor)
    return l1(w, member.axis)[member.index]


def l1(w: Floats, axis: int, _: Any = None) -> Scores:
    """The sum of magnitudes at every index of an axis."""
    others = tuple(k for k in range(w.ndim) if k != axis)
    return np.asarray(np.abs(w).sum(axis=others), np.float64)


def by_axis(
    per_axis: PerAxis, per_unit: PerUnit | None = None
) -> Callable[[Evidence], list[Scores]]:
    """A criterion that scores the indices of one stored axis at a time, as in SPA (Wang et al.
    2024, section 3.2): summed over a unit's indices, then aggregated over its members. What goes as
    a whole with a unit counts as its index of one stack of all of them.

    per_unit: what is then made of the scores of all units in one member.
    """

    def score(evidence: Evidence) -> list[Scores]:
        axis, graph = _Axes(evidence, per_axis), evidence.groups.graph
        found = []
        for g, group in enumerate(evidence.groups):
            more = [axis.whole(row) for row in evidence.belongings.get(g, ())]
            some = large(graph, group)
            members = [axis(m) for m in (_matrices(graph, some) if more else some)] + more
            rows = [per_unit(s) for s in members] if per_unit else members
            found.append(evidence.aggregate(np.stack(rows)))
        return found

    return score


class _Axes:
    """Scores of (tensor, axis), kept: several groups may sit on one axis."""

    def __init__(self, evidence: Evidence, per_axis: PerAxis) -> None:
        self._evidence, self._per_axis = evidence, per_axis
        self._known: dict[tuple[str, int], Scores] = {}

    def __call__(self, member: Member) -> Scores:
        key = (member.tensor, member.axis)
        if key not in self._known:
            w = stored(self._evidence.groups.graph, member.tensor)
            self._known[key] = self._per_axis(w, member.axis, self._evidence.random)
        return np.asarray(self._known[key][member.index].sum(axis=1))

    def whole(self, row: Row) -> Scores:
        """What the units have as a whole, each as one index of an axis."""
        graph, random = self._evidence.groups.graph, self._evidence.random
        return np.asarray(
            [
                sum(float(self._per_axis(stored(graph, n)[None], 0, random)[0]) for n in names)
                for names in row
            ]
        )


magnitudes = by_axis(l1)  # what criteria fall back to
