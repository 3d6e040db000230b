"""Criteria that look at calibration inputs: what the sites that read a group get from its units.

A group that no site reads (the products of queries and keys, whole groups of a convolution) has no
such score. Its units are judged by l1, brought to the mean score of the other groups.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spa.evidence import Criterion, Evidence, Matrix, Scores, Seen, magnitudes
from spa.groups import Index

SHRINK = 0.1  # of a covariance towards its diagonal, before it is inverted
FLOOR = 1e-8  # added to that diagonal, as a share of its mean

PerSite = Callable[[Seen, Index], Scores]


def by_site(per_site: PerSite) -> Callable[[Evidence], list[Scores]]:
    """A criterion that scores the units at one site at a time, summed over the sites.

    per_site: (what was seen, the inputs of every unit there) -> a score for every unit.
    """

    def score(evidence: Evidence) -> list[Scores]:
        found: list[Scores | None] = []
        for readers in evidence.readers:
            rows = [
                per_site(evidence.seen[s.node], i) for s, i in readers if s.node in evidence.seen
            ]
            found.append(np.sum(rows, axis=0) if rows else None)
        means = [float(s.mean()) for s in found if s is not None]
        usual = float(np.mean(means)) if means else 1.0
        others = magnitudes(evidence)
        return [
            _brought_to(usual, other) if one is None else one
            for one, other in zip(found, others, strict=True)
        ]

    return score


def _brought_to(usual: float, scores: Scores) -> Scores:
    mean = float(scores.mean())
    return scores * (usual / mean) if mean > 0 else np.full_like(scores, usual)


def standardised(score: Callable[[Evidence], list[Scores]]) -> Callable[[Evidence], list[Scores]]:
    """The scores of every group with mean 0 and deviation 1."""

    def scaled(evidence: Evidence) -> list[Scores]:
        return [(s - s.mean()) / (s.std() or 1.0) for s in score(evidence)]

    return scaled


def variance(seen: Seen) -> Matrix:
    """Of every input, shape (g, i, t')."""
    return np.asarray(np.einsum("gff->gf", seen.covariance).reshape(seen.mean.shape))


def _of(channels: Matrix, index: Index) -> Scores:
    """Scores of inputs, shape (g, i), summed over those of a unit."""
    return np.asarray(channels.sum(axis=0)[index].sum(axis=1))


def _wanda(seen: Seen, index: Index) -> Scores:
    """|w| times the root mean square of its input, summed over the weights that read a unit."""
    size = np.sqrt(variance(seen) + seen.mean**2)
    return _of((np.abs(seen.weights).sum(axis=1) * size).sum(axis=2), index)


def _flap(seen: Seen, index: Index) -> Scores:
    """The variance of an input times the squares of the weights that read it."""
    squares = (seen.weights.astype(np.float64) ** 2).sum(axis=1)
    return _of((squares * variance(seen)).sum(axis=2), index)


def _apoz(seen: Seen, index: Index) -> Scores:
    """The share of a unit's values that are not exactly zero."""
    return np.asarray((1 - seen.zeros).mean(axis=0)[index].mean(axis=1))


def _obs(seen: Seen, index: Index) -> Scores:
    """What the site's output loses where a unit goes and all other weights make up for it,

        tr(W_c [(H^-1)_cc]^-1 W_c^T) / E |y - mean|^2,

    each unit by itself. H is centred where the site has a bias to take up the mean.
    """
    taps = seen.mean.shape[2]
    places = (index[:, :, None] * taps + np.arange(taps)).reshape(len(index), -1)
    total = np.zeros(len(index))
    if seen.energy <= 0:
        return total
    for k, h in enumerate(seen.covariance):
        if seen.site.bias is None:
            h = h + np.outer(seen.mean[k], seen.mean[k])
        inverse = np.linalg.inv(_damped(h))
        w = _columns(seen, k)[:, places]  # (outputs, units, inputs of a unit)
        block = inverse[places[:, :, None], places[:, None, :]]
        turned = np.moveaxis(w, 0, 2)  # (units, inputs of a unit, outputs)
        total += (turned * np.linalg.solve(block, turned)).sum(axis=(1, 2))
    return total / seen.energy


def _columns(seen: Seen, k: int) -> Matrix:
    """The weights of one group of a site, shape (outputs, i t'); taps that count as samples do so
    as outputs too."""
    w = seen.weights[k].astype(np.float64)
    if seen.mean.shape[2] == w.shape[2]:
        return np.asarray(w.reshape(len(w), -1))
    return np.asarray(np.moveaxis(w, 2, 1).reshape(-1, w.shape[1]))


def _damped(h: Matrix) -> Matrix:
    diagonal = np.diag(h)
    floor = FLOOR * diagonal.mean() or 1.0
    return np.asarray((1 - SHRINK) * h + np.diag(SHRINK * diagonal + floor))


ACTIVITY = (
    Criterion(
        "wanda",
        by_site(_wanda),
        "calibration inputs",
        "Sun et al. 2024, A Simple and Effective Pruning Approach for Large Language Models",
    ),
    Criterion(
        "flap",
        standardised(by_site(_flap)),
        "calibration inputs",
        "An et al. 2024, Fluctuation-based Adaptive Structured Pruning for Large Language Models",
        normalized=True,
    ),
    Criterion(
        "apoz",
        by_site(_apoz),
        "calibration inputs",
        "Hu et al. 2016, Network Trimming",
    ),
    Criterion(
        "obs-diagonal",
        by_site(_obs),
        "calibration inputs",
        "Hassibi and Stork 1993, Second Order Derivatives for Network Pruning; no downdates",
        normalized=True,
    ),
)
