"""What every group loses with every unit that it gives up.

One greedy run of exact block-OBS over what the dense network's sites saw gives a group its order
and its whole curve of error against width (see `spa.obs.order`). The error of a site is a share of
the energy of its output; a group's error is the sum over the sites that read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from spa.fit import Index, Matrix
from spa.groups import Groups
from spa.measure import Measured, Seen
from spa.obs import Demand, order

SHRINK_MADE_UP = 0.3  # of correlations towards none, where inputs are made up
SHRINK = 0.02


@dataclass(frozen=True)
class Curve:
    """order: positions of units, the first to go first, all but the last. loss: after each."""

    order: Index
    loss: Matrix


def curves(groups: Groups, measured: Measured) -> dict[int, Curve]:
    """The curve of every group that sites read; groups without are left out."""
    shrink = SHRINK_MADE_UP if measured.made_up else SHRINK
    found: dict[int, Curve] = {}
    for g, read in readers(groups, measured.sites).items():
        demands = [d for seen, units in read for d in _demands(seen, units, shrink)]
        found[g] = Curve(*order(demands, groups[g].size))
    return found


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


def _demands(seen: Seen, units: Index, shrink: float) -> list[Demand]:
    places = (units[:, :, None] * seen.taps + np.arange(seen.taps)).reshape(len(units), -1)
    demands = []
    for w, h in zip(seen.matrices(), seen.covariance, strict=True):
        own = np.diag(h).copy()
        shrunk = (1 - shrink) * h
        shrunk[np.diag_indices_from(h)] = own + 1e-8 * own.mean()
        demands.append(Demand(w, shrunk, places, 1 / max(seen.energy, 1e-300)))
    return demands
