"""Score the units of every group: what a criterion says of single weights, brought together.

    score(u) = Norm_group( AGG_members( sum over the member's weights of u of |w|^p ) )

as in SPA (Wang et al. 2024, section 3.2): a per-weight criterion, summed over the entries of a
coupled channel in one parameter, aggregated (AGG) over the coupled parameters and normalised
(Norm) inside the group so that groups compare.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa.errors import UsageError
from spa.graph import Graph
from spa.groups import Group, Groups, Member

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Criterion:
    """How single weights are scored.

    per_axis: (weight, axis, random generator) -> a score for every index of the axis.
    needs: what it looks at, for ``spa criteria``.
    """

    name: str
    per_axis: Callable[[NDArray[np.floating], int, np.random.Generator], Scores]
    needs: str
    source: str


def _others(w: NDArray[np.floating], axis: int) -> tuple[int, ...]:
    return tuple(k for k in range(w.ndim) if k != axis)


def _l1(w: NDArray[np.floating], axis: int, _: np.random.Generator) -> Scores:
    return np.asarray(np.abs(w).sum(axis=_others(w, axis)), np.float64)


def _l2(w: NDArray[np.floating], axis: int, _: np.random.Generator) -> Scores:
    w = np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
    return np.asarray(np.einsum("ij,ij->i", w, w), np.float64)


def _random(w: NDArray[np.floating], axis: int, random: np.random.Generator) -> Scores:
    return np.asarray(random.random(w.shape[axis]))


CRITERIA = {
    c.name: c
    for c in (
        Criterion("l1", _l1, "weights", "Li et al. 2017, Pruning Filters for Efficient ConvNets"),
        Criterion("l2", _l2, "weights", "He et al. 2018, Soft Filter Pruning"),
        Criterion("random", _random, "nothing", "the control that any criterion must beat"),
    )
}

AGGREGATES: dict[str, Callable[[Scores], Scores]] = {
    "sum": lambda s: s.sum(axis=0),
    "mean": lambda s: s.mean(axis=0),
    "max": lambda s: s.max(axis=0),
    "prod": lambda s: s.prod(axis=0),
    "l2": lambda s: np.sqrt((s * s).sum(axis=0)),
}


def _safe(x: np.float64) -> np.float64:
    return x if x > 0 else np.float64(1)


NORMS: dict[str, Callable[[Scores], Scores]] = {
    "none": lambda s: s,
    "sum": lambda s: s / _safe(s.sum()),
    "mean": lambda s: s / _safe(s.mean()),
    "max": lambda s: s / _safe(s.max()),
    "standard": lambda s: (s - s.mean()) / _safe(s.std()),
}


def pick(table: dict[str, object], name: str, what: str) -> None:
    """Check a name against a table of choices.

    Raises:
        UsageError: if the name is not in it.
    """
    if name not in table:
        raise UsageError(f"{what} {name!r} is not known; choose one of {', '.join(table)}")


def check_names(criterion: str, aggregate: str, normalize: str) -> None:
    """Raises UsageError for an unknown name."""
    pick(dict(CRITERIA), criterion, "criterion")
    pick(dict(AGGREGATES), aggregate, "aggregation")
    pick(dict(NORMS), normalize, "normalisation")


def score(
    groups: Groups,
    criterion: str = "l1",
    aggregate: str = "mean",
    normalize: str = "mean",
    seed: int = 0,
) -> list[Scores]:
    """A score for every unit of every group, shape (group.size,) each; low goes first.

    Raises:
        UsageError: for an unknown name.
    """
    check_names(criterion, aggregate, normalize)
    random = np.random.default_rng(seed)
    per_axis = _Scorer(groups.graph, CRITERIA[criterion], random)
    return [
        NORMS[normalize](AGGREGATES[aggregate](_by_member(group, per_axis)))
        for group in groups.groups
    ]


class _Scorer:
    """Scores of (tensor, axis), kept: several groups may sit on one axis."""

    def __init__(self, graph: Graph, criterion: Criterion, random: np.random.Generator) -> None:
        self._graph, self._criterion, self._random = graph, criterion, random
        self._known: dict[tuple[str, int], Scores] = {}

    def __call__(self, member: Member) -> Scores:
        key = (member.tensor, member.axis)
        if key not in self._known:
            w = np.asarray(self._graph.array(member.tensor))
            if w.dtype not in (np.float32, np.float64):
                w = w.astype(np.float32)
            self._known[key] = self._criterion.per_axis(w, member.axis, self._random)
        return np.asarray(self._known[key][member.index].sum(axis=1))


def _by_member(group: Group, per_axis: _Scorer) -> Scores:
    """Scores by weight member, shape (members, units); vectors such as biases and statistics
    count only in a group that has no larger weight."""
    weights = [m for m in group.members if per_axis._graph.constants[m.tensor].tensor.dims]
    large = [m for m in weights if _is_matrix(per_axis._graph.constants[m.tensor].shape)]
    return np.stack([per_axis(m) for m in large or weights])


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return int(np.prod(shape)) > max(shape)
