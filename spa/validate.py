"""Prove a pruned model, in onnxruntime, before anyone sees it.

    run(prune(model, S), x)  ==  run(model with every weight slice of S set to zero, x)

This is the law. It is read at the outputs and, because an output such as a sigmoid may saturate,
at the last weighted sums before each of them. It is checked for the units whose removal is exact;
with others in the plan the law is checked on a second cut that leaves those in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, ValueInfoProto

from spa import forks, rules, states
from spa import run as runs
from spa.errors import ModelError, ValidationError
from spa.graph import FLOATS, Graph
from spa.groups import Groups, Kept, Removed
from spa.mask import mask
from spa.parts import Parts, parts
from spa.protos import serialize
from spa.rewrite import rewrite
from spa.rounding import ROUNDED, ROUNDING, shaken
from spa.run import Feeds, Outputs
from spa.wake import shortened

TOLERANCE = 1e-3  # relative; sums in another order differ by about 1e-6 a layer
_HALF_TOLERANCE = 5e-2
_NEARLY = 1e-6  # of its value, for a slice that cannot be zero
MASKED = "the masked original"


@dataclass(frozen=True)
class Verification:
    """What was checked.

    law: largest difference between the pruned and the masked model, relative to the largest
        value of that output; None where it was not checked.
    law_units, units: how many of the removed units the law was checked on.
    drift: output name -> relative L2 distance between original and pruned outputs.
    sizes: the free sizes it ran at.
    runs: whether onnxruntime can run the original at all (else nothing could be compared).
    why: what it says where it cannot.
    still: the free sizes for which only one number was found that the original runs at.
    unseen: the If nodes of which only one branch was seen to be taken.
    feeds: the inputs of the first run.
    """

    law: float | None
    law_units: int
    units: int
    drift: dict[str, float]
    sizes: tuple[dict[str, int], ...]
    runs: bool
    why: str = ""
    still: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    feeds: Feeds = field(repr=False, default_factory=dict)

    def to_dict(self) -> dict[str, object]:
        return {k: getattr(self, k) for k in self.__dataclass_fields__ if k != "feeds"}


def check_file(
    original: Graph,
    pruned: ModelProto,
    data: bytes | None = None,
    sizes: Mapping[str, Mapping[int, int]] | None = None,
) -> None:
    """The ONNX checker, and the same inputs and outputs as before but for some sizes.

    Args:
        data: the pruned model, serialised, where it is at hand.
        sizes: what the cut makes of the sizes of states, see `spa.states.sizes`.

    Raises:
        ValidationError: if the pruned model differs or is not valid ONNX.
    """
    data = data or serialize(pruned)
    if data is not None:
        try:
            onnx.checker.check_model(data)
        except onnx.checker.ValidationError as error:
            if _passes(original.model):
                line = str(error).strip().splitlines()[0]
                raise ValidationError(f"the pruned model is not valid ONNX: {line}") from None
    new = sizes or {}
    for what, before, after in (
        ("inputs", _inputs(original, original.model), _inputs(original, pruned)),
        ("outputs", list(original.model.graph.output), list(pruned.graph.output)),
    ):
        before = [states.resized(info, new.get(info.name, {})) for info in before]
        if before != after:
            raise ValidationError(f"the {what} are {_types(after)} and should be {_types(before)}")


def _passes(model: ModelProto) -> bool:
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:
        return False
    return True


def _inputs(original: Graph, model: ModelProto) -> list[ValueInfoProto]:
    return [i for i in model.graph.input if i.name in original.inputs]


def _types(infos: Sequence[ValueInfoProto]) -> str:
    return ", ".join(onnx.helper.printable_value_info(info) for info in infos)


@dataclass(frozen=True)
class Original:
    """The original as it runs.

    source: what is run. sizes: the free sizes it was given. feeds, wanted: inputs and outputs, on
        which every branch was to be seen. unseen: the If nodes of which one was not.
    """

    source: Parts
    sizes: tuple[dict[str, int], ...]
    feeds: list[Feeds]
    wanted: list[Outputs]
    unseen: Sequence[str]


def original(groups: Groups, seed: int = 0) -> Original:
    """Run it, with two numbers or more for every free size.

    Raises:
        CannotCheck: if onnxruntime cannot run it.
        ModelError: if onnxruntime refuses it, though it has every operator of it.
        ValidationError: if the form that is cut computes something else than the one given.
    """
    graph = groups.graph
    source = parts(graph)
    try:
        with runs.session(source) as running:
            given = runs.find_inputs(graph, running, seed)
    except runs.CannotCheck as error:
        if groups.views[0].ties.misfit:
            raise ModelError(f"the model contradicts itself: {error}") from None
        raise
    forked, unseen = forks.more(graph, groups.shapes, source, given[0], seed)
    feeds, wanted = ([getattr(i, what) for i in (*given, *forked)] for what in ("feeds", "outputs"))
    if graph.given is not None:
        as_given = _outputs(parts(replace(graph, model=graph.given)), feeds, (), "the original")
        form = "the original in the form that is cut"

        def again() -> list[Outputs]:
            return _outputs(shaken(graph, groups.shapes, source), feeds, (), form)

        _compare(groups, wanted, as_given, groups.kept({}), form, again)
    return Original(source, tuple(i.sizes for i in given), feeds, wanted, unseen)


def verify(
    groups: Groups,
    pruned: ModelProto | Graph,
    removed: Removed,
    seed: int = 0,
    reference: ModelProto | None = None,
    known: Original | None = None,
) -> Verification:
    """Run original, pruned and masked original on the same inputs, with two numbers or more for
    every free size.

    Args:
        reference: a fresh cut by the same plan, for a pruned model of unknown origin: where the
            law cannot be checked on all of it, it must at least compute the same.
        known: what `original` gives, where it was run before.

    Raises:
        ModelError: if onnxruntime refuses the original, though it has every operator of it.
        ValidationError: if the pruned model does not run, or breaks the law.
    """
    graph = groups.graph
    exact = {g: u for g, u in removed.items() if groups[g].exact}
    units = sum(len(u) for u in removed.values()) + len(graph.blocks)
    count = sum(len(u) for u in exact.values()) + len(graph.blocks)
    try:
        known = known or original(groups, seed)
    except runs.CannotCheck as error:
        return Verification(None, 0, units, {}, (), False, str(error))
    source, feeds, wanted = known.source, known.feeds, known.wanted
    sums = _last_sums(groups, removed) if count else []
    whole = len(exact) == len(removed)
    cut, kept = parts(pruned), groups.kept(removed)
    fed = [states.cut(f, kept) for f in feeds]
    got = _outputs(cut, fed, sums if whole else [])
    pairs = list(zip(wanted, got, strict=True))
    drift = {
        name: max(_distance(states.cut(w, kept)[name], g[name]) for w, g in pairs)
        for name in wanted[0]
    }
    for w, g in pairs:
        _check_finite(w, g)
    if reference is not None and not whole:
        fresh = _outputs(reference, fed, (), "a fresh cut by the plan")
        _compare(groups, fresh, got, groups.kept({}), "a fresh cut by the plan")
    law = None
    if count:
        some = groups.kept(exact)
        law_got = got
        if not whole:
            law_got = _outputs(rewrite(groups, exact), [states.cut(f, some) for f in feeds], sums)
        zeroed = mask(groups, exact, source)
        masked = _outputs(zeroed, feeds, sums, MASKED)
        if not all(map(runs.are_finite, masked)) and all(map(runs.are_finite, law_got)):
            zeroed = mask(groups, exact, source, _NEARLY)
            masked = _outputs(zeroed, feeds, sums, MASKED)

        def again() -> list[Outputs]:
            return _outputs(shaken(graph, groups.shapes, zeroed), feeds, sums, MASKED)

        law = _compare(groups, masked, law_got, some, MASKED, again)
        if not _show(masked):
            law, count = None, 0
    still, unseen = tuple(runs.same_sizes(known.sizes)), tuple(known.unseen)
    return Verification(law, count, units, drift, known.sizes, True, "", still, unseen, feeds[0])


def _outputs(
    model: ModelProto | Parts,
    feeds: list[Feeds],
    inner: Sequence[str] = (),
    what: str = "the pruned model",
) -> list[Outputs]:
    """The outputs on each of the feeds, and the inner tensors that are asked for.

    Raises:
        ValidationError: if it does not run; the original did.
    """
    apart = parts(model) if isinstance(model, ModelProto) else model
    try:
        with runs.session(apart.showing(inner)) as running:
            return [runs.run(running, f) for f in feeds]
    except ModelError as error:
        raise ValidationError(f"{what} does not run: {error}") from None


def _check_finite(wanted: Outputs, got: Outputs) -> None:
    """A normalisation over a single channel that is left divides zero by zero.

    Raises:
        ValidationError: if the pruned model gives NaN or infinity and the original does not.
    """
    for name, want in wanted.items():
        if want.dtype.kind == "f" and np.isfinite(want).all() and not np.isfinite(got[name]).all():
            raise ValidationError(
                f"output {name!r} of the pruned model is not finite where the original's is; "
                "keep more with --min-keep or leave out a group with --exclude"
            )


def _last_sums(groups: Groups, removed: Removed) -> list[str]:
    """The outputs of the last nodes before each graph output that multiply and sum, or that run
    a body, in which some may."""
    graph, shapes = groups.graph, groups.shapes
    found, seen, waiting = set(), set(), list(graph.outputs)
    dead = shortened(groups, removed).dead
    while waiting:
        name = waiting.pop()
        if name in seen or name not in graph.makers:
            continue
        seen.add(name)
        node = graph.nodes[graph.makers[name]]
        rule = rules.find(node.op_type, node.domain)
        sums = rule is not None and rule.macs is not None and node.index not in dead
        if sums or node.bodies:
            found.add(name)
        else:
            waiting += [n for n in node.inputs if n in graph.activations]
    floats = {n for n in found if shapes.dtypes.get(n) in FLOATS and n in shapes.shapes}
    return sorted(floats - set(graph.outputs))


def _compare(
    groups: Groups,
    wanted: list[Outputs],
    got: list[Outputs],
    kept: Kept,
    what: str,
    again: Callable[[], list[Outputs]] | None = None,
) -> float:
    """The largest relative difference.

    Args:
        again: gives what is wanted with all sums as in another order, see `spa.rounding`.

    Raises:
        ValidationError: if it is above the tolerance.
    """
    worst, where = _worst(groups, wanted, got, kept)
    half = any(
        c.tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16)
        for c in groups.graph.constants.values()
    )
    limit = _HALF_TOLERANCE if half else TOLERANCE
    if not worst <= limit and again is not None:
        summed = [n for n in wanted[0] if n not in groups.graph.outputs]
        before = _worst(groups, wanted, got, kept, summed)[0] if summed else worst
        if min(worst, before) <= ROUNDED:
            moved = ROUNDING * _worst(groups, wanted, again(), groups.kept({}))[0]
            if worst > ROUNDED and before <= limit and worst <= moved:
                return before  # other rows are chosen among sums that are the same
            limit = max(limit, moved) if worst <= ROUNDED else limit
    if not worst <= limit:
        raise ValidationError(
            f"the law does not hold: output {where!r} of the pruned model differs from {what} by "
            f"{worst:.2g} (relative)"
        )
    return worst


def _worst(
    groups: Groups,
    wanted: list[Outputs],
    got: list[Outputs],
    kept: Kept,
    names: Sequence[str] | None = None,
) -> tuple[float, str]:
    """The largest relative difference, of some tensors or all, and the tensor that has it."""
    worst, where = 0.0, ""
    for full, have in zip(wanted, got, strict=True):
        want = states.cut(full, kept)
        for name in want if names is None else names:
            value, least = want[name], 0.0
            if name in groups.graph.outputs:
                least = 1.0 if len(want) > len(groups.graph.outputs) else 0.0
            elif value.shape != have[name].shape:
                value = _take(value, kept.axes(name), groups.shapes.shapes[name])
                if value.shape != have[name].shape:  # a free axis merged with a live one
                    continue
            difference = runs.difference(value, have[name], least)
            if not difference <= worst:
                worst, where = difference, name
    return worst, where


def _take(
    value: NDArray[np.generic], axes: Sequence[NDArray[np.intp]] | None, before: tuple[int, ...]
) -> NDArray[np.generic]:
    """The kept part of an inner tensor; axes that have another size than ``before`` are free."""
    for k, kept in enumerate(axes or []):
        if value.shape[k] == before[k] != len(kept):
            value = value.take(kept, axis=k)
    return value


def _show(outputs: list[Outputs]) -> bool:
    """Whether there is a number among them: all else is equal to anything of its kind."""
    return any(v.dtype.kind != "f" or np.isfinite(v).any() for o in outputs for v in o.values())


def _distance(a: NDArray[np.generic], b: NDArray[np.generic]) -> float:
    """Relative L2 distance; for outputs that are not floats, the share that differs."""
    if a.shape != b.shape:
        return float("nan")
    if a.dtype.kind != "f":
        return float((a != b).mean()) if a.size else 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    norm = float(np.linalg.norm(x.ravel()))
    return float(np.linalg.norm((x - y).ravel())) / (norm or 1.0)
