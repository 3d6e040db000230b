"""Score the units of every group: what a criterion says of them, made to compare.

    score(u) = Norm_group( AGG_members( sum over the member's weights of u of |w|^p ) )

as in SPA (Wang et al. 2024, section 3.2): a per-weight criterion, summed over the entries of a
coupled channel in one parameter, aggregated (AGG) over the coupled parameters and normalised
(Norm) inside the group so that groups compare. Criteria that judge whole units (`spa.criteria`)
have no use for AGG; those that say that their scores compare as they are, none for Norm.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from spa.criteria import CRITERIA
from spa.errors import UsageError
from spa.evidence import Evidence, Scores
from spa.groups import Groups
from spa.measure import Seen
from spa.run import Feeds

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
    seen: Mapping[int, Seen] | None = None,
    inputs: Sequence[Feeds] = (),
) -> list[Scores]:
    """A score for every unit of every group, shape (group.size,) each; low goes first.

    Args:
        seen: what calibration inputs showed, by the node index of a site.
        inputs: a few batches of them.

    Raises:
        UsageError: for an unknown name, or a criterion that needs calibration inputs without any.
    """
    check_names(criterion, aggregate, normalize)
    use = CRITERIA[criterion]
    if use.needs == "calibration inputs" and not seen:
        raise UsageError(f"criterion {criterion!r} needs calibration inputs, and there are none")
    random = np.random.default_rng(seed)
    found = use.score(Evidence(groups, random, seen or {}, AGGREGATES[aggregate], inputs))
    return found if use.normalized else [NORMS[normalize](s) for s in found]
