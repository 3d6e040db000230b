"""Spending a budget along curves."""

from __future__ import annotations

import numpy as np
import pytest

import spa
from spa.allocate import TOLERANCE, Limits
from spa.budget import spend
from spa.cost import CostModel
from spa.curves import Curve
from spa.errors import TargetError
from tests.conftest import DIGITS

GROUPS = spa.analyze(DIGITS)
COST = CostModel(GROUPS)


def straight(*slopes: float) -> dict[int, Curve]:
    """Curves on which every unit costs alike."""
    return {
        g: Curve(np.arange(group.size - 1), slope * np.arange(1, group.size))
        for g, (group, slope) in enumerate(zip(GROUPS, slopes, strict=True))
    }


@pytest.mark.parametrize("share", [0.9, 0.7, 0.5, 0.3])
@pytest.mark.parametrize("slopes", [(1, 1, 1, 1), (0, 1, 1, 1), (1, 0, 5, 2)])
def test_part_of_a_step_will_do(share: float, slopes: tuple[float, ...]) -> None:
    weights = dict.fromkeys(range(4), 1.0)
    counts = spend(GROUPS, straight(*slopes), weights, ("macs", share), Limits(), COST)
    assert abs(COST(counts).macs / COST().macs - share) <= TOLERANCE


def test_what_is_cheap_goes_first() -> None:
    weights = {0: 1.0, 1: 0.01, 2: 1.0, 3: 1.0}
    limits = Limits(round_to=1)
    counts = spend(GROUPS, straight(1, 1, 1, 1), weights, ("macs", 0.8), limits, COST)
    assert counts[1] > 0
    assert not counts[[0, 2, 3]].any()


def test_message_names_the_nearest() -> None:
    limits = Limits(frozenset({1}), round_to=1)
    weights = dict.fromkeys(range(4), 1.0)
    with pytest.raises(TargetError, match=r"nearest .* is macs=0\.47"):
        spend(GROUPS, straight(1, 1, 1, 1), weights, ("macs", 0.2), limits, COST)
