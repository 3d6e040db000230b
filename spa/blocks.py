"""Choose which residual branches go, in one budget with the units that all else may lose.

A branch is scored alone, one-shot, and scores add up, as in LAPTOP-Diff (Zhang et al. 2024): by how
far the outputs move without it on calibration inputs or, where there are none, by its weights. With
curves that is one more step of so much loss for so much saved. What its widths have given up by
then counts for a branch: that loss goes with it. In an order of units, the branches stand as the
units of one more group. What goes of the widths is then decided anew in what is left.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil

import numpy as np
from numpy.typing import NDArray

from spa.allocate import FLOOR, Limits, Steps, ranks
from spa.budget import BLOCKS, Path, paths
from spa.cost import CostModel
from spa.curves import Curve
from spa.graph import Block
from spa.groups import Groups

Scores = NDArray[np.float64]


def by_weights(groups: Groups, blocks: Sequence[Block]) -> Scores:
    """The mean magnitude of the weights that go with each, over the mean of all."""
    graph, found = groups.graph, []
    for block in blocks:
        gone = replace(graph, blocks=(block,)).forgotten
        large = [np.abs(graph.array(n)) for n in gone if len(graph.constants[n].shape) > 1]
        total = sum(float(w.sum(dtype=np.float64)) for w in large)
        found.append(total / max(sum(w.size for w in large), 1))
    return alike(np.asarray(found, np.float64))


def alike(scores: Scores) -> Scores:
    """Over their mean, as units are scored inside a group."""
    return scores / (float(scores.mean()) or 1.0) if len(scores) else scores


@dataclass(frozen=True)
class _Choice:
    """Some of the blocks, and what they leave; ``keep`` of them stay at least."""

    groups: Groups
    blocks: Sequence[Block]
    cost: CostModel
    measure: str
    share: float
    keep: int = 1

    def without(self, chosen: Sequence[int]) -> Groups:
        """The groups without some blocks; those inside others are not named."""
        graph = self.groups.graph
        taken = [self.blocks[k] for k in sorted(chosen)]
        stay = [b for b in taken if b.node not in graph.dead_without([o for o in taken if o != b])]
        return replace(self.groups, graph=replace(graph, blocks=tuple(stay)))

    def costs(self, chosen: Sequence[int]) -> CostModel:
        return self.cost.without(self.without(chosen).graph)

    def left(self, costs: CostModel, counts: NDArray[np.int64]) -> float:
        whole = max(getattr(self.cost(), self.measure), 1)
        return float(getattr(costs(counts), self.measure) / whole)

    def may_follow(self, chosen: Sequence[int], k: int) -> bool:
        """Whether a block may go after others: enough stay, and no sum loses both of its sides."""
        if k in chosen or len(chosen) >= len(self.blocks) - self.keep:
            return False
        return all(self.blocks[j].sum != self.blocks[k].sum for j in chosen)

    def in_order(self, order: Sequence[int]) -> list[int]:
        chosen: list[int] = []
        for k in order:
            if self.may_follow(chosen, k):
                chosen.append(k)
        return chosen

    def nearest(
        self, chosen: list[int], order: Sequence[int], most: NDArray[np.int64]
    ) -> list[int]:
        """Where widths cannot make up the difference: on with the blocks that fit, and one that
        does not where that is nearer.

        Args:
            order: in which blocks go. most: how many units every group may lose.
        """
        none = np.zeros_like(most)

        def misses(some: list[int]) -> float:
            """By how much no width comes near enough."""
            costs = self.costs(some)
            return max(self.left(costs, most) - self.share, self.share - self.left(costs, none))

        for k in order:
            more = [*chosen, k]
            if misses(chosen) <= 0:
                return chosen
            if self.may_follow(chosen, k) and self.left(self.costs(more), none) >= self.share:
                chosen = more
        return min(
            [chosen, *([*chosen, k] for k in order if self.may_follow(chosen, k))], key=misses
        )


def by_order(
    groups: Groups,
    blocks: Sequence[Block],
    scores: Scores,
    units: Sequence[Scores],
    scope: str,
    target: tuple[str, float],
    limits: Limits,
    cost: CostModel,
) -> Groups:
    """The groups without the blocks that stand before the target in one order with all units.

    Args:
        scores: of the blocks. units: the scores of the units of every group. scope: see
            `spa.allocate`.
    """
    keep = ceil(FLOOR * len(blocks)) if scope == "floor" else 1
    choice = _Choice(groups, blocks, cost, *target, keep)
    alone = np.argsort(scores, kind="stable").tolist()
    if target[0] == "channels":
        count = len(blocks) - round(target[1] * len(blocks))
        return choice.without(choice.in_order(alone[:count]))
    steps, count = Steps(groups, limits, limits.round_to or 1), len(groups)
    rank = ranks(groups, [*units, scores], scope)
    owner = np.repeat(np.arange(count + 1), [len(r) for r in rank])
    place = np.concatenate([np.arange(len(r)) for r in rank])
    open_ = [g for g in range(count) if limits.groups is None or g in limits.groups]
    use = np.isin(owner, [*open_, count])
    order = np.flatnonzero(use)[np.argsort(np.concatenate(rank)[use], kind="stable")]

    def first(p: int) -> tuple[list[int], NDArray[np.int64]]:
        some = order[:p]
        mine = owner[some] == count
        counts = steps.allowed(np.bincount(owner[some][~mine], minlength=count))
        return choice.in_order(place[some][mine].tolist()), counts

    low, high = 0, len(order) + 1  # at low the target is not passed
    while high - low > 1:
        middle = (low + high) // 2
        chosen, counts = first(middle)
        stays = choice.left(choice.costs(chosen), counts) >= choice.share
        low, high = (middle, high) if stays else (low, middle)
    chosen, _ = first(low)
    return choice.without(choice.nearest(chosen, alone, steps.allowed(steps.sizes)))


def by_curves(
    groups: Groups,
    blocks: Sequence[Block],
    losses: Scores,
    curves: Mapping[int, Curve],
    weights: Mapping[int, float],
    target: tuple[str, float],
    limits: Limits,
    cost: CostModel,
) -> Groups:
    """The groups without the blocks that go on the way of cheapest steps, see `spa.budget`.

    Args:
        losses: of the blocks, as those of the curves with their weights.
    """
    choice = _Choice(groups, blocks, cost, *target)
    steps = Steps(groups, limits, limits.round_to or BLOCKS[0])
    chosen = _Way(choice, losses, paths(groups, curves, weights, steps)).chosen()
    order, most = np.argsort(losses, kind="stable").tolist(), steps.allowed(steps.sizes)
    return choice.without(choice.nearest(chosen, order, most))


class _Way:
    """Steps in which widths shrink and blocks go, the cheapest first, as far as the target."""

    def __init__(self, choice: _Choice, losses: Scores, ways: Mapping[int, Path]) -> None:
        self.choice, self.losses, self.ways = choice, losses, ways
        self.inner = [choice.without([k]).dead for k in range(len(losses))]
        self.at = dict.fromkeys(ways, 0)
        self.counts = np.zeros(len(choice.groups), np.int64)
        self.taken: list[int] = []
        self.costs: dict[int, CostModel] = {}  # without one block more, or none: -1
        self.now = 1.0

    def chosen(self) -> list[int]:
        heap = [(-np.inf, -1, g) for g in sorted(self.ways)]
        heap += [(-np.inf, 1, k) for k in range(len(self.losses))]
        heapq.heapify(heap)
        while heap:
            _, kind, k = heapq.heappop(heap)
            found = self._block(k) if kind > 0 else self._width(k)
            if found is None:
                continue
            ratio, left, take = found
            if heap and ratio > heap[0][0]:
                heapq.heappush(heap, (ratio, kind, k))
            elif left >= self.choice.share:
                take()
                self.now = left
                if kind < 0:
                    heapq.heappush(heap, (ratio, kind, k))
                    for block in [b for b, inner in enumerate(self.inner) if k in inner]:
                        heapq.heappush(heap, (-np.inf, 1, block))  # it may be cheaper now
            elif kind < 0:
                break
        return self.taken

    def _width(self, g: int) -> tuple[float, float, Callable[[], None]] | None:
        if self.at[g] + 1 >= len(self.ways[g]):
            return None
        (_, loss), (count, more) = self.ways[g][self.at[g] : self.at[g] + 2]
        counts = self.counts.copy()
        counts[g] = count
        left = self.choice.left(self._cost(-1), counts)

        def take() -> None:
            self.counts = counts
            self.at[g] += 1

        return self._step(more - loss, left, take)

    def _block(self, k: int) -> tuple[float, float, Callable[[], None]] | None:
        if not self.choice.may_follow(self.taken, k):
            return None
        gone = {g for j in self.taken for g in self.inner[j]}
        spent = sum(self.ways[g][self.at[g]][1] for g in self.inner[k] - gone if g in self.ways)
        left = self.choice.left(self._cost(k), self.counts)

        def take() -> None:
            self.taken.append(k)
            self.costs.clear()

        return self._step(float(self.losses[k]) - spent, left, take)

    def _step(
        self, loss: float, left: float, take: Callable[[], None]
    ) -> tuple[float, float, Callable[[], None]] | None:
        saved = self.now - left
        return (loss / saved, left, take) if saved > 0 else None

    def _cost(self, k: int) -> CostModel:
        if k not in self.costs:
            self.costs[k] = self.choice.costs(self.taken if k < 0 else [*self.taken, k])
        return self.costs[k]
