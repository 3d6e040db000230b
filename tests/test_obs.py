"""Exact block-OBS against refits from scratch."""

from itertools import combinations

import numpy as np
import pytest

from spa.obs import Demand, order


def problem(features: int, seed: int, rank: int = 4) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    x = random.standard_normal((200, rank)) @ random.standard_normal((rank, features))
    x += 0.3 * random.standard_normal(x.shape)
    return random.standard_normal((5, features)), x.T @ x / len(x)


def least_loss(w: np.ndarray, h: np.ndarray, gone: list[int]) -> float:
    """E |W x - V x_S|^2 at the best V, by normal equations."""
    left = np.setdiff1d(np.arange(len(h)), gone)
    v = np.linalg.solve(h[np.ix_(left, left)], h[left] @ w.T).T
    d = w.copy()
    d[:, left] -= v
    return float(np.trace(d @ h @ d.T))


@pytest.mark.parametrize("per_unit", [1, 2])
def test_losses_are_those_of_a_refit_from_scratch(per_unit: int) -> None:
    w, h = problem(8, 0)
    units = np.arange(8).reshape(-1, per_unit)
    found, losses = order([Demand(w, h, units, 1.0)], len(units))
    assert len(found) == len(units) - 1
    for k, loss in enumerate(losses):
        gone = units[found[: k + 1]].ravel().tolist()
        assert loss == pytest.approx(least_loss(w, h, gone), rel=1e-5)


def test_the_first_to_go_is_the_best_of_all() -> None:
    w, h = problem(7, 1)
    found, _ = order([Demand(w, h, np.arange(7)[:, None], 1.0)], 7)
    assert found[0] == min(range(7), key=lambda k: least_loss(w, h, [k]))


def test_greedy_is_near_the_best_pair() -> None:
    w, h = problem(7, 2)
    _, losses = order([Demand(w, h, np.arange(7)[:, None], 1.0)], 7)
    best = min(least_loss(w, h, list(pair)) for pair in combinations(range(7), 2))
    assert best <= losses[1] * (1 + 1e-6) <= 1.5 * best


def test_several_sites_are_judged_together_by_their_weights() -> None:
    (w, h), (v, g) = problem(6, 3), problem(6, 4)
    units = np.arange(6)[:, None]
    found, losses = order([Demand(w, h, units, 1.0), Demand(v, g, units, 0.5)], 6)
    gone = found[:2].tolist()
    want = least_loss(w, h, gone) + 0.5 * least_loss(v, g, gone)
    assert losses[1] == pytest.approx(want, rel=1e-5)


def test_an_input_that_others_make_goes_first_and_costs_nothing() -> None:
    random = np.random.default_rng(5)
    x = random.standard_normal((300, 5))
    x = np.concatenate([x, x[:, :1] + x[:, 1:2]], axis=1)
    h = x.T @ x / len(x) + 1e-9 * np.eye(6)
    found, losses = order([Demand(random.standard_normal((3, 6)), h, np.arange(6)[:, None], 1)], 6)
    assert found[0] in (0, 1, 5) and losses[0] < 1e-5 < losses[1]


def test_dead_inputs_go_first() -> None:
    w, h = problem(5, 6)
    h[2] = h[:, 2] = 0
    found, losses = order([Demand(w, h, np.arange(5)[:, None], 1.0)], 5)
    assert found[0] == 2 and losses[0] == pytest.approx(0, abs=1e-9)
