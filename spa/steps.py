"""Choose in several steps, each on what the one before has left and made up for."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from onnx import ModelProto

from spa import plan as plans
from spa.analysis import analyze
from spa.cost import CostModel
from spa.errors import TargetError, ValidationError
from spa.groups import Groups, Removed
from spa.plan import Plan
from spa.progress import Progress
from spa.rewrite import rewrite
from spa.selection import choose
from spa.settings import Settings
from spa.study import Study, Task, gather, make_up, select


@dataclass(frozen=True)
class _Left:
    """What the steps so far have left.

    plan: what they keep of the original. share: how much that is of the measure.
    """

    groups: Groups
    free: frozenset[int]
    study: Study
    plan: Plan
    share: float


def select_in_steps(task: Task, say: Progress) -> tuple[Groups, Removed]:
    """The groups without the blocks that are to go, and the units to remove.

    They are found on the way to ``share ** (k / steps)`` for k = 1, 2, ... After each step the
    model that is left, with its new weights, is measured again on the same inputs. The choice is
    for the original: its weights have yet to be made up for. A step that cannot be made, as units
    are too large for it, is left out.

    Raises:
        TargetError: if the target is out of reach.
    """
    groups, settings, study, share = task.groups, task.settings, task.study, task.share
    if settings.steps == 1 or study is None:
        return select(task, say)
    again = replace(settings, data=study.calibration)

    def step(left: _Left, goal: float) -> tuple[Plan, Removed]:
        nearer, costs = min(goal / left.share, 1.0), CostModel(left.groups)
        part = Task(left.groups, left.free, task.measure, nearer, again, left.study, costs)
        _, found = select(part, say)
        plan = plans.compose(left.plan, plans.record(left.groups, found))
        # A cut gives every reader of a shared constant one of its own, under another name.
        named = groups.graph.constants.keys() - plans.shared(groups.graph)
        plan = Plan({tensor: axes for tensor, axes in plan.kept.items() if tensor in named})
        return plan, plans.replay(groups, plan)

    ways = [_Left(groups, task.free, study, Plan({}), 1.0)]
    for k in range(1, settings.steps):
        with suppress(TargetError, ValidationError):
            plan, removed = step(ways[-1], share ** (k / settings.steps))
            kept = _share(task, removed)
            if kept < share:
                break
            filled, _ = make_up(groups, removed, again, study, say)
            ways.append(_measured(rewrite(filled, removed), plan, kept, again, say))
    while len(ways) > 1:
        with suppress(TargetError):
            return groups, step(ways.pop(), share)[1]
    return groups, step(ways[0], share)[1]


def _measured(model: ModelProto, plan: Plan, share: float, use: Settings, say: Progress) -> _Left:
    groups = analyze(model, exact=use.exact)
    free = choose(groups, exclude=use.exclude, only=use.only, kinds=use.kinds)
    study = gather(groups, use, say)
    assert study is not None  # the inputs are at hand
    return _Left(groups, free, study, plan, share)


def _share(task: Task, removed: Removed) -> float:
    left, whole = task.cost.of(task.groups, removed), task.cost()
    return float(getattr(left, task.measure) / max(getattr(whole, task.measure), 1))
