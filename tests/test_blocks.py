"""Branches and widths in one budget; plans, reports and options that name branches."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

import spa
from examples.apply_plan import cut
from models.sequence import bert_like, vit
from models.vision import MAKERS
from spa.allocate import Limits
from spa.blocks import alike, by_curves, by_order, by_weights
from spa.compare import compare
from spa.cost import CostModel
from spa.curves import Curve
from spa.depth import find
from spa.groups import Groups
from spa.plan import Plan
from spa.settings import Settings
from tests.conftest import PLAIN
from tests.test_depth import FOUND

SMALL: dict[str, Any] = {"hidden": 16, "heads": 2, "inner": 32, "batch": "batch"}
KINDS = ("depth", "ffn", "heads")
SHARES = np.asarray([0.9, 0.2, 0.8, 0.1, 0.7, 0.3])  # losses of six branches


@pytest.fixture(scope="module")
def groups() -> Groups:
    return spa.analyze(vit(layers=3, **SMALL))


def _removed(found: Groups, groups: Groups) -> list[int]:
    all_ = [b.branch for b in find(groups).blocks]
    return [all_.index(b.branch) for b in found.graph.blocks]


# One budget -------------------------------------------------------------------------------------


def _chosen(
    groups: Groups, losses: NDArray[np.float64], share: float, free: bool = True
) -> list[int]:
    blocks, cost = find(groups).blocks, CostModel(groups)
    curves = {
        g: Curve(np.arange(group.size - 1), np.linspace(0.1, 1, group.size - 1))
        for g, group in enumerate(groups)
    }
    limits = Limits(None if free else frozenset())
    worth = dict.fromkeys(curves, 1.0)
    found = by_curves(groups, blocks, losses, curves, worth, ("macs", share), limits, cost)
    return _removed(found, groups)


def test_the_cheapest_branches_go_first(groups: Groups) -> None:
    assert _chosen(groups, SHARES * 1e-6, 0.9, free=False) == [3]
    assert _chosen(groups, SHARES * 1e-6, 0.8, free=False) == [1, 3]


def test_branches_that_cost_more_than_widths_stay(groups: Groups) -> None:
    assert _chosen(groups, SHARES * 1e6, 0.6) == []
    assert 3 in _chosen(groups, SHARES * 1e-6, 0.6)


def test_what_widths_gave_up_goes_with_a_branch(groups: Groups) -> None:
    """A branch whose widths have lost more than the branch is worth goes as a whole."""
    found = find(groups).blocks
    inner = [replace(groups, graph=replace(groups.graph, blocks=(b,))).dead for b in found]
    blocks, cost = found[:2], CostModel(groups)
    curves = {
        g: Curve(np.arange(group.size - 1), np.full(group.size - 1, 1e-9 if g in inner[0] else 9.0))
        for g, group in enumerate(groups)
    }
    worth = dict.fromkeys(curves, 1.0)
    limits, target = Limits(None, round_to=1), ("macs", 0.5)
    losses = np.asarray([2e-9, 1e9])
    taken = by_curves(groups, blocks, losses, curves, worth, target, limits, cost)
    assert _removed(taken, groups) == [0]


def test_one_branch_stays(groups: Groups) -> None:
    assert len(_chosen(groups, SHARES * 1e-9, 0.01, free=False)) == 5


@pytest.mark.parametrize(("scope", "most"), [("global", 5), ("floor", 4), ("local", 5), ("erk", 5)])
def test_one_order_of_branches_and_units(groups: Groups, scope: str, most: int) -> None:
    blocks, cost = find(groups).blocks, CostModel(groups)
    units = [np.ones(group.size) for group in groups]

    def chosen(share: float, scores: NDArray[np.float64]) -> list[int]:
        target = ("macs", share)
        found = by_order(groups, blocks, scores, units, scope, target, Limits(), cost)
        return _removed(found, groups)

    assert chosen(0.99, SHARES) == []
    assert set(chosen(0.8, SHARES)) <= {1, 3, 5}
    assert len(chosen(0.01, SHARES * 1e-3)) <= most
    if scope in ("global", "floor"):
        assert chosen(0.6, SHARES) != [] == chosen(0.6, SHARES + 5)


def test_a_share_of_channels_is_one_of_branches(groups: Groups) -> None:
    blocks, units = find(groups).blocks, [np.ones(group.size) for group in groups]
    limits, cost = Limits(), CostModel(groups)
    found = by_order(groups, blocks, SHARES, units, "local", ("channels", 0.5), limits, cost)
    assert _removed(found, groups) == [1, 3, 5]


def test_no_sum_loses_both_sides() -> None:
    groups = spa.analyze(FOUND["parallel"][0]())
    blocks, cost = find(groups).blocks, CostModel(groups)
    found = by_curves(groups, blocks, np.zeros(3), {}, {}, ("macs", 0.1), Limits(frozenset()), cost)
    assert len({b.sum for b in found.graph.blocks}) == len(found.graph.blocks) > 0


def test_scores_by_weights() -> None:
    model = vit(layers=2, **SMALL)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("blocks.1") and len(tensor.dims) == 2:
            small = numpy_helper.to_array(tensor) / 10
            tensor.CopyFrom(numpy_helper.from_array(small, tensor.name))
    groups = spa.analyze(model)
    scores = by_weights(groups, find(groups).blocks)
    assert scores.mean() == pytest.approx(1)
    assert scores[2:].max() * 5 < scores[:2].min()
    assert alike(np.zeros(2)).tolist() == [0, 0]


# Whole runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [vit, bert_like], ids=lambda make: make.__name__)
def test_twelve_blocks_reach_half(make: Callable[..., ModelProto]) -> None:
    model = make(layers=12, **SMALL)
    found = spa.prune(model, "macs=0.5", kinds=KINDS, **PLAIN)
    assert found.figures.share("macs") == pytest.approx(0.5, abs=0.02)
    assert found.verification is not None
    assert found.verification.law is not None
    assert found.verification.law < 1e-4
    assert CostModel(spa.analyze(found.model))() == found.figures.after
    assert found.plan.blocks
    assert found.plan.kept
    again = spa.prune(model, plan=Plan.from_json(found.plan.to_json()), verify=False)
    assert again.model.SerializeToString() == found.model.SerializeToString()
    assert again.plan.to_json() == found.plan.to_json()


@pytest.mark.parametrize("data", ["noise", "images"])
def test_what_stays_makes_up_for_a_branch(data: str) -> None:
    """The refit aims at what the whole network computes, the removed branches included."""
    model = MAKERS["resnet18"](width=0.125, image=32, classes=10, batch="batch")
    images = np.random.default_rng(0).random((64, 3, 32, 32), np.float32)
    given = {} if data == "noise" else {"data": {"image": images}}
    found = spa.prune(model, "macs=0.91", kinds="depth", samples=64, **given)
    assert len(found.groups.graph.blocks) == 1
    assert found.compensation is not None
    before, after = found.compensation.drift
    assert after < 0.8 * before
    assert not found.compensation.refused


def test_by_what_inputs_show() -> None:
    """By curves, with new weights; the same plan gives the same weights again."""
    model = vit(layers=4, **SMALL)
    found = spa.prune(model, "macs=0.5", kinds=KINDS, samples=16)
    assert found.figures.share("macs") == pytest.approx(0.5, abs=0.02)
    again = spa.prune(model, plan=Plan.from_json(found.plan.to_json()), verify=False)
    assert again.model.SerializeToString() == found.model.SerializeToString()


def test_only_and_exclude() -> None:
    model = vit(layers=4, **SMALL)
    for options, allowed in (
        ({"exclude": r"blocks\.[01]"}, ("blocks.2", "blocks.3")),
        ({"only": r"blocks\.1"}, ("blocks.1",)),
    ):
        found = spa.prune(model, "macs=0.93", kinds=["depth", "ffn"], **options, **PLAIN)
        assert all(name.startswith(allowed) for name in (*found.plan.blocks, *found.plan.kept))


def test_branches_alone_and_out_of_reach() -> None:
    model = vit(layers=6, **SMALL)
    found = spa.prune(model, "macs=0.6", kinds="depth", **PLAIN)
    assert found.figures.share("macs") == pytest.approx(0.6, abs=0.02)
    assert not found.plan.kept
    with pytest.raises(spa.TargetError, match="whole branches alone"):
        spa.prune(model, "macs=0.01", kinds="depth", **PLAIN)


@pytest.mark.parametrize("options", [{"steps": 2}, {"kinds": ("depht",)}])
def test_refused(options: dict[str, Any]) -> None:
    with pytest.raises(spa.UsageError, match="depth"):
        spa.prune(vit(layers=1), "macs=0.5", **{"kinds": KINDS, **options})


def test_ffn_is_a_word_for_linear() -> None:
    assert Settings(kinds="ffn").kinds == ("linear",)
    assert Settings(kinds=KINDS).record()["kinds"] == ("depth", "linear", "heads")


def test_compare_with_branches() -> None:
    model = vit(layers=3, **SMALL)
    use = Settings(kinds=KINDS, samples=16)
    rows = compare(model, "macs=0.6", "l1", use)
    assert [row.failed for row in rows] == ["", "", ""]
    assert rows[1].macs == pytest.approx(0.6, abs=0.02)


# Plans and reports -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pruned() -> tuple[ModelProto, spa.Result]:
    model = vit(layers=4, **SMALL)
    return model, spa.prune(model, "macs=0.5", kinds=KINDS, **PLAIN)


def test_a_plan_cuts_other_weights(pruned: tuple[ModelProto, spa.Result]) -> None:
    model, result = pruned
    stored, left = (
        {t.name: numpy_helper.to_array(t) for t in m.graph.initializer}
        for m in (model, result.model)
    )
    ours = cut(stored, result.plan)
    assert set(ours) == set(left)
    names = result.plan.kept.keys() & left.keys()
    assert names
    assert all(np.array_equal(ours[name], left[name]) for name in names)


def test_a_plan_of_another_branch(pruned: tuple[ModelProto, spa.Result]) -> None:
    model, result = pruned
    with pytest.raises(spa.PlanError, match="removes the branch that adds 'nothing'"):
        spa.prune(model, plan=replace(result.plan, blocks={"nothing": []}))


def test_a_plan_of_both_sides() -> None:
    model = FOUND["parallel"][0]()
    plan = Plan({}, blocks={b.branch: [] for b in find(spa.analyze(model)).blocks})
    with pytest.raises(spa.PlanError, match="both sides"):
        spa.prune(model, plan=plan)


def test_reports(cli: Callable[..., Result], tmp_path: Path) -> None:
    path, plan, out = (tmp_path / n for n in ("m.onnx", "plan.json", "out.onnx"))
    onnx.save(vit(layers=4, **SMALL), path)
    options = ["--kinds", "depth,ffn,heads", "--target", "macs=0.5", "--criterion", "l1"]
    options += ["--compensate", "none", "--repair", "none", "--plan-out", plan, "-o", out]
    shown = cli("prune", path, *options)
    assert shown.exit_code == 0, shown.stderr
    assert "branches removed, by the node that added each: blocks." in shown.stdout
    body = json.loads(cli("prune", path, *options, "--force", "--json").stdout)
    rows = {row["kind"]: row for row in body["taken"]}
    for measure in ("macs", "params"):
        saved = body[measure]["before"] - body[measure]["after"]
        assert sum(row[measure] for row in rows.values()) == saved
    assert (
        rows["depth"]["units"] == len(body["blocks"]) == len(json.loads(plan.read_text())["blocks"])
    )
    assert rows["depth"]["of"] == 8
    gone = {name for block in body["blocks"] for name in block["tensors"]}
    assert gone
    assert gone.isdisjoint(t.name for t in onnx.load(out).graph.initializer)
    empty = {group["name"] for group in body["groups"] if group["after"] == 0}
    assert empty
    assert all(name.split(":")[0] in gone for name in empty)
    checked = cli("verify", path, out, "--plan", plan)
    assert checked.exit_code == 0, checked.stderr
    assert "law: holds" in checked.stdout
    analysed = cli("analyze", path)
    assert "residual branches that --kinds depth can remove (8)" in analysed.stdout
    assert len(json.loads(cli("analyze", path, "--json").stdout)["blocks"]["removable"]) == 8
