"""The criteria: all of them, and those that look at weights or at nothing.

Every criterion is one small function that names its source. To add one, write the function and
list it in `CRITERIA`; `spa criteria` and docs/criteria.md follow.
"""

from __future__ import annotations

import numpy as np

from spa.activity import ACTIVITY
from spa.curves import by_curves
from spa.evidence import (
    Criterion,
    Evidence,
    Scores,
    by_axis,
    carriers,
    lengths,
    magnitudes,
    stored,
)
from spa.graph import Node
from spa.groups import Group
from spa.likeness import geometric_median, similarity
from spa.measure import Seen
from spa.perturb import perturbation
from spa.sites import Floats, Site, sites

__all__ = ["CRITERIA", "Criterion", "Evidence", "Scores", "Seen"]


def _l2(w: Floats, axis: int, _: np.random.Generator) -> Scores:
    w = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
    return np.asarray(np.einsum("ij,ij->i", w, w), np.float64)


def _random(w: Floats, axis: int, random: np.random.Generator) -> Scores:
    return np.asarray(random.random(w.shape[axis]))


def _lamp(squares: Scores) -> Scores:
    """Each over the sum of all that are not smaller, so that the largest has 1."""
    order = np.argsort(squares, kind="stable")
    ranked = squares[order]
    rest = np.cumsum(ranked[::-1])[::-1]
    first = np.searchsorted(ranked, squares)  # equal ones share one sum
    return np.divide(squares, rest[first], out=np.zeros_like(squares), where=squares > 0)


# Batch normalisation ----------------------------------------------------------------------------


def _norms(evidence: Evidence) -> dict[str, Node]:
    """The scales of batch normalisations, with their nodes."""
    nodes = evidence.groups.graph.nodes
    return {n.inputs[1]: n for n in nodes if n.op_type == "BatchNormalization"}


def _bn_scale(evidence: Evidence) -> list[Scores]:
    """|gamma| of the BatchNormalizations that carry the units; l1 in a group without any."""
    scales, found = _norms(evidence), magnitudes(evidence)
    for g, group in enumerate(evidence.groups):
        carriers = [m for m in group.members if m.tensor in scales]
        if carriers:
            rows = [lengths(evidence.groups.graph, m).sum(axis=1) for m in carriers]
            found[g] = evidence.aggregate(np.stack(rows))
    return found


# Data flow --------------------------------------------------------------------------------------


def _dfpc(evidence: Evidence) -> list[Scores]:
    """The sum, over every way from a weight that makes a unit to one that reads it, of

        (sum |W_reader[:, c]|) |gamma / sigma|_c (sum |W_maker[c, :]|)

    a bound on what the readers' outputs lose, up to the size of the inputs. Two departures from
    the paper: the sums over kernels hold away from the borders of a map, and every reader counts
    alike, whatever the size of its map. A depthwise convolution on the way is a factor, like a
    batch normalisation. Groups without such a way are judged by l1.
    """
    by_node = {s.node: s for s in sites(evidence.groups.graph)}
    scales, found = _norms(evidence), magnitudes(evidence)
    for g, group in enumerate(evidence.groups):
        flow = _Flow(evidence, group, by_node, scales)
        if flow.ways:
            found[g] = flow.total
    return found


class _Flow:
    """A unit's gain at every tensor on the way, shape (units, indices per unit), and what its
    readers make of it. A gain whose indices do not match a weight's stands there by its mean."""

    def __init__(
        self, evidence: Evidence, group: Group, by_node: dict[int, Site], scales: dict[str, Node]
    ) -> None:
        self._graph, self._shapes = evidence.groups.graph, evidence.groups.shapes
        self._members = {(m.tensor, m.axis): m for m in group.members}
        self._gains: dict[str, Scores] = {}
        self.total, self.ways = np.zeros(group.size), 0
        for node in self._graph.nodes:
            if node.index in by_node:
                self._pass_site(by_node[node.index])
            elif node.op_type == "BatchNormalization" and (node.inputs[1], 0) in self._members:
                self._carry(node, self._normed(scales[node.inputs[1]]))
            else:
                self._carry(node)

    def _pass_site(self, site: Site) -> None:
        reads = self._members.get((site.weight, site.in_axis))
        makes = self._members.get((site.weight, site.out_axis))
        gain = self._gains.get(site.x)
        if reads is not None and gain is not None:
            self.total += _times(lengths(self._graph, reads), gain).sum(axis=1)
            self.ways += 1
        if makes is not None:
            made = lengths(self._graph, makes)
            carried = gain is not None and reads is None and site.groups > 1
            self._gains[site.y] = _times(made, gain) if carried and gain is not None else made

    def _normed(self, node: Node) -> Scores:
        scale, variance = (np.abs(stored(self._graph, node.inputs[k])) for k in (1, 4))
        spread = np.sqrt(variance.astype(np.float64) + float(node.attrs.get("epsilon", 1e-5)))
        return np.asarray((scale / spread)[self._members[node.inputs[1], 0].index])

    def _carry(self, node: Node, factor: Scores | None = None) -> None:
        gains = [self._gains[name] for name in dict.fromkeys(node.inputs) if name in self._gains]
        if gains:
            widest = max(gains, key=lambda s: s.shape[1])
            gain = sum((_times(np.ones_like(widest), s) for s in gains), np.zeros_like(widest))
            out = gain if factor is None else _times(factor, gain)
            self._gains.update(dict.fromkeys(carriers(self._shapes, node), out))


def _times(weights: Scores, gain: Scores) -> Scores:
    same = weights.shape == gain.shape
    return np.asarray(weights * (gain if same else gain.mean(axis=1, keepdims=True)))


WEIGHTS = (
    Criterion(
        "l1", magnitudes, "weights", "Li et al. 2017, Pruning Filters for Efficient ConvNets"
    ),
    Criterion("l2", by_axis(_l2), "weights", "He et al. 2018, Soft Filter Pruning"),
    Criterion("random", by_axis(_random), "nothing", "the control that any criterion must beat"),
    Criterion(
        "lamp",
        by_axis(_l2, _lamp),
        "weights",
        "Lee et al. 2021, Layer-adaptive Sparsity for the Magnitude-based Pruning",
        normalized=True,
    ),
    Criterion("bn-scale", _bn_scale, "weights", "Liu et al. 2017, Network Slimming"),
    Criterion(
        "geometric-median",
        geometric_median,
        "weights",
        "He et al. 2019, Filter Pruning via Geometric Median",
    ),
    Criterion(
        "similarity",
        similarity,
        "weights",
        "Lee et al. 2025, STUN: Structured-Then-Unstructured Pruning for Scalable MoE Pruning;"
        " units of any kind, see spa.likeness",
    ),
    Criterion(
        "dfpc",
        _dfpc,
        "weights",
        "Narshana et al. 2023, DFPC: Data Flow Driven Pruning of Coupled Channels without Data",
    ),
)

OBSPA = Criterion(
    "obspa",
    by_curves,
    "calibration inputs",
    "Wang et al. 2024, Structurally Prune Anything; order by exact block-OBS, see spa.obs",
    normalized=True,
)
PERTURBATION = Criterion(
    "perturbation",
    perturbation,
    "calibration inputs",
    "Molchanov et al. 2017, Pruning CNNs for Resource Efficient Inference: the oracle, of outputs",
    normalized=True,
)
CRITERIA: dict[str, Criterion] = {c.name: c for c in (OBSPA, *WEIGHTS, *ACTIVITY, PERTURBATION)}
