"""Model Folding: units whose weights are alike become one, their mean, which is read by their sum.

Wang et al. 2025 (Forget the Data and Fine-Tuning! Just Fold the Network to Compress): k-means over
a unit's weights, those that make it and those that read it, gives as many clusters as units are
kept; what makes a unit is the mean of its cluster's, what reads it the sum. A mean of N units of
mean correlation c varies less than one of them; Fold-AR (their equation for uncorrelated inputs)
multiplies it by

    N / sqrt(N + (N^2 - N) c),    c the mean cosine of the weights in the cluster.

Batch normalisation right behind is taken into the weights that are compared and averaged. Where the
clusters start, and at which places they end, is what the criterion keeps; no inputs are looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.evidence import stored
from spa.graph import Graph, Node
from spa.groups import Group, Groups, Member, Removed
from spa.sites import Site, place, sites

Matrix = NDArray[np.float64]
Index = NDArray[np.intp]
ROUNDS = 100
FLOATS = frozenset("f")


@dataclass(frozen=True)
class _Roles:
    """makers: what makes the units, with its site. readers: what sums them. others: vectors that go
    along."""

    makers: list[tuple[Member, Site]]
    readers: list[Member]
    others: list[Member]


def fold(groups: Groups, removed: Removed) -> dict[str, NDArray[Any]]:
    """Constant -> its new value, in the shape it has. Groups with other weights than those of sites
    and vectors stay as they are."""
    graph = groups.graph
    values: dict[str, NDArray[Any]] = {}
    found = sites(graph)
    for g, gone in removed.items():
        roles = _roles(graph, groups[g], found)
        if roles is None or not len(gone):
            continue
        stay = np.setdiff1d(np.arange(groups[g].size), gone)
        _Fold(graph, values, groups[g]).run(roles, stay)
    return values


def _roles(graph: Graph, group: Group, found: list[Site]) -> _Roles | None:
    makes = {(s.weight, s.out_axis): s for s in found}
    reads = {(s.weight, s.in_axis) for s in found}
    roles = _Roles([], [], [])
    for m in group.members:
        shape = graph.constants[m.tensor].shape
        if np.asarray(graph.array(m.tensor)).dtype.kind not in FLOATS:
            return None
        if (m.tensor, m.axis) in reads:
            roles.readers.append(m)
        elif (m.tensor, m.axis) in makes:
            roles.makers.append((m, makes[m.tensor, m.axis]))
        elif int(np.prod(shape)) == max(shape):
            roles.others.append(m)
        else:
            return None
    return roles if roles.makers else None


class _Fold:
    """One group."""

    def __init__(self, graph: Graph, values: dict[str, NDArray[Any]], group: Group) -> None:
        self._graph, self._values = graph, values
        self._members = {(m.tensor, m.axis): m for m in group.members}

    def run(self, roles: _Roles, stay: Index) -> None:
        gains = [self._gain(site) for _, site in roles.makers]
        rows = [self._rows(m) for m, _ in roles.makers]
        scaled = [r * gain[:, None] for r, (gain, _) in zip(rows, gains, strict=True)]
        cluster = clusters(np.hstack([*scaled, *map(self._rows, roles.readers)]), stay)
        share = averages(cluster, len(stay))
        done: set[str] = set()
        for (m, _), w, (_, norm) in zip(roles.makers, scaled, gains, strict=True):
            ratio = correction(w, cluster, len(stay))
            row = ratio[:, None] * (share @ w)
            if norm is not None:
                row = row / self._fold_norm(norm, share, ratio, stay)[:, None]
                done.update(norm.inputs[1:5])
            self._put(m, stay, row)
        for m in roles.readers:
            self._put(m, stay, (share > 0) @ self._rows(m))
        for m in roles.others:
            if m.tensor not in done:
                self._put(m, stay, share @ self._rows(m))

    def _gain(self, site: Site) -> tuple[Matrix, Node | None]:
        """What batch normalisation multiplies a maker's units by, if it is right behind."""
        readers = self._graph.readers.get(site.y, [])
        node = self._graph.nodes[readers[0]] if len(readers) == 1 else None
        size = len(next(iter(self._members.values())).index)
        if node is None or node.op_type != "BatchNormalization" or not self._holds(node):
            return np.ones(size), None
        scale, _, _, var = self._norm(node)
        return scale / np.sqrt(var + float(node.attrs.get("epsilon", 1e-5))), node

    def _holds(self, node: Node) -> bool:
        """Whether all that a BatchNormalization stores is this group's, a number for every unit."""
        found = [self._members.get((n, 0)) for n in node.inputs[1:5]]
        stored_ = all(place(self._graph, node, k) for k in range(1, 5))
        return stored_ and all(m is not None and m.index.shape[1] == 1 for m in found)

    def _norm(self, node: Node) -> list[Matrix]:
        return [self._rows(self._members[n, 0])[:, 0] for n in node.inputs[1:5]]

    def _fold_norm(self, node: Node, share: Matrix, ratio: Matrix, stay: Index) -> Matrix:
        """Fold scale, bias, mean and variance; give what the rows of the maker are divided by."""
        scale, bias, mean, var = self._norm(node)
        epsilon = float(node.attrs.get("epsilon", 1e-5))
        gain = scale / np.sqrt(var + epsilon)
        new = share @ np.abs(scale)
        new = np.where(new > 0, new, 1.0)
        part = new / np.sqrt(var[stay] + epsilon)  # the variance at the place stays what it was
        middle = ratio * (share @ (gain * mean)) / part
        values = new, share @ bias, middle, var[stay]
        for name, value in zip(node.inputs[1:5], values, strict=True):
            self._put(self._members[name, 0], stay, value[:, None])
        return part

    def _rows(self, member: Member) -> Matrix:
        """The weights of every unit in one member, shape (units, weights)."""
        w = self._values.get(member.tensor)
        w = stored(self._graph, member.tensor) if w is None else w
        lines = np.moveaxis(np.asarray(w, np.float64), member.axis, 0)[member.index]
        return np.asarray(lines.reshape(len(member.index), -1))

    def _put(self, member: Member, stay: Index, rows: Matrix) -> None:
        old = self._values.get(member.tensor, self._graph.array(member.tensor))
        new = np.array(old)
        lines = np.moveaxis(new, member.axis, 0)
        at = member.index[stay]
        lines[at] = rows.reshape(*at.shape, *lines.shape[1:])
        self._values[member.tensor] = new


