"""The order of removal against one that inverts everything anew for every unit."""

from __future__ import annotations

import numpy as np
import pytest

from spa.fit import Index, Matrix
from spa.obs import Demand, order


def covariance(f: int, seed: int) -> Matrix:
    x = np.random.default_rng(seed).normal(size=(4 * f, f))
    x[:, 1:] += 0.8 * x[:, :-1]
    return np.asarray(x.T @ x / len(x))


def demand(units: Index, f: int, outputs: int, seed: int, weight: float = 1.0) -> Demand:
    w = np.random.default_rng(seed + 100).normal(size=(outputs, f))
    return Demand(w, covariance(f, seed), units, weight)


def loss(one: Demand, gone: list[int]) -> float:
    """What is lost without these units when all other weights are free, from the start."""
    places = one.units[gone].ravel()
    inverse = np.linalg.inv(one.h)[np.ix_(places, places)]
    lost = one.w[:, places]
    return one.weight * float(np.trace(lost @ np.linalg.solve(inverse, lost.T)))


def greedy(demands: list[Demand], count: int) -> tuple[list[int], list[float]]:
    gone: list[int] = []
    losses = []
    while len(gone) < count - 1:
        left = [u for u in range(count) if u not in gone]
        totals = [sum(loss(d, [*gone, u]) for d in demands) for u in left]
        gone.append(left[int(np.argmin(totals))])
        losses.append(min(totals))
    return gone, losses


# Units, inputs of each, inputs that belong to none, outputs: also more than there are inputs.
SHAPES = [(12, 1, 0, 5), (12, 1, 3, 40), (9, 4, 0, 7), (9, 4, 5, 90)]


@pytest.mark.parametrize("count, each, others, outputs", SHAPES)
def test_order_is_greedy(count: int, each: int, others: int, outputs: int) -> None:
    f = count * each + others
    places = np.random.default_rng(0).permutation(f)[: count * each].reshape(count, each)
    demands = [demand(places, f, outputs, 1), demand(places[::-1], f, 3, 2, 5.0)]
    before = [(d.w.copy(), d.h.copy()) for d in demands]
    found, losses = order(demands, count)
    wanted, totals = greedy(demands, count)
    assert found.tolist() == wanted
    assert np.allclose(losses, totals, rtol=1e-5)
    for d, (w, h) in zip(demands, before, strict=True):
        assert np.array_equal(d.w, w) and np.array_equal(d.h, h)


def test_several_at_a_time_lose_what_they_lose_together() -> None:
    one = demand(np.arange(40)[:, None], 40, 8, 3)
    found, losses = order([one], 40, chunks=5)
    assert sorted([*found.tolist(), *(set(range(40)) - set(found.tolist()))]) == list(range(40))
    assert losses[7] == pytest.approx(loss(one, found[:8].tolist()), rel=1e-5)
    assert losses[-1] == pytest.approx(loss(one, found.tolist()), rel=1e-5)
    assert (np.diff(losses) >= 0).all()


def test_an_input_that_never_varies_goes_first() -> None:
    one = demand(np.arange(6)[:, None], 6, 4, 4)
    one.h[2] = one.h[:, 2] = 0
    found, losses = order([one], 6)
    assert found[0] == 2 and losses[0] < 1e-6 and np.isfinite(losses).all()
