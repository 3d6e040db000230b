"""What every group loses with every unit that it gives up.

One greedy run of exact block-OBS over what the dense network's sites saw gives a group its order
and its whole curve of error against width (see `spa.obs.order`). The error of a site is a share of
the energy of its output; a group's error is the sum over the sites that read it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from spa import reals, scales
from spa.evidence import Evidence, Row, Scores, matched
from spa.fit import Index, Matrix
from spa.groups import Group, Groups
from spa.logits import SeenProduct
from spa.measure import Seen
from spa.obs import Demand, order


@dataclass(frozen=True)
class Curve:
    """order: positions of units, the first to go first, all but the last. loss: after each."""

    order: Index
    loss: Matrix

    def scores(self, size: int) -> Matrix:
        """What every unit adds to the loss; the last to stay adds as much as the one before."""
        found = np.full(size, float(self.loss[-1]) if len(self.loss) else 0.0)
        found[self.order] = self.loss
        return found


def curves(
    groups: Groups,
    sites: Mapping[int, Seen],
    products: Mapping[int, SeenProduct] | None = None,
) -> dict[int, Curve]:
    """The curve of every group; of one that no site and no product of activations reads, by the
    energy of its weights."""
    read, multiplied = readers(groups, sites), multipliers(groups, products or {})
    found, whole = dict[int, Curve](), matched(groups)
    for g, group in enumerate(groups):
        demands = [d for seen, units in read.get(g, []) for d in _demands(seen, units)]
        demands += [d for seen, units in multiplied.get(g, []) for d in _pairs(seen, units)]
        if demands:
            found[g] = Curve(*order(demands, group.size))
        else:
            found[g] = _by_weights(groups, group, whole.get(g, ()))
    return found


def by_curves(evidence: Evidence) -> list[Scores]:
    """What removing a unit, after those that are missed less, adds to the loss."""
    drawn = curves(evidence.groups, evidence.seen)
    return [drawn[g].scores(group.size) for g, group in enumerate(evidence.groups)]


def _by_weights(groups: Groups, group: Group, whole: Sequence[Row] = ()) -> Curve:
    """Without a view of its inputs: a unit is worth its share of the energy of the weights, those
    that go as a whole with it included."""
    shares = np.zeros(group.size)
    members = [m for m in group.members if not scales.is_beside(groups.graph, m.tensor)]
    for member in members or group.members:
        w = reals.real(groups.graph, member.tensor).astype(np.float64)
        lines = np.square(np.moveaxis(w, member.axis, 0).reshape(w.shape[member.axis], -1)).sum(1)
        shares += lines[member.index].sum(1) / max(float(lines.sum()), 1e-300)
    for row in whole:
        own = np.asarray([sum(_energy(groups, name) for name in names) for names in row])
        shares += own / max(float(own.sum()), 1e-300)
    order_ = np.argsort(shares, kind="stable")[:-1]
    return Curve(order_, np.cumsum(shares[order_]) / (len(members or group.members) + len(whole)))


def _energy(groups: Groups, name: str) -> float:
    return float(np.square(reals.real(groups.graph, name), dtype=np.float64).sum())


def readers(groups: Groups, sites: Mapping[int, Seen]) -> dict[int, list[tuple[Seen, Index]]]:
    """Group -> the sites whose input channels it holds, and where its units are among those."""
    by_weight = {(s.site.weight, s.site.in_axis): s for s in sites.values()}
    found: dict[int, list[tuple[Seen, Index]]] = {}
    for g, group in enumerate(groups):
        for member in group.members:
            seen = by_weight.get((member.tensor, member.axis))
            if seen is not None:
                found.setdefault(g, []).append((seen, member.index))
    return found


def multipliers(
    groups: Groups, products: Mapping[int, SeenProduct]
) -> dict[int, list[tuple[SeenProduct, Index]]]:
    """Group -> the products that are summed over its units, and where these are in every head,
    shape (units, heads)."""
    makers: dict[tuple[str, int], list[SeenProduct]] = {}
    for seen in products.values():
        site = seen.product.sides[0].site
        makers.setdefault((site.weight, site.out_axis), []).append(seen)
    found: dict[int, list[tuple[SeenProduct, Index]]] = {}
    for g, group in enumerate(groups):
        for member in group.members:
            for seen in makers.get((member.tensor, member.axis), []):
                at = np.full(int(member.index.max()) + 1, -1)
                at[member.index] = np.arange(group.size)[:, None]
                channels = seen.product.sides[0].channels
                unit = np.where(channels < len(at), at[np.minimum(channels, len(at) - 1)], -1)
                places = np.argsort(unit, axis=1, kind="stable")
                whole = np.take_along_axis(unit, places, 1)
                if whole.shape[1] == group.size and (whole == np.arange(group.size)).all():
                    found.setdefault(g, []).append((seen, places.T))
    return found


def _pairs(seen: SeenProduct, units: Index) -> list[Demand]:
    """A product as two sites: each side's rows are the weights of the other. What both together
    lose is no more than the sum of what each loses alone."""
    demands = []
    for h, (q, k) in enumerate(zip(seen.queries, seen.keys, strict=True)):
        for own, other in ((q, k), (k, q)):
            shrunk = own.copy()
            shrunk[np.diag_indices_from(own)] += 1e-8 * np.diag(own).mean() + 1e-30
            weight = 0.5 / max(seen.energy, 1e-300)
            demands.append(Demand(root(other), shrunk, units[:, h : h + 1], weight))
    return demands


def root(a: Matrix) -> Matrix:
    """R with R^T R = A."""
    values, vectors = np.linalg.eigh(a)
    return np.asarray(np.sqrt(np.maximum(values, 0))[:, None] * vectors.T)


def _demands(seen: Seen, units: Index) -> list[Demand]:
    places = (units[:, :, None] * seen.taps + np.arange(seen.taps)).reshape(len(units), -1)
    demands = []
    for w, h in zip(seen.matrices(), seen.second(), strict=True):
        own = np.diag(h).copy()
        shrunk = (1 - seen.shrink) * h
        shrunk[np.diag_indices_from(h)] = own + 1e-8 * own.mean()
        demands.append(Demand(w, shrunk, places, 1 / max(seen.energy, 1e-300)))
    return demands