def clusters(points: Matrix, first: Index) -> Index:
    """The cluster of every point by k-means (Lloyd) from some of the points; none is empty."""
    centres, cluster = points[first], np.full(len(points), -1)
    for _ in range(ROUNDS):
        apart = (
            (points * points).sum(1)[:, None]
            - 2 * points @ centres.T
            + (centres * centres).sum(1)[None]
        )
        found = np.argmin(apart, axis=1)
        for k in np.setdiff1d(np.arange(len(first)), found):
            crowded = np.bincount(found, minlength=len(first))[found] > 1
            own = apart[np.arange(len(points)), found]
            found[np.argmax(np.where(crowded, own, -np.inf))] = k
        if np.array_equal(found, cluster):
            break
        cluster = found
        centres = averages(cluster, len(first)) @ points
    return cluster


def averages(cluster: Index, count: int) -> Matrix:
    """The matrix that takes the mean over every cluster, shape (count, points)."""
    one = (cluster == np.arange(count)[:, None]).astype(np.float64)
    return np.asarray(one / one.sum(1, keepdims=True))


def correction(rows: Matrix, cluster: Index, count: int) -> Matrix:
    """Fold-AR's factor for the mean of every cluster, shape (count,)."""
    norms = np.linalg.norm(rows, axis=1)
    unit = rows / np.where(norms > 0, norms, 1)[:, None]
    size = np.bincount(cluster, minlength=count).astype(np.float64)
    total = np.stack([unit[cluster == k].sum(0) for k in range(count)])
    varies = np.square(total).sum(1)  # N + (N^2 - N) c
    return np.asarray(size / np.sqrt(np.maximum(varies, 1.0)))
