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

from spa.allocate import TOLERANCE, Counts, Limits, Steps, fill, search
from spa.cost import CostModel
from spa.curves import Curve
from spa.groups import Groups

BLOCKS = (8, 4, 2, 1)
Path = list[tuple[int, float]]  # the corners of a hull: units removed, loss


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
    for block in blocks:
        steps = Steps(groups, limits, block)
        best = _best(paths(groups, curves, weights, steps), target, cost, steps)
        left = getattr(cost(best), target[0]) / max(getattr(cost(), target[0]), 1)
        if abs(left - target[1]) <= TOLERANCE:
            return best
    rank = [curves[g].scores(group.size) * weights.get(g, 1.0) for g, group in enumerate(groups)]
    return search(cost, steps, rank, *target)  # it says why, if it finds no way either


def paths(
    groups: Groups, curves: Mapping[int, Curve], weights: Mapping[int, float], steps: Steps
) -> dict[int, Path]:
    """The hull of every group."""
    found = {}
    for g, curve in curves.items():
        sizes = np.zeros((groups[g].size, len(groups)), np.int64)
        sizes[:, g] = np.arange(groups[g].size)
        allowed = sorted({int(steps.allowed(row)[g]) for row in sizes})
        loss = np.concatenate([[0.0], curve.loss]) * weights.get(g, 1.0)
        found[g] = _hull([(k, float(loss[k])) for k in allowed])
    return found


def _hull(points: Path) -> Path:
    corners: Path = []
    for x, y in points:
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            corners.pop()
        corners.append((x, y))
    return corners


def _best(
    paths: Mapping[int, Path],
    target: tuple[str, float],
    cost: CostModel,
    steps: Steps,
) -> Counts:
    """The counts nearest to the target on the way of cheapest steps: before it, behind it, or part
    of the way along the step across it; and what smaller steps of any group add to the first."""
    full = max(getattr(cost(), target[0]), 1)

    def left(counts: Counts) -> float:
        return float(getattr(cost(counts), target[0]) / full)

    before = counts = np.zeros(len(steps.sizes), np.int64)
    for counts in _way(paths, target[0], cost, len(before)):
        if left(counts) <= target[1]:
            break
        before = counts
    options = [before, counts]
    for g in np.flatnonzero(counts != before).tolist():
        for k in range(before[g] + 1, counts[g]):
            part = before.copy()
            part[g] = k
            options.append(steps.allowed(part))
    best = min(options, key=lambda c: abs(left(c) - target[1]))
    if abs(left(best) - target[1]) > TOLERANCE / 4:
        most = steps.allowed(steps.sizes)
        options = [best, fill(left, steps, before, most, target[1])]
        best = min(options, key=lambda c: abs(left(c) - target[1]))
    return best


def _way(
    paths: Mapping[int, Path], measure: str, cost: CostModel, count: int
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
