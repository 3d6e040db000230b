"""What calibration inputs show of a network, and the two things done with it: choose units by it,
and give what remains the work of what was removed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.align import align
from spa.allocate import TOLERANCE, Limits, allocate
from spa.batches import Batches
from spa.blocks import alike, by_curves, by_order, by_weights
from spa.budget import spend
from spa.calibration import NOISE, Calibration, calibrate, is_noise
from spa.compensate import compensate
from spa.compensation import Compensation
from spa.cost import CostModel
from spa.curves import Curve, curves
from spa.drift import distance, is_exact, losses, outputs, weights
from spa.errors import ModelError, TargetError, ValidationError
from spa.groups import Groups, Removed
from spa.measure import Measured, measure
from spa.progress import Progress, quiet
from spa.run import CannotCheck, Feeds
from spa.score import score
from spa.selection import choose_blocks
from spa.settings import DEPTH, Settings
from spa.sites import Place

HELD = 0.25  # the share of the inputs that judge what the others suggest
FEW = 16  # samples on which criteria run the network
TRIED = 4  # of so many inputs one is fitted on to try a choice
PROBES = 64  # held-out samples on which the drift of every group is measured


@dataclass(frozen=True)
class Study:
    """measured: the dense network. fit, held: batches to learn from and to judge by.
    calibration: where they come from."""

    measured: Measured
    fit: Batches
    held: Batches
    calibration: Calibration


def gather(groups: Groups, settings: Settings, say: Progress) -> Study | None:
    """Run the network on calibration inputs; None where nothing needs that, or where inputs would
    have to be made up and onnxruntime runs the network on none.

    Raises:
        UsageError, ModelError: if the inputs given do not fit the model.
    """
    if not settings.needs_inputs:
        return None
    say("calibrating")
    graph = groups.graph
    try:
        inputs = calibrate(
            graph,
            settings.data,
            count=settings.samples,
            seed=settings.seed,
            preprocess=settings.preprocess,
            memory=settings.memory,
        )
    except CannotCheck:
        if is_noise(settings.data):
            return None
        raise
    fit, held = inputs.split(HELD)
    others = held.batches if inputs.kind == NOISE else ()
    measured = measure(graph, fit.batches, others, settings.seed, settings.memory // 2)
    return Study(measured, fit.batches, held.batches, inputs)


def prepare(groups: Groups, settings: Settings, say: Progress) -> tuple[Groups, Study | None]:
    """What `gather` finds; with ``settings.align`` of the model with its lines in order, and the
    groups of that."""
    study = gather(groups, settings, say)
    if not settings.align:
        return groups, study
    say("aligning")
    aligned = align(groups, study.measured.sites if study else {})
    return aligned, study if aligned is groups else gather(aligned, settings, say)


def judged_by(settings: Settings, study: Study | None) -> str:
    """The criterion at work: without inputs obspa has only weights to look at."""
    return "l1" if study is None and settings.criterion == "obspa" else settings.criterion


@dataclass(frozen=True)
class Judged:
    """What decides which units go: scores, or curves and what their loss is worth."""

    scope: str
    scores: Sequence[NDArray[np.float64]]
    curves: Mapping[int, Curve] = field(default_factory=dict)
    worth: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What is to be chosen from, and what for.

    free: the groups that may lose units. measure, share: the target, such as "macs" and 0.7.
    """

    groups: Groups
    free: frozenset[int]
    measure: str
    share: float
    settings: Settings
    study: Study | None
    cost: CostModel

    @property
    def limits(self) -> Limits:
        return Limits(self.free, self.settings.min_keep, self.settings.round_to)


