"""Run a declared pattern on a node: tie what shares a letter, give outputs their ids."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from spa import patterns
from spa.axes import WINDOW, Axes, Axis, Ids, Shape, is_whole, whole
from spa.patterns import STAR, Factors

if TYPE_CHECKING:
    from spa.op import Op


def follow(
    op: Op,
    text: str,
    zero: str = "",
    inexact: str = "",
    sizes: dict[str, int] | None = None,
    kinds: dict[str, str] | None = None,
    summed: str = "",
) -> list[Axes]:
    """Run a pattern on the ids of a node: tie what shares a letter, give the outputs their ids."""
    pattern, present, size = _meet(op, text, sizes)
    bound = _Bound(op, size)
    for k, term in present:
        for factors, axis in zip(term, op.input(k), strict=True):
            bound.bind(k, factors, axis)
    for k in range(len(pattern.inputs), len(op.axes)):
        op.lock_input(k, "an input that the rule keeps whole")

    silent = [_products(op, text) for text in zero.split(",")]
    within = _products(op, summed) if summed else silent[0]
    for letter, axis in bound.letters.items():
        base = "..." if letter.startswith("...") else letter
        if base in inexact.split():
            op.inexact(axis)
        if kinds and base in kinds:
            op.kind(axis, kinds[base])

    def zero_at(letter: str, products: list[list[int]], alone: bool = False) -> bool:
        """alone: only what carries the letter counts."""
        carried = bound.zeros.get(letter, {})
        asked = [p for p in products if not alone or any(k in carried for k in p)]
        return bool(asked) and all(any(carried.get(k, False) for k in p) for p in asked)

    outputs: list[Axes] = []
    shown: set[str] = set()
    for k, shape in enumerate(op.out_shapes):
        if shape is None or k >= len(pattern.outputs):
            outputs.append([whole(n) for n in shape or ()])
            continue
        term = patterns.lay(pattern.outputs[k], len(shape), text)
        if not shown:  # the first output that is there; the others may hold what goes into it
            shown.update(f for factors in term for f in factors)
        zero_here = partial(zero_at, products=silent[min(k, len(silent) - 1)])
        outputs.append(
            [bound.spread(factors, n, zero_here) for factors, n in zip(term, shape, strict=True)]
        )
    for letter, axis in bound.letters.items():
        if letter not in shown and not zero_at(letter, within, alone=True):
            op.inexact(axis)  # summed away without being zero: what it leaves is lost
    return outputs


def foretell(op: Op, text: str, sizes: dict[str, int]) -> list[Shape | None]:
    """The shapes of the outputs as far as the shapes of the inputs and the pattern tell them."""
    pattern, _, size = _meet(op, text, sizes)
    broadcast = sum(letter.startswith("...") for letter in size)
    found: list[Shape | None] = []
    for term in pattern.outputs:
        rank = len(term) + (broadcast - 1) * (patterns.ELLIPSIS in term)
        laid = patterns.lay(term, rank, text)
        told = all(f.isdigit() or f == "+" or f in size for factors in laid for f in factors)
        whole = [
            sum(
                prod(int(f) if f.isdigit() else size[f] for f in part)
                for part in patterns.parts(factors)
            )
            for factors in (laid if told else ())
        ]
        found.append(tuple(whole) if told else None)
    return found


def _meet(
    op: Op, text: str, sizes: dict[str, int] | None
) -> tuple[patterns.Pattern, list[tuple[int, tuple[Factors, ...]]], dict[str, int]]:
    """A pattern, its terms for the inputs that are there, and the sizes of its letters."""
    pattern = patterns.parse(text)
    terms = pattern.inputs
    if all(term == (patterns.ELLIPSIS,) for term in terms):  # variadic: the last one repeats
        terms += terms[-1:] * (len(op.axes) - len(terms))
        pattern = replace(pattern, inputs=terms)
    present = [
        (k, patterns.lay(terms[k], len(op.shape(k)), text))
        for k in range(min(len(terms), len(op.axes)))
        if op.has(k)
    ]
    size = patterns.solve_sizes([(t, op.shape(k)) for k, t in present], sizes or {}, text)
    return pattern, present, size


def _products(op: Op, zero: str) -> list[list[int]]:
    """The products of inputs whose sum an output is, of those that are there."""
    if zero.strip() == "+":
        return [[k] for k in range(len(op.axes)) if op.has(k)]
    terms = [[int(k) for k in term.split()] for term in zero.split("+")]
    return [p for p in ([k for k in term if op.has(k)] for term in terms) if p]


class _Bound:
    """What the letters of a pattern stand for in one node, once its inputs are read.

    letters: the axis of every letter that is live. cells: the axis of every product of several.
    zeros: letter -> input -> whether that input is zero where the letter's index is removed.
    """

    def __init__(self, op: Op, size: dict[str, int]) -> None:
        self.op, self.size = op, size
        self.letters: dict[str, Axis] = {}
        self.cells: dict[Factors, Axis] = {}
        self.zeros: dict[str, dict[int, bool]] = {}

    def bind(self, k: int, factors: Factors, axis: Axis) -> None:
        """Tie one axis of input k to the letters that its pattern names."""
        if "+" in factors:
            at = 0
            for part in patterns.parts(factors):
                size = prod(self._dims(part))
                self.bind(k, part, axis._replace(ids=axis.ids[at : at + size]))
                at += size
            return
        moving = [f for f in factors if patterns.is_live(f) and self.size.get(f, 1) > 1]
        if not moving:
            if len(axis.ids) > 1:
                why = WINDOW if factors == STAR else f"kept whole as {' '.join(factors)!r}"
                self.op.lock(axis, why)
            return
        if len(axis.ids) == 1:
            return  # broadcast
        for letter in moving:
            self.zeros.setdefault(letter, {})[k] = axis.zero
        if len(factors) > 1:
            dims = self._dims(factors)
            if len(moving) > 1:
                self._lay(factors, axis, dims)
                return
            at = factors.index(moving[0])
            grid: Ids = np.moveaxis(axis.ids.reshape(dims), at, 0).reshape(dims[at], -1)
            self.op.tie(grid[:, 1:], grid[:, :1])
            axis = Axis(grid[:, 0], axis.zero)
        self._name(moving[0], axis)

    def _name(self, letter: str, axis: Axis) -> Axis:
        known = self.letters.setdefault(letter, axis)
        self.op.tie(axis.ids, known.ids)
        if is_whole(axis):
            self.letters[letter] = axis
        return self.letters[letter]

    def _lay(self, factors: Factors, axis: Axis, dims: list[int]) -> None:
        """Several letters of a product are live: its axis holds the cells of their grid."""
        known = self.cells.setdefault(factors, axis)
        if known is not axis:
            self.op.tie(axis.ids, known.ids)
            return
        make = whole if is_whole(axis) else self.op.fresh
        lines = [
            self._name(f, make(n)).ids if patterns.is_live(f) and n > 1 else None
            for f, n in zip(factors, dims, strict=True)
        ]
        self.op.grid(axis.ids, lines, dims)

    def _dims(self, factors: Factors) -> list[int]:
        return [int(f) if f.isdigit() else self.size[f] for f in factors]

    def spread(self, factors: Factors, n: int, zero: Callable[[str], bool]) -> Axis:
        """The axis of an output: the ids of its live letters, laid on the grid of its factors."""
        if "+" in factors:
            axes = [self.spread(f, prod(self._dims(f)), zero) for f in patterns.parts(factors)]
            ids = np.concatenate([axis.ids for axis in axes])
            return Axis(ids, all(axis.zero for axis in axes))
        if factors in self.cells:
            silent = all(zero(f) for f in factors if f in self.letters)
            return Axis(self.cells[factors].ids, silent)
        dims = self._dims(factors) if len(factors) > 1 else [n]
        parts = [self.letters.get(f) for f in factors]
        moving = [None if part is None or is_whole(part) else part for part in parts]
        live = [(k, part) for k, part in enumerate(moving) if part is not None]
        if not live:
            return whole(n)
        silent = all(zero(factors[k]) for k, _ in live)
        if len(live) == 1:
            ((at, part),) = live
            view = [m if k == at else 1 for k, m in enumerate(dims)]
            ids = part.ids
            if len(dims) > 1:
                ids = np.broadcast_to(ids.reshape(view), dims).ravel()
            if len(ids) != n:
                text = " ".join(factors)
                raise patterns.PatternError(f"axis {text} has {len(ids)} ids for size {n}")
            return Axis(ids, silent)
        cells = self.op.fresh(n, silent)
        self.op.grid(cells.ids, [None if part is None else part.ids for part in moving], dims)
        return cells
