"""Which groups a pruned model fails by, found by cutting fewer of them."""

from __future__ import annotations

from collections.abc import Sequence

from spa import run as runs
from spa import states
from spa.errors import ModelError, ValidationError
from spa.groups import Groups, Removed
from spa.rewrite import rewrite
from spa.run import CannotCheck, Feeds
from spa.validate import Original, original, verify

CUTS = 96  # that are made at most; a group that none of them has tried is blamed, too


def blame(
    groups: Groups, removed: Removed, batches: Sequence[Feeds] = (), seed: int = 0
) -> dict[int, str]:
    """Group -> why a model without these units of it fails. What is left of ``removed`` without
    these groups was cut and passed; nothing is blamed where it all passes, or where it fails with
    every unit in place.

    Groups are added to those that pass, in halves as long as they fail: of n groups b are found
    with about 2 b log2(n) cuts.

    Args:
        batches: calibration inputs, on which it must run too.
    """
    try:
        known = original(groups, seed)
    except CannotCheck:
        known = None
    except ValidationError:
        return {}

    passing: Removed = {}
    blamed: dict[int, str] = {}
    cuts = 0

    def add(part: Sequence[int]) -> None:
        nonlocal passing, cuts
        some = {**passing, **{g: removed[g] for g in part}}
        cuts += 1
        why = _fault(groups, some, batches, known) if cuts <= CUTS else "not tried, after many"
        if not why:
            passing = some
        elif len(part) == 1:
            blamed[part[0]] = why
        else:
            add(part[: len(part) // 2])
            add(part[len(part) // 2 :])

    cut = [g for g, units in removed.items() if len(units)]
    if cut and not _fault(groups, {}, batches, known):
        add(cut)
    return blamed


def _fault(
    groups: Groups, removed: Removed, batches: Sequence[Feeds], known: Original | None
) -> str:
    """What is wrong with the model without these units; nothing if it passes."""
    kept = groups.kept(removed)
    try:
        pruned = rewrite(groups, removed)
        if known is not None:
            verify(groups, pruned, removed, known=known)
    except ValidationError as error:
        return str(error)
    try:
        with runs.session(pruned) as running:
            for feeds in batches:
                runs.run(running, states.cut(feeds, kept))
    except ModelError as error:
        return f"the pruned model does not run on the calibration inputs: {error}"
    return ""