def select(task: Task, say: Progress) -> tuple[Groups, Removed]:
    """The groups without the blocks that are to go, and the units to remove.

    What made-up inputs show may lead astray. So, where two forms of the network can judge, two
    choices are made up for on some of the inputs, and the one whose held-out outputs stay nearer,
    in the form that is worse, is taken: by what the loss of a group is worth as settled, and in
    both forms.

    Raises:
        TargetError: if it is out of reach.
    """
    judged, study = _judge(task, say), task.study
    found = _select(task, judged, say)
    if study is None or not _is_doubtful(task, study):
        return found
    say("choosing again")
    try:
        other = _select(task, _in_both_forms(task, study, judged), quiet)
    except TargetError:  # in blocks, not every order comes near enough
        return found
    if _is_same(found, other):
        return found
    few = first(study.fit, max(study.fit.samples // TRIED, FEW))
    held = first(study.held, PROBES)

    def drift(way: tuple[Groups, Removed]) -> float:
        with suppress(ValidationError):
            return _compensated(*way, task.settings, study, few, held, quiet).worst
        return np.inf

    say("trying both choices")
    return min((found, other), key=drift)


def _in_both_forms(task: Task, study: Study, judged: Judged) -> Judged:
    """What a group's loss is worth as settled and as stored, by the mean of the logarithms: what
    rests on means that settling made up shows in the stored form."""
    probes = first(study.held, PROBES)
    stored = weights(task.groups, plainly(study.measured), judged.curves, probes)
    return replace(judged, worth={g: (w * stored[g]) ** 0.5 for g, w in judged.worth.items()})


def _is_doubtful(task: Task, study: Study) -> bool:
    """Whether a choice by curves rests on made-up inputs, and two forms of the network can judge
    another; the settled one alone takes the wrong one too often."""
    scope = task.settings.scope_for(task.settings.criterion)
    curves_count = scope == "curves" and task.measure != "channels"
    return bool(study.measured.settled) and curves_count and _compensates(task.settings)


def _compensates(settings: Settings) -> bool:
    return settings.compensate != "none" or settings.repair != "none"


def _is_same(one: tuple[Groups, Removed], other: tuple[Groups, Removed]) -> bool:
    """Whether the same units and the same blocks go."""
    (a, gone), (b, gone_too) = one, other
    units = gone.keys() == gone_too.keys() and all(
        np.array_equal(gone[g], gone_too[g]) for g in gone
    )
    return units and a.graph.blocks == b.graph.blocks


def _select(task: Task, judged: Judged, say: Progress) -> tuple[Groups, Removed]:
    groups, limits, cost = task.groups, task.limits, task.cost
    target = task.measure, task.share
    if DEPTH in task.settings.kinds:
        say("weighing blocks")
        groups = _shorter(task, judged)
        cost, limits = cost.without(groups.graph), replace(limits, groups=task.free - groups.dead)
        if not task.free and task.measure != "channels":
            _check_reached(cost, len(groups), *target)
    say("allocating")
    if judged.scope != "curves":
        scope = judged.scope
        return groups, allocate(groups, judged.scores, dict([target]), scope, limits, cost).removed
    drawn = judged.curves
    counts = spend(groups, drawn, judged.worth, target, limits, cost)
    return groups, {g: np.sort(drawn[g].order[:k]) for g, k in enumerate(counts.tolist()) if k}


def _judge(task: Task, say: Progress) -> Judged:
    groups, settings, study = task.groups, task.settings, task.study
    criterion = judged_by(settings, study)
    scope = settings.scope_for(criterion)
    if criterion != "obspa" or study is None:
        say("scoring")
        seen = study.measured.sites if study else None
        inputs = first(study.fit, FEW) if study else ()
        scores = score(
            groups, criterion, settings.aggregate, settings.normalize, settings.seed, seen, inputs
        )
        return Judged(scope, scores)
    say("drawing curves")
    drawn = curves(groups, study.measured.sites, study.measured.products)
    scores = [drawn[g].scores(group.size) for g, group in enumerate(groups)]
    if scope != "curves" or task.measure == "channels":
        return Judged("local" if scope == "curves" else scope, scores)
    say("measuring drift")
    worth = weights(groups, study.measured, drawn, first(study.held, PROBES))
    return Judged(scope, scores, drawn, worth)


def _check_reached(cost: CostModel, count: int, measure_: str, share: float) -> None:
    """Raises TargetError where branches alone do not come within 2 points."""
    left = getattr(cost(np.zeros(count, np.int64)), measure_) / max(getattr(cost(), measure_), 1)
    if abs(left - share) > TOLERANCE:
        raise TargetError(
            f"{measure_}={share:g} cannot be met within 2 points with whole branches alone: the "
            f"nearest is {measure_}={left:.3f}; choose that target, or let widths make up the "
            "difference, such as --kinds depth,ffn,heads,conv"
        )


def _shorter(task: Task, judged: Judged) -> Groups:
    """The groups without the blocks that are to go."""
    groups, study, target = task.groups, task.study, (task.measure, task.share)
    open_ = choose_blocks(groups, exclude=task.settings.exclude, only=task.settings.only)
    if not open_:
        return groups
    if study is None:
        found = by_weights(groups, open_)
    else:
        found = losses(groups, open_, study.measured, first(study.held, PROBES))
    if judged.scope == "curves":
        drawn, worth = judged.curves, judged.worth
        return by_curves(groups, open_, found, drawn, worth, target, task.limits, task.cost)
    units, scope = judged.scores, judged.scope
    return by_order(groups, open_, alike(found), units, scope, target, task.limits, task.cost)


def first(batches: Sequence[Feeds], samples: int) -> list[Feeds]:
    """The first batches that hold at least so many samples."""
    found, count = [], 0
    for feeds in batches:
        found.append(feeds)
        count += max((len(v) for v in feeds.values() if getattr(v, "ndim", 0)), default=1)
        if count >= samples:
            break
    return found


def make_up(
    groups: Groups, removed: Removed, settings: Settings, study: Study | None, say: Progress
) -> tuple[Groups, Compensation | None]:
    """The groups with weights that make up for what is removed, and what was done.

    Held-out outputs judge the whole: where they are no nearer to the dense ones with the new
    weights than without, the weights stay. Of a network that was settled, both forms judge, by the
    mean of the logarithms.
    """
    anything = groups.graph.blocks or any(map(len, removed.values()))
    if study is None or not _compensates(settings) or not anything:
        return groups, None
    say("compensating")
    done = _compensated(groups, removed, settings, study, study.fit, study.held, say)
    if done.refused:
        return groups, done
    return replace(groups, graph=replace(groups.graph, changed=_by_name(groups, done.values))), done


def _compensated(
    groups: Groups,
    removed: Removed,
    settings: Settings,
    study: Study,
    fit: Sequence[Feeds],
    held: Sequence[Feeds],
    say: Progress,
) -> Compensation:
    """What compensation makes of it, fitted and judged on these batches.

    Raises:
        ValidationError: if the network does not run without these units, as where what it makes of
            its inputs decides on sizes.
    """
    method, repair, memory = settings.compensate, settings.repair != "none", settings.memory // 2
    measured, seed = study.measured, settings.seed
    try:
        done = compensate(groups, removed, measured, fit, held, method, repair, seed, memory)
    except ModelError as error:
        why = f"the pruned model does not run on the calibration inputs: {error}"
        raise ValidationError(why) from None
    say("judging")
    probes = first(held, PROBES)
    every = on_terms(measured) if is_exact(groups, removed) else [plainly(measured)]
    drifts = [_drifts(groups, removed, terms, done, probes) for terms in every]
    done = replace(done, drift=drifts[0], as_stored=drifts[1] if drifts[1:] else None)
    before, after = map(prod, zip(*drifts, strict=True))
    if not after < before:
        return replace(done, values={}, helped={}, repaired=(), refused=True)
    return done


def on_terms(measured: Measured) -> list[Measured]:
    """The terms on which outputs are compared: as measured, and those of the file itself."""
    if not measured.settled:
        return [measured]
    return [measured, plainly(measured)]


def plainly(measured: Measured) -> Measured:
    """On the terms of the file itself."""
    return replace(measured, statistics={}, settled={})


def _drifts(
    groups: Groups,
    removed: Removed,
    measured: Measured,
    done: Compensation,
    probes: Sequence[Feeds],
) -> tuple[float, float]:
    """The drift of the outputs without and with the new weights."""
    whole = replace(groups, graph=replace(groups.graph, blocks=()))
    wanted, got, plain = (
        outputs(some, chosen, measured, values, probes)
        for some, chosen, values in (
            (whole, {}, {}),
            (groups, removed, done.values),
            (groups, removed, {}),
        )
    )
    return distance(wanted, plain), distance(wanted, got)


def _by_name(groups: Groups, values: Mapping[Place, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {groups.graph.nodes[k].inputs[i]: value for (k, i), value in values.items()}
