"""What is chosen and made up for with what calibration inputs show."""

from __future__ import annotations

import numpy as np
import pytest

import spa
from models.builder import Net
from models.vision import MAKERS
from spa import run as runs
from spa.allocate import Limits, allocate
from spa.cost import CostModel
from spa.score import score
from tests.conftest import DIGITS

PLAIN = {"compensate": "none", "repair": "none"}


@pytest.mark.parametrize("criterion", ["l1", "geometric-median", "similarity", "dfpc", "lamp"])
def test_criteria_that_need_no_inputs_choose_without_any(criterion: str) -> None:
    groups = spa.analyze(MAKERS["resnet18"](0.125, 32, 5))
    result = spa.prune(groups.graph, "channels=0.5", criterion=criterion, **PLAIN, verify=False)
    assert result.study is None
    limits = Limits(frozenset(range(len(groups))))
    wanted = allocate(
        groups, score(groups, criterion), {"channels": 0.5}, "global", limits, CostModel(groups)
    ).removed
    assert result.removed.keys() == wanted.keys()
    assert all(np.array_equal(result.removed[g], wanted[g]) for g in wanted)


@pytest.mark.parametrize("doubt", [0.03, 0.1, 0.25, 0.4])
def test_how_much_made_up_inputs_are_believed_matters_little(
    doubt: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spa.measure.SHRINK_MADE_UP", doubt)
    model = spa.prune(DIGITS, "macs=0.5", samples=128, verify=False).model
    held_out = np.load(DIGITS.with_suffix(".npz"))
    with runs.session(model) as running:
        (logits,) = runs.run(running, {"image": held_out["images"]}).values()
    assert (logits.argmax(1) == held_out["labels"]).mean() > 0.97


def test_two_choices_where_some_normalisations_are_folded_and_others_are_not() -> None:
    net = Net("both")
    x = net.relu(net.conv(net.input("x", ("n", 3, 16, 16)), 12))
    x = net.relu(net.conv(x, 12))
    for _ in range(2):
        x = net.relu(net.bn(net.conv(x, 12, bias=False)))
    model = net.model(net.gemm(net.flatten(net.pool(x)), 5))
    said: list[str] = []
    result = spa.prune(model, "macs=0.5", samples=48, progress=said.append)
    assert result.study is not None and result.study.measured.settled
    assert result.study.measured.statistics and "choosing again" in said
    assert result.verification is not None and (result.verification.law or 0) < 1e-4
