"""Choose in several steps, each on what the one before has left and made up for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from spa import plan as plans
from spa.analysis import analyze
from spa.cost import CostModel
from spa.errors import TargetError
from spa.groups import Groups, Removed
from spa.plan import Plan
from spa.progress import Progress
from spa.rewrite import rewrite
from spa.selection import choose
from spa.settings import Settings
from spa.study import Study, gather, make_up, select


def select_in_steps(
    groups: Groups,
    free: frozenset[int],
    target: Mapping[str, float],
    settings: Settings,
    study: Study | None,
    cost: CostModel,
    say: Progress,
) -> Removed:
    """The units to remove, found on the way to ``share ** (k / steps)`` for k = 1, 2, ...

    After each step the model that is left, with its new weights, is measured again on the same
    inputs. The choice is for the original: its weights have yet to be made up for.

    Raises:
        TargetError: if the last step is out of reach.
    """
    steps = settings.steps if study is not None else 1
    if steps == 1 or study is None:
        return select(groups, free, target, settings, study, cost, say)
    ((measure, share),) = target.items()
    again = replace(settings, data=study.calibration)
    now, open_, seen, plan, kept = groups, free, study, Plan({}), 1.0
    removed: Removed = {}
    for k in range(1, steps + 1):
        goal = {measure: min(share ** (k / steps) / kept, 1.0)}
        try:
            found = select(now, open_, goal, again, seen, CostModel(now), say)
        except TargetError:
            if k == steps:
                raise
            continue  # units too large for so small a step: the next one is larger
        plan = plans.compose(plan, plans.record(now, found))
        removed = plans.replay(groups, plan)
        if k < steps:
            kept = _share(cost, removed, measure, len(groups))
            filled, _ = make_up(groups, removed, again, study, say)
            now = analyze(rewrite(filled, removed), exact=settings.exact)
            open_ = choose(now, exclude=settings.exclude, only=settings.only, kinds=settings.kinds)
            measured = gather(now, again, say)
            assert measured is not None  # the inputs are at hand
            seen = measured
    return removed


def _share(cost: CostModel, removed: Removed, measure: str, count: int) -> float:
    counts = np.asarray([len(removed.get(g, ())) for g in range(count)], np.int64)
    return float(getattr(cost(counts), measure) / max(getattr(cost(), measure), 1))
