"""What is coupled with what: groups, their members, the locks, and the graph a person can ask."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations, pairwise
from math import prod

import networkx as nx
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from spa.axes import LOCKED, Axis, AxisName, Ids, Released, is_whole
from spa.graph import WEIGHTS, Graph
from spa.propagate import Ties
from spa.scales import is_beside
from spa.shapes import Shape, Shapes

Index = NDArray[np.intp]

COMBINED = "combined with an axis that is kept whole"


@dataclass(frozen=True)
class Member:
    """One axis of one constant in a group.

    index: the indices of every unit on that axis, shape (units, indices per unit).
    """

    tensor: str
    axis: int
    index: Index = field(repr=False)


@dataclass(frozen=True)
class Group:
    """Coupled channels of one structure: any of its units can be removed, each as a whole.

    name: its first member, ``tensor:axis``.
    size: how many units it has.
    exact: whether the law holds in value; if not, a statistic runs over the group.
    kind: heads, head-dim, hidden, conv, linear or other.
    view: the choice of factors that it belongs to, see `spa.factors`.
    units: labels of its units in that view, shape (size,).
    least: how many of them have to stay, see `spa.enough`.
    """

    name: str
    size: int
    members: tuple[Member, ...]
    exact: bool
    kind: str
    view: int
    units: NDArray[np.int64] = field(repr=False)
    least: int = 1


@dataclass(frozen=True)
class View:
    """The ids of a graph in units, for one choice of factors; see `spa.factors`.

    chosen: for every grid the ids that the choice ties.
    labels: id -> unit. locked: the unit of everything locked.
    reasons: id -> what locks it, or -1: a tie, a grid or a lock, numbered in this order.
    """

    ties: Ties
    chosen: Sequence[tuple[Ids, Ids]]
    labels: NDArray[np.int32]
    locked: int
    groups: tuple[Group, ...]
    reasons: NDArray[np.int64]

    def why(self, axis: Axis) -> tuple[int, str] | None:
        """(node index, reason) of the commonest lock on an axis; -1 stands for no node."""
        found = self.reasons[axis.ids][self.labels[axis.ids] == self.locked]
        found = found[found >= 0]
        if not len(found):
            return None
        reason = int(np.bincount(found).argmax())
        recorder = self.ties.recorder
        if reason < len(recorder.ties):
            return recorder.ties[reason][2], COMBINED
        reason -= len(recorder.ties)
        if reason < len(recorder.grids):
            return recorder.grids[reason].node, COMBINED
        _, index, why = recorder.locks[reason - len(recorder.grids)]
        return index, why

    def edges(self) -> Iterator[tuple[Ids, Ids, int]]:
        """Pairs of ids that are tied, with the index of the node that ties them."""
        yield from self.ties.recorder.ties
        for grid, (a, b) in zip(self.ties.recorder.grids, self.chosen, strict=False):
            yield a[b > 0], b[b > 0], grid.node


Removed = Mapping[int, Index]  # group number -> positions of the units to remove


class Kept:
    """The kept indices of every axis of every tensor, for one choice of units to remove."""

    def __init__(self, groups: Groups, removed: Removed) -> None:
        self._views = groups.views
        self._shapes = groups.shapes.shapes
        self._gone = [np.zeros(len(v.labels), bool) for v in groups.views]
        for g, positions in removed.items():
            group = groups.groups[g]
            self._gone[group.view][group.units[positions]] = True
        self._known: dict[int, Index] = {}

    @property
    def released(self) -> Released:
        """The axes of inputs and outputs of the file that may lose indices."""
        return self._views[0].ties.released

    def before(self, tensor: str) -> Shape:
        """The shape of a tensor before."""
        return self._shapes[tensor]

    def axes(self, tensor: str) -> list[Index] | None:
        """Kept indices of every axis of a tensor; None where its shape is not known."""
        if tensor not in self._shapes:
            return None
        return [self._axis(tensor, k) for k in range(len(self._shapes[tensor]))]

    def shape(self, tensor: str) -> tuple[int, ...] | None:
        axes = self.axes(tensor)
        return None if axes is None else tuple(len(kept) for kept in axes)

    def _axis(self, tensor: str, k: int) -> Index:
        axes = self._views[0].ties.axes
        if tensor not in axes:
            return np.arange(self._shapes[tensor][k])
        return self.of(axes[tensor][k].ids)

    def of(self, ids: Ids) -> Index:
        """The kept indices of an axis with these ids."""
        key = id(ids)
        if key not in self._known:
            gone = np.zeros(len(ids), bool)
            for view, removed in zip(self._views, self._gone, strict=True):
                gone |= removed[view.labels[ids]]
            self._known[key] = np.flatnonzero(~gone)
        return self._known[key]


@dataclass(frozen=True)
class Groups:
    """The analysis of one model."""

    graph: Graph
    shapes: Shapes
    views: tuple[View, ...]
    groups: tuple[Group, ...]

    def __repr__(self) -> str:
        """One line for each group, as a console shows them."""
        lines = [f"  {g.name}: {g.size} of kind {g.kind}" for g in self.groups]
        return "\n".join([f"{len(lines)} groups", *lines])

    def __iter__(self) -> Iterator[Group]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str | int) -> Group:
        if isinstance(name, int):
            return self.groups[name]
        for group in self.groups:
            if group.name == name:
                return group
        raise KeyError(name)

    @property
    def released(self) -> Released:
        """The axes of inputs and outputs of the file that may lose indices, see `spa.states`."""
        return self.views[0].ties.released

    def kept(self, removed: Removed) -> Kept:
        return Kept(self, removed)

    @cached_property
    def dead(self) -> frozenset[int]:
        """The numbers of the groups that go as a whole with the blocks of the graph."""
        gone = self.graph.forgotten
        return frozenset(
            g
            for g, group in enumerate(self.groups)
            if gone.issuperset(m.tensor for m in group.members)
        )

    @cached_property
    def unknown(self) -> dict[str, list[str]]:
        """Operator without a rule -> names of its nodes."""
        found: dict[str, list[str]] = {}
        for index in self.views[0].ties.unknown:
            node = self.graph.nodes[index]
            found.setdefault(node.op_type, []).append(node.name)
        return found

    @cached_property
    def network(self) -> nx.Graph:
        """The coupling graph: a node per (tensor, axis), an edge per tie.

        Node attributes: ``size``, ``constant``; edge attributes: ``operator``, ``node``. Axes that
        are wholly locked from the start (graph inputs, spatial axes) do not appear.
        """
        network = nx.Graph()
        for view in self.views:
            _draw(network, self.graph, view)
        return network

    def locks(self) -> list[LockedAxis]:
        """Every axis of every weight that is locked, at least in part, with what holds it."""
        found = []
        for name, constant in self.graph.constants.items():
            if constant.tensor.data_type not in WEIGHTS:
                continue
            for k, size in enumerate(constant.shape):
                views = [v for v in self.views if name in v.ties.axes]
                held = [v.labels[v.ties.axes[name][k].ids] == v.locked for v in views]
                count = int(np.logical_and.reduce(held).sum()) if held and size > 1 else 0
                why = views[0].why(views[0].ties.axes[name][k]) if count else None
                if why is not None:
                    found.append(self._locked_axis(name, k, size, count, *why))
        return found

    def _locked_axis(
        self, name: str, axis: int, size: int, count: int, index: int, why: str
    ) -> LockedAxis:
        if index < 0:
            return LockedAxis(name, axis, size, count, "", "", why)
        node = self.graph.nodes[index]
        given = [i for i in node.inputs if i in self.graph.inputs]
        if why == COMBINED and given:
            why = f"meets graph input {given[0]!r}"
        return LockedAxis(name, axis, size, count, node.name, node.op_type, why)


@dataclass(frozen=True)
class LockedAxis:
    """Why indices of one axis of a constant cannot be removed.

    locked: how many of its ``size`` indices are held.
    node, operator: the node that holds them, empty for a graph output.
    """

    tensor: str
    axis: int
    size: int
    locked: int
    node: str
    operator: str
    why: str

    def reason(self) -> str:
        place = f"{self.operator} {self.node!r}: " if self.node else ""
        return place + self.why


def merge(graph: Graph, shapes: Shapes, views: Sequence[View], exact: bool = False) -> Groups:
    """One list of groups out of several views.

    A group that an earlier view has too is dropped. Groups that overlap across views stay side by
    side where they cross: heads and head sizes are the rows and columns of a grid, and what is
    left of it never empties an axis. Of groups that do not, the one with the most units stays.
    With ``exact``, groups that are not are left out before that.
    """
    seen: set[tuple[tuple[str, int, bytes], ...]] = set()
    distinct: list[Group] = []
    for view in views:
        for group in view.groups:
            key = tuple((m.tensor, m.axis, m.index.tobytes()) for m in group.members)
            if key not in seen and group.size > 1 and (group.exact or not exact):
                seen.add(key)
                distinct.append(group)
    taken: dict[AxisName, list[Index]] = {}
    kept: list[Group] = []
    for group in sorted(distinct, key=lambda g: -g.size):
        places = {(m.tensor, m.axis): _units_at(m, shapes.shapes[m.tensor]) for m in group.members}
        if all(_cross(unit, taken.get(name, [])) for name, unit in places.items()):
            kept.append(group)
            for name, unit in places.items():
                taken.setdefault(name, []).append(unit)
    place = {id(group): k for k, group in enumerate(distinct)}
    kept.sort(key=lambda g: place[id(g)])
    return Groups(graph, shapes, tuple(views), tuple(_distinct_names(graph, kept)))


def _units_at(member: Member, shape: Shape) -> Index:
    """The unit at every index of a member's axis, -1 for none, shape (size,)."""
    unit = np.full(shape[member.axis], -1, np.intp)
    unit[member.index] = np.arange(len(member.index))[:, None]
    return unit


