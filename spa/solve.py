"""From ties to groups: one connected-components call, then one grouping by structure.

Ids tied to each other form a *unit*, removed as a whole: a channel, a head, a neuron. Units that
sit on exactly the same axes of the same tensors form a *group*: its units are interchangeable in
kind, so scores compare within it, and every axis is a disjoint union of whole groups.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, connected_components

from spa.axes import KINDS, LOCKED, Ids, Recorder
from spa.factors import Pairs, choices
from spa.graph import WEIGHTS, Graph
from spa.groups import Group, Member, View
from spa.propagate import Ties


def solve(graph: Graph, ties: Ties) -> list[View]:
    """The groups of every view, with the reason of every lock."""
    found = choices(ties.recorder.grids, labels(ties.recorder))
    return [_view(graph, ties, number, chosen) for number, chosen in enumerate(found)]


def labels(recorder: Recorder, locks: bool = True) -> Ids:
    """The unit of every id by ties and locks alone, or by ties alone."""
    pairs = [(a, b) for a, b, _ in recorder.ties]
    pairs += [(ids, np.zeros_like(ids)) for ids, _, _ in recorder.locks] if locks else []
    return _components(recorder.count, pairs)[0]


def _view(graph: Graph, ties: Ties, number: int, chosen: list[Pairs]) -> View:
    """The groups where the factors of all grids are chosen."""
    recorder = ties.recorder
    pairs = [(a, b) for a, b, _ in recorder.ties] + chosen
    pairs += [(ids, np.zeros_like(ids)) for ids, _, _ in recorder.locks]
    labels, reasons = _components(recorder.count, pairs)
    locked = labels[LOCKED]

    signature = _signatures(ties, labels)
    has_member = np.zeros(len(signature), bool)
    constants = {n: axes for n, axes in ties.axes.items() if n in graph.constants}
    for name, axes in constants.items():
        asked = {graph.nodes[k].op_type for k in graph.readers.get(name, [])}
        # A table of indices is no weight, nor is what is only asked for its size.
        if graph.constants[name].tensor.data_type in WEIGHTS and asked - {"Shape", "Size"}:
            for axis in axes:
                has_member[labels[axis.ids]] = True
    has_member[locked] = False

    first = np.full(len(signature), len(labels))
    first[labels[::-1]] = np.arange(len(labels))[::-1]
    units = np.flatnonzero(has_member)
    units = units[np.argsort(first[units], kind="stable")]
    order = _alike(signature[units], units)

    group_of = np.full(len(signature), -1)
    rank = np.zeros(len(signature), np.int64)
    for g, members in enumerate(order):
        group_of[members] = g
        rank[members] = np.arange(len(members))

    found: dict[int, list[Member]] = defaultdict(list)
    for name, axes in constants.items():
        for position, axis in enumerate(axes):
            here = labels[axis.ids]
            for g in np.unique(group_of[here]).tolist():
                if g >= 0:
                    found[g].append(_member(name, position, here, g, group_of, rank))

    inexact = _marked([ids for ids, _ in ties.recorder.inexact], labels)
    kinds = {
        kind: _marked([ids for ids, k in ties.recorder.kinds if k == kind], labels)
        for kind in KINDS
    }
    groups = []
    for g, members in enumerate(order):
        one = members[0]
        groups.append(
            Group(
                name="",
                size=len(members),
                members=tuple(found[g]),
                exact=not inexact[members].any(),
                kind=next((k for k in KINDS if kinds[k][one]), "other"),
                view=number,
                units=members,
            )
        )
    return View(ties, chosen, labels, int(locked), tuple(groups), reasons)


def _components(
    n: int, pairs: list[tuple[Ids, Ids]]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """The unit of every id, and for every locked id the number of the pair that pins it, or -1."""
    if not pairs:
        return np.arange(n, dtype=np.int32), np.full(n, -1)
    a, b = (np.concatenate(part) for part in zip(*pairs, strict=True))
    edge = np.repeat(np.arange(len(pairs)), [len(ids) for ids, _ in pairs])
    adjacency = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n)).tocsr()
    _, labels = connected_components(adjacency, directed=False)

    # Every path that leaves LOCKED starts with the edge that locks what lies behind it.
    order, before = breadth_first_order(adjacency, LOCKED, directed=False)
    seed = np.arange(n)
    behind = order[1:][before[order[1:]] != LOCKED]
    seed[behind] = before[behind]
    while (seed != seed[seed]).any():
        seed = seed[seed]
    pinned_by = np.full(n, -1)
    at_lock = (a == LOCKED) | (b == LOCKED)
    pinned_by[np.maximum(a, b)[at_lock]] = edge[at_lock]
    reason = np.full(n, -1)
    reason[order[1:]] = pinned_by[seed[order[1:]]]
    return labels, reason


def _signatures(ties: Ties, labels: NDArray[np.int32]) -> NDArray[np.uint64]:
    """Two hashes per unit of the axes it sits on and how often, shape (units, 2).

    Tensors that share one id array (an activation and what passes it on) are counted once.
    """
    random = np.random.default_rng(0)
    total: NDArray[np.uint64] = np.zeros((2, int(labels.max()) + 1), np.uint64)
    seen: set[int] = set()
    for axes in ties.axes.values():
        for axis in axes:
            if id(axis.ids) in seen or axis.ids.strides == (0,):
                continue
            seen.add(id(axis.ids))
            units = labels[axis.ids]
            for k, token in enumerate(random.integers(0, 2**64, 2, np.uint64)):
                np.add.at(total[k], units, token)
    return np.ascontiguousarray(total.T)


def _member(
    name: str,
    position: int,
    unit: NDArray[np.int32],
    g: int,
    group_of: NDArray[np.int64],
    rank: NDArray[np.int64],
) -> Member:
    at = np.flatnonzero(group_of[unit] == g)
    at = at[np.argsort(rank[unit[at]], kind="stable")]
    size = int(rank[unit[at]].max()) + 1
    return Member(name, position, at.reshape(size, -1))


def _alike(signature: NDArray[np.uint64], units: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The units of equal signature, in the order in which each signature is first met."""
    if not len(units):
        return []
    _, first, group = np.unique(signature, axis=0, return_index=True, return_inverse=True)
    met = np.argsort(np.argsort(first))[group.ravel()]
    at = np.argsort(met, kind="stable")
    return np.split(units[at], np.cumsum(np.bincount(met))[:-1])


def _marked(ids: list[Ids], labels: NDArray[np.int32]) -> NDArray[np.bool_]:
    """Which units hold some of these ids."""
    marked = np.zeros(int(labels.max()) + 1, bool)
    for some in ids:
        marked[labels[some]] = True
    return marked
