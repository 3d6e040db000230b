"""Which kept unit can stand in for a removed one, by the weights that make them.

Neuron Merging (Kim et al. 2020, Neuron Merging: Compensating for Pruned Neurons): where the weights
that make unit j are s times those of unit k, so are their outputs, also behind a ReLU; what reads j
can read k times s instead. The unit that stands in is the nearest by cosine, with a share for how
far the biases are apart; or all kept units stand in together, in the least squares.

Units are compared by the inner products of their weights, a matrix that is carried along the graph:
batch normalisation scales it, a depthwise convolution multiplies it by its own kernels' inner
products (as for the kernels' outer products with the weights before), an addition adds (as for
weights side by side). So the units of a residual stream are alike where all that write them are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa.evidence import carriers, slices, stored
from spa.fit import solve
from spa.graph import Node
from spa.groups import Group, Groups, Removed
from spa.sites import Site, sites

Matrix = NDArray[np.float64]

LEAST = 0.1  # of the cosine; below it nothing stands in
RIDGE = 0.01  # of a combination, of the diagonal
SHARE = 0.85  # of the cosine in what is nearest, the rest is for the bias; both as in its code


@dataclass(frozen=True)
class Likeness:
    """products: of the weights that make the units, shape (units, units). bias: shape (units,)."""

    products: Matrix
    bias: Matrix


StandIns = Callable[
    ["Likeness", NDArray[np.intp], NDArray[np.intp]], Iterator[tuple[int, int, float]]
]


def stand_ins(groups: Groups, removed: Removed, choose: StandIns) -> dict[int, Matrix]:
    """Node of a site -> what each of its inputs (of a group) is of the others, shape (i, i): the
    identity, but for the rows of removed inputs, which have a scale at those that stand in.

    Args:
        choose: `nearest` or `combined`.
    """
    found: dict[int, Matrix] = {}
    by_node = {s.node: s for s in sites(groups.graph)}
    for g, gone in removed.items():
        for site, likeness in _Flow(groups, groups[g], by_node).readers():
            member = next(
                m for m in groups[g].members if (m.tensor, m.axis) == (site.weight, site.in_axis)
            )
            size = groups.graph.constants[site.weight].shape[site.in_axis]
            mixed = found.setdefault(site.node, np.eye(size))
            stay = np.setdiff1d(np.arange(groups[g].size), gone)
            mixed[member.index[gone].ravel()] = 0
            for unit, other, scale in choose(likeness, stay, gone):
                mixed[member.index[unit], member.index[other]] = scale
    return found


def nearest(
    likeness: Likeness, stay: NDArray[np.intp], gone: NDArray[np.intp]
) -> Iterator[tuple[int, int, float]]:
    """Removed unit, the kept one that stands in for it, and the scale."""
    norms = np.sqrt(np.maximum(np.diag(likeness.products), 0))
    stay = stay[norms[stay] > 0]
    for unit in gone.tolist():
        if not len(stay) or norms[unit] == 0:
            continue
        cosine = likeness.products[unit, stay] / (norms[unit] * norms[stay])
        scale = norms[unit] / norms[stay]
        apart = np.abs(scale * likeness.bias[stay] - likeness.bias[unit])
        apart = (apart - apart.min()) / max(float(np.ptp(apart)), 1e-30)
        best = int(np.argmin(SHARE * (1 - cosine) + (1 - SHARE) * apart))
        if cosine[best] >= LEAST:
            yield unit, int(stay[best]), float(scale[best])


def combined(
    likeness: Likeness, stay: NDArray[np.intp], gone: NDArray[np.intp]
) -> Iterator[tuple[int, int, float]]:
    """Removed unit, a kept one, and the scale at which this is a part of what stands in: all kept
    ones together, such that the weights are nearest in the least squares (UDFC, Bai et al. 2023).
    Biases are not looked at: to match them as well costs more than it brings."""
    norms = np.diag(likeness.products)
    stay, gone = stay[norms[stay] > 0], gone[norms[gone] > 0]
    if not len(stay) or not len(gone):
        return
    whole = likeness.products
    scales = solve(whole[np.ix_(stay, stay)], whole[np.ix_(stay, gone)], RIDGE)
    for unit, column in zip(gone.tolist(), scales.T.tolist(), strict=True):
        for other, scale in zip(stay.tolist(), column, strict=True):
            yield unit, other, scale


class _Flow:
    """How alike the units of a group are at every tensor that carries them."""

    def __init__(self, groups: Groups, group: Group, by_node: dict[int, Site]) -> None:
        self._graph, self._shapes, self._by_node = groups.graph, groups.shapes, by_node
        self._size = group.size
        self._members = {(m.tensor, m.axis): m for m in group.members}
        self._at: dict[str, Likeness] = {}

    def readers(self) -> Iterator[tuple[Site, Likeness]]:
        """The sites that read the units, where something makes them."""
        for node in self._graph.nodes:
            site = self._by_node.get(node.index)
            if site is None:
                self._carry(node)
                continue
            likeness = self._at.get(site.x)
            reads = (site.weight, site.in_axis) in self._members
            if reads and likeness is not None:
                yield site, likeness
            if (site.weight, site.out_axis) in self._members:
                self._at[site.y] = self._made(site, node, None if reads else likeness)

    def _made(self, site: Site, node: Node, before: Likeness | None) -> Likeness:
        w = slices(self._graph, self._members[site.weight, site.out_axis]).astype(np.float64)
        bias = self._vector(node, 2) if len(node.inputs) > 2 else np.zeros(self._size)
        products = w @ w.T
        if before is None or site.groups == 1:
            return Likeness(products, bias)
        return Likeness(products * before.products, w.sum(1) * before.bias + bias)

    def _carry(self, node: Node) -> None:
        given = [self._at[n] for n in node.inputs if n in self._at]
        if not given:
            return
        out = given[0]
        if node.op_type == "BatchNormalization":
            gain, shift, mean, var = (self._vector(node, k) for k in (1, 2, 3, 4))
            scale = gain / np.sqrt(var + float(node.attrs.get("epsilon", 1e-5)))
            out = Likeness(out.products * np.outer(scale, scale), scale * (out.bias - mean) + shift)
        elif node.op_type == "Mul":  # of two, not of one and a function of itself
            for one in [one for one in given[1:] if one is not out]:
                out = Likeness(out.products * one.products, out.bias * one.bias)
        else:
            for one in given[1:]:
                out = Likeness(out.products + one.products, out.bias + one.bias)
            if node.op_type == "Add" and len(given) == 1:
                k = next(k for k, n in enumerate(node.inputs) if n not in self._at)
                out = Likeness(out.products, out.bias + self._vector(node, k))
        self._at.update(dict.fromkeys(carriers(self._shapes, node), out))

    def _vector(self, node: Node, position: int) -> Matrix:
        """What a node stores for every unit; zeros where that is not a vector of the group."""
        name = node.inputs[position] if position < len(node.inputs) else ""
        member = self._members.get((name, 0))
        if member is None or len(self._graph.constants[name].shape) != 1:
            return np.zeros(self._size)
        return np.asarray(stored(self._graph, name)[member.index].mean(1, dtype=np.float64))
