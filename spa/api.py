"""The stages in a row: what the command line and Python users call.

load -> propagate -> solve -> score -> allocate -> rewrite -> validate
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from onnx import ModelProto

from spa import plan as plans
from spa import run as runs
from spa import states
from spa import validate as validation
from spa.allocate import Limits, Steps, check_reach, one_target
from spa.analysis import Model, analyze
from spa.axes import WINDOW
from spa.blame import blame
from spa.calibration import NOISE, Data, described, is_noise
from spa.compensation import Compensation
from spa.cost import Cost, CostModel
from spa.errors import ModelError, TargetError, UsageError, ValidationError
from spa.groups import Groups, Removed
from spa.plan import Plan
from spa.progress import Progress, quiet
from spa.protos import serialize, stored_bytes
from spa.reader import check_finite, load
from spa.rewrite import rewrite
from spa.score import check_names
from spa.selection import check_kinds, choose, patterns
from spa.settings import DEFAULT_KINDS, DEPTH, Settings
from spa.steps import select_in_steps
from spa.study import Study, Task, gather, judged_by, make_up, prepare
from spa.validate import Verification

ATTEMPTS = 4  # to choose otherwise where a model fails its validation


@dataclass(frozen=True)
class Figures:
    """Before and after.

    before, after: MACs at the bound sizes, and parameters.
    bytes_before, bytes_after: serialised size, weights included.
    """

    before: Cost
    after: Cost
    bytes_before: int
    bytes_after: int

    def share(self, measure: str) -> float:
        """What is kept of ``macs``, ``params`` or ``bytes``, from 0 to 1."""
        if measure == "bytes":
            return self.bytes_after / max(self.bytes_before, 1)
        return float(getattr(self.after, measure) / max(getattr(self.before, measure), 1))


@dataclass(frozen=True)
class Draft:
    """What would be removed; no model has been made yet.

    plan: what is kept. groups: the analysis of the original, the branches that its graph is to
        lose (`Graph.blocks`) with it. figures: costs before and after.
    removed: group number -> positions of the removed units.
    settings: what it was made with. study: what calibration inputs showed; None without any.
    task: what was chosen from; None of a plan that is replayed.
    set_aside: the groups that are left whole because the model fails its validation else, by name,
        and how it fails.
    """

    plan: Plan
    figures: Figures
    groups: Groups
    removed: Removed
    settings: Settings = field(repr=False)
    study: Study | None = field(repr=False)
    task: Task | None = field(repr=False)
    set_aside: Mapping[str, str]

    @property
    def blind(self) -> bool:
        """Whether inputs were wanted and the model runs on none that could be made up."""
        return self.study is None and self.settings.needs_inputs


@dataclass(frozen=True)
class Result(Draft):
    """A pruned model and how it came about.

    verification: None when it was switched off.
    compensation: what was done to the weights that remain; None for nothing.
    data: the model as the bytes of a file; None beyond 2 GB.
    """

    model: ModelProto
    verification: Verification | None
    compensation: Compensation | None
    data: bytes | None = field(repr=False, default=None)


def draft(
    model: Model,
    target: Mapping[str, float] | str = "macs=0.7",
    settings: Settings | None = None,
    *,
    plan: Plan | None = None,
    progress: Progress | None = None,
) -> Draft:
    """Analyse, score and allocate, or replay a plan; make no model.

    Raises:
        UsageError, ModelError, PlanError, TargetError: see `spa.errors`.
    """
    say = progress or quiet
    use = settings or Settings()
    goal = one_target(target)
    wanted = dict([goal])
    _check(use)
    if use.steps > 1 and "channels" in wanted:
        raise UsageError("more than one step goes with a target of macs or params")
    groups = analyze(
        model,
        exact=use.exact and plan is None,
        allow_io_change=use.allow_io_change or (plan is not None and plan.allows_io_change),
        progress=say,
    )
    if not groups.groups and DEPTH not in use.kinds and (plan is None or not plan.blocks):
        raise ModelError(
            "the model has no group of channels that can be pruned: " + _held(groups, use.exact)
        )
    check_finite(groups.graph, {m.tensor for group in groups for m in group.members})
    removed: Removed
    cost = CostModel(groups)
    if plan is not None:
        given, use = use.data, use.replayed(plan.made_by)
        groups = plans.without_blocks(plans.in_order(groups, plan), plan)
        removed, made_by = plans.replay(groups, plan), dict(plan.made_by)
        if not is_noise(given) and "data" in made_by:
            made_by["data"] = described(given)
        study, figures = gather(groups, use, say), measure(groups, removed, cost)
        replayed = plans.record(groups, removed, made_by)
        return Draft(replayed, figures, groups, removed, use, study, None, {})
    free = choose(groups, exclude=use.exclude, only=use.only, kinds=use.kinds)
    if DEPTH not in use.kinds and "channels" not in wanted:  # minutes before it is found else
        limits = Limits(free, use.min_keep, use.round_to)
        check_reach(cost, Steps(groups, limits, use.round_to or 1), *goal)
    groups, study = prepare(groups, use, say)
    made_by = {"target": wanted, **use.record(), "criterion": judged_by(use, study)}
    return _chosen(Task(groups, free, *goal, use, study, cost), made_by, {}, say)


def _chosen(
    task: Task, made_by: dict[str, Any], set_aside: Mapping[str, str], say: Progress
) -> Draft:
    groups, removed = select_in_steps(task, say)
    figures, plan = measure(groups, removed, task.cost), plans.record(groups, removed, made_by)
    return Draft(plan, figures, groups, removed, task.settings, task.study, task, set_aside)


def _check(settings: Settings) -> None:
    """Find what cannot be meant before the work starts."""
    check_names(settings.criterion, settings.aggregate, settings.normalize)
    settings.check()
    patterns(settings.exclude)
    patterns(settings.only)
    check_kinds(settings.kinds)


def prune(
    model: Model,
    target: Mapping[str, float] | str = "macs=0.7",
    *,
    criterion: str = "obspa",
    aggregate: str = "mean",
    normalize: str = "mean",
    scope: str | None = None,
    steps: int = 1,
    seed: int = 0,
    exclude: Sequence[str] = (),
    only: Sequence[str] = (),
    kinds: Sequence[str] = DEFAULT_KINDS,
    min_keep: int = 1,
    round_to: int | None = None,
    exact: bool = False,
    compensate: str = "refit",
    repair: str = "statistics",
    data: Data = NOISE,
    samples: int = 512,
    preprocess: str | None = None,
    memory: int = 4 << 30,
    align: bool = False,
    allow_io_change: bool = False,
    plan: Plan | None = None,
    verify: bool = True,
    progress: Progress | None = None,
) -> Result:
    """Prune a model.

    Args:
        target: the share to keep, ``{"macs": 0.7}`` or ``"macs=0.7"``; also params or channels.
        criterion, aggregate, normalize: see `spa.score`.
        scope: "curves" follows error against width, weighted by drift (obspa only, its default);
            "global" ranks all units together; "floor" too, but no group falls below a quarter;
            "erk" keeps more of groups with small weights; "local" takes the same share of every
            group. See `spa.allocate`.
        steps: measure and choose anew so many times on the way to the target (obspa only).
        exclude, only, kinds: see `choose`.
        min_keep: no group falls below so many units.
        round_to: kept sizes are multiples of this, or untouched; None: see `spa.allocate.Limits`.
        exact: only groups whose removal obeys the law in value.
        compensate: what remaining weights take over: "refit", "bias", "sweep", "merge",
            "reconstruct" (see `spa.fit`), "fold" (see `spa.fold`) or "none".
        repair: "statistics" re-estimates those of BatchNormalization, and the scale of layer
            normalisations over fewer channels; or "none".
        data, samples, preprocess, memory: the calibration inputs, see `spa.calibration`.
        align: put the channels of groups and heads in order before the choice, see `spa.align`.
        allow_io_change: let states that are inputs and outputs of the file, such as caches of keys
            and values, become smaller, see `spa.states`.
        plan: replay this plan; target and criterion are then not used.
        verify: run original, masked and pruned model and check the law.

    Raises:
        UsageError, ModelError, PlanError, TargetError, ValidationError: see `spa.errors`.
    """
    settings = Settings(
        criterion,
        aggregate,
        normalize,
        scope,
        steps,
        seed,
        exclude,
        only,
        kinds,
        min_keep,
        round_to,
        exact,
        compensate,
        repair,
        data,
        samples,
        preprocess,
        memory,
        align,
        allow_io_change,
    )
    drafted = draft(model, target, settings, plan=plan, progress=progress)
    return finish(drafted, verify=verify, seed=seed, progress=progress)


def finish(
    drafted: Draft, *, verify: bool = True, seed: int = 0, progress: Progress | None = None
) -> Result:
    """Make the model of a draft and validate it.

    Where it fails, the groups by which it does are found (`spa.blame`), and others are chosen in
    their place.

    Raises:
        ModelError, TargetError, ValidationError: see `spa.errors`.
    """
    say = progress or quiet
    left = ATTEMPTS
    while True:
        try:
            return _made(drafted, verify, seed, say)
        except ValidationError as error:
            if not left or drafted.task is None:
                raise
            drafted = _otherwise(drafted, drafted.task, error, seed, say)
            left -= 1


def _made(drafted: Draft, verify: bool, seed: int, say: Progress) -> Result:
    removed = drafted.removed
    groups, compensation = make_up(drafted.groups, removed, drafted.settings, drafted.study, say)
    say("rewriting")
    pruned = rewrite(groups, removed)
    say("validating")
    data = serialize(pruned)
    validation.check_file(groups.graph, pruned, data, states.sizes(groups.kept(removed)))
    verification = validation.verify(groups, pruned, removed, seed) if verify else None
    size = len(data) if data is not None else stored_bytes(pruned)
    figures = replace(drafted.figures, bytes_after=size)
    chosen = {f.name: getattr(drafted, f.name) for f in fields(Draft)}
    chosen |= {"figures": figures, "groups": groups}
    return Result(
        **chosen, model=pruned, verification=verification, compensation=compensation, data=data
    )


def _otherwise(
    drafted: Draft, task: Task, error: ValidationError, seed: int, say: Progress
) -> Draft:
    """Another draft, without what makes this one fail.

    Raises:
        TargetError: if the target is out of reach then.
        ValidationError: if no group is to blame.
    """
    say("finding what it fails by")
    groups, study, made_by = drafted.groups, drafted.study, drafted.plan.made_by
    batches = [*study.fit, *study.held] if study else []
    blamed = blame(groups, drafted.removed, batches, seed)
    if not blamed:
        raise error
    aside = {**drafted.set_aside, **{groups[g].name: why for g, why in blamed.items()}}
    try:
        return _chosen(replace(task, free=task.free - blamed.keys()), made_by, aside, say)
    except TargetError as unmet:
        raise TargetError(f"{unmet}; left whole: {'; '.join(failures(aside))}") from None


def failures(set_aside: Mapping[str, str]) -> list[str]:
    """What was set aside, a line for every way to fail."""
    found: dict[str, list[str]] = {}
    for name, why in set_aside.items():
        found.setdefault(why, []).append(name)
    return [f"{', '.join(names)} ({why})" for why, names in found.items()]


def _held(groups: Groups, exact: bool) -> str:
    if exact and any(group.size > 1 for view in groups.views for group in view.groups):
        return "no group is exact; without --exact there are some"
    locks = [lock for lock in groups.locks() if lock.why != WINDOW]
    if not locks:
        return "it stores no weights with more than one channel"
    if groups.unknown:
        return f"operators without a rule keep it whole: {', '.join(sorted(groups.unknown))}"
    lock = max(locks, key=lambda lock: lock.locked)
    return f"the largest axis, {lock.tensor!r} axis {lock.axis}, is held by {lock.reason()}"


def measure(groups: Groups, removed: Removed, cost: CostModel) -> Figures:
    """Costs before and after; bytes after are left at 0."""
    return Figures(cost(), cost.of(groups, removed), stored_bytes(groups.graph.model), 0)


@dataclass(frozen=True)
class Comparison:
    """What `verify` found. latency_before, latency_after: median seconds of one run."""

    verification: Verification
    figures: Figures
    latency_before: float | None
    latency_after: float | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "verification": self.verification.to_dict(),
            "figures": asdict(self.figures),
            "latency": {"before_s": self.latency_before, "after_s": self.latency_after},
        }


def verify(
    original: Model,
    pruned: str | Path | ModelProto,
    plan: Plan | str | Path,
    *,
    seed: int = 0,
    repeats: int = 20,
    data: Data = NOISE,
) -> Comparison:
    """Check a pruned model against its original and its plan: law, drift, latency.

    Args:
        data: the calibration inputs of the plan, where they are not where it says.

    Raises:
        ValidationError: if the law does not hold, or inputs or outputs changed.
        PlanError: if the plan does not fit the original.
    """
    graph = load(original)  # what is wrong with the model is said before what is with the plan
    if not isinstance(plan, Plan):
        plan = Plan.load(plan)
    groups = analyze(graph, allow_io_change=plan.allows_io_change)
    groups = plans.without_blocks(plans.in_order(groups, plan), plan)
    removed = plans.replay(groups, plan)
    use = Settings(data=data).replayed(plan.made_by)
    groups, _ = make_up(groups, removed, use, gather(groups, use, quiet), quiet)
    after = load(pruned)
    kept = groups.kept(removed)
    validation.check_file(groups.graph, after.model, sizes=states.sizes(kept))
    reference = rewrite(groups, removed)
    verification = validation.verify(groups, after, removed, seed, reference)
    before_s = after_s = None
    if verification.runs:
        with (
            runs.session(groups.graph.path or groups.graph.model, optimize=True) as one,
            runs.session(after.path or after.model, optimize=True) as other,
        ):
            before_s, after_s = runs.latencies(
                one, other, verification.feeds, repeats, states.cut(verification.feeds, kept)
            )
    figures = measure(groups, removed, CostModel(groups))
    return Comparison(
        verification,
        Figures(figures.before, figures.after, figures.bytes_before, stored_bytes(after.model)),
        before_s,
        after_s,
    )
