"""Read the patterns in which operators declare what couples their axes.

    Conv    N (G I) *, (G O) I *, (G O) -> N (G O) *

One term per tensor, one item per axis. A capital letter is an index that may be removed; a
lower-case letter or a number is kept whole; ``(a B)`` is one axis, a row-major product; ``(A + B)``
is one that holds A and then B; ``...`` stands for any number of broadcast axes and ``*`` for any
number of whole axes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from spa.errors import SpaError

Factors = tuple[str, ...]
ELLIPSIS: Factors = ("...",)
STAR: Factors = ("*",)

_TOKEN = re.compile(r"\s*(?:\(([^()]*)\)|(\.\.\.|\*|[A-Za-z][a-z0-9_]*|\d+))")


class PatternError(SpaError):
    """A pattern that does not parse, or does not fit the shapes it meets."""


class MisfitError(PatternError):
    """Shapes of a model that contradict the operator they meet."""


@dataclass(frozen=True)
class Pattern:
    """The terms of inputs and outputs; a term is a tuple of axes, an axis a tuple of factors."""

    text: str
    inputs: tuple[tuple[Factors, ...], ...]
    outputs: tuple[tuple[Factors, ...], ...]


@lru_cache(maxsize=4096)
def parse(text: str) -> Pattern:
    """Parse ``"... M K, ... K N -> ... M N"``.

    Raises:
        PatternError: if the text is not of that form.
    """
    sides = text.split("->")
    if len(sides) != 2:
        raise PatternError(f"pattern {text!r}: needs exactly one '->'")
    inputs, outputs = (tuple(_term(t, text) for t in side.split(",")) for side in sides)
    return Pattern(text, inputs, outputs)


def _term(term: str, text: str) -> tuple[Factors, ...]:
    axes: list[Factors] = []
    at = 0
    term = term.strip()
    while at < len(term):
        match = _TOKEN.match(term, at)
        if match is None:
            raise PatternError(f"pattern {text!r}: cannot read {term[at:]!r}")
        product, single = match.groups()
        axes.append(tuple(product.split()) if product is not None else (single,))
        at = match.end()
    if sum(axis in (ELLIPSIS, STAR) for axis in axes) > 1:
        raise PatternError(f"pattern {text!r}: one '...' or '*' per tensor, found more in {term!r}")
    return tuple(axes)


def lay(term: tuple[Factors, ...], rank: int, text: str) -> tuple[Factors, ...]:
    """Spell out ``...`` and ``*`` so that the term has one item for each of ``rank`` axes.

    A broadcast axis is named by its distance from the end of the ellipsis, ``...0`` the last one,
    so that equal names align across tensors as ONNX broadcasting does.
    """
    for k, axis in enumerate(term):
        if axis in (ELLIPSIS, STAR):
            many = rank - (len(term) - 1)
            if many < 0:
                break
            middle = (
                tuple((f"...{many - 1 - i}",) for i in range(many))
                if axis == ELLIPSIS
                else (STAR,) * many
            )
            return term[:k] + middle + term[k + 1 :]
    if len(term) != rank:
        raise PatternError(f"pattern {text!r}: {len(term)} axes do not fit a tensor of rank {rank}")
    return term


def parts(axis: Factors) -> list[Factors]:
    """The products that lie one behind the other on an axis; most have one."""
    found: list[list[str]] = [[]]
    for factor in axis:
        if factor == "+":
            found.append([])
        else:
            found[-1].append(factor)
    return [tuple(part) for part in found]


def is_live(letter: str) -> bool:
    """Whether the pattern allows this letter's index to be removed."""
    return letter[0].isupper() or letter.startswith("...")


def solve_sizes(
    terms: list[tuple[tuple[Factors, ...], tuple[int, ...]]], known: dict[str, int], text: str
) -> dict[str, int]:
    """The size of every letter, from the shapes of the tensors that carry them.

    Args:
        terms: laid-out terms, each with the shape of its tensor.
        known: sizes given by attributes, such as ``{"G": group}``.

    Raises:
        MisfitError: if a product does not divide an axis or two axes disagree on a letter.
    """
    sizes = dict(known)
    waiting = [(axis, n) for term, shape in terms for axis, n in zip(term, shape, strict=True)]
    waiting = [(axis, n) for axis, n in waiting if axis != STAR]
    while waiting:
        later = []
        for axis, n in waiting:
            unknown = [f for f in axis if f not in sizes and not f.isdigit() and f != "+"]
            if len(unknown) > 1 or (unknown and "+" in axis):
                later.append((axis, n))
                continue
            rest = sum(
                prod(int(f) if f.isdigit() else sizes[f] for f in part if f not in unknown)
                for part in parts(axis)
            )
            if unknown and rest and n % rest == 0:
                sizes[unknown[0]] = n // rest
            elif len(axis) == 1 and not axis[0].isdigit() and 1 in (n, rest):
                sizes[axis[0]] = max(n, rest)  # broadcast
            elif rest != n:
                raise MisfitError(f"pattern {text!r}: axis {axis} of size {n} does not fit {sizes}")
        if len(later) == len(waiting):
            raise PatternError(f"pattern {text!r}: the sizes of {later} cannot be told")
        waiting = later
    return sizes
