"""The budget goes where it costs least, and the target is met."""

import numpy as np
import pytest

import spa
from models.builder import Net
from spa.allocate import Limits
from spa.budget import spend
from spa.cost import CostModel
from spa.curves import Curve
from spa.errors import TargetError
from spa.groups import Groups


def case() -> tuple[Groups, CostModel]:
    net = Net("case")
    x = net.relu(net.conv(net.input("x", (1, 3, 8, 8)), 32))
    x = net.relu(net.conv(x, 32))
    groups = spa.analyze(net.model(net.gemm(net.flatten(net.pool(x)), 5)))
    assert [g.size for g in groups] == [32, 32]
    return groups, CostModel(groups)


def curve(worth: float) -> Curve:
    return Curve(np.arange(31), worth * np.linspace(0.01, 1, 31) ** 2)


def kept(counts: np.ndarray, cost: CostModel) -> float:
    return cost(counts).macs / cost().macs


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3])
def test_the_target_is_met(share: float) -> None:
    groups, cost = case()
    counts = spend(groups, {0: curve(1), 1: curve(1)}, {}, ("macs", share), Limits(), cost)
    assert abs(kept(counts, cost) - share) <= 0.02


def test_the_group_that_matters_less_gives_more() -> None:
    groups, cost = case()
    counts = spend(
        groups, {0: curve(1), 1: curve(0.01)}, {}, ("params", 0.6), Limits(round_to=1), cost
    )
    assert counts[1] > counts[0]
    drawn = {0: curve(1), 1: curve(1)}
    counts = spend(groups, drawn, {0: 0.01, 1: 1.0}, ("params", 0.6), Limits(round_to=1), cost)
    assert counts[0] > counts[1]


def test_near_the_best_of_all_ways() -> None:
    groups, cost = case()
    curves = {0: curve(1.0), 1: curve(0.3)}
    counts = spend(groups, curves, {}, ("macs", 0.5), Limits(round_to=1), cost)

    def loss(a: int, b: int) -> float:
        first, second = (np.concatenate([[0], curves[g].loss]) for g in (0, 1))
        return float(first[a] + second[b])

    enough = [
        loss(a, b)
        for a in range(32)
        for b in range(32)
        if cost(np.asarray([a, b])).macs <= cost(counts).macs
    ]
    assert loss(*counts.tolist()) <= 1.1 * min(enough)


def test_limits_are_kept() -> None:
    groups, cost = case()
    limits = Limits(frozenset({1}), min_keep=8, round_to=8)
    drawn = {0: curve(1), 1: curve(1)}
    counts = spend(groups, drawn, {}, ("macs", 0.55), limits, cost)
    assert counts[0] == 0 and counts[1] % 8 == 0 and 32 - counts[1] >= 8


def test_out_of_reach() -> None:
    groups, cost = case()
    with pytest.raises(TargetError, match="least this model can keep"):
        spend(groups, {0: curve(1), 1: curve(1)}, {}, ("macs", 0.01), Limits(min_keep=16), cost)
