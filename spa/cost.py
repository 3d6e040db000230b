"""Multiply-accumulates, parameters and bytes, as functions of the kept sizes.

MACs count Conv, ConvTranspose, MatMul, Gemm, Einsum and recurrent products, once each, at the
sizes that the analysis bound the free axes to. Parameters count every stored weight, quantised
ones included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from spa import rules
from spa.graph import WEIGHTS
from spa.groups import Groups


@dataclass(frozen=True)
class Cost:
    """macs, params: totals at some sizes."""

    macs: int
    params: int


class CostModel:
    """The cost of a model after removing so many units of every group.

    Every size is linear in the units removed, ``size - A @ removed``, and a product of sizes is the
    cost of one node or one constant. Where groups of two views cross on one axis (heads and head
    dims) the axis is a grid, and their shares multiply.
    """

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._axes: dict[tuple[str, int], int] = {}
        self._sizes: list[int] = []
        macs = list(self._mac_terms())
        params = [
            [(name, k) for k in range(len(c.shape))]
            for name, c in groups.graph.constants.items()
            if c.tensor.data_type in WEIGHTS and groups.graph.readers.get(name)
        ]
        self._macs = self._terms(macs)
        self._params = self._terms(params)
        self._full = np.asarray(self._sizes or [1], float)
        self._shares = self._share_matrices()

    def _mac_terms(self) -> list[list[tuple[str, int]]]:
        terms = []
        for op in self._groups.views[0].ties.ops.values():
            rule = rules.find(op.node.op_type, op.node.domain)
            if rule is None or rule.macs is None or op.node.index in self._refused:
                continue
            names = (*op.node.inputs, *reversed(op.node.outputs))  # -1 - k is output k
            terms += [[(names[k], axis) for k, axis in product] for product in rule.macs(op)]
        return terms

    @property
    def _refused(self) -> dict[int, str]:
        return self._groups.views[0].ties.refused

    def _terms(self, terms: list[list[tuple[str, int]]]) -> list[NDArray[np.intp]]:
        """Axis references as indices, grouped by how many there are (for one product each)."""
        by_length: dict[int, list[list[int]]] = {}
        for term in terms:
            refs = []
            for name, axis in term:
                key = (name, axis)
                if key not in self._axes:
                    self._axes[key] = len(self._sizes)
                    self._sizes.append(self._groups.shapes.shapes[name][axis])
                refs.append(self._axes[key])
            by_length.setdefault(len(refs), []).append(refs)
        return [np.asarray(refs, np.intp) for refs in by_length.values()]

    def _share_matrices(self) -> list[csr_array]:
        """Per view: how many indices of every axis one unit of every group stands for."""
        owner = []
        for v, view in enumerate(self._groups.views):
            of = np.full(len(view.labels), -1)
            for g, group in enumerate(self._groups.groups):
                if group.view == v:
                    of[group.units] = g
            owner.append(of)
        matrices = []
        for v, view in enumerate(self._groups.views):
            rows, columns, counts = [], [], []
            known: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
            for (name, k), row in self._axes.items():
                if name not in view.ties.axes:
                    continue
                ids = view.ties.axes[name][k].ids
                if id(ids) not in known:
                    found = owner[v][view.labels[ids]]
                    known[id(ids)] = np.unique(found[found >= 0], return_counts=True)
                for g, n in zip(*known[id(ids)], strict=True):
                    rows.append(row)
                    columns.append(int(g))
                    counts.append(n / self._groups.groups[int(g)].size)
            shape = (len(self._sizes) or 1, len(self._groups.groups))
            matrices.append(csr_array((counts, (rows, columns)), shape=shape))
        return matrices

    def __call__(self, removed: NDArray[np.int64] | None = None) -> Cost:
        """Cost after removing ``removed[g]`` units of every group g; None: nothing."""
        sizes = self._full.copy()
        if removed is not None and len(removed):
            for matrix in self._shares:
                sizes *= 1 - (matrix @ removed) / np.maximum(self._full, 1)
        sizes = np.round(sizes)
        return Cost(_total(self._macs, sizes), _total(self._params, sizes))


def _total(terms: list[NDArray[np.intp]], sizes: NDArray[np.float64]) -> int:
    return int(sum(sizes[refs].prod(axis=1).sum() for refs in terms))
