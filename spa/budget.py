"""Spend a budget where it costs least: error-against-width curves, weighted by measured drift.

Every group's curve is taken from below (its lower convex hull over the widths that the limits
allow), and the step that loses least for what it saves goes next, until the target is met. What a
step saves depends on the groups around it and only shrinks as those do, so a heap with lazy
re-evaluation finds every next step.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from spa.allocate import TOLERANCE, Counts, Limits, Steps
from spa.cost import CostModel
from spa.curves import Curve
from spa.errors import TargetError
from spa.groups import Groups

BLOCKS = (8, 4, 2, 1)


def spend(
    groups: Groups,
    curves: Mapping[int, Curve],
    weights: Mapping[int, float],
    target: tuple[str, float],
    limits: Limits,
    cost: CostModel,
) -> Counts:
    """How many units every group loses, shape (groups,).

    Args:
        weights: group -> what a unit of its curve's loss costs at the output.
        target: the measure, macs or params, and the share to keep.

    Raises:
        TargetError: if the target is out of reach.
    """
    blocks = BLOCKS if limits.round_to is None else (limits.round_to,)
    (measure, share), nearest = target, 1.0
    for block in blocks:
        steps = Steps(groups, limits, block)
        widths = _widths(groups, curves, steps)
        best = _best(_paths(curves, weights, widths), widths, target, cost, len(groups))
        left = getattr(cost(best), measure) / max(getattr(cost(), measure), 1)
        if abs(left - share) <= TOLERANCE:
            return best
        nearest = min(nearest, left, key=lambda found: abs(found - share))
    raise TargetError(
        f"{measure}={share:g} is out of reach: the nearest with these options is "
        f"{measure}={nearest:.3f}"
    )


def _widths(groups: Groups, curves: Mapping[int, Curve], steps: Steps) -> dict[int, list[int]]:
    """For every group the numbers of removed units that the limits allow, ascending."""
    widths = {}
    for g in curves:
        counts = np.zeros((groups[g].size, len(groups)), np.int64)
        counts[:, g] = np.arange(groups[g].size)
        widths[g] = sorted({int(steps.allowed(row)[g]) for row in counts})
    return widths


def _paths(
    curves: Mapping[int, Curve], weights: Mapping[int, float], widths: Mapping[int, list[int]]
) -> dict[int, list[tuple[int, float]]]:
    """For every group the corners of its hull: (units removed, loss)."""
    paths = {}
    for g, curve in curves.items():
        loss = np.concatenate([[0.0], curve.loss]) * weights.get(g, 1.0)
        paths[g] = _hull([(k, float(loss[k])) for k in widths[g]])
    return paths


def _hull(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    corners: list[tuple[int, float]] = []
    for x, y in points:
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            corners.pop()
        corners.append((x, y))
    return corners


def _best(
    paths: Mapping[int, list[tuple[int, float]]],
    widths: Mapping[int, list[int]],
    target: tuple[str, float],
    cost: CostModel,
    count: int,
) -> NDArray[np.int64]:
    """The counts nearest to the target on the way of cheapest steps, from either side.

    Of the step that passes it, a part will do.
    """
    wanted = target[1] * getattr(cost(), target[0])
    before = counts = np.zeros(count, np.int64)
    for counts in _way(paths, target[0], cost, count):
        if getattr(cost(counts), target[0]) <= wanted:
            break
        before = counts
    options = [before, counts]
    for g in np.flatnonzero(counts != before).tolist():
        for k in widths[g]:
            if before[g] < k < counts[g]:
                options.append(before.copy())
                options[-1][g] = k
    return min(options, key=lambda c: abs(getattr(cost(c), target[0]) - wanted))


def _way(
    paths: Mapping[int, list[tuple[int, float]]], measure: str, cost: CostModel, count: int
) -> Iterator[NDArray[np.int64]]:
    counts, at = np.zeros(count, np.int64), dict.fromkeys(paths, 0)
    now = getattr(cost(counts), measure)

    def step(g: int) -> tuple[float, NDArray[np.int64]] | None:
        if at[g] + 1 >= len(paths[g]):
            return None
        (_, y0), (x1, y1) = paths[g][at[g] : at[g] + 2]
        tried = counts.copy()
        tried[g] = x1
        saved = now - getattr(cost(tried), measure)
        return ((y1 - y0) / saved, tried) if saved > 0 else None

    heap = [(-1.0, g) for g in sorted(paths)]
    while heap:
        _, g = heapq.heappop(heap)
        found = step(g)
        if found is None:
            continue
        if heap and found[0] > heap[0][0]:
            heapq.heappush(heap, (found[0], g))
            continue
        counts = found[1]
        at[g] += 1
        now = getattr(cost(counts), measure)
        yield counts
        heapq.heappush(heap, (found[0], g))
