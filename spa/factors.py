"""Axes that are products of several live axes: which factor to follow, in every way that pays.

An index (h, d) of an axis of heads times head size goes where head h goes or where place d of
every head goes. Such an axis is a *grid* (`spa.axes.Grid`): cell = line or line. A set of indices
that satisfies all ties, grids and locks may be removed, and so may the union of two such sets. A
*choice* locks all factors but one of a grid, so that what is left is ties; what several choices
find, each for itself, may be removed side by side. Heads follow one choice, head sizes another.

Grids that share ids make a *knot*, and choices are made per knot: for every factor of every grid
once, with the other grids of the knot following, the nearest first, as they leave that factor the
most units.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from math import prod
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from spa.axes import LOCKED, Grid, Ids

Labels = NDArray[np.int64]
Pairs = tuple[Ids, Ids]
Sizes = tuple[int, ...]
_Habits = tuple[tuple[Sizes, int | None], ...]

_TRIES, _ALIKE = 24, 3  # solutions looked for in one knot, and for factors that look alike


def choices(grids: Sequence[Grid], labels: NDArray[np.int32]) -> list[list[Pairs]]:
    """What to tie in each view, as pairs of ids for every grid; at least one view.

    Args:
        labels: the unit of every id by ties and locks alone.
    """
    if not grids:
        return [[]]
    unit = labels.astype(np.int64)
    knots = list(_knots(list(_lay(grids, unit)), int(labels[LOCKED])))
    known: dict[bytes, list[Labels]] = {}
    solved = []
    for knot in knots:
        if knot.key not in known:
            known[knot.key] = _solutions(knot)
        solved.append(known[knot.key])
    views = []
    none = np.zeros(0, np.int32)
    for v in range(max((len(found) for found in solved), default=1)):
        pairs: list[Pairs] = [(none, none)] * len(grids)
        for knot, found in zip(knots, solved, strict=True):
            for at, g in enumerate(knot.numbers):
                pairs[g] = knot.pairs(at, grids[g], unit, found[v if v < len(found) else 0])
        views.append(pairs)
    return views


class _Laid(NamedTuple):
    """A grid in labels.

    cells: (size,). lines: (factors, size). sizes: the lines of every factor.
    thin: whether the cells sit in no other grid. They only follow, so they are left out: what
        stands here is every line once, as a cell that lies on itself alone.
    """

    cells: Labels
    lines: Labels
    sizes: Sizes
    thin: bool


def _lay(grids: Sequence[Grid], unit: Labels) -> Iterator[_Laid]:
    met = np.zeros(int(unit.max()) + 1, np.int64)
    for grid in grids:
        np.add.at(met, unit[grid.cells], 1)
        for ids in grid.factors:
            np.add.at(met, unit[ids], 1)
    locked = unit[LOCKED]
    met[locked] = 2
    for grid in grids:
        factors = [unit[ids] for ids in grid.factors]
        sizes = tuple(len(np.unique(ids)) for ids in grid.factors)
        live = any((ids != locked).any() for ids in factors)
        if live and len(grid.cells) > sum(sizes) and (met[unit[grid.cells]] == 1).all():
            lines = np.full((len(factors), sum(map(len, factors))), locked)
            ends = np.cumsum([len(f) for f in factors])
            for line, end, own in zip(lines, ends, factors, strict=True):
                line[end - len(own) : end] = own
            yield _Laid(np.concatenate(factors), lines, sizes, True)
        else:
            yield _Laid(unit[grid.cells], unit[grid.lines], sizes, False)


@dataclass(frozen=True)
class _Knot:
    """Grids that share ids, in numbers of their own: 0 is locked, the rest as first met.

    numbers: which grids. sizes, cells, lines, thin: of each, see `_Laid`.
    back: what the numbers were called before.
    """

    numbers: tuple[int, ...]
    sizes: tuple[Sizes, ...]
    cells: tuple[Labels, ...]
    lines: tuple[Labels, ...]
    thin: tuple[bool, ...]
    back: Labels

    @cached_property
    def key(self) -> bytes:
        """Knots of equal structure, such as those of equal layers, have equal keys."""
        parts = [a for pair in zip(self.cells, self.lines, strict=True) for a in pair]
        return bytes(self.thin) + b"|".join(str(a.shape).encode() + a.tobytes() for a in parts)

    @cached_property
    def number(self) -> Labels:
        """The number of everything that had a label before."""
        number = np.zeros(int(self.back.max()) + 1, np.int64)
        number[self.back] = np.arange(len(self.back))
        return number

    def pairs(self, at: int, grid: Grid, unit: Labels, labels: Labels) -> Pairs:
        """The ids of one grid that a solution ties, and those that it locks.

        Args:
            unit: the label of every id before. labels: those of the solution.
        """
        locked = labels[LOCKED]
        if self.thin[at]:  # a cell goes with the line that is left to it; locked is 0
            before = self.number[unit[grid.lines]]
            lines = labels[before]
            cells = lines.max(axis=0)
            kept = np.unique(grid.cells[cells == locked])
        else:
            before = self.lines[at]
            lines, cells = labels[before], labels[self.cells[at]]
            kept = np.unique(grid.cells[(cells == locked) & (self.cells[at] != LOCKED)])
        follow = (lines == cells) & (lines != locked)
        gone = np.unique(grid.lines[(lines == locked) & (before != LOCKED)])
        cell = np.broadcast_to(grid.cells, lines.shape)
        ones = np.concatenate([cell[follow], gone, kept])
        others = np.concatenate([grid.lines[follow], np.zeros(len(gone) + len(kept), np.int32)])
        return ones, others

    @cached_property
    def held(self) -> list[Labels]:
        """The numbers in each grid."""
        both, n = zip(self.cells, self.lines, strict=True), len(self.back)
        return [_distinct(n, cells, lines) for cells, lines in both]

    def settle(self, labels: Labels, ones: Labels, others: Labels) -> Labels:
        """Tie these pairs and all that follows: a cell with one line left goes with that line."""
        locked = labels[LOCKED]
        while len(ones):
            hot = np.zeros(len(labels), bool)
            hot[ones] = hot[others] = True
            hot[locked] = False
            labels, hot = _join(labels, ones, others), hot[labels]
            found = [(ones[:0], ones[:0])]
            for held, cells, lines in zip(self.held, self.cells, self.lines, strict=True):
                if not hot[held].any():
                    continue  # nothing in it has changed
                cell, line = labels[cells], labels[lines]
                live, free = line != locked, cell != locked
                found.append((line[live & ~free], locked))
                found.append((cell[~live.any(axis=0) & free], locked))
                last = np.where(live, line, 0).sum(axis=0)
                alone = (live.sum(axis=0) == 1) & free & (last != cell)
                found.append((cell[alone], last[alone]))
            ones = np.concatenate([a for a, _ in found])
            others = np.concatenate([np.broadcast_to(b, a.shape) for a, b in found])
        return labels

    def follow(self, labels: Labels, at: int, factor: int) -> Labels:
        """Lock all factors of a grid but one."""
        rest = _distinct(len(labels), np.delete(self.lines[at], factor, axis=0))
        return self.settle(labels, labels[rest], np.full(len(rest), labels[LOCKED]))

    def is_open(self, labels: Labels, at: int) -> bool:
        """Whether a cell of a grid still has lines to choose among."""
        line, cell = labels[self.lines[at]], labels[self.cells[at]]
        live = line != labels[LOCKED]
        if self.thin[at]:
            return int(live.any(axis=1).sum()) > 1
        return bool(((live.sum(axis=0) > 1) & (live & (line != cell)).any(axis=0)).any())

    def settled(self, labels: Labels) -> int:
        """How many units there are in the grids that are not open."""
        done = [self.held[k] for k in range(len(self.lines)) if not self.is_open(labels, k)]
        return len(_live(labels, _distinct(len(labels), *done)))

    def parts(self, labels: Labels) -> list[_Knot]:
        """What is still open, taken apart."""
        open_ = [k for k in range(len(self.lines)) if self.is_open(labels, k)]
        laid = [
            _Laid(labels[self.cells[k]], labels[self.lines[k]], self.sizes[k], self.thin[k])
            for k in open_
        ]
        return list(_knots(laid, int(labels[LOCKED])))

    def near(self, at: int, mine: NDArray[np.bool_]) -> tuple[int, int]:
        """How many cells of a grid are mine, and how many lie on a line that is."""
        lines = mine[self.lines[at]]
        if not self.thin[at]:
            return int(mine[self.cells[at]].sum()), int(lines.any(axis=0).sum())
        other = [n - k for n, k in zip(self.sizes[at], lines.sum(axis=1), strict=True)]
        return 0, prod(self.sizes[at]) - prod(map(int, other))

    def units(self, labels: Labels, at: int, factor: int) -> Labels:
        """The units on the lines of one factor."""
        return _live(labels, self.lines[at][factor])


def _solutions(knot: _Knot) -> list[Labels]:
    """Labels for every way to follow the factors of a knot that finds units of its own."""
    every = np.arange(len(knot.back))  # tied to themselves, so that every grid is looked at
    start = knot.settle(every, every, every)
    tokens = np.random.default_rng(0).integers(0, 2**64, len(start), np.uint64)
    found: list[Labels] = []
    known: set[int] = set()
    tried: Counter[tuple[object, ...]] = Counter()
    solved: dict[tuple[bytes, _Habits], tuple[Labels, _Habits]] = {}
    for at, sizes in enumerate(knot.sizes):
        for factor in reversed(range(len(sizes))):
            most = len(knot.units(start, at, factor))
            got = max((len(knot.units(one, at, factor)) for one in found), default=0)
            # Equal layers have factors alike that fare alike: what some found holds for the rest.
            alike = (sizes, factor, most, got)
            if most <= max(got, 1) or tried[alike] >= _ALIKE or tried.total() >= _TRIES:
                continue
            tried[alike] += 1
            labels = knot.follow(start, at, factor)
            habits = {sizes: factor}
            labels = _close(knot, labels, knot.units(labels, at, factor), _Search(habits, solved))
            sums = np.zeros(len(labels), np.uint64)
            np.add.at(sums, labels, tokens)  # one hash for every unit
            if not set(sums[knot.units(labels, at, factor)].tolist()) <= known:
                found.append(labels)
                known.update(sums[_distinct(len(labels), labels)].tolist())
    return found or [_close(knot, start, start[:0], _Search({}, solved))]


@dataclass(frozen=True)
class _Search:
    """One solution while it is looked for.

    habits: the factor that was followed in a grid of these sizes.
    solved: solutions of parts, by structure and by the habits that count there, and the habits they
        led to. All solutions of a knot share it: most come to the same parts in the end.
    known: solutions of parts by structure alone, so that equal layers are solved alike.
    """

    habits: dict[Sizes, int]
    solved: dict[tuple[bytes, _Habits], tuple[Labels, _Habits]]
    known: dict[bytes, Labels] = field(default_factory=dict)

    def solve(self, part: _Knot, mine: NDArray[np.bool_]) -> Labels:
        key = blake2b(part.key + mine.tobytes()).digest()
        if key not in self.known:
            before = self._habits(part)
            if (key, before) not in self.solved:
                labels = _choose(part, mine, self)
                self.solved[key, before] = labels, self._habits(part)
            self.known[key], after = self.solved[key, before]
            self.habits.update({n: k for n, k in after if k is not None})
        return self.known[key]

    def _habits(self, part: _Knot) -> _Habits:
        return tuple((n, self.habits.get(n)) for n in part.sizes)


def _close(knot: _Knot, labels: Labels, own: Labels, search: _Search) -> Labels:
    """Choose in every grid that is still open, part by part.

    Args:
        own: the units of the factor that the solution is for; parts that hold some come first.
    """
    ties = []
    parts = [(np.isin(part.back, own), part) for part in knot.parts(labels)]
    for mine, part in sorted(parts, key=lambda p: not p[0].any()):
        ties.append((part.back, part.back[_first(search.solve(part, mine))]))
    if not ties:
        return labels
    ones, others = (np.concatenate(half) for half in zip(*ties, strict=True))
    return _join(labels, ones, others)


def _choose(part: _Knot, mine: NDArray[np.bool_], search: _Search) -> Labels:
    """Choose in the grid that holds most units of the solution's factor, so that most stay.

    Where none does, in one that has them as lines: what lies further off has to follow. Where the
    choice is open, the factor is followed that was followed in a grid alike, so that what is chosen
    in one layer is chosen in all; else the one that settles most: what is left open may yet go.
    """
    habits = search.habits
    near = [(*part.near(k, mine), n in habits) for k, n in enumerate(part.sizes)]
    at = max(range(len(near)), key=lambda k: (*near[k], -k))
    sizes, ways = part.sizes[at], []
    for factor in reversed(range(len(sizes))):
        labels = part.follow(np.arange(len(part.back)), at, factor)
        own = _live(labels, mine)
        worth = len(own), habits.get(sizes) == factor, part.settled(labels)
        ways.append((worth, factor, labels, own))
    _, factor, labels, own = max(ways, key=lambda way: way[0])
    habits.setdefault(sizes, factor)
    return _close(part, labels, own, search)


def _knots(grids: Sequence[_Laid], locked: int) -> Iterator[_Knot]:
    """Grids in sets that share labels."""
    if not grids:
        return
    n = 1 + max(int(part.max()) for grid in grids for part in grid[:2])
    met = [_distinct(n, grid.cells, grid.lines) for grid in grids]
    met = [labels[labels != locked] for labels in met]
    ends = [(labels[1:], labels[:-1]) for labels in met]
    a, b = (np.concatenate(half) for half in zip(*ends, strict=True))
    joined = coo_array((np.ones(len(a), np.int8), (a, b)), shape=(n, n))
    _, knot_of = connected_components(joined, directed=False)
    members: dict[int, list[int]] = {}
    for g, labels in enumerate(met):
        if len(labels):
            members.setdefault(int(knot_of[labels[0]]), []).append(g)
    for numbers in members.values():
        mine = [grids[g] for g in numbers]
        parts = [part for grid in mine for part in (grid.cells, grid.lines)]
        flat = np.concatenate([[locked], *(part.ravel() for part in parts)])
        back = flat[_first(flat) == np.arange(len(flat))]
        number = np.zeros(n, np.int64)
        number[back] = np.arange(len(back))
        split = np.split(number[flat[1:]], np.cumsum([part.size for part in parts])[:-1])
        shaped = [s.reshape(part.shape) for s, part in zip(split, parts, strict=True)]
        yield _Knot(
            tuple(numbers),
            tuple(grid.sizes for grid in mine),
            tuple(shaped[::2]),
            tuple(shaped[1::2]),
            tuple(grid.thin for grid in mine),
            back,
        )


def _distinct(n: int, *parts: Labels) -> Labels:
    """Which of the numbers below n occur, in order; np.unique takes ten times as long."""
    met = np.zeros(n, bool)
    for part in parts:
        met[part] = True
    return np.flatnonzero(met)


def _live(labels: Labels, where: NDArray[Any]) -> Labels:
    """The labels at some places, without that of the locked."""
    found = _distinct(len(labels), labels[where])
    live: Labels = found[found != labels[LOCKED]]
    return live


def _first(labels: Labels) -> Labels:
    """For every place the first one with the same label."""
    first = np.empty(int(labels.max()) + 1, np.int64)
    first[labels[::-1]] = np.arange(len(labels))[::-1]
    return first[labels]


def _join(labels: Labels, ones: Labels, others: Labels) -> Labels:
    """The labels where these pairs of labels are one; the smallest of a set stands for it."""
    met, place = np.unique(np.concatenate([ones, others]), return_inverse=True)
    half, n = len(ones), len(met)
    joined = coo_array((np.ones(half, np.int8), (place[:half], place[half:])), shape=(n, n))
    stands = np.arange(len(labels))
    stands[met] = met[_first(connected_components(joined, directed=False)[1].astype(np.int64))]
    return stands[labels]
