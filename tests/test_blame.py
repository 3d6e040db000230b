"""What fails its validation is left whole, and the rest goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import ModelProto

import spa
from models.graph import Graph
from spa import api, blame
from spa.settings import Settings
from tests.conftest import CUT, PLAIN

Cli = Callable[..., Result]
ROWS, COUNTED, SAFE = 4, 12, 16


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose otherwise where a model fails, which other tests are not to."""
    monkeypatch.setattr(api, "ATTEMPTS", 4)


def counting(safe: int = SAFE, least: float = 10 * COUNTED - 5) -> ModelProto:
    """Rows stay where a sum over 12 units of about 10 each is large, which it always is, and are
    split by their number: with less of these units there are no rows. Nothing hangs on the safe
    units."""
    g = Graph("counting")
    x = g.input("x", [ROWS, 8])
    bias = np.full(COUNTED, 10, np.float32)
    h = g.node("Relu", g.node("Gemm", x, np.full((8, COUNTED), 0.01, np.float32), bias))
    total = g.node("MatMul", h, np.ones((COUNTED, 1), np.float32))
    flag = g.node("Reshape", g.node("Greater", total, np.float32(least)), [ROWS])
    y = g.node("MatMul", x, g.weight(8, 3))
    if safe:
        wide = g.node("Relu", g.node("MatMul", x, g.weight(8, safe)))
        y = g.node("Add", y, g.node("MatMul", wide, g.weight(safe, 3)))
    rows = g.node("Compress", y, flag, axis=0, shape=[ROWS, 3])
    return g.model(*g.nodes("Split", [rows, [1, 3]], 2, axis=0, shapes=[[1, 3], [3, 3]]))


def units(result: spa.Result) -> dict[int, int]:
    return {result.groups[g].size: len(gone) for g, gone in result.removed.items()}


@pytest.mark.usefixtures("again")
def test_the_group_that_a_model_fails_by_is_left_whole() -> None:
    result = spa.prune(counting(), "channels=0.5", **PLAIN)
    assert units(result) == {SAFE: SAFE // 2}
    assert result.verification is not None and result.verification.law is not None
    (name,) = result.set_aside
    assert next(g.size for g in result.groups if g.name == name) == COUNTED
    assert "does not run" in result.set_aside[name]


def test_new_weights_may_keep_it_from_failing() -> None:
    result = spa.prune(counting(), "channels=0.5", samples=32)
    assert units(result) == {COUNTED: COUNTED // 2, SAFE: SAFE // 2}
    assert not result.set_aside


@pytest.mark.usefixtures("again")
def test_others_go_in_its_place() -> None:
    cut = spa.prune(counting(256), "params=0.8", **PLAIN)
    assert list(units(cut)) == [256]
    assert cut.figures.share("params") == pytest.approx(0.8, abs=0.02)


@pytest.mark.usefixtures("again")
def test_a_plan_of_the_rest_is_replayed(tmp_path: Path) -> None:
    result = spa.prune(counting(), "channels=0.5", **PLAIN)
    assert spa.prune(counting(), plan=result.plan).data == result.data


@pytest.mark.usefixtures("again")
def test_the_command_line_says_what_and_why(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(counting(), path)
    command = ("prune", path, "--target", "channels=0.5", *CUT, "--force")
    done = cli(*command)
    assert done.exit_code == 0
    said = " ".join(done.stdout.split())
    assert "left whole, as the model fails its validation else" in said and "Split" in said
    found = json.loads(cli(*command, "--json").stdout)["set_aside"]
    assert len(found) == 1 and "does not run" in next(iter(found.values()))


@pytest.mark.usefixtures("again")
def test_where_nothing_else_is_left_the_target_is_out_of_reach() -> None:
    with pytest.raises(spa.TargetError, match=r"left whole: .*does not run"):
        spa.prune(counting(safe=0), "params=0.7", kinds=["linear"], **PLAIN)


@pytest.mark.usefixtures("again")
def test_a_given_plan_that_fails_is_refused() -> None:
    drafted = api.draft(counting(), "channels=0.5", Settings(**PLAIN))
    with pytest.raises(spa.ValidationError, match="does not run"):
        spa.prune(counting(), plan=drafted.plan)


def test_groups_that_were_not_tried_are_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    drafted = api.draft(counting(), "channels=0.5", Settings(**PLAIN))
    assert list(blame.blame(drafted.groups, drafted.removed).values()) != []
    monkeypatch.setattr(blame, "CUTS", 1)
    blamed = blame.blame(drafted.groups, drafted.removed)
    assert blamed.keys() == drafted.removed.keys()
    assert set(blamed.values()) == {"not tried, after many"}


def test_calibration_inputs_count() -> None:
    """On which the sum is half as large, and half of its units are not enough."""
    drafted = api.draft(counting(least=54), "channels=0.5", Settings(**PLAIN))
    x = np.random.default_rng(0).normal(size=(ROWS, 8)).astype(np.float32)
    assert blame.blame(drafted.groups, drafted.removed, [{"x": x}]) == {}
    (g,) = blame.blame(drafted.groups, drafted.removed, [{"x": np.full_like(x, -62.5)}])
    assert drafted.groups[g].size == COUNTED


def test_nothing_is_blamed_for_what_fails_anyway() -> None:
    drafted = api.draft(counting(), "channels=0.5", Settings(**PLAIN))
    assert blame.blame(drafted.groups, drafted.removed, [{"x": np.zeros((1, 8), np.float32)}]) == {}
