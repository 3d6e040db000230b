"""The methods that give remaining weights new values, against slow ways to the same."""

from __future__ import annotations

import numpy as np
import pytest

from spa.fit import (
    DAMPING,
    METHODS,
    MIDDLE,
    SOURCES,
    STRENGTHS,
    Index,
    Matrix,
    by_merge,
    by_refit,
    by_sweep,
    moments,
    refit,
    restored,
)
from spa.measure import SHRINK_MADE_UP
from spa.options import CHOICES
from spa.settings import COMPENSATE

KEPT: list[list[int]] = [[0, 2, 3, 6], [4, 5, 6], [0, 1, 2], [6]]


def test_the_command_line_names_all() -> None:
    assert CHOICES["compensate"] == COMPENSATE == (*METHODS, "fold", "none")
    assert tuple(SOURCES) == COMPENSATE[:-1]


def inputs(g: int, f: int) -> Matrix:
    """Rows of correlated inputs, shape (g, rows, f)."""
    random = np.random.default_rng(f)
    return random.normal(size=(g, 50, f)) @ random.normal(size=(g, f, f)) + 0.5


def with_whole(w: Matrix, x: Matrix, kept: Index, whole: Matrix) -> Matrix:
    found = moments(w, x, x[:, :, kept], True)
    found = type(found)(found.mean_y, found.mean_z, found.yz, found.zz, found.energy, whole)
    v, change = by_sweep(w, kept, found)
    assert not change.any()
    return v


def one_at_a_time(w: Matrix, kept: Index, h: Matrix) -> Matrix:
    """From left to right: set a weight to zero, move those to its right to where the least squared
    change of the output is."""
    v = w.copy()
    for i in np.setdiff1d(np.arange(w.shape[1]), kept):
        right = np.arange(i + 1, w.shape[1])
        moved = np.linalg.solve(h[np.ix_(right, right)], np.outer(h[right, i], v[:, i]))
        v[:, right] += moved.T
        v[:, i] = 0
    return v


@pytest.mark.parametrize("kept", KEPT)
def test_sweep_moves_what_is_to_the_right(kept: list[int]) -> None:
    x = inputs(2, 7)
    w = np.random.default_rng(1).normal(size=(2, 3, 7))
    whole = np.swapaxes(x, 1, 2) @ x / x.shape[1]
    before = whole.copy()
    found = with_whole(w, x, np.asarray(kept), whole)
    assert np.array_equal(whole, before)
    for k in range(2):
        h = whole[k] + DAMPING * np.diag(whole[k]).mean() * np.eye(7)
        assert np.allclose(found[k], one_at_a_time(w[k], np.asarray(kept), h)[:, kept])


def test_sweep_leaves_what_is_to_the_left() -> None:
    x, w = inputs(1, 7), np.random.default_rng(2).normal(size=(1, 3, 7))
    found = with_whole(w, x, np.asarray([0, 1, 4, 6]), np.swapaxes(x, 1, 2) @ x)
    assert np.array_equal(found[:, :, :2], w[:, :, :2])
    assert not np.isclose(found[:, :, 2:], w[:, :, [4, 6]]).any()


def test_sweep_of_inputs_that_are_always_zero() -> None:
    x = inputs(1, 5)
    x[:, :, 3] = 0
    w = np.random.default_rng(3).normal(size=(1, 2, 5))
    found = with_whole(w, x, np.asarray([0, 2, 4]), np.swapaxes(x, 1, 2) @ x)
    assert np.isfinite(found).all()


def test_merge_mixes_columns() -> None:
    x, w = inputs(1, 3), np.arange(6.0).reshape(1, 2, 3)
    found = moments(w, x, x[:, :, :2], True)
    standing = np.asarray([[1, 0], [0, 1], [0, 0.5]])
    found = type(found)(
        found.mean_y, found.mean_z, found.yz, found.zz, found.energy, None, standing
    )
    v, change = by_merge(w, np.asarray([0, 1]), found)
    assert np.array_equal(v, [[[0, 2], [3, 6.5]]])
    assert not change.any()


