"""Criteria by how alike units are: what another unit can stand in for goes first."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.enough import units_at
from spa.evidence import Evidence, Matrix, Scores, large, slices
from spa.groups import Group, Index, Member
from spa.parts import parts
from spa.sites import Floats
from spa.stream import Stream

ROWS = 512  # distances are made for so many units at a time
PICK = {"TopK": -1, "ArgMax": 0, "ArgMin": 0}  # what picks, and along which axis unless it says
TIE = 1e-9  # two points are as near to a mean, up to rounding


def geometric_median(evidence: Evidence) -> list[Scores]:
    """How far a unit's slice of the weights that make it is from the slices of all others.

    The units nearest to the geometric median are what the others can stand in for.
    """
    return [
        evidence.aggregate(np.stack([_distances(slices(evidence.groups.graph, m)) for m in some]))
        for some in _made_by(evidence)
    ]


def similarity(evidence: Evidence) -> list[Scores]:
    """At what distance a unit is merged into another one that stays.

    As STUN chooses experts by the rows of their router (Lee et al. 2025, STUN: Structured-Then-
    Unstructured Pruning for Scalable MoE Pruning): greedy agglomeration into clusters of which one
    unit each stays. Here units of any kind are compared, by the weights that make them: those of an
    expert are its row of the router, those of a head its rows of the projections, those of a
    channel its filter. Rows of each stored tensor count in units of their mean length. The second
    term there, how often two experts are asked together, brings them nearer where calibration
    inputs show it, see `coactivation`.
    """
    graph, found, together = evidence.groups.graph, [], coactivation(evidence)
    for g, some in enumerate(_made_by(evidence)):
        products = np.zeros((len(some[0].index),) * 2)
        for member in some:
            rows = slices(graph, member).astype(np.float64)
            length = float(np.linalg.norm(rows, axis=1).mean()) or 1.0
            products += (rows / length) @ (rows / length).T
        found.append(merged_at(products, together.get(g)))
    return found


def coactivation(evidence: Evidence) -> dict[int, Matrix]:
    """Group -> of the tokens that one unit or another is picked for the share that both are picked
    for, shape (units, units), for groups that TopK and ArgMax pick from; by the inputs at hand."""
    groups, picked = evidence.groups, _picked(evidence)
    names = {name for some in picked.values() for name, _ in some}
    if not names or not evidence.inputs:
        return {}
    with Stream(parts(groups.graph), evidence.inputs, names) as run:
        seen = run(sorted(names))
    found = {}
    for g, some in picked.items():
        both = np.zeros((groups[g].size,) * 2)
        for values in seen:
            for marks in _beside(_marks(values[n], *where) for n, where in some):
                asked = (marks[:, :, None] == np.arange(groups[g].size)).any(axis=1)
                both += asked.astype(np.float64).T @ asked
        each = np.diag(both)
        found[g] = both / np.maximum(each[:, None] + each - both, 1)
    return found


Where = tuple[Index, int]  # the unit at every index of an axis that is picked from, and the axis


def _picked(evidence: Evidence) -> dict[int, list[tuple[str, Where]]]:
    """Group -> the tensors that hold positions among its units."""
    groups, found = evidence.groups, dict[int, list[tuple[str, Where]]]()
    pointed = groups.views[0].ties.recorder.indices
    for name, ids in pointed.items():
        node = groups.graph.nodes[groups.graph.makers[name]]
        if not pointed.keys().isdisjoint(node.inputs) or node.home or node.op_type not in PICK:
            continue
        axis = int(node.attrs.get("axis", PICK[node.op_type]))
        kept = node.op_type == "TopK" or bool(node.attrs.get("keepdims", 1))
        for g, unit in units_at(groups, ids).items():
            if (unit >= 0).all() and kept:
                found.setdefault(g, []).append((name, (unit, axis)))
    return found


def _marks(positions: NDArray[Any], unit: Index, axis: int) -> Index:
    """The units that are picked for every token, shape (tokens, picked)."""
    rows = np.moveaxis(positions, axis, -1)
    return np.asarray(unit[rows.reshape(-1, rows.shape[-1])])


def _beside(found: Iterable[Index]) -> list[Index]:
    """Those of as many tokens as one, as where the two best are found one after the other."""
    rows: dict[int, list[Index]] = {}
    for marks in found:
        rows.setdefault(len(marks), []).append(marks)
    return [np.concatenate(some, axis=1) for some in rows.values()]


def merged_at(products: Matrix, together: Matrix | None = None) -> Scores:
    """The distance at which every point is merged into one that stays, shape (points,).

    Clusters are merged two at a time, those first whose farthest points are nearest to each other
    (complete linkage). Of the two points that stood for them, the one nearer to the mean of all
    that are merged stands for both, and of two as near the longer one; the other is merged at that
    distance. So the points with the k lowest numbers are those that clusters can do without when
    all but k are left. The last one gets twice the largest distance.

    Args:
        products: the inner products of all points, shape (points, points).
        together: the share of its distance by which each is nearer to each other one, in [0, 1].
    """
    from scipy.cluster.hierarchy import linkage
    from scipy.spatial.distance import squareform

    squares = np.diag(products)
    if len(squares) < 2:
        return np.zeros(len(squares))
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * products, 0))
    apart *= 1 if together is None else 1 - together
    np.fill_diagonal(apart, 0)
    tree = linkage(squareform(apart, checks=False), "complete")
    stands, clusters = list(range(len(squares))), [[k] for k in range(len(squares))]
    found = np.full(len(squares), 2 * tree[-1, 2])
    for a, b, height, _ in tree:
        both = clusters[int(a)] + clusters[int(b)]
        ends = [stands[int(a)], stands[int(b)]]
        nearer = squares[ends] - 2 * products[np.ix_(ends, both)].mean(axis=1)
        tied = abs(nearer[0] - nearer[1]) <= TIE * squares[ends].sum()
        order = np.argsort(-squares[ends] if tied else nearer, kind="stable")
        near, far = (ends[k] for k in order.tolist())
        found[far] = height
        stands.append(near)
        clusters.append(both)
    return found


def _made_by(evidence: Evidence) -> list[list[Member]]:
    """What makes the units of every group; a group that nothing makes (an embedding) is judged by
    all of its weights."""

    def some(group: Group, makers: list[Member]) -> list[Member]:
        return makers or large(evidence.groups.graph, group)

    return [some(*pair) for pair in zip(evidence.groups, evidence.makers, strict=True)]


def _distances(points: Floats) -> Scores:
    """The sum of the distances from every point to all points."""
    points = points.astype(np.float64)
    squares = np.einsum("ij,ij->i", points, points)
    total = np.empty(len(points))
    for start in range(0, len(points), ROWS):
        part = slice(start, start + ROWS)
        apart = squares[part, None] + squares - 2 * points[part] @ points.T
        apart[np.arange(len(apart)), np.arange(start, start + len(apart))] = 0
        total[part] = np.sqrt(np.maximum(apart, 0)).sum(axis=1)
    return total
