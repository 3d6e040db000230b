"""Choose how many units, and which, every group loses so that a budget is met.

Scores put all units in one order, low first; the budget decides how far down that order to cut.
With other scopes than global only the order inside a group counts for which units go:

- floor: as global, but every group keeps a quarter of its units.
- erk: group g keeps the share min(1, e r_g), with r_g the sum of the axes of its weights over the
  sum of their products, and e such that the budget is met. That is the Erdos-Renyi-Kernel rule
  (Mocanu et al. 2018; Evci et al. 2020), in which a layer's density is e (n_in + n_out + k_h + k_w)
  / (n_in n_out k_h k_w), for shares of units: small weights keep more of theirs.
- local: every group loses the same share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, gcd, isqrt, prod

import numpy as np
from numpy.typing import NDArray

from spa.cost import Cost, CostModel
from spa.errors import TargetError, UsageError
from spa.groups import Group, Groups, Index

TARGETS = ("macs", "params", "channels")
SCOPES = ("global", "floor", "erk", "local")
FLOOR = 0.25  # of its units a group keeps at least with scope floor
TRIES = 20_000  # choices that are looked at in the search for a nearer one
TOLERANCE = 0.02  # a result this near to the target has reached it

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Limits:
    """What the user allows: see ``spa prune --help``.

    groups: numbers of the groups that may lose units; None for all.
    min_keep: units that every group keeps at least.
    round_to: kept sizes are multiples of this, or untouched; None for the largest of 8, 4, 2, 1
        with which the target can be met. Runtimes compute channels in blocks: with sizes that do
        not fill them a smaller model can be the slower one.
    floor: the share of its units that every group keeps at least.
    """

    groups: frozenset[int] | None = None
    min_keep: int = 1
    round_to: int | None = None
    floor: float = 0.0


@dataclass(frozen=True)
class Allocation:
    """removed: group -> positions of the units to remove. before, after: costs by the model."""

    removed: dict[int, Index]
    before: Cost
    after: Cost


def read_target(text: str) -> tuple[str, float]:
    """Read ``macs=0.7``.

    Raises:
        UsageError: unless it names a measure and a kept share in (0, 1].
    """
    name, _, share = text.partition("=")
    try:
        value = float(share)
    except ValueError:
        value = -1.0
    if name not in TARGETS or not 0 < value <= 1:
        raise UsageError(
            f"target {text!r}: write one of {', '.join(f'{t}=SHARE' for t in TARGETS)} with the "
            "share to keep, above 0 and at most 1, such as macs=0.7"
        )
    return name, value


def one_target(target: Mapping[str, float] | str) -> tuple[str, float]:
    """The measure and the share of ``macs=0.7`` or ``{"macs": 0.7}``.

    Raises:
        UsageError: unless there is one measure with a kept share in (0, 1].
    """
    if isinstance(target, str):
        return read_target(target)
    if len(target) != 1:
        raise UsageError(f"target {dict(target)}: give one measure, such as {{'macs': 0.7}}")
    ((measure, share),) = target.items()
    return read_target(f"{measure}={share}")


def check_scope(scope: str) -> None:
    """Raises UsageError for an unknown scope."""
    if scope not in SCOPES:
        raise UsageError(f"scope {scope!r} is not known; choose one of {', '.join(SCOPES)}")


def allocate(
    groups: Groups,
    scores: Sequence[NDArray[np.float64]],
    target: Mapping[str, float],
    scope: str = "global",
    limits: Limits | None = None,
    cost: CostModel | None = None,
) -> Allocation:
    """The units to remove for a target such as ``{"macs": 0.7}``.

    Raises:
        UsageError: for an unknown scope or target.
        TargetError: if no choice comes within 2 points of the target.
    """
    check_scope(scope)
    measure, share = one_target(target)
    limits = limits or Limits()
    if scope == "floor":
        limits = replace(limits, floor=FLOOR)
    cost = cost or CostModel(groups)
    if measure == "channels":
        steps = Steps(groups, limits, 1 if limits.round_to is None else limits.round_to)
        counts = steps.allowed(np.asarray([g.size - round(share * g.size) for g in groups.groups]))
    else:
        counts = _search_blocks(groups, limits, cost, ranks(groups, scores, scope), measure, share)
    removed = {
        g: np.sort(np.argsort(scores[g], kind="stable")[:n])
        for g, n in enumerate(counts.tolist())
        if n
    }
    return Allocation(removed, cost(), cost(counts))


def ranks(
    groups: Groups, scores: Sequence[NDArray[np.float64]], scope: str
) -> Sequence[NDArray[np.float64]]:
    """What all units are put in one order by, low first.

    Scores behind those of the groups are of what is no group and counts as the usual one.
    """
    if scope in ("global", "floor"):
        return scores
    shares = [_shares(s) for s in scores]
    if scope == "local":
        return shares
    # A unit at share q of its group goes as soon as that keeps less than 1 - q: e < (1 - q) / r.
    kept = [_erk(groups, g) for g in groups]
    kept += [float(np.mean(kept or [1.0]))] * (len(shares) - len(kept))
    return [-(1 - s) / r for s, r in zip(shares, kept, strict=True)]


def _erk(groups: Groups, group: Group) -> float:
    """The sum of the axes of the weights that a group sits on, over the sum of their products."""
    constants = groups.graph.constants
    shapes = {m.tensor: constants[m.tensor].shape for m in group.members}
    large = [s for s in shapes.values() if prod(s) > max(s)] or list(shapes.values())
    return sum(map(sum, large)) / sum(map(prod, large))


def _shares(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every unit's rank in its own group as a share, so that all groups lose alike."""
    rank = np.empty(len(scores))
    rank[np.argsort(scores, kind="stable")] = (np.arange(len(scores)) + 0.5) / len(scores)
    return rank