def test_restored_outputs_vary_as_the_dense_ones_around_the_same_mean() -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((2, 400, 6)) @ random.standard_normal((2, 6, 6)) + 1
    w = random.standard_normal((2, 5, 6))
    kept = np.asarray([0, 2, 5])
    found = moments(w, x, x[:, :, kept], True)
    v, _ = refit(w[:, :, kept], found, 0.1)
    longer, change = restored(v, found, 1e-3, 1e3)
    wanted = np.matmul(x, np.swapaxes(w, 1, 2))
    got = np.matmul(x[:, :, kept], np.swapaxes(longer, 1, 2)) + change[:, None]
    assert np.allclose(got.std(1), wanted.std(1)) and np.allclose(got.mean(1), wanted.mean(1))
    assert np.allclose(longer / v, (longer / v)[:, :, :1])  # each output as a whole


@pytest.mark.parametrize("best", range(len(STRENGTHS)))
def test_strengths_are_climbed_to_the_best(best: int) -> None:
    x, w = inputs(1, 6), np.random.default_rng(4).normal(size=(1, 3, 6))
    kept = np.asarray([0, 2, 5])
    m = moments(w, x, x[:, :, kept], True)
    at = [refit(w[:, :, kept], m, lam)[0] for lam in STRENGTHS]

    def judge(v: Matrix, change: Matrix) -> float:
        """How many steps a candidate is from the best."""
        apart = [float(np.abs(v - other).max()) for other in at]
        return abs(int(np.argmin(apart)) - best) if min(apart) == 0 else 99.0

    tried = by_refit(w, kept, m, judge)
    first, last = (MIDDLE if best > MIDDLE else best - 1), max(best, MIDDLE) + 1
    looked_at = [k for k in range(first, last + 1) if 0 <= k < len(STRENGTHS)]
    assert len(tried) == 1 + len(looked_at)
    (v, _), error = min(tried, key=lambda found: found[1])
    assert error == 0 and np.array_equal(v, at[best])


def test_candidates_are_judged_by_what_was_held_out() -> None:
    x, w = inputs(1, 6), np.random.default_rng(4).normal(size=(1, 3, 6))
    kept = np.asarray([0, 2, 5])
    m = moments(w, x, x[:, :, kept], True)
    for name in ("bias", "refit"):
        for (v, change), error in METHODS[name](w, kept, m, m.error):
            assert error == pytest.approx(m.error(v, change))


def test_what_new_weights_add_where_no_input_tells_of_another() -> None:
    random = np.random.default_rng(0)
    x, w = inputs(2, 4), random.normal(size=(2, 3, 4))
    v = w + random.normal(size=w.shape)
    m = moments(w, x, x, True)
    others = random.normal(size=(2, 200_000, 4)) * x.std(1, keepdims=True)
    added = (np.matmul(others, np.swapaxes(v - w, 1, 2)) ** 2).mean(1).sum()
    assert m.apart(v, w) == pytest.approx(added / m.energy, rel=0.02)
    assert m.apart(w, w) == 0


def test_doubted_inputs_are_not_told_apart_by_their_small_differences() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(1, 500, 3))
    x[:, :, 1] = x[:, :, 0] + 0.01 * x[:, :, 2]  # on these inputs the third is 100 (b - a)
    w = np.ones((1, 2, 3))
    kept = np.asarray([0, 1])
    m = moments(w, x, x[:, :, kept], True)

    def longest(doubt: float) -> float:
        def judged(v: Matrix, change: Matrix) -> float:
            return (1 - doubt) * m.error(v, change) + doubt * m.apart(v, w[:, :, kept])

        tried = by_refit(w, kept, m, judged)
        return float(np.abs(min(tried, key=lambda found: found[1])[0][0]).max())

    assert longest(0.0) > 50
    assert longest(SHRINK_MADE_UP) < 3
