"""The one oracle of all tests: everything that must hold for any model and any units removed.

    run(prune(model, S), x)  ==  run(model with every weight slice of S set to zero, x)

The law cannot see over-tying, so a caller also states how many groups there are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, TensorProto

import spa
from spa import validate
from spa.cost import CostModel
from spa.groups import Groups, Removed
from spa.rewrite import rewrite
from spa.settings import ALL_KINDS
from spa.wake import lost, shortened

LAW = 1e-4
HALF_LAW = 1e-2  # where the model computes in half precision


def check(
    model: ModelProto,
    expected_groups: int | None = None,
    *,
    seed: int = 0,
    runnable: bool = True,
    each: bool = True,
) -> Groups:
    """Prune a model in several ways and check all that must be true of the results.

    Args:
        expected_groups: how many groups its topology has; None leaves that open.
        seed: of the units removed and of the inputs.
        runnable: whether onnxruntime has kernels for it; if not, only shapes are checked.
        each: prune each group alone, not only all of them together.
    """
    before = model.SerializeToString(deterministic=True)
    groups = spa.analyze(model)
    if expected_groups is not None:
        found = [f"{g.name} ({g.size})" for g in groups]
        assert len(groups) == expected_groups, f"expected {expected_groups} groups: {found}"
    for removed in choices(groups, seed, each):
        pruned = rewrite(groups, removed)
        check_cut(groups, pruned, removed, seed=seed, runnable=runnable)
    if len(groups):
        result = spa.prune(
            model,
            "channels=0.5",
            criterion="random",
            seed=seed,
            kinds=ALL_KINDS,
            round_to=1,
            compensate="none",
            repair="none",
            verify=runnable,
        )
        check_cut(groups, result.model, result.removed, seed=seed, runnable=runnable)
        assert model.SerializeToString(deterministic=True) == before, "the input model was changed"
    return groups


def choices(groups: Groups, seed: int, each: bool = True) -> Iterator[Removed]:
    """Units to remove: a random half of each group alone, then nearly all of every group."""
    random = np.random.default_rng(seed)
    if each:
        for g, group in enumerate(groups):
            half = min(group.size // 2, group.size - group.least)
            yield {g: np.sort(random.permutation(group.size)[:half])}
    if len(groups):
        units = [random.permutation(group.size) for group in groups]
        yield {
            g: np.sort(u[: min(max(1, len(u) - 1 - g % 2), len(u) - groups[g].least)])
            for g, u in enumerate(units)
        }


def check_cut(
    groups: Groups, pruned: ModelProto, removed: Removed, *, seed: int = 0, runnable: bool = True
) -> None:
    """Everything that must be true of one pruned model."""
    validate.check_file(groups.graph, pruned)
    check_names(groups, pruned, removed)
    check_sizes(groups, pruned, removed)
    check_law(groups, pruned, removed, seed, runnable)


def check_law(
    groups: Groups, pruned: ModelProto, removed: Removed, seed: int = 0, runnable: bool = True
) -> None:
    """The law in value on exact groups; outputs of the same shapes on all."""
    verification = validate.verify(groups, pruned, removed, seed)
    assert verification.runs == runnable, "onnxruntime can run this" if not runnable else "not run"
    if not runnable:
        return
    assert not verification.still, "a free size was seen at one number only"
    exact = sum(len(units) for g, units in removed.items() if groups[g].exact)
    assert verification.law_units == exact
    assert not any(np.isnan(d) for d in verification.drift.values()), "an output changed its shape"
    if verification.law is not None:
        assert verification.law <= (HALF_LAW if _is_half(pruned) else LAW)


def check_names(groups: Groups, pruned: ModelProto, removed: Removed) -> None:
    """Nodes, their outputs and the tensors in the file are called what they were called."""
    model, left = groups.graph.model, shortened(groups, removed)
    # A sum that is an output hands on its other side.
    gone_nodes = (left.nodes[k] for k in left.dead)
    dead = {id(n.proto) for n in gone_nodes if not {*n.outputs} & {*left.outputs}}
    added = {(n.name, tuple(n.output)) for n in pruned.graph.node}
    for node in model.graph.node:
        stays = id(node) not in dead
        assert ((node.name, tuple(node.output)) in added) == stays, f"node {node.name!r}: {stays}"
    for what in ("input", "output"):
        before, after = (
            [i.name for i in getattr(m.graph, what) if not _is_stored(m, i.name)]
            for m in (model, pruned)
        )
        assert before == after, f"the {what}s changed from {before} to {after}"
    read = {left.constants[n].source for n in left.constants.keys() - left.forgotten}
    gone = {left.constants[n].source for n in left.forgotten} - read
    floats = {i.name for i in model.graph.initializer if i.data_type == TensorProto.FLOAT} - gone
    assert floats <= {i.name for i in pruned.graph.initializer}, "a weight lost its name"
    assert model.opset_import == pruned.opset_import
    assert model.metadata_props == pruned.metadata_props
    assert model.doc_string == pruned.doc_string


def check_sizes(groups: Groups, pruned: ModelProto, removed: Removed) -> None:
    """The pruned file, analysed afresh, has the shapes and the costs that were foretold."""
    after, kept = spa.analyze(pruned), groups.kept(removed)
    # A size computed at run time is corrected where it is used, not where it is made.
    # An output of a Split that goes with its index is left with size 0.
    counted = _counted(groups)
    unasked = {*groups.shapes.values, *lost(groups, removed), *counted}
    foretold = {n: kept.shape(n) for n in groups.shapes.shapes if n not in unasked}
    for name, shape in after.shapes.shapes.items():
        if name in foretold:
            assert shape == foretold[name], f"{name!r}: {shape}, foretold {foretold[name]}"
    predicted, found = CostModel(groups).of(groups, removed), CostModel(after)()
    assert predicted.macs == found.macs or counted
    stored = [{c.source for c in g.graph.constants.values()} for g in (groups, after)]
    shared = any(c.name != c.source for g in (groups, after) for c in g.graph.constants.values())
    if not shared and stored[1] <= stored[0]:  # else a size became a constant, or one was split
        assert predicted.params == found.params


def _counted(groups: Groups) -> set[str]:
    """Tensors whose sizes may depend on how many numbers are not zero."""
    found: set[str] = set()
    for node in groups.graph.nodes:
        if node.op_type == "NonZero" or not found.isdisjoint(node.inputs):
            found.update(node.outputs)
    return found


def _is_stored(model: ModelProto, name: str) -> bool:
    return any(i.name == name for i in model.graph.initializer)


def _is_half(model: ModelProto) -> bool:
    half = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    casts = {a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute}
    return bool(casts & set(half)) or any(i.data_type in half for i in model.graph.initializer)
