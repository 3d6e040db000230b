"""How far correlations of calibration inputs are to be believed: what is chance in so few of them,
and what two kinds of made-up inputs do not have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
Floats = NDArray[np.floating[Any]]
PARTS = 16  # of the inputs, held against one another


def chance(rows: Floats, covariance: Matrix) -> float:
    """How much of the correlations of so few inputs is chance: the sum of their variances, from one
    part of the inputs to the next, over that of their squares (Schäfer and Strimmer 2005, equation
    8). Places of one picture go together, so that parts are held against one another, not rows.

    Args:
        rows: centred, in the order of samples, shape (g, rows, f). covariance: of them, (g, f, f).
    """
    scale = _scale(covariance).astype(np.float32)
    apart = ~np.eye(covariance.shape[1], dtype=bool)
    mean = np.where(apart, covariance / scale, 0).astype(np.float32)
    parts_ = np.array_split(rows, max(min(PARTS, rows.shape[1]), 1), axis=1)
    missed = 0.0
    for part in parts_:
        own_ = np.matmul(np.swapaxes(part, 1, 2), part) / np.float32(max(part.shape[1], 1))
        missed += float(np.square(np.where(apart, own_ / scale - mean, 0)).sum(dtype=np.float64))
    squares = float(np.square(mean).sum(dtype=np.float64))
    chance_ = missed / max(len(parts_) * (len(parts_) - 1), 1)
    return min(chance_ / squares, 1.0) if squares > 0 else 0.0


def agreement(one: Matrix, other: Matrix, each: int = 1) -> float:
    """How much of the correlations between channels is the same on two kinds of made-up inputs:
    their cosine, 0 where they have nothing in common.

    If a kind shows what is true of all kinds and, as much again, something of its own, this is the
    share of the former, and the slope by which the correlations of one kind tell those of another.

    Args:
        one, other: covariances, shape (g, f, f). each: how many of f belong to a channel.
    """
    a, b = (_between(covariance, each) for covariance in (one, other))
    size = float(np.sqrt(np.vdot(a, a) * np.vdot(b, b)))
    return max(float(np.vdot(a, b)) / size, 0.0) if size > 0 else 1.0


def _between(covariance: Matrix, each: int) -> NDArray[np.float32]:
    """The correlations between channels; zero within one."""
    found = np.asarray(covariance / _scale(covariance), np.float32)
    within = np.arange(covariance.shape[1]).reshape(-1, each)
    found[:, within[:, :, None], within[:, None, :]] = 0
    return found


def _scale(covariance: Matrix) -> Matrix:
    """What a covariance is over its correlation."""
    deviation = np.sqrt(np.maximum(np.einsum("gff->gf", covariance), 1e-30))
    return np.asarray(deviation[:, :, None] * deviation[:, None, :])
