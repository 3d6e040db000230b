"""Criteria that look at calibration inputs: what the sites that read a group get from its units.

A group that no site reads (the products of queries and keys, whole groups of a convolution) has no
such score. Its units are judged by l1, brought to the mean score of the other groups.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from spa.evidence import Criterion, Evidence, Matrix, Scores, magnitudes, slices
from spa.groups import Index
from spa.measure import Seen
from spa.turns import turns

SHRINK = 0.1  # of a covariance towards its diagonal, before it is inverted
FLOOR = 1e-8  # added to that diagonal, as a share of its mean

PerSite = Callable[[Seen], Callable[[Index], Scores]]


def by_site(per_site: PerSite) -> Callable[[Evidence], list[Scores]]:
    """A criterion that scores the units at one site at a time, summed over the sites.

    per_site: what was seen -> a function from the inputs of every unit to a score for every unit.
    """

    def score(evidence: Evidence) -> list[Scores]:
        found: dict[int, Scores] = {}
        for node, groups in _by_node(evidence).items():
            judge = per_site(evidence.seen[node])  # once, however many groups it reads
            for g, index in groups:
                found[g] = found.get(g, 0.0) + judge(index)
        usual = float(np.mean([s.mean() for s in found.values()])) if found else 1.0
        sizes = magnitudes(evidence)
        return [found[g] if g in found else brought_to(usual, s) for g, s in enumerate(sizes)]

    return score


def _by_node(evidence: Evidence) -> dict[int, list[tuple[int, Index]]]:
    """Site -> the groups that it reads, and the inputs of their units."""
    found: dict[int, list[tuple[int, Index]]] = {}
    for g, readers in enumerate(evidence.readers):
        for site, index in readers:
            if site.node in evidence.seen:
                found.setdefault(site.node, []).append((g, index))
    return found


def brought_to(usual: float, scores: Scores) -> Scores:
    """The scores of a group, with the usual mean."""
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


def _of(channels: Matrix) -> Callable[[Index], Scores]:
    """Scores of inputs, shape (g, i), summed over those of a unit."""
    total = channels.sum(axis=0)
    return lambda index: np.asarray(total[index].sum(axis=1))


def _wanda(seen: Seen) -> Callable[[Index], Scores]:
    """|w| times the root mean square of its input, summed over the weights that read a unit."""
    size = np.sqrt(variance(seen) + seen.mean**2)
    return _of((np.abs(seen.weights).sum(axis=1) * size).sum(axis=2))


def _flap(seen: Seen) -> Callable[[Index], Scores]:
    """The variance of an input times the squares of the weights that read it."""
    squares = (seen.weights.astype(np.float64) ** 2).sum(axis=1)
    return _of((squares * variance(seen)).sum(axis=2))


def _apoz(seen: Seen) -> Callable[[Index], Scores]:
    """The share of a unit's values that are not exactly zero."""
    active = (1 - seen.zeros).mean(axis=0)
    return lambda index: np.asarray(active[index].mean(axis=1))


def _entropy(seen: Seen) -> Callable[[Index], Scores]:
    """How much a unit's values differ: their entropy over equal bins of the range that they take.
    The paper bins means over maps, here it is the values themselves."""
    certain = seen.entropy.mean(axis=0)
    return lambda index: np.asarray(certain[index].mean(axis=1))


def _cfsp(evidence: Evidence) -> list[Scores]:
    """Fine: a unit's share of the weights times activations at every output that reads it, plus its
    shares of the weights that make it, times the size of its activation. Coarse: the scores of a
    group, brought to the mean 1, are multiplied by how far its block turns the residual stream.

    A departure: in the paper the turn sets the share that a block keeps, here it weighs the scores
    that are ranked together.
    """
    graph, found = evidence.groups.graph, dict[int, Scores]()
    sizes, coarse = magnitudes(evidence), turns(evidence)
    usual = float(np.mean([*coarse.values()])) if coarse else 1.0
    for g, readers in enumerate(evidence.readers):
        fine = np.zeros(evidence.groups[g].size)
        size = np.zeros_like(fine)
        for site, index in readers:
            if site.node not in evidence.seen:
                continue
            seen = evidence.seen[site.node]
            rms = np.sqrt(variance(seen) + seen.mean**2).mean(axis=(0, 2))  # (i,)
            under = np.abs(seen.weights).sum(axis=3, dtype=np.float64) * rms  # (g, o, i)
            whole = under.sum(axis=2, keepdims=True)
            share = (under / np.where(whole > 0, whole, 1)).sum(axis=(0, 1))
            fine += share[index].sum(axis=1)
            size += rms[index].sum(axis=1)
        for member in evidence.makers[g]:
            w = np.abs(slices(graph, member)).astype(np.float64)
            whole = w.sum(axis=0)
            fine += (w / np.where(whole > 0, whole, 1)).sum(axis=1)
        if size.any():
            found[g] = brought_to(coarse.get(g, usual), fine * size)
    middle = float(np.mean([s.mean() for s in found.values()])) if found else 1.0
    return [found[g] if g in found else brought_to(middle, s) for g, s in enumerate(sizes)]


def _obs(seen: Seen) -> Callable[[Index], Scores]:
    """What the site's output loses where a unit goes and all other weights make up for it,

        tr(W_c [(H^-1)_cc]^-1 W_c^T) / E |y - mean|^2,

    each unit by itself. H is centred where the site has a bias to take up the mean.
    """
    taps, inverses = seen.mean.shape[2], []
    for h, mean in zip(seen.covariance, seen.mean, strict=True):
        own = h if seen.site.bias else h + np.outer(mean, mean)
        inverses.append(np.linalg.inv(_damped(own)))

    def judge(index: Index) -> Scores:
        places = (index[:, :, None] * taps + np.arange(taps)).reshape(len(index), -1)
        total = np.zeros(len(index))
        for k, inverse in enumerate(inverses if seen.energy > 0 else ()):
            block = inverse[places[:, :, None], places[:, None, :]]
            w = np.moveaxis(_columns(seen, k)[:, places], 0, 2)  # (units, inputs, outputs)
            total += (w * np.linalg.solve(block, w)).sum(axis=(1, 2)) / seen.energy
        return total

    return judge


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
        "entropy",
        by_site(_entropy),
        "calibration inputs",
        "Luo and Wu 2017, An Entropy-based Pruning Method for CNN Compression",
    ),
    Criterion(
        "cfsp",
        _cfsp,
        "calibration inputs",
        "Wang et al. 2025, CFSP: Structured Pruning with Coarse-to-Fine Activation Information",
        normalized=True,
    ),
    Criterion(
        "obs-diagonal",
        by_site(_obs),
        "calibration inputs",
        "Hassibi and Stork 1993, Second Order Derivatives for Network Pruning; no downdates",
        normalized=True,
    ),
)
