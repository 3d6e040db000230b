"""What a convolution put out in training, by the bias that batch normalisation left in it.

Folded into y = W x + b, BatchNormalization leaves b = beta - W E[x], for the E[x] of training: the
mean of output k is beta_k, which is small beside the deviation of y and alike for all channels, so
that the biases of a layer tell the means of its inputs. Made-up inputs have means m and variances D
of their own. With x -> a x + d for what is wrong with them,

    b = beta - W (a m + d),   beta ~ N(mu, s^2),   d ~ N(0, t^2 a^2 D)

of which the evidence for a, s and t (MacKay 1992, Bayesian Interpolation: type II maximum
likelihood, here summed over a grid) and, with those, the posterior mean of d are closed forms. A
scale is only told by inputs with a mean, as behind a ReLU. Where b does not go with W m, nothing
was folded, and inputs stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.graph import Graph
from spa.sites import Floats, Place, Site

Matrix = NDArray[np.float64]

GAINS = np.exp(np.linspace(-2.5, 2.5, 51))
SHARES = np.exp(np.linspace(np.log(0.01), np.log(3), 14))  # of s and t
USUAL_SHARE, SPREAD = 0.3, 1.2  # of s and t, log-normal; weak beside the biases of a layer
USUAL_GAIN_SPREAD = 0.8
USUAL_MEAN = 0.5  # the deviation of mu, in deviations of y
ERROR = 0.15  # of the logarithm of a deviation on made-up inputs
CHANNEL_SHARE = 0.5  # of what is beyond error in that logarithm, believed
DEAD = 0.05  # of the largest deviation of a layer
FAR = 5.0  # a channel further from its layer is dead or flooded, and stays so
ONE_SIDED = 0.2  # the share of E x^2 that the mean makes: 0.32 behind a ReLU, 0 for signed inputs


@dataclass(frozen=True)
class Affine:
    """What settling does to a folded convolution: its inputs become gain x + shift, its outputs
    mean + scale (y - mean).

    shift: shape (g, i, t). scale, mean: (outputs,).
    """

    gain: float
    shift: Matrix
    scale: Matrix
    mean: Matrix

    def read(
        self, rows: NDArray[np.float32], groups: Any = slice(None), inputs: Any = slice(None)
    ) -> NDArray[np.float32]:
        """Rows of some groups and inputs, shape (g, rows, i, t), as they would have been in
        training."""
        shift = self.shift[groups][:, inputs].astype(np.float32)
        return np.asarray(rows * np.float32(self.gain) + shift[:, None])


@dataclass(frozen=True)
class Believed:
    """gain: a, and shift: d, shape (g, i). sure: how likely it is that something was folded."""

    gain: float
    shift: Matrix
    sure: float = 1.0


def believe(w: Matrix, bias: Matrix, mean: Matrix, variance: Matrix, deviation: float) -> Believed:
    """What a site's inputs lack of those in training.

    Args:
        w: summed over taps, shape (g, o, i). bias: (g, o). mean, variance: of the inputs as they
            are, (g, i). deviation: the usual one of the outputs.
    """
    nothing = Believed(1.0, np.zeros_like(mean), 0.5)
    n = bias.size
    if n < 4 or (mean**2).sum() < ONE_SIDED * (mean**2 + variance).sum() or deviation <= 0:
        return nothing
    made = np.einsum("goi,gi->go", w, mean)
    # BIC of a line through (made, -b), against none; one that falls speaks against.
    a, b = made - made.mean(), bias - bias.mean()
    r = -float((a * b).sum()) / max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-300)
    folded = -np.sign(r) * 0.5 * n * np.log(max(1 - r**2, 1e-12)) - 0.5 * np.log(n)
    sure = float(1 / (1 + np.exp(-np.clip(folded, -50, 50))))
    if sure < 0.01:
        return Believed(1.0, np.zeros_like(mean), 0.0)
    found = _posterior(w, bias, made, variance, deviation)
    return Believed(found.gain**sure, sure * found.shift, sure)


def _posterior(
    w: Matrix, bias: Matrix, made: Matrix, variance: Matrix, deviation: float
) -> Believed:
    n = bias.size
    floor = 1e-9 * max(float(variance.max()), 1e-30)
    root = np.sqrt(np.maximum(variance, floor))
    whitened = w * root[:, None, :] / deviation
    u, s, _ = np.linalg.svd(whitened, full_matrices=False)
    # In deviations of y: b / a + made - mu = -W d / a + beta / a
    vectors = np.stack([bias, made, np.full_like(bias, deviation)]) / deviation
    turned = np.einsum("gok,ngo->ngk", u, vectors)
    rest = np.einsum("ngo,mgo->nm", vectors, vectors) - np.einsum("ngk,mgk->nm", turned, turned)
    each, also = np.meshgrid(SHARES, SHARES, indexing="ij")
    h = 1 / (each[..., None, None] ** 2 + also[..., None, None] ** 2 * s**2)  # (p, q, g, k)
    q = np.einsum("ngk,pqgk,mgk->nmpq", turned, h, turned) + rest[:, :, None, None] / each**2
    (bb, bm, b1), (_, mm, m1), (_, _, one) = q
    inverse = 1 / GAINS
    prior = 1 / USUAL_MEAN**2
    pull = b1[..., None] * inverse + m1[..., None]
    fit = bb[..., None] * inverse**2 + 2 * bm[..., None] * inverse + mm[..., None]
    fit -= pull**2 / (one + prior)[..., None]
    volume = -np.log(h).sum((2, 3)) + (n - s.size) * np.log(each**2) + np.log(one + prior)
    log = -0.5 * (fit + volume[..., None]) - n * np.log(GAINS)
    log += -0.5 * (np.log(GAINS) / USUAL_GAIN_SPREAD) ** 2
    for share in (each, also):
        log += (-0.5 * (np.log(share / USUAL_SHARE) / SPREAD) ** 2)[..., None]
    weight = np.exp(log - log.max())
    weight /= weight.sum()
    gain = float(np.exp((weight.sum((0, 1)) * np.log(GAINS)).sum()))
    beta, off = (
        float(np.exp((weight.sum(axes) * np.log(SHARES)).sum())) for axes in ((1, 2), (0, 2))
    )
    h0 = 1 / (beta**2 + off**2 * s**2)
    rows = vectors[0] / gain + vectors[1]
    rows_turned = turned[0] / gain + turned[1]
    total = float((turned[2] * h0 * rows_turned).sum())
    total += float((vectors[2] * rows).sum() - (turned[2] * rows_turned).sum()) / beta**2
    ones = float((turned[2] ** 2 * h0).sum()) + float(rest[2, 2]) / beta**2
    mu = total / (ones + prior)
    lack = h0 * (mu * turned[2] - rows_turned)
    d = off**2 * np.einsum("goi,gok,gk->gi", whitened, u, lack) * root
    return Believed(gain, gain * d)


def likely_scale(deviation: Matrix) -> Matrix:
    """What brings deviations, any shape, as near to the usual one of their layer as they are likely
    to be: of the logarithms, the share of their variance that is not error (James and Stein 1961),
    and of that half."""
    if not (deviation > 0).any():
        return np.ones_like(deviation)
    ratio = np.clip(deviation / usual(deviation), 1 / FAR, FAR)
    alive = deviation > 1e-6 * deviation.max()
    spread = float(np.log(ratio[alive]).var())
    share = CHANNEL_SHARE * max(0.0, 1 - ERROR**2 / max(spread, 1e-12))
    return np.where(alive, ratio ** (share - 1), 1.0)


def usual(deviation: Matrix) -> float:
    """The geometric mean of the deviations of channels that are not nearly dead."""
    alive = deviation > DEAD * deviation.max(initial=0.0)
    return float(np.exp(np.log(deviation[alive]).mean())) if alive.any() else 1.0


def settle(
    site: Site, affine: Affine, w: Floats, bias: NDArray[Any], graph: Graph
) -> dict[Place, NDArray[Any]]:
    """Weights, shape (g, o, i, t), and bias of a folded convolution, settled."""
    assert site.bias is not None
    shape = graph.constants[site.weight].shape
    scaled = w * (affine.gain * affine.scale.reshape(*w.shape[:2], 1, 1))
    seen = bias + np.einsum("goit,git->go", w, affine.shift).ravel()
    moved = (seen - affine.mean) * affine.scale + affine.mean
    return {site.place: site.backward(scaled, shape), site.bias.place: moved}
