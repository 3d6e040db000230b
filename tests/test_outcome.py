"""What `spa prune` says of calibration inputs and of the weights that remain."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from onnx import ModelProto

from models.builder import Net
from models.hazards import HAZARDS
from spa.compensation import Compensation
from tests.test_cli import strict_json

Cli = Callable[..., Result]
HALF = ("--target", "channels=0.5")
FAST = ("--samples", "64", "--target", "macs=0.5")


def words(done: Result) -> str:
    assert done.exit_code == 0, done.stderr
    return " ".join(done.stdout.split())


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.npy"
    np.save(path, np.random.default_rng(0).random((64, 1, 8, 8), np.float32))
    return path


def normed() -> ModelProto:
    """A convolution with BatchNormalization behind it, and another."""
    net = Net("normed")
    y = net.relu(net.conv_bn(net.input("x", ["batch", 3, 8, 8]), 16))
    return net.model(net.gemm(net.flatten(net.global_avg_pool(net.relu(net.conv(y, 16)))), 4))


def test_made_up_inputs_sites_and_drift(cli: Cli, digits: Path) -> None:
    said = words(cli("prune", digits, *FAST))
    assert "inputs: made-up inputs (64), 16 of them held out; real ones, given with --data" in said
    assert "sites refitted (refit)" in said
    assert "left as they were because nothing helped" in said
    assert "output drift on held-out inputs" in said
    assert "node_Conv" not in said
    assert "refitted node_" in words(cli("prune", digits, *FAST, "--force", "-v"))


def test_document(cli: Cli, digits: Path, samples: Path) -> None:
    done = cli("prune", digits, *FAST, "--data", samples, "--json")
    assert done.exit_code == 0, done.stderr
    found = strict_json(done.stdout)
    assert found["inputs"] == {
        "source": str(samples), "kind": "data", "samples": 64, "held_out": 16, "note": "",
    }  # fmt: skip
    told = found["compensation"]
    assert told["method"] == "refit"
    assert not told["refused"]
    assert told["drift"]["after"] < told["drift"]["before"]
    assert all(0 <= e["after"] <= e["before"] for e in told["refitted"].values())
    assert told["repaired"] == []


def test_the_path_of_data(cli: Cli, digits: Path, samples: Path) -> None:
    said = words(cli("prune", digits, *FAST, "--data", samples))
    assert "samples.npy (64), 16 of them held out" in said


def test_statistics(cli: Cli, write: Callable[..., Path]) -> None:
    path = write(normed())
    options = (*FAST, "--criterion", "l1", "--compensate", "none", "--json")
    told = strict_json(cli("prune", path, *options).stdout)["compensation"]
    if not told["refused"]:
        assert len(told["repaired"]) == 1
        assert told["refitted"] == {}


def test_refused(cli: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drifts = cycle([0.25, 0.2, 0.5, 0.9])  # a settled network is judged in both its forms
    monkeypatch.setattr("spa.study.distance", lambda *_: next(drifts))
    said = words(cli("prune", digits, *FAST))
    assert "refused as a whole, the weights are the original's" in said
    assert "0.354 without, 0.424 with it, the geometric mean" in said
    assert "settled (0.25 and 0.2) and as it is stored (0.5 and 0.9)" in said
    told = strict_json(cli("prune", digits, *FAST, "--force", "--json").stdout)["compensation"]
    assert told["refused"]
    assert told["refitted"] == {}
    assert told["drift"] == {"before": 0.25, "after": 0.2}
    assert told["drift_as_stored"] == {"before": 0.5, "after": 0.9}


def test_only_weights_where_nothing_runs(cli: Cli, write: Callable[..., Path]) -> None:
    path = write(HAZARDS["custom_operator"][0]())
    said = words(cli("prune", path, *HALF))
    assert "inputs: none, for onnxruntime runs this model on none" in said
    assert "criterion l1" in said
    assert "--data" in said
    found = strict_json(cli("prune", path, *HALF, "--force", "--json").stdout)
    assert found["inputs"] is found["compensation"] is None


@pytest.mark.parametrize("options", [(), ("--target", "channels=1")])
def test_nothing_to_say(plain: Cli, digits: Path, options: Any) -> None:
    said = words(plain("prune", digits, *options))
    assert "inputs: none were needed" in said
    assert "compensation" not in said


@pytest.mark.parametrize(
    ("stored", "refused", "worst"),
    [(None, False, 0.2), ((0.5, 0.9), False, 0.9), ((0.2, 0.9), True, 0.4), (None, True, 0.4)],
)
def test_the_worse_form_counts(
    stored: tuple[float, float] | None, refused: bool, worst: float
) -> None:
    assert Compensation(drift=(0.4, 0.2), as_stored=stored, refused=refused).worst == worst
