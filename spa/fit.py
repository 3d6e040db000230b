"""Closed forms for one site: refit what remains, and the order in which channels are missed least.

With x the dense inputs of a site and z the kept inputs on their way through the pruned network
(both centred where the site has a bias), the weights that lose least are

    V = argmin  E |W x - V z|^2 + lam |(V - W_S) D^1/2|^2,    D = diag E z z^T
      = W_S + (W C - W_S A) (A + lam D)^-1,                   A = E z z^T, C = E x z^T

so that lam -> infinity is plain removal. The order of removal is exact block-OBS (Hassibi and
Stork 1993; OSSCAR, Meng et al. 2024): unit c costs tr(W_c [(H^-1)_cc]^-1 W_c^T), after which
W -= W_c [(H^-1)_cc]^-1 (H^-1)_c and H^-1 loses its rows and columns c.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, solve_triangular

Matrix = NDArray[np.float64]
Index = NDArray[np.intp]
EXACT = 1 << 21  # rows of so many numbers are summed in double precision
STRENGTHS = (1e-7, 1e-5, 1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0, 3.0)  # of the pull towards plain removal
MIDDLE = 3  # of these is tried first
DAMPING = 0.01  # of the sweep, times the mean of the diagonal
Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Moments:
    """What a refit needs of rows of dense outputs y = W x and of pruned inputs z, by group.

    mean_y, mean_z: shapes (g, o), (g, k); zero where the site has no bias to correct.
    yz, zz: centred second moments, shapes (g, o, k), (g, k, k). yy: those of every output alone,
        shape (g, o).
    whole: E z z^T about zero over all inputs, shape (g, f, f); those that are removed, zero in the
        pruned stream, as in the dense one.
    standing: what every input is of the kept ones by the weights before it, shape (f, k), see
        `spa.merge`. Both None unless the method NEEDS them.
    """

    mean_y: Matrix
    mean_z: Matrix
    yz: Matrix
    zz: Matrix
    yy: Matrix
    whole: Matrix | None = None
    standing: Matrix | None = None

    @property
    def energy(self) -> float:
        """E |y - mean|^2, of all outputs."""
        return float(self.yy.sum())

    def error(self, v: Matrix, b: Matrix) -> float:
        """E |y - V z - b|^2 over E |y - mean|^2, where the mean of y is W E x."""
        rest = self.mean_y - np.einsum("gok,gk->go", v, self.mean_z) - b
        product = np.matmul(v, self.zz)
        inner = float((product * v).sum()) - 2 * float((self.yz * v).sum())
        return (self.energy + inner + float((rest * rest).sum())) / max(self.energy, 1e-300)

    def apart(self, v: Matrix, plain: Matrix) -> float:
        """What new weights add to E |y - V z - b|^2 where no input tells anything of another, over
        E |y - mean|^2: E |(V - W_S) n|^2 for independent n that vary as the inputs do."""
        own = np.einsum("gkk->gk", self.zz)
        return float(np.einsum("gok,gk->", (v - plain) ** 2, own)) / max(self.energy, 1e-300)


def moments(w: Floats, x: Floats, z: Floats, affine: bool) -> Moments:
    """Moments over rows.

    Args:
        w: dense weights, shape (g, o, f). x: (g, rows, f). z: (g, rows, k).
    """
    n = max(x.shape[1], 1)
    if x.size <= EXACT:
        w, x, z = (a.astype(np.float64) for a in (w, x, z))
    y = np.matmul(x, np.swapaxes(w, 1, 2))
    my, mz = y.mean(1, dtype=np.float64), z.mean(1, dtype=np.float64)
    if not affine:
        my, mz = np.zeros_like(my), np.zeros_like(mz)
    cy, cz = y - my[:, None].astype(y.dtype), z - mz[:, None].astype(z.dtype)
    turned = np.swapaxes(cz, 1, 2)
    zz = np.matmul(turned, cz).astype(np.float64) / n
    yz = np.swapaxes(np.matmul(turned, cy), 1, 2).astype(np.float64) / n
    return Moments(my, mz, yz, zz, (cy.astype(np.float64) ** 2).sum(1) / n)


def refit(plain: Matrix, m: Moments, lam: float) -> tuple[Matrix, Matrix]:
    """New weights for the kept inputs, and the change of the bias, shapes (g, o, k) and (g, o).

    Args:
        plain: the dense weights of the kept inputs, shape (g, o, k). lam: infinity changes only the
            bias.
    """
    v = plain
    if np.isfinite(lam) and plain.shape[2]:
        rest = np.swapaxes(m.yz - np.matmul(plain, m.zz), 1, 2)
        v = plain + np.stack([solve(a, r, lam).T for a, r in zip(m.zz, rest, strict=True)])
    return v, m.mean_y - np.einsum("gok,gk->go", v, m.mean_z)


def restored(v: Matrix, m: Moments, least: float, most: float) -> tuple[Matrix, Matrix]:
    """New weights, shape (g, o, k), made as much longer or shorter as gives every output the
    deviation that it has in the dense network, and the change of the bias: what is refitted varies
    less than what it stands for. REPAIR (Jordan et al. 2023) without a normalisation to hold it.

    Args:
        least, most: the ratios of variances that are believed.
    """
    made = np.einsum("gok,gok->go", np.matmul(v, m.zz), v)
    alive = (m.yy > 1e-9 * m.yy.max(initial=0.0)) & (made > 1e-9 * made.max(initial=0.0))
    ratio = np.where(alive, np.clip(m.yy / np.where(alive, made, 1.0), least, most), 1.0)
    longer = v * np.sqrt(ratio)[:, :, None]
    return longer, m.mean_y - np.einsum("gok,gk->go", longer, m.mean_z)


def solve(a: Matrix, b: Matrix, lam: float) -> Matrix:
    """(A + lam diag A)^-1 B for a covariance A, some of whose variances may be zero."""
    d = np.diag(a)
    floor = max(1e-12 * float(d.max(initial=0.0)), 1e-30)
    scale = 1 / np.sqrt(np.maximum(d, floor))
    scaled = a * scale[:, None] * scale[None, :]
    scaled[np.diag_indices_from(scaled)] += max(lam, 1e-10)
    right = b * scale[:, None]
    while True:
        try:
            return np.asarray(cho_solve(cho_factor(scaled, lower=True), right)) * scale[:, None]
        except LinAlgError:
            scaled[np.diag_indices_from(scaled)] += 1e-6


# --- methods: dense weights (g, o, f), kept inputs, moments to fit on, and the error on held-out
# inputs -> what was tried with its error

Fit = tuple[Matrix, Matrix]
Judge = Callable[[Matrix, Matrix], float]
Tried = list[tuple[Fit, float]]


def one(method: Callable[[Matrix, Index, Moments], Fit]) -> Callable[..., Tried]:
    """A method that has nothing to choose."""

    def tried(w: Matrix, kept: Index, m: Moments, judge: Judge) -> Tried:
        found = method(w, kept, m)
        return [(found, judge(*found))]

    return tried


def by_bias(w: Matrix, kept: Index, m: Moments) -> Fit:
    """Only the mean of what is missed: FLAP (An et al. 2024)."""
    return refit(w[:, :, kept], m, np.inf)


def by_refit(w: Matrix, kept: Index, m: Moments, judge: Judge) -> Tried:
    """The bias alone, and affine least squares at some strengths: from the one in the middle on to
    the next, as long as that is better. Each takes a factorisation, which is what a large site
    spends its time on."""
    plain, found = w[:, :, kept], dict[int, tuple[Fit, float]]()

    def error(k: int) -> float:
        if not 0 <= k < len(STRENGTHS):
            return np.inf
        if k not in found:
            fit = refit(plain, m, STRENGTHS[k])
            found[k] = fit, judge(*fit)
        return found[k][1]

    at = MIDDLE
    for step in (1, -1):
        while error(at + step) < error(at):
            at += step
    alone = refit(plain, m, np.inf)
    return [(alone, judge(*alone)), *found.values()]


def by_sweep(w: Matrix, kept: Index, m: Moments) -> Fit:
    """SparseGPT's sweep (Frantar and Alistarh 2023) with a fixed mask of whole inputs, as in the
    prototype of OBSPA (Wang et al. 2024): removed inputs from left to right, each made up for by
    those to its right. The bias stays."""
    assert m.whole is not None
    gone = np.setdiff1d(np.arange(w.shape[2]), kept)
    v = w.copy()
    for one, h in zip(v, m.whole, strict=True):
        upper = _upper_root_of_inverse(h)
        for i in gone:
            one[:, i:] -= np.outer(one[:, i] / upper[i, i], upper[i, i:])
    return v[:, :, kept], np.zeros(w.shape[:2])


def _upper_root_of_inverse(h: Matrix) -> Matrix:
    """U, upper triangular, of H^-1 = U^T U for a damped H."""
    damped = h.copy()
    own = damped[np.diag_indices_from(h)]
    damped[np.diag_indices_from(h)] = np.where(own > 0, own, 1) + DAMPING * max(own.mean(), 1e-30)
    lower = cho_factor(damped[::-1, ::-1], lower=True)[0]  # of H with both axes turned round
    turned = solve_triangular(np.tril(lower), np.eye(len(h)), lower=True)
    return np.asarray(turned[::-1, ::-1])


def by_merge(w: Matrix, kept: Index, m: Moments) -> Fit:
    """Neuron Merging (Kim et al. 2020): a removed input's weights go, scaled, to the kept one that
    is most like it. No inputs are looked at. The bias stays."""
    assert m.standing is not None
    return np.matmul(w, m.standing), np.zeros(w.shape[:2])


def by_reconstruction(w: Matrix, kept: Index, m: Moments) -> Fit:
    """UDFC (Bai et al. 2023, Unified Data-Free Compression): a removed input's weights go to all
    kept ones, as a combination of which its own maker's weights are. No inputs are looked at."""
    return by_merge(w, kept, m)