class Steps:
    """Which numbers of removed units the limits allow for each group."""

    def __init__(self, groups: Groups, limits: Limits, round_to: int) -> None:
        if limits.min_keep < 1 or round_to < 1:
            raise UsageError("min-keep and round-to must be at least 1")
        self.round_to = round_to
        self.sizes = np.asarray([g.size for g in groups.groups], np.int64)
        self.step = np.asarray([_step(g, round_to) for g in groups.groups], np.int64)
        free = [limits.groups is None or g in limits.groups for g in range(len(groups))]
        self._free = np.asarray(free, bool)
        floor = np.ceil(limits.floor * self.sizes).astype(np.int64)
        least = np.asarray([g.least for g in groups.groups], np.int64)
        self._floor = np.maximum(np.maximum(floor, least), max(limits.min_keep, 1))

    def allowed(self, removed: Counts) -> Counts:
        """The largest allowed counts that are not above the wanted ones."""
        if not len(self.sizes):
            return np.zeros(0, np.int64)
        kept = np.maximum(self.sizes - removed, np.minimum(self._floor, self.sizes))
        kept = -(-kept // self.step) * self.step
        return np.where((kept >= self.sizes) | ~self._free, 0, self.sizes - kept).astype(np.int64)


def _step(group: Group, round_to: int) -> int:
    """Units whose removal changes every axis of the group by a multiple of ``round_to``."""
    per_unit = gcd(*(m.index.shape[1] for m in group.members))
    return round_to // gcd(round_to, per_unit)


def _search_blocks(
    groups: Groups,
    limits: Limits,
    cost: CostModel,
    rank: Sequence[NDArray[np.float64]],
    measure: str,
    share: float,
) -> Counts:
    """Search with the block size asked for, else with the largest that meets the target."""
    for block in [limits.round_to] if limits.round_to is not None else [8, 4, 2]:
        try:
            return search(cost, Steps(groups, limits, block), rank, measure, share)
        except TargetError:
            if limits.round_to is not None:
                raise
    return search(cost, Steps(groups, limits, 1), rank, measure, share)


def check_reach(cost: CostModel, steps: Steps, measure: str, share: float) -> Counts:
    """The most units that may go of every group.

    Raises:
        TargetError: if more is left without them than the target keeps.
    """
    full = getattr(cost(), measure)
    if full == 0:
        raise TargetError(f"the model has no {measure} to reduce")
    most = steps.allowed(steps.sizes)
    least = getattr(cost(most), measure) / full
    if least > share + TOLERANCE:
        raise TargetError(
            f"{measure}={share:g} is out of reach: the least this model can keep is "
            f"{measure}={ceil(least * 1000) / 1000:g} with these options"
            + ("" if len(steps.sizes) else " (it has no group that can be pruned)")
        )
    return most


def search(
    cost: CostModel,
    steps: Steps,
    rank: Sequence[NDArray[np.float64]],
    measure: str,
    share: float,
) -> Counts:
    """The units that go of every group, low ranks first, so that the target is met. Where single
    units are too large for that, the nearest at or below it.

    Raises:
        TargetError: if it is out of reach, or no choice in blocks comes within 2 points of it.
    """
    most = check_reach(cost, steps, measure, share)
    full = getattr(cost(), measure)

    def left(counts: Counts) -> float:
        return float(getattr(cost(counts), measure) / full)

    owner = np.repeat(np.arange(len(rank)), [len(r) for r in rank])
    order = owner[np.argsort(np.concatenate(rank), kind="stable")] if len(rank) else owner

    def prefix(p: int) -> Counts:
        return steps.allowed(np.bincount(order[:p], minlength=len(rank)))

    low, high = 0, len(order)  # left(prefix(low)) >= share
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if left(prefix(middle)) >= share else (low, middle)
    before, behind = prefix(low), prefix(min(high, len(order)))
    best = min([before, behind], key=lambda c: abs(left(c) - share))
    if abs(left(best) - share) > TOLERANCE / 4:
        options = [best, fill(left, steps, before, most, share)]
        best = min(options, key=lambda c: abs(left(c) - share))
    if abs(left(best) - share) <= TOLERANCE:
        return best
    if steps.round_to == 1:
        return below(left, steps, behind if left(behind) <= share else most, share)
    raise TargetError(
        f"{measure}={share:g} cannot be met within 2 points: the nearest these options allow is "
        f"{measure}={left(best):.3f}; lower --round-to or choose that target"
    )


def below(left: Callable[[Counts], float], steps: Steps, counts: Counts, share: float) -> Counts:
    """From counts at or below a target nearer to it, by other counts for two groups at a time, as
    long as that helps."""
    open_ = np.flatnonzero(steps.allowed(steps.sizes)).tolist()
    pairs = [(g, h) for g in open_ for h in open_ if g < h or len(open_) == 1]
    far = max(isqrt(TRIES // max(len(pairs), 1)) // 2, 1)

    def near(g: int) -> range:
        return range(max(counts[g] - far, 0), min(counts[g] + far, steps.sizes[g]) + 1)

    def tried() -> Iterator[Counts]:
        yield counts
        for g, h in pairs:
            for a, b in product(near(g), near(h)):
                trial = counts.copy()
                trial[g], trial[h] = a, b
                if (steps.allowed(trial) == trial).all():
                    yield trial

    def miss(some: Counts) -> float:
        return abs(left(some) - share) if left(some) <= share + TOLERANCE else np.inf

    while (best := min(tried(), key=miss)) is not counts:
        counts = best
    return counts


def fill(
    left: Callable[[Counts], float], steps: Steps, counts: Counts, most: Counts, share: float
) -> Counts:
    """Where the next unit overshoots: go on with those, small ones too, that do not."""
    counts = counts.copy()
    moved = True
    while moved and left(counts) - share > TOLERANCE / 4:
        moved = False
        for g in range(len(counts)):
            trial = counts.copy()
            trial[g] = min(trial[g] + steps.step[g], most[g])
            trial = steps.allowed(trial)
            if trial[g] > counts[g] and left(trial) >= share:
                counts, moved = trial, True
    return counts
