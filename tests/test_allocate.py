"""Targets, limits and scopes: how many units go, and which."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

import spa
from models.builder import Net
from models.hazards import HAZARDS
from models.vision import MAKERS
from spa.allocate import TOLERANCE, Allocation, Limits, allocate, read_target
from spa.cost import CostModel
from spa.errors import TargetError, UsageError
from spa.score import score
from spa.settings import ALL_KINDS
from tests.conftest import DIGITS, PLAIN

Cli = Callable[..., Result]
GROUPS = spa.analyze(DIGITS)
SCORES = score(GROUPS)
SIZES = [g.size for g in GROUPS]


def kept(found: Allocation) -> list[int]:
    return [n - len(found.removed.get(g, ())) for g, n in enumerate(SIZES)]


def test_read_target() -> None:
    assert read_target("macs=0.7") == ("macs", 0.7)
    assert read_target("params=1") == ("params", 1.0)
    assert read_target("channels=5e-1") == ("channels", 0.5)
    for bad in ("", "macs", "=0.5", "macs=", "macs=0", "macs=1.01", "macs=nan", "macs=inf", "x=1"):
        with pytest.raises(UsageError, match=r"macs=0\.7"):
            read_target(bad)


@pytest.mark.parametrize("measure", ["macs", "params"])
@pytest.mark.parametrize("scope", ["global", "erk", "local"])
def test_lands_and_is_monotone(measure: str, scope: str) -> None:
    last = 1.0
    for share in (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1):
        found = allocate(GROUPS, SCORES, {measure: share}, scope)
        left = getattr(found.after, measure) / getattr(found.before, measure)
        assert abs(left - share) <= TOLERANCE
        assert left <= last
        assert min(kept(found)) >= 1
        last = left


@pytest.mark.parametrize("scope", ["global", "local"])
@pytest.mark.parametrize("target", [{"macs": 0.6}, {"channels": 0.6}])
def test_low_scores_go_first(scope: str, target: dict[str, float]) -> None:
    scores = score(GROUPS, "random", seed=5)
    for g, units in allocate(GROUPS, scores, target, scope).removed.items():
        rest = np.setdiff1d(np.arange(SIZES[g]), units)
        assert scores[g][units].max() <= scores[g][rest].min()


def test_global_takes_from_the_group_of_low_scores() -> None:
    scores = [np.full(n, float(g > 0)) + np.arange(n) / 1e3 for g, n in enumerate(SIZES)]
    found = allocate(GROUPS, scores, {"macs": 0.8}, limits=Limits(round_to=1))
    assert kept(found)[0] < SIZES[0]
    assert kept(found)[1:] == SIZES[1:]


def test_local_takes_the_same_share_of_every_group() -> None:
    found = allocate(GROUPS, SCORES, {"macs": 0.5}, "local", Limits(round_to=1))
    shares = [k / n for k, n in zip(kept(found), SIZES, strict=True)]
    assert max(shares) - min(shares) <= 2 / min(SIZES)


@pytest.mark.parametrize("share", [1.0, 0.9, 0.5, 0.3, 0.01])
def test_channels_is_a_plain_share_of_every_group(share: float) -> None:
    for k, n in zip(kept(allocate(GROUPS, SCORES, {"channels": share})), SIZES, strict=True):
        assert k == max(1, round(share * n))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["macs", "params", "channels"]), st.floats(0.05, 1),
    st.sampled_from(["global", "local"]), st.integers(1, 70),
    st.sampled_from([None, 1, 2, 3, 4, 8, 16, 100]),
    st.none() | st.frozensets(st.integers(0, len(SIZES) - 1)),
)  # fmt: skip
def test_limits_are_kept(
    measure: str, share: float, scope: str, min_keep: int, round_to: int | None, free: Any
) -> None:
    try:
        limits = Limits(free, min_keep, round_to)
        found = allocate(GROUPS, SCORES, {measure: share}, scope, limits)
    except TargetError as error:
        assert "least" in str(error) or "nearest" in str(error)
        return
    if measure != "channels":
        left = getattr(found.after, measure) / getattr(found.before, measure)
        assert left <= share + TOLERANCE
        assert left >= share - TOLERANCE or round_to in (None, 1)
    for g, (k, n) in enumerate(zip(kept(found), SIZES, strict=True)):
        assert k >= min(min_keep, n)
        assert k == n or (k % (round_to or 1) == 0 and (free is None or g in free))


def test_blocks_of_eight_where_the_target_allows() -> None:
    assert all(k % 8 == 0 for k in kept(allocate(GROUPS, SCORES, {"macs": 0.7})))


@pytest.mark.parametrize("name", sorted(n for n, (_, g) in HAZARDS.items() if g))
def test_costs_are_those_of_the_model_made(name: str) -> None:
    result = spa.prune(HAZARDS[name][0](), "channels=0.5", kinds=ALL_KINDS, verify=False, **PLAIN)
    after = CostModel(spa.analyze(result.model))()
    assert (after.macs, after.params) == (result.figures.after.macs, result.figures.after.params)


def test_params_count_every_stored_number() -> None:
    result = spa.prune(DIGITS, "params=0.5", **PLAIN)
    for model, figure in (
        (onnx.load(DIGITS), result.figures.before),
        (result.model, result.figures.after),
    ):
        arrays = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == 1]
        assert figure.params == sum(a.size for a in arrays)


def test_out_of_reach() -> None:
    with pytest.raises(TargetError, match=r"macs=0.1 is out of reach.*least.*macs=0\.\d+"):
        allocate(GROUPS, SCORES, {"macs": 0.1}, limits=Limits(min_keep=30))
    with pytest.raises(TargetError, match="macs=1 "):
        allocate(GROUPS, SCORES, {"macs": 0.5}, limits=Limits(frozenset()))


def test_steps_too_coarse() -> None:
    with pytest.raises(TargetError, match=r"nearest.*macs=\d"):
        allocate(GROUPS, SCORES, {"macs": 0.9}, limits=Limits(round_to=32))


def narrow(*sizes: int) -> ModelProto:
    """A convolution of every size, one behind the other."""
    net = Net("narrow")
    x = net.input("x", (1, 3, 8, 8))
    for size in sizes:
        x = net.relu(net.conv(x, size))
    return net.model(net.gemm(net.flatten(net.global_avg_pool(x)), 5))


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5])
@pytest.mark.parametrize("sizes", [(2, 2), (3,), (3, 3), (2, 3), (5,), (8,), (8, 8), (10, 12)])
def test_the_nearest_below_where_single_units_are_too_large(
    sizes: tuple[int, ...], share: float
) -> None:
    groups = spa.analyze(narrow(*sizes))
    cost = CostModel(groups)
    found = allocate(groups, [np.arange(float(n)) for n in sizes], {"macs": share})
    every = [cost(np.asarray(c)).macs / cost().macs for c in product(*map(range, sizes))]
    nearest = min((x for x in every if x <= share + TOLERANCE), key=lambda x: abs(x - share))
    left = found.after.macs / found.before.macs
    assert left == nearest or abs(left - share) <= TOLERANCE


def test_what_is_below_the_target_is_said(cli: Cli, write: Callable[..., Path]) -> None:
    options = ("--target", "macs=0.7", "--criterion", "l1", "--compensate", "none")
    said = cli("prune", write(narrow(4)), *options, "--repair", "none")
    assert said.exit_code == 0, said.stderr
    assert "target macs=0.7: whole units come no nearer from below than 50.0%" in said.stdout
    said = cli("prune", write(narrow(32)), *options, "--repair", "none")
    assert "target" not in said.stdout


@pytest.mark.parametrize("target", [{}, {"macs": 0.5, "params": 0.5}, {"macs": 0.0}, {"x": 0.5}])
def test_bad_targets(target: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        allocate(GROUPS, SCORES, target)


@pytest.mark.parametrize("limits", [Limits(min_keep=0), Limits(round_to=-4)])
def test_bad_limits(limits: Limits) -> None:
    for measure in ("macs", "channels"):
        with pytest.raises(UsageError, match="at least 1"):
            allocate(GROUPS, SCORES, {measure: 0.5}, limits=limits)


def test_blocks_of_nothing() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        allocate(GROUPS, SCORES, {"channels": 0.5}, limits=Limits(round_to=0))


# The same on the command line

OPTIONS = [
    *[f"--target {m}={s}" for m in ("macs", "params") for s in (0.9, 0.5, 0.25)],
    *[f"--criterion {c}" for c in ("l1", "l2", "random")],
    *[f"--aggregate {a}" for a in ("sum", "mean", "max", "prod", "l2")],
    *[f"--normalize {n}" for n in ("none", "sum", "mean", "max", "standard")],
    *[f"--scope {s}" for s in ("global", "local")],
    "--seed 12", "--min-keep 10", "--round-to 4", "--exact", "--no-verify", "--exclude stage2",
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS)
def test_options(cli: Cli, digits: Path, options: str) -> None:
    done = cli("prune", digits, "--json", *options.split())
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    measure, share = ("macs", 0.7) if "target" not in options else read_target(options.split()[1])
    assert abs(found["kept"][measure] - share) <= 0.02
    arrays = onnx.load(found["out"]).graph.initializer
    floats = sum(int(np.prod(t.dims)) for t in arrays if t.data_type == 1)
    assert found["params"]["after"] == floats
    assert (found["verification"] is None) == ("no-verify" in options)


@pytest.mark.parametrize("maker", ["resnet18", "mobilenet_v2", "densenet121", "unet"])
@pytest.mark.parametrize("round_to", [1, 4])
def test_round_to_holds_for_every_tensor_axis(maker: str, round_to: int) -> None:
    model = MAKERS[maker](width=0.25, image=32, classes=10)
    result = spa.prune(model, "channels=0.6", round_to=round_to, verify=False, **PLAIN)
    before = {t.name: t.dims for t in model.graph.initializer}
    for tensor in result.model.graph.initializer:
        for old, new in zip(before[tensor.name], tensor.dims, strict=True):
            assert new == old or (new > 0 and new % round_to == 0)


# Floors, and shares by shape


def test_floor_keeps_a_quarter_of_every_group() -> None:
    for share in (0.6, 0.4, 0.2):
        found = allocate(GROUPS, SCORES, {"macs": share}, "floor", Limits(round_to=1))
        assert all(k >= n / 4 for k, n in zip(kept(found), SIZES, strict=True))
        assert abs(found.after.macs / found.before.macs - share) <= TOLERANCE
    skewed = [s * (g == 1) for g, s in enumerate(SCORES)]  # all but one group are worth nothing
    for scope, least in (("global", 1), ("floor", 8)):
        found = allocate(GROUPS, skewed, {"macs": 0.3}, scope, Limits(round_to=1))
        assert kept(found)[0] == least


def test_floor_is_part_of_what_can_be_reached() -> None:
    with pytest.raises(TargetError, match="out of reach"):
        allocate(GROUPS, SCORES, {"macs": 0.02}, "floor", Limits(round_to=1))


def test_erk_keeps_more_where_weights_are_small() -> None:
    shapes = {
        g: {
            m.tensor: GROUPS.graph.constants[m.tensor].shape
            for m in group.members
            if len(GROUPS.graph.constants[m.tensor].shape) > 1
        }.values()
        for g, group in enumerate(GROUPS)
    }
    raw = [sum(map(sum, s)) / sum(int(np.prod(n)) for n in s) for s in shapes.values()]
    found = allocate(GROUPS, SCORES, {"macs": 0.5}, "erk", Limits(round_to=1))
    shares = [k / n for k, n in zip(kept(found), SIZES, strict=True)]
    epsilon = [s / r for s, r in zip(shares, raw, strict=True) if s < 1]
    assert len(epsilon) > 1
    assert max(epsilon) / min(epsilon) < 1.1  # one number for all that lose units
    full = [r for s, r in zip(shares, raw, strict=True) if s == 1]
    assert all(r * max(epsilon) > 0.95 for r in full)


def test_erk_follows_the_order_inside_a_group() -> None:
    found = allocate(GROUPS, SCORES, {"macs": 0.5}, "erk", Limits(round_to=1))
    for g, units in found.removed.items():
        assert set(units) == set(np.argsort(SCORES[g], kind="stable")[: len(units)])
