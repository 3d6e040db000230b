"""Multiply-accumulates, parameters and bytes, as functions of the kept sizes.

MACs count convolutions, matrix products, Attention and recurrent products, at the sizes that the
analysis bound the free axes to. Each counts once: in the body of a Loop or a Scan once for every
round, where their number is known, and in both branches of an If. Parameters count every stored
weight, quantised ones included.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa import borders, rules
from spa.axes import Ids, whole
from spa.graph import WEIGHTS, Graph
from spa.groups import Groups, Removed
from spa.wake import belongings, branches, shortened


@dataclass(frozen=True)
class Cost:
    """macs, params: totals at some sizes."""

    macs: int
    params: int


Axes = list[tuple[str, int]]
# Axes, what each term belongs to, and what it is divided by.
Terms = list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]]
Shares = dict[int, list[int]]  # what goes with a unit -> the groups that have it


class CostModel:
    """The cost of a model after removing its blocks, if any, and so many units of every group.

    The product of the sizes of some axes is the cost of one node or one constant. An axis falls
    into cells, each of one group in every view; a cell keeps the shares that its groups keep, and
    where two views cross (heads and head dims) it is a grid and the shares multiply. What goes as a
    whole with a unit (`spa.picks`) counts by the share of units that stay.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._axes: dict[tuple[str, int], int] = {}
        self._sizes: list[int] = []
        self._units: dict[int, Ids] = {}  # the axes that stand for the units of a group
        self._chosen = False
        self._constants = list(groups.graph.constants)
        nodes, constants = self._shares()
        self._macs = self._terms(list(self._mac_terms()), nodes)
        self._params = self._terms(list(self._param_terms()), constants)
        self._full = np.asarray(self._sizes or [1], float)
        self._cells = self._find_cells()
        self._left = self._alive(groups.graph)

    def without(self, graph: Graph) -> CostModel:
        """The same for another choice of blocks."""
        other = copy(self)
        other._left = other._alive(graph)
        return other

    def _alive(self, graph: Graph) -> tuple[Terms, Terms]:
        gone = [k for k, name in enumerate(self._constants) if name in graph.forgotten]
        return _but(self._macs, list(graph.dead)), _but(self._params, gone)

    def _shares(self) -> tuple[Shares, Shares]:
        """Nodes and constants that go as a whole with a unit of some groups."""
        nodes, constants = Shares(), Shares()
        number = {name: k for k, name in enumerate(self._constants)}
        gone = branches(self._groups)
        for g, units in gone.items():
            group = self._groups[g]
            _, first = np.unique(self._groups.views[group.view].labels, return_index=True)
            self._axes[f"units of group {g}", 0] = len(self._sizes)
            self._units[len(self._sizes)] = first[group.units].astype(np.int32)
            self._sizes.append(len(units))
            of = {node: k for k, unit in enumerate(units) for node in unit}
            for node in of:
                nodes.setdefault(node, []).append(g)
        for g, held in belongings(self._groups, gone).items():
            for name in (name for names in held for name in names):
                constants.setdefault(number[name], []).append(g)
        return nodes, constants

    def _mac_terms(self) -> Iterator[tuple[int, Axes]]:
        for op in self._groups.views[0].ties.ops.values():
            rule = rules.find(op.node.op_type, op.node.domain)
            if rule is None or rule.macs is None or op.node.index in self._refused:
                continue
            names = (*op.node.inputs, *reversed(op.node.outputs))  # -1 - k is output k
            found = [[(names[k], axis) for k, axis in product] for product in rule.macs(op)]
            for term in found if not op.node.home else self._repeated(op.node.home, found):
                yield op.node.index, term

    def _param_terms(self) -> Iterator[tuple[int, Axes]]:
        graph = self._groups.graph
        for number, name in enumerate(self._constants):
            constant = graph.constants[name]
            if constant.tensor.data_type in WEIGHTS and graph.readers.get(name):
                yield number, [(name, k) for k in range(len(constant.shape))]

    def _repeated(
        self, home: int, terms: list[list[tuple[str, int]]]
    ) -> list[list[tuple[str, int]]]:
        """The same for all rounds of a body, as an axis that nothing is removed from."""
        graph, shapes = self._groups.graph, self._groups.shapes
        rounds = borders.repeats(graph, home, shapes.shapes, shapes.values)
        key = (f"rounds of body {home}", 0)
        if rounds and key not in self._axes:
            self._axes[key] = len(self._sizes)
            self._sizes.append(rounds)
        return [[*term, key] for term in terms] if rounds else []

    @property
    def _refused(self) -> dict[int, str]:
        return self._groups.views[0].ties.refused

    def _terms(self, terms: list[tuple[int, Axes]], shares: Shares) -> Terms:
        """Axis references as indices, grouped by how many there are (for one product each)."""
        by_length: dict[int, list[tuple[int, list[int], float]]] = {}
        for owner, term in terms:
            refs, among = list[int](), 1.0
            for g in shares.get(owner, ()):
                refs.append(self._axes[f"units of group {g}", 0])
                among *= self._sizes[refs[-1]]
            for name, axis in term:
                key = (name, axis)
                if key not in self._axes:
                    self._axes[key] = len(self._sizes)
                    self._sizes.append(self._groups.shapes.shapes[name][axis])
                refs.append(self._axes[key])
            by_length.setdefault(len(refs), []).append((owner, refs, among))
        return [
            (
                np.asarray([refs for _, refs, _ in rows], np.intp).reshape(len(rows), length),
                np.asarray([owner for owner, _, _ in rows], np.intp),
                np.asarray([among for _, _, among in rows], np.float64),
            )
            for length, rows in by_length.items()
        ]

    def _find_cells(self) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.intp]]:
        """Every axis in cells of indices that belong to the same group in every view.

        Returns:
            The axis of every cell, its number of indices, and its group in every view, shape
            (views, cells); the last group number stands for none.
        """
        none = len(self._groups.groups)
        owner = []
        for v, view in enumerate(self._groups.views):
            of = np.full(len(view.labels), none)
            for g, group in enumerate(self._groups.groups):
                if group.view == v:
                    of[group.units] = g
            owner.append(of)
        rows: list[int] = []
        counts: list[NDArray[np.intp]] = []
        cells: list[NDArray[np.intp]] = []
        known: dict[int, tuple[NDArray[np.intp], NDArray[np.intp]]] = {}
        axes = self._groups.views[0].ties.axes
        # All at once, so that no two have one `id`.
        held = [
            axes[name][k].ids
            if name in axes
            else self._units.get(row, whole(int(self._full[row])).ids)
            for (name, k), row in self._axes.items()
        ]
        for ids, row in zip(held, self._axes.values(), strict=True):
            key = id(ids)
            if key not in known:
                of = np.stack(
                    [by[v.labels[ids]] for by, v in zip(owner, self._groups.views, strict=True)]
                )
                known[key] = np.unique(of, axis=1, return_counts=True)
            cells.append(known[key][0])
            counts.append(known[key][1])
            rows += [row] * len(known[key][1])
        empty = np.zeros((len(owner), 0), np.intp)
        return (
            np.asarray(rows, np.intp),
            np.concatenate([*counts, np.zeros(0)]).astype(np.float64),
            np.concatenate([empty, *cells], axis=1),
        )

    def of(self, groups: Groups, removed: Removed) -> Cost:
        """Cost after removing the blocks and these units, with what goes with each of them.

        Args:
            groups: those of this model of costs, perhaps with blocks that are to go.
        """
        counts = [len(removed.get(g, ())) for g in range(len(groups))]
        other = self.without(shortened(groups, removed))
        other._chosen = True
        return other(np.asarray(counts, np.int64))

    def __call__(self, removed: NDArray[np.int64] | None = None) -> Cost:
        """Cost after removing the blocks and ``removed[g]`` units of every group g; None: nothing
        is removed."""
        if removed is None:
            return Cost(_total(self._macs, self._full), _total(self._params, self._full))
        sizes = self._full
        if len(removed):
            kept = np.append(1 - removed / np.asarray([g.size for g in self._groups.groups]), 1.0)
            rows, counts, cells = self._cells
            left = np.bincount(rows, counts * kept[cells].prod(axis=0), minlength=len(sizes))
            sizes = np.round(left)
            if self._chosen:  # then what goes is left out of the terms
                sizes[list(self._units)] = self._full[list(self._units)]
        macs, params = self._left
        return Cost(_total(macs, sizes), _total(params, sizes))


def _but(terms: Terms, gone: list[int]) -> Terms:
    stay = [~np.isin(owners, gone) for _, owners, _ in terms] if gone else []
    return [(r[s], o[s], n[s]) for (r, o, n), s in zip(terms, stay, strict=True)] if gone else terms


def _total(terms: Terms, sizes: NDArray[np.float64]) -> int:
    total = sum((sizes[refs].prod(axis=1) / among).sum() for refs, _, among in terms)
    return round(float(total))
