"""Several criteria on one model side by side: what each keeps, and how far the outputs move."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from spa import arrays
from spa import run as runs
from spa.allocate import one_target
from spa.analysis import Model, analyze
from spa.batches import Batches
from spa.calibration import NOISE, calibrate, is_noise
from spa.cost import CostModel
from spa.drift import distance
from spa.errors import ModelError, TargetError, UsageError, ValidationError
from spa.groups import Groups, Removed
from spa.progress import Progress, quiet
from spa.rewrite import rewrite
from spa.score import check_names
from spa.selection import choose
from spa.settings import Settings, listed
from spa.steps import select_in_steps
from spa.study import Study, Task, make_up, prepare

DEFAULT = ("obspa", "l1", "random")
JUDGES = 4096  # samples at most that all rows are judged on
BROKEN = ModelError, ValidationError  # a model of one way only: the others go on
Labels = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Row:
    """What one way of pruning came to.

    criterion: "original" in the row of the model as it was given.
    measure, target: what was asked for. kept: what was reached, of MACs and of parameters.
    compensation: "refit", "bias", "statistics" where only those were repaired, or "none".
    refused: whether the new weights were dropped because they did not help.
    drift: of raw outputs from the original's on held-out inputs, squared, over their variance.
    accuracy: top-1 on the held-out inputs; None without labels.
    seconds: to choose, compensate and cut. Calibration is shared, and not counted.
    failed: why there is no model; the figures then mean nothing.
    """

    criterion: str
    measure: str = "macs"
    target: float = 1.0
    compensation: str = "none"
    macs: float = 1.0
    params: float = 1.0
    drift: float = 0.0
    accuracy: float | None = None
    seconds: float = 0.0
    refused: bool = False
    failed: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    model: Model,
    targets: str | Sequence[str | Mapping[str, float]] = ("macs=0.7",),
    criteria: str | Sequence[str] = DEFAULT,
    settings: Settings | None = None,
    labels: NDArray[Any] | None = None,
    *,
    progress: Progress | None = None,
) -> list[Row]:
    """Prune a model to every target by every criterion, with compensation and plain.

    Args:
        settings: all else; its criterion is not used, its scope and steps where a criterion takes
            them. Its data are split: what fits does not judge.
        labels: a whole number for every sample of the data, or one for every place of the output.

    Returns:
        First a row for the original, then one or two for every target and criterion.

    Raises:
        UsageError: if criteria, targets, data or labels cannot be meant as given.
        ModelError: if the model cannot be read or run. Where only what is left of it fails, its row
            says so.
    """
    say = progress or quiet
    use = settings or Settings()
    wanted = [one_target(t) for t in ([targets] if isinstance(targets, str) else targets)]
    criteria = listed(criteria)
    if use.allow_io_change:
        raise UsageError("models are compared on inputs and outputs of one shape")
    for name in criteria:
        check_names(name, use.aggregate, use.normalize)
        _for_criterion(use, name).check()
    if not wanted or not criteria:
        raise UsageError("give at least one target and one criterion")
    if labels is not None and is_noise(use.data):
        raise UsageError("labels go with data: made-up inputs have none")
    groups = analyze(model, exact=use.exact, progress=say)
    free = choose(groups, exclude=use.exclude, only=use.only, kinds=use.kinds)
    groups, study = prepare(groups, replace(use, criterion="obspa"), say)
    if study is None:
        raise ModelError("onnxruntime runs this model on no made-up inputs: give some with --data")
    judge = _Judge(groups, study, use, labels)
    rows = [judge.original]
    for measure, share in wanted:
        for name in criteria:
            say(f"{measure}={share:g} by {name}")
            way = _for_criterion(use, name)
            if "channels" in measure:
                way = replace(way, steps=1)
            rows += _Way(groups, free, study, way, judge).rows(measure, share)
    return rows


def _for_criterion(settings: Settings, name: str) -> Settings:
    """The settings with what only obspa takes left out for others."""
    found = replace(settings, criterion=name)
    if name == "obspa":
        return found
    return replace(found, steps=1, scope=None if found.scope == "curves" else found.scope)


@dataclass(frozen=True)
class _Way:
    """One criterion at work."""

    groups: Groups
    free: frozenset[int]
    study: Study
    settings: Settings
    judge: _Judge

    def rows(self, measure: str, share: float) -> list[Row]:
        cost, start = CostModel(self.groups), perf_counter()
        use, row = self.settings, Row(self.settings.criterion, measure, share)
        try:
            task = Task(self.groups, self.free, measure, share, use, self.study, cost)
            groups, removed = select_in_steps(task, quiet)
        except (TargetError, *BROKEN) as error:
            return [replace(row, failed=str(error))]
        chosen = perf_counter() - start
        full, left = cost(), cost.of(groups, removed)
        row = replace(row, macs=left.macs / max(full.macs, 1), params=left.params / full.params)
        plain = replace(use, compensate="none", repair="none")
        ways = [plain] if use.compensate == use.repair == "none" else [use, plain]
        return [self._row(row, groups, removed, way, chosen) for way in ways]

    def _row(
        self, row: Row, chosen_from: Groups, removed: Removed, use: Settings, chosen: float
    ) -> Row:
        name = use.repair if use.compensate == "none" else use.compensate
        row, start = replace(row, compensation=name), perf_counter()
        try:
            groups, done = make_up(chosen_from, removed, use, self.study, quiet)
            pruned = rewrite(groups, removed)
            seconds = chosen + perf_counter() - start
            drift, accuracy = self.judge(pruned)
        except BROKEN as error:
            return replace(row, failed=str(error))
        refused = done is not None and done.refused
        return replace(
            row,
            drift=drift,
            accuracy=accuracy,
            seconds=seconds,
            refused=refused,
        )


# Judging -----------------------------------------------------------------------------------------


def read_labels(path: Path) -> NDArray[Any]:
    """Whole numbers from a .npy file.

    Raises:
        UsageError: if it is not such a file.
    """
    if path.suffix.lower() != ".npy":
        raise UsageError(f"{path}: labels are read from a .npy file")
    (labels,) = arrays.read(path).values()
    return labels


class _Judge:
    """Runs models on inputs that nothing was fitted on."""

    def __init__(
        self, groups: Groups, study: Study, settings: Settings, labels: NDArray[Any] | None
    ) -> None:
        held = _held_out(groups, study, settings)
        self.labels = None if labels is None else _checked(labels, held)
        self.batches = list(held)
        wanted = _outputs(groups.graph.given or groups.graph.model, self.batches)
        self.wanted = [v for v in wanted if v.dtype.kind == "f"]
        self.original = Row("original", accuracy=self._accuracy(wanted))

    def __call__(self, model: ModelProto) -> tuple[float, float | None]:
        got = _outputs(model, self.batches)
        floats = [v for v in got if v.dtype.kind == "f"]
        return distance(self.wanted, floats), self._accuracy(got)

    def _accuracy(self, outputs: list[NDArray[Any]]) -> float | None:
        return None if self.labels is None else top1(outputs[0], self.labels)


def _held_out(groups: Groups, study: Study, settings: Settings) -> Batches:
    """What nothing was fitted on; of data not only the samples asked for."""
    if study.calibration.kind == NOISE:
        return study.held
    everything = calibrate(
        groups.graph,
        settings.data,
        count=1 << 62,
        seed=settings.seed,
        preprocess=settings.preprocess,
        memory=settings.memory,
    ).batches
    fitted = set(study.fit.rows)
    rows = [row for row in everything.rows if row not in fitted]
    size = everything.size if everything.whole else 1
    most = min(len(rows), JUDGES) // size * size
    return everything.but(rows[:most]) if most else study.held


def _outputs(model: ModelProto, batches: Sequence[runs.Feeds]) -> list[NDArray[Any]]:
    """Every output on all batches in a row; flat where batches differ in more than their length."""
    with runs.session(model, optimize=True) as running:
        made = [list(runs.run(running, feeds).values()) for feeds in batches]
    return [_joined(values) for values in zip(*made, strict=True)]


def _joined(values: Sequence[NDArray[Any]]) -> NDArray[Any]:
    shapes = {v.shape[1:] for v in values}
    if len(shapes) == 1 and values[0].ndim:
        return np.concatenate(values)
    return np.concatenate([v.reshape(-1) for v in values])


def _checked(labels: NDArray[Any], held: Batches) -> Labels:
    """The labels of the samples that are held out, in their order.

    Raises:
        UsageError: if they are no whole numbers, or not as many as samples.
    """
    if labels.dtype.kind not in "iu" or not labels.ndim:
        raise UsageError(f"labels are {labels.dtype} of shape {labels.shape}: give whole numbers")
    columns = [slot.column for slot in held.parts[0].values() if not slot.same]
    stored = [array for c in columns if (array := getattr(c, "array", None)) is not None]
    if len(held.parts) > 1 or not stored:
        raise UsageError("labels go with data in one .npy or .npz, whose order they have")
    if len(labels) != len(stored[0]):
        raise UsageError(f"there are {len(labels)} labels for {len(stored[0])} samples")
    return np.asarray(labels[[row for _, row in held.rows]])


def top1(output: NDArray[Any], labels: Labels) -> float:
    """The share of labels that the largest value of an output has, along its last axis or axis 1.

    Raises:
        UsageError: if neither fits the shape of the labels.
    """
    if output.dtype.kind in "iu" and output.size == labels.size:
        return float((output.reshape(-1) == labels.reshape(-1)).mean())
    for axis in (output.ndim - 1, 1):
        if 0 < axis < output.ndim and output.size == labels.size * output.shape[axis]:
            return float((output.argmax(axis).reshape(-1) == labels.reshape(-1)).mean())
    raise UsageError(
        f"labels of shape {labels.shape} fit neither the last axis nor axis 1 of the first output, "
        f"of shape {output.shape}"
    )
