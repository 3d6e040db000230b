"""Branches that go with one index of an axis: which can, what they cost, and their plans."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

import spa
from models.builder import Net, Tensor
from models.mixtures import EXPERTS, MIXTURES, PICKED
from spa import plan as plans
from spa.cost import CostModel
from spa.errors import PlanError
from spa.groups import Groups
from spa.plan import Plan
from spa.rewrite import rewrite
from spa.wake import branches, shortened
from tests.oracle import check

PLAIN = {"criterion": "l1", "compensate": "none", "repair": "none", "round_to": 1}


def experts(groups: Groups) -> list[int]:
    return [g for g, group in enumerate(groups) if group.size == EXPERTS]


Joined = Callable[[Net, Tensor, list[Tensor]], Tensor | tuple[Tensor, ...]]


TOKENS = 7


def mixture(join: Joined, first: int = 0) -> ModelProto:
    """Four branches with their shares, from the first on, put together in some way."""
    net = Net("mixture")
    x = net.linear(net.input("x", (TOKENS, 6)), 8)
    shares = net.softmax(net.linear(x, EXPERTS))
    parts = [
        net.mul(net.slice(shares, e, e + 1), net.linear(net.relu(net.linear(x, 5)), 8))
        for e in range(first, EXPERTS)
    ]
    made = join(net, x, parts)
    y, *more = made if isinstance(made, tuple) else (made,)
    return net.model(net.linear(y, 3), *more)


def added(net: Net, parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = net.add(total, part)
    return total


def _plain(net: Net, x: Tensor, parts: list[Tensor]) -> Tensor:
    return added(net, parts)


def _to_the_input(net: Net, x: Tensor, parts: list[Tensor]) -> Tensor:
    return added(net, [x, *parts])


def _from_zeros(net: Net, x: Tensor, parts: list[Tensor]) -> Tensor:
    return added(net, [net.mul(x, 0.0), *parts])


def _from_stored_zeros(net: Net, x: Tensor, parts: list[Tensor]) -> Tensor:
    return added(net, [net.const(np.zeros((TOKENS, 8), np.float32)), *parts])


def _subtracted(net: Net, x: Tensor, parts: list[Tensor]) -> Tensor:
    return net.sub(net.sub(net.add(parts[0], x), parts[1]), added(net, parts[2:]))


def _changed_behind(net: Net, x: Tensor, parts: list[Tensor]) -> Tensor:
    return added(net, [net.relu(net.mul(part, 0.5)) for part in parts])


@pytest.mark.parametrize(
    "join",
    [_plain, _to_the_input, _from_zeros, _from_stored_zeros, _subtracted, _changed_behind],
)
def test_branches_that_can_go(join: Joined) -> None:
    groups = check(mixture(join))
    (g,) = experts(groups)
    graph = shortened(groups, {g: np.asarray([1, 3])})
    assert len(graph.blocks) == 2 and not groups.graph.blocks
    pruned = rewrite(groups, {g: np.asarray([1, 3])})
    assert len(groups.graph.model.graph.node) - len(pruned.graph.node) == len(graph.dead)


def _beside(net: Net, x: Tensor, parts: list[Tensor]) -> Tensor:
    return net.concat(*parts)


def _shifted(net: Net, x: Tensor, parts: list[Tensor]) -> Tensor:
    return added(net, [net.add(part, net.uniform(0, 1, 8)) for part in parts])


def _read_elsewhere(net: Net, x: Tensor, parts: list[Tensor]) -> Tensor:
    return net.add(added(net, parts), net.sigmoid(parts[0]))


def _given_out(net: Net, x: Tensor, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    return added(net, parts), parts[2]


def _taken_from(net: Net, x: Tensor, parts: list[Tensor]) -> Tensor:
    return net.sub(parts[0], added(net, parts[1:]))


def _apart(net: Net, x: Tensor, parts: list[Tensor]) -> Tensor:
    """Two of them in a sum of their own, which would be zero without both."""
    return net.concat(added(net, parts[:2]), net.sigmoid(added(net, parts[2:])))


@pytest.mark.parametrize("join", [_beside, _shifted, _apart])
def test_branches_that_cannot(join: Joined) -> None:
    groups = spa.analyze(mixture(join))
    assert not experts(groups)
    assert not groups.views[0].ties.picks


@pytest.mark.parametrize("join", [_read_elsewhere, _given_out, _taken_from])
def test_one_that_cannot_holds_no_other(join: Joined) -> None:
    groups = check(mixture(join))
    assert not experts(groups)
    assert [g.size for g in groups].count(EXPERTS - 1) == 1
    assert len(groups.views[0].ties.picks) == EXPERTS - 1


def test_an_index_that_is_not_picked_stays_where_one_of_the_others_has_to() -> None:
    groups = check(mixture(_plain, first=1))
    assert [g.size for g in groups].count(EXPERTS - 1) == 1 and not experts(groups)


def test_an_index_that_is_not_picked_goes_alone() -> None:
    """A router may have a column for no expert at all."""
    groups = check(mixture(_to_the_input, first=1))
    (g,) = experts(groups)
    assert not shortened(groups, {g: np.asarray([0])}).dead
    assert shortened(groups, {g: np.asarray([1])}).dead


@pytest.mark.parametrize("name", ["sliced", "split_up", "looped", "compared"])
def test_a_share_of_the_costs_goes_with_each(name: str) -> None:
    groups = spa.analyze(MIXTURES[name][0]())
    (g,) = experts(groups)
    cost, none = CostModel(groups), np.zeros(len(groups), np.int64)
    one = np.where(np.arange(len(groups)) == g, 1, 0)
    removed = {g: np.asarray([2])}
    found = CostModel(spa.analyze(rewrite(groups, removed)))()
    assert cost(one).params == cost.of(groups, removed).params == found.params
    assert cost(none) == cost()
    assert len(branches(groups)[g]) == EXPERTS


def test_costs_of_experts_of_different_widths() -> None:
    """Which of them go counts; as long as that is not known, they count alike."""
    groups = spa.analyze(mixture(_plain))
    (g,) = experts(groups)
    wide = next(k for k, group in enumerate(groups) if group.size == 5)
    removed = {g: np.asarray([0]), wide: np.asarray([0, 1, 2])}
    found = CostModel(spa.analyze(rewrite(groups, removed)))()
    assert CostModel(groups).of(groups, removed) == found
    counts = np.asarray([len(removed.get(k, ())) for k in range(len(groups))])
    assert CostModel(groups)(counts) != found


@pytest.mark.parametrize("name", ["gathered", "scattered", "looked_up"])
def test_pruned_replayed_and_verified(name: str, tmp_path: Path) -> None:
    model = MIXTURES[name][0]()
    result = spa.prune(model, "channels=0.5", kinds=("linear",), round_to=1, seed=1)
    (g,) = experts(result.groups)
    assert len(result.removed[g]) == EXPERTS // 2
    plan = Plan.from_json(result.plan.to_json())
    spa.save(result.model, tmp_path / "pruned.onnx")
    found = spa.verify(model, tmp_path / "pruned.onnx", plan, repeats=1)
    assert found.figures.after == result.figures.after == CostModel(spa.analyze(result.model))()
    gone = {t.name for t in model.graph.initializer} - {
        t.name for t in result.model.graph.initializer
    }
    assert {n for n in gone if n.startswith("MatMul")} <= set(plan.gone)
    assert bool(plan.gone) == (name != "looked_up")


@pytest.mark.parametrize("name", ["compared", "looked_up"])
def test_as_many_stay_as_are_picked(name: str) -> None:
    model = MIXTURES[name][0]()
    result = spa.prune(model, "channels=0.1", kinds=("linear",), **PLAIN)
    (g,) = experts(result.groups)
    assert result.groups[g].least == PICKED == EXPERTS - len(result.removed[g])
    more = {**result.removed, g: np.arange(EXPERTS - PICKED + 1)}
    plan = plans.record(result.groups, more)
    with pytest.raises(PlanError, match="of which 2 have to stay"):
        plans.replay(result.groups, replace(plan, model=""))


def test_picks_that_a_second_walk_shows_are_left_alone() -> None:
    """One token of each frame is passed from frame to frame, as in divided space-time attention."""
    net = Net("tokens")
    x = net.concat(net.weight(4, 1, 8), net.input("x", (4, 4, 8)))
    first = net.unsqueeze(net.gather(net.slice(x, 0, 1, axis=0), 0, axis=1), 1)
    x = net.concat(first, net.reshape(net.slice(x, 1, 5), (1, 16, 8)))
    again = net.node("Tile", net.unsqueeze(net.gather(x, 0, axis=1), 1), [4, 1, 1])
    x = net.linear(net.concat(again, net.reshape(net.slice(x, 1, 17), (4, 4, 8))), 8)
    x = net.matmul(net.matmul(x, net.transpose(x, 0, 2, 1)), x)
    first = net.mean(net.reshape(net.gather(x, 0, axis=1), (1, 4, 8)), 1)
    x = net.concat(first, net.reshape(net.slice(x, 1, 5), (1, 16, 8)))
    check(net.model(net.linear(x, 3)), 1)