METHODS: dict[str, Callable[[Matrix, Index, Moments, Judge], Tried]] = {
    "bias": one(by_bias),
    "refit": by_refit,
    "sweep": one(by_sweep),
    "merge": one(by_merge),
    "reconstruct": one(by_reconstruction),
}
LOGITS = ("refit", "bias")  # the methods that match products of activations too, see spa.logits
# What of Moments is made for a method alone.
NEEDS = {"sweep": "whole", "merge": "standing", "reconstruct": "standing"}
# What every way to make up for what is removed looks at, and where it comes from. Held-out inputs
# judge them all.
SOURCES: dict[str, tuple[str, str]] = {
    "bias": ("calibration inputs", "An et al. 2024, Fluctuation-based Adaptive Structured Pruning"),
    "refit": (
        "calibration inputs",
        "affine least squares, at queries and keys of their products: CORP 2026, arXiv 2602.05243",
    ),
    "sweep": ("calibration inputs", "Frantar and Alistarh 2023, SparseGPT; as OBSPA's prototype"),
    "merge": ("weights", "Kim et al. 2020, Neuron Merging: Compensating for Pruned Neurons"),
    "reconstruct": ("weights", "Bai et al. 2023, Unified Data-Free Compression"),
    "fold": (
        "weights",
        "Wang et al. 2025, Forget the Data and Fine-Tuning! Just Fold the Network to Compress",
    ),
}
