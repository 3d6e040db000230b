"""Run a declared pattern on the ids of a node: tie what shares a letter, give outputs their ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from spa import patterns
from spa.axes import WINDOW, Axes, Axis, Ids, is_whole, whole
from spa.patterns import STAR, Factors

if TYPE_CHECKING:
    from spa.rules import Op


def follow(
    op: Op,
    text: str,
    zero: str = "",
    inexact: str = "",
    sizes: dict[str, int] | None = None,
    kinds: dict[str, str] | None = None,
) -> list[Axes]:
    """Run a pattern on the ids of a node: tie what shares a letter, give the outputs their ids."""
    pattern = patterns.parse(text)
    terms = pattern.inputs
    if all(term == (patterns.ELLIPSIS,) for term in terms):  # variadic: the last one repeats
        terms += terms[-1:] * (len(op.axes) - len(terms))
    present = [
        (k, patterns.lay(terms[k], len(op.shape(k)), text))
        for k in range(min(len(terms), len(op.axes)))
        if op.has(k)
    ]
    size = patterns.solve_sizes([(t, op.shape(k)) for k, t in present], sizes or {}, text)
    made = [
        patterns.lay(term, len(shape), text)
        for term, shape in zip(pattern.outputs, op.out_shapes, strict=False)
        if shape is not None
    ]
    live = _live_letters(op, [*(t for _, t in present), *made], size)

    letters: dict[str, Axis] = {}
    zeros: dict[str, dict[int, bool]] = {}
    for k, term in present:
        for factors, axis in zip(term, op.input(k), strict=True):
            _bind(op, k, factors, axis, size, live, letters, zeros)
    for k in range(len(terms), len(op.axes)):
        op.lock_input(k, "an input that the rule keeps whole")

    if zero == "+":
        products = [[k] for k in range(len(op.axes))]
    else:
        products = [[int(k) for k in term.split()] for term in zero.split("+")] if zero else []
    products = [p for p in ([k for k in p if op.has(k)] for p in products) if p]
    for letter, axis in letters.items():
        base = "..." if letter.startswith("...") else letter
        if base in inexact.split():
            op.inexact(axis)
        if kinds and base in kinds:
            op.kind(axis, kinds[base])

    def zero_at(letter: str, summed: bool) -> bool:
        carried = zeros.get(letter, {})
        asked = [p for p in products if not summed or any(k in carried for k in p)]
        return bool(asked) and all(any(carried.get(k, False) for k in p) for p in asked)

    outputs: list[Axes] = []
    shown: set[str] = set()
    for k, shape in enumerate(op.out_shapes):
        if shape is None or k >= len(pattern.outputs):
            outputs.append([whole(n) for n in shape or ()])
            continue
        term = patterns.lay(pattern.outputs[k], len(shape), text)
        shown.update(f for factors in term for f in factors)
        outputs.append(
            [
                _spread(factors, n, size, letters, lambda f: zero_at(f, False))
                for factors, n in zip(term, shape, strict=True)
            ]
        )
    for letter, axis in letters.items():
        if letter not in shown and not zero_at(letter, True):
            op.inexact(axis)  # summed away without being zero: what it leaves is lost
    return outputs


def _live_letters(
    op: Op, terms: Sequence[tuple[Factors, ...]], size: dict[str, int]
) -> dict[str, bool]:
    """Which letters may be removed here: of several in one product, one, as the view chooses."""
    live = {f: patterns.is_live(f) for term in terms for factors in term for f in factors}
    chosen: set[str] = set()
    for term in terms:
        for factors in term:
            rivals = [f for f in factors if live[f] and size.get(f, 1) > 1]
            if len(rivals) > 1:
                earlier = [f for f in rivals if f in chosen]
                keep = earlier[0] if earlier else rivals[op.choose(len(rivals))]
                chosen.add(keep)
                live.update({f: False for f in rivals if f != keep})
    return live


def _bind(
    op: Op,
    k: int,
    factors: Factors,
    axis: Axis,
    size: dict[str, int],
    live: dict[str, bool],
    letters: dict[str, Axis],
    zeros: dict[str, dict[int, bool]],
) -> None:
    """Tie one axis to the letters that its pattern names."""
    moving = [f for f in factors if live.get(f) and size.get(f, 1) > 1]
    if not moving:
        if len(axis.ids) > 1:
            op.lock(axis, WINDOW if factors == STAR else f"kept whole as {' '.join(factors)!r}")
        return
    (letter,) = moving
    if len(axis.ids) == 1:
        return  # broadcast
    if len(factors) > 1:
        dims = [int(f) if f.isdigit() else size[f] for f in factors]
        lines: Ids = np.moveaxis(axis.ids.reshape(dims), factors.index(letter), 0)
        grid = lines.reshape(size[letter], -1)
        op.tie(grid[:, 1:], grid[:, :1])
        axis = Axis(grid[:, 0], axis.zero)
    if letter in letters:
        op.tie(axis.ids, letters[letter].ids)
        if is_whole(letters[letter]):
            letters[letter] = axis
    else:
        letters[letter] = axis
    zeros.setdefault(letter, {})[k] = axis.zero


def _spread(
    factors: Factors,
    n: int,
    size: dict[str, int],
    letters: dict[str, Axis],
    zero: Callable[[str], bool],
) -> Axis:
    """The axis of an output: its live letter's ids, repeated along the other factors."""
    moving = [f for f in factors if f in letters and not is_whole(letters[f])]
    if not moving:
        return whole(n)
    (letter,) = moving
    ids = letters[letter].ids
    if len(factors) > 1:
        dims = [int(f) if f.isdigit() else size[f] for f in factors]
        at = factors.index(letter)
        view = [1] * len(dims)
        view[at] = dims[at]
        ids = np.broadcast_to(ids.reshape(view), dims).ravel()
    if len(ids) != n:
        raise patterns.PatternError(f"axis {' '.join(factors)} has {len(ids)} ids for size {n}")
    return Axis(ids, zero(letter))
