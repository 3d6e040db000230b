"""More than one step on the way to a target."""

from __future__ import annotations

import pytest

import spa
from models.vision import MAKERS
from spa.settings import Settings
from tests.conftest import DIGITS, PLAIN
from tests.test_graphs import shared_bias

FAST = {"samples": 64, "verify": False}


def test_one_step_is_what_it_was() -> None:
    one, none = (spa.prune(DIGITS, "macs=0.5", **FAST, **k) for k in ({"steps": 1}, {}))
    assert one.model.SerializeToString() == none.model.SerializeToString()
    assert one.plan == none.plan


@pytest.mark.parametrize("target", ["macs=0.5", "params=0.4"])
def test_three_steps_reach_the_target(target: str) -> None:
    said: list[str] = []
    found = spa.prune(DIGITS, target, steps=3, progress=said.append, **FAST)
    measure, share = target.split("=")
    assert found.figures.share(measure) == pytest.approx(float(share), abs=0.02)
    assert said.count("drawing curves") == said.count("calibrating") == 3
    assert found.plan.made_by["steps"] == 3
    again = spa.prune(DIGITS, plan=found.plan, verify=False)
    assert again.model.SerializeToString() == found.model.SerializeToString()


def test_coupled_groups() -> None:
    model = MAKERS["shufflenet_v2"](width=0.125, image=32, classes=10, batch="batch")
    found = spa.prune(model, "macs=0.6", steps=2, samples=32)
    assert found.figures.share("macs") == pytest.approx(0.6, abs=0.02)


@pytest.mark.parametrize(
    "options",
    [PLAIN | {"steps": 2}, {"steps": 0}, {"steps": 2, "scope": "global"}],
)
def test_refused(options: dict[str, object]) -> None:
    with pytest.raises(spa.UsageError, match="step"):
        spa.prune(DIGITS, "macs=0.5", **options)
    with pytest.raises(spa.UsageError, match="step"):
        Settings(**options).check()


def test_a_constant_that_a_step_splits() -> None:
    """What the second step cuts has a name of its own by then."""
    model = shared_bias("one", distinct=False)
    result = spa.prune(model, "params=0.5", steps=3, round_to=1, samples=32)
    assert abs(result.figures.share("params") - 0.5) < 0.03
    again = spa.prune(model, plan=result.plan, samples=32)
    assert again.data == result.data


def test_channels_take_one_step() -> None:
    with pytest.raises(spa.UsageError, match="macs or params"):
        spa.prune(DIGITS, "channels=0.5", steps=2)