def _cross(unit: Index, others: Sequence[Index]) -> bool:
    """Whether the units on an axis meet every combination of the units of others there."""
    met = [other for other in others if ((other >= 0) & (unit >= 0)).any()]
    if not met:
        return True
    grid = np.stack([unit, *met])[:, unit >= 0]
    for pattern in np.unique(grid >= 0, axis=1).T:
        cells = grid[:, ((grid >= 0) == pattern[:, None]).all(axis=0)][pattern]
        if len(np.unique(cells, axis=1).T) != prod(len(np.unique(line)) for line in cells):
            return False
    return True


def _distinct_names(graph: Graph, groups: list[Group]) -> list[Group]:
    """After the first member that is more than a scale or a zero point; groups that share it are
    numbered."""
    count: dict[str, int] = {}
    named = []
    for group in groups:
        own = (m for m in group.members if not is_beside(graph, m.tensor))
        first = next(own, group.members[0])
        base = f"{first.tensor}:{first.axis}"
        count[base] = count.get(base, 0) + 1
        named.append(replace(group, name=base if count[base] == 1 else f"{base}#{count[base]}"))
    return named


@dataclass(frozen=True)
class Path:
    """How two tensors are coupled.

    steps: (tensor, axis), then the operator that leads to the next one, and so on.
    units: how many units the two ends share.
    """

    steps: tuple[tuple[AxisName, str], ...]
    units: int


