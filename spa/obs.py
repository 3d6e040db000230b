"""The order in which the units of a group are missed least: exact block-OBS over all its sites.

With H the covariance of a site's inputs, removing unit c and letting the weights of the others make
up for it costs tr(W_c [(H^-1)_cc]^-1 W_c^T); then W -= W_c [(H^-1)_cc]^-1 (H^-1)_c, and H^-1 loses
its rows and columns c (Hassibi and Stork 1993; in blocks: OSSCAR, Meng et al. 2024). All rows of W
share what is removed, so one H^-1 serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, qr

from spa.fit import Index, Matrix, solve

SLACK = 0.1  # what is gone is cut out of the matrices when it is more than this share


@dataclass
class Demand:
    """What one site says of a group: its weights, and the covariance of its inputs.

    w: shape (outputs, f). h: shape (f, f), regularised by the caller.
    units: the positions of every unit among the inputs, shape (units, per unit).
    weight: what its error counts for, such as one over its dense output energy.
    """

    w: Matrix
    h: Matrix
    units: Index
    weight: float


def order(demands: Sequence[Demand], count: int, chunks: int = 48) -> tuple[Index, Matrix]:
    """The order in which units are removed at least loss, all but one, and what it costs.

    The units of a group are removed together from all of its sites. A share of 1/chunks of those
    that are left goes at a time.

    Returns:
        Positions of units, the first to go first, and the loss after each of them.
    """
    states = [_State(d) for d in demands]
    left = np.arange(count)
    gone: list[int] = []
    losses: list[float] = []
    total = 0.0
    while len(left) > 1:
        costs = np.zeros(len(left))
        for state in states:
            costs += state.costs(left)
        take = min(max(1, len(left) // chunks), len(left) - 1)
        chosen = np.argsort(costs, kind="stable")[:take]
        units = left[chosen]
        exact = sum(state.remove(units) for state in states)
        share = costs[chosen] / max(float(costs[chosen].sum()), 1e-300)
        losses += (total + np.cumsum(share * exact)).tolist()
        total += exact
        gone += units.tolist()
        left = np.delete(left, chosen)
    return np.asarray(gone, np.intp), np.maximum.accumulate(np.asarray(losses))


class _State:
    """The weights and the inverse covariance of a site as units go, at the places of these units
    alone: what others hold there has no part in it.

    w: shape (k, outputs), where k is what is left and some of what is gone. Only W W^T counts, so
    that more outputs than places are brought down to as many. units: places of units in w.
    """

    def __init__(self, demand: Demand) -> None:
        places, self.units = np.unique(demand.units, return_inverse=True)
        self.units = self.units.reshape(demand.units.shape)
        w = demand.w[:, places]
        self.w = np.array(
            (qr(w, mode="r")[0][: w.shape[1]] if len(w) > w.shape[1] else w).T, order="C"
        )
        self.weight = demand.weight
        self.gone = np.zeros(len(self.w), bool)
        self.inverse = solve(demand.h, np.eye(len(demand.h))[:, places], 1e-9)[places]
        self.inverse = (self.inverse + self.inverse.T) / 2

    def costs(self, left: Index) -> Matrix:
        units = self.units[left]
        if units.shape[1] == 1:
            c = units[:, 0]
            found = np.einsum("co,co->c", self.w, self.w)[c] / self._diagonal(c)
        else:
            block = self.inverse[units[:, :, None], units[:, None, :]]
            block += (
                np.eye(units.shape[1]) * 1e-9 * np.trace(block, axis1=1, axis2=2)[:, None, None]
            )
            w = self.w[units]  # (units, per unit, outputs)
            products = np.matmul(w, np.swapaxes(w, 1, 2))
            found = np.trace(np.linalg.solve(block, products), axis1=1, axis2=2)
        return self.weight * np.asarray(found)

    def _diagonal(self, c: Index) -> Matrix:
        return np.maximum(self.inverse[c, c], 1e-300)

    def remove(self, units: Index) -> float:
        c = self.units[units].ravel()
        beside = self.inverse[c]
        block = beside[:, c]
        block[np.diag_indices_from(block)] *= 1 + 1e-9
        factor = cho_factor(block, lower=True)
        rows = cho_solve(factor, beside)  # (block^-1) H^-1_c
        wc = self.w[c]
        loss = float((wc * cho_solve(factor, wc)).sum())
        self.w -= rows.T @ wc
        self.inverse -= beside.T @ rows
        self.w[c] = 0
        self.inverse[c] = 0
        self.inverse[:, c] = 0
        self.inverse[c, c] = 1
        self.gone[c] = True
        if self.gone.mean() > SLACK:
            self._shrink()
        return self.weight * max(loss, 0.0)

    def _shrink(self) -> None:
        stay = np.flatnonzero(~self.gone)
        self.units = (np.cumsum(~self.gone) - 1)[self.units]  # of those gone never asked for again
        self.w, self.inverse = self.w[stay], self.inverse[np.ix_(stay, stay)]
        self.gone = np.zeros(len(stay), bool)
