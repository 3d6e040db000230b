"""What is chance in correlations, and what two kinds of inputs have in common."""

import numpy as np
import pytest

from spa.doubt import PARTS, agreement, chance


def chance_slowly(rows: np.ndarray, parts: int) -> float:
    """Schäfer and Strimmer's equation 8, entry by entry."""
    scaled = rows / rows.std(0)
    own = [p.T @ p / len(p) for p in np.array_split(scaled, parts)]
    whole = scaled.T @ scaled / len(scaled)
    squares = missed = 0.0
    for i in range(rows.shape[1]):
        for j in range(rows.shape[1]):
            if i != j:
                missed += sum((o[i, j] - whole[i, j]) ** 2 for o in own) / parts / (parts - 1)
                squares += whole[i, j] ** 2
    return missed / squares


def test_what_of_correlations_is_chance() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((640, 9)) @ random.standard_normal((9, 9))
    rows -= rows.mean(0)
    found = chance(rows[None].astype("f4"), (rows.T @ rows / 640)[None])
    assert found == pytest.approx(chance_slowly(rows, PARTS), rel=1e-4)
    assert 0 < found < 0.1
    blind = random.standard_normal((640, 9))
    blind -= blind.mean(0)
    assert chance(blind[None].astype("f4"), (blind.T @ blind / 640)[None]) > 0.5


def test_places_of_a_picture_are_not_samples_of_their_own() -> None:
    random = np.random.default_rng(0)
    rows = random.standard_normal((32, 9)).repeat(50, 0)
    rows -= rows.mean(0)
    covariance = (rows.T @ rows / len(rows))[None]
    shuffled = random.permutation(rows)[None].astype("f4")
    apart, mixed = chance(rows[None].astype("f4"), covariance), chance(shuffled, covariance)
    assert apart > 5 * mixed


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_few_rows_and_dead_channels_make_no_nan(rows: int) -> None:
    x = np.zeros((2, rows, 3), np.float32)
    assert chance(x, np.zeros((2, 3, 3))) == 0.0


def test_what_two_kinds_of_inputs_have_in_common() -> None:
    """Half of what each shows is true of all kinds: so much a third kind's correlations go with
    those of the first, and so much is the cosine of the two."""
    random = np.random.default_rng(0)
    common, *own = (np.tril(random.standard_normal((40, 40)), -1) for _ in range(4))
    one, other, third = (np.eye(40) + 0.01 * (common + o + (common + o).T) for o in own)
    found = agreement(one[None], other[None])
    below = np.tril_indices(40, -1)
    slope = float((third[below] * one[below]).sum() / (one[below] ** 2).sum())
    assert found == pytest.approx(0.5, abs=0.1) and slope == pytest.approx(found, abs=0.1)
    scale = random.uniform(0.1, 10, 40)
    assert agreement((one * np.outer(scale, scale))[None], other[None]) == pytest.approx(found)
    assert agreement(one[None], one[None]) == pytest.approx(1)


def test_taps_of_one_channel_go_together_on_all_inputs() -> None:
    random = np.random.default_rng(0)
    within = np.kron(np.eye(6), np.full((3, 3), 0.9)) + 0.1 * np.eye(18)
    own = (np.tril(random.standard_normal((18, 18)), -1) for _ in range(2))
    one, other = ((within + 0.01 * (o + o.T))[None] for o in own)
    assert agreement(one, other) > 0.9 > 0.5 > agreement(one, other, 3)
    assert agreement(within[None], within[None], 3) == 1  # there is nothing to disagree on