def explain(groups: Groups, a: str, b: str) -> Path | None:
    """The shortest chain of ties by which an axis of ``a`` is coupled to one of ``b``, or None.

    Raises:
        KeyError: if one of them is not a tensor of the model.
    """
    for name in (a, b):
        if name not in groups.shapes.shapes:
            raise KeyError(name)
    best: Path | None = None
    for view in groups.views:
        units = {
            (name, k): set(view.labels[axis.ids].tolist()) - {view.locked}
            for name, axes in view.ties.axes.items()
            for k, axis in enumerate(axes)
            if not is_whole(axis)
        }
        network = nx.Graph()
        _draw(network, groups.graph, view)
        for one in [n for n in units if n[0] == a]:
            for other in [n for n in units if n[0] == b and n != one]:
                shared = units[one] & units[other]
                if not shared:
                    continue
                within = network.subgraph([n for n in network if shared & units[n]])
                if not nx.has_path(within, one, other):
                    continue
                nodes = nx.shortest_path(within, one, other)
                labels = [
                    f"{within.edges[e]['operator']} {within.edges[e]['node']}"
                    for e in pairwise(nodes)
                ]
                found = Path(tuple(zip(nodes, [*labels, ""], strict=True)), len(shared))
                if best is None or len(found.steps) < len(best.steps):
                    best = found
    return best


def _draw(network: nx.Graph, graph: Graph, view: View) -> None:
    by_node: dict[int, list[tuple[Ids, Ids]]] = {}
    for a, b, at in view.edges():
        by_node.setdefault(at, []).append((a, b))
    for index, op in view.ties.ops.items():
        node = op.node
        here = {
            (name, k): axis.ids
            for name in dict.fromkeys((*node.inputs, *node.outputs))
            for k, axis in enumerate(view.ties.axes.get(name, []))
            if name and not is_whole(axis)
        }
        coupled = _coupled(here, by_node.get(index, []))
        edges = [(one, two) for one, two in combinations(here, 2) if coupled[one] & coupled[two]]
        for name in here:
            network.add_node(name, size=len(here[name]), constant=name[0] in graph.constants)
        network.add_edges_from(edges, operator=node.op_type, node=node.name)


def _coupled(axes: dict[AxisName, Ids], pairs: list[tuple[Ids, Ids]]) -> dict[AxisName, set[int]]:
    """What the ids of every axis are tied to by one node, as numbers that tied ids share."""
    parts = [*axes.values(), *(a for a, _ in pairs), *(b for _, b in pairs)]
    if not parts:
        return {}
    known, place = np.unique(np.concatenate(parts), return_inverse=True)
    places = np.split(place, np.cumsum([len(part) for part in parts])[:-1])
    n, k = len(known), len(axes)
    half = len(pairs)
    one = np.concatenate([*places[k : k + half], place[:0]])
    two = np.concatenate([*places[k + half :], place[:0]])
    free = (known[one] != LOCKED) & (known[two] != LOCKED)
    joined = coo_array((np.ones(int(free.sum()), np.int8), (one[free], two[free])), shape=(n, n))
    labels = connected_components(joined, directed=False)[1]
    return {
        name: set(labels[at[known[at] != LOCKED]].tolist())
        for name, at in zip(axes, places, strict=False)
    }
