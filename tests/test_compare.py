"""Criteria side by side on one model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import Result
from rich.console import Console

import spa
from spa.compare import Row, compare, read_labels, top1
from spa.report import print_rows
from spa.settings import Settings
from tests.conftest import DIGITS, PLAIN
from tests.test_blame import counting
from tests.test_cli import strict_json

Cli = Callable[..., Result]
ROOT = Path(spa.__file__).parent


@pytest.fixture
def labelled(tmp_path: Path) -> tuple[Path, Path]:
    """Images of digits, and what they show."""
    data, labels = tmp_path / "x.npy", tmp_path / "y.npy"
    with np.load(ROOT / "data" / "digits.npz") as held:
        np.save(data, held["images"])
        np.save(labels, held["labels"])
    return data, labels


def test_a_row_for_every_way(labelled: tuple[Path, Path]) -> None:
    data, labels = labelled
    use = Settings(data=data, samples=128)
    rows = compare(DIGITS, ["macs=0.7", {"params": 0.5}], ["obspa", "l1"], use, read_labels(labels))
    first = rows[0]
    assert first.criterion == "original"
    assert first.accuracy is not None
    assert first.accuracy > 0.98
    assert [(r.criterion, r.measure, r.compensation) for r in rows[1:]] == [
        (name, measure, done)
        for measure in ("macs", "params")
        for name in ("obspa", "l1")
        for done in ("refit", "none")
    ]
    for refit, cut in zip(rows[1::2], rows[2::2], strict=True):
        assert refit.drift < cut.drift
        assert (refit.macs, refit.params) == (cut.macs, cut.params)
        assert getattr(cut, cut.measure) == pytest.approx(cut.target, abs=0.02)
        assert refit.accuracy is not None
        assert refit.accuracy > 0.95
        assert refit.seconds > 0


def test_drift_and_kept_are_those_of_prune() -> None:
    (_, row) = compare(DIGITS, "macs=0.6", "l1", Settings(**{**PLAIN, "samples": 64}))
    found = spa.prune(DIGITS, "macs=0.6", **PLAIN)
    assert row.macs == found.figures.share("macs")
    assert row.compensation == "none"
    assert row.accuracy is None


def test_what_fits_does_not_judge(labelled: tuple[Path, Path]) -> None:
    from spa.analysis import analyze
    from spa.compare import _held_out
    from spa.study import gather

    use = Settings(data=labelled[0], samples=100)
    groups = analyze(DIGITS)
    study = gather(groups, use, lambda stage: None)
    assert study is not None
    held = _held_out(groups, study, use)
    assert not set(held.rows) & set(study.fit.rows)
    assert len(held.rows) == 597 - len(study.fit.rows)


def test_out_of_reach_is_a_row() -> None:
    use = Settings(samples=64, min_keep=60)
    (_, row) = compare(DIGITS, "macs=0.1", "l1", use)
    assert "out of reach" in row.failed
    assert row.to_dict()["failed"] == row.failed


@pytest.mark.parametrize("compensate", ["refit", "none"])
def test_a_model_that_fails_is_a_row(compensate: str) -> None:
    """Without some of its units this one has no rows to split."""
    use = Settings(samples=32, compensate=compensate, repair="none", round_to=1)
    rows = compare(counting(), ["channels=0.5", "params=0.95"], "l1", use)
    plain = [row for row in rows[1:] if row.compensation == "none"]
    assert [row.measure for row in plain] == ["channels", "params"]
    assert "Split" in plain[0].failed and not plain[1].failed
    assert all(not row.failed for row in rows[1:] if row.compensation == "refit")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"criteria": ["none"]}, "criterion 'none'"),
        ({"criteria": []}, "at least one"),
        ({"targets": ["macs=2"]}, "target"),
        ({"labels": np.arange(4)}, "labels go with data"),
    ],
)
def test_what_cannot_be_meant(options: dict[str, object], says: str) -> None:
    with pytest.raises(spa.UsageError, match=says):
        compare(DIGITS, **options)


@pytest.mark.parametrize(
    ("labels", "says"), [(np.zeros(597), "float64"), (np.arange(596), "596 labels for 597")]
)
def test_labels_that_do_not_fit(labelled: tuple[Path, Path], labels: np.ndarray, says: str) -> None:
    with pytest.raises(spa.UsageError, match=says):
        compare(DIGITS, "macs=0.7", "l1", Settings(data=labelled[0], samples=64), labels)


def test_labels_need_an_order() -> None:
    def data() -> list[np.ndarray]:
        return [np.zeros((32, 1, 8, 8), np.float32)] * 2

    with pytest.raises(spa.UsageError, match="whose order"):
        compare(DIGITS, "macs=0.7", "l1", Settings(data=data), np.zeros(64, int))


def test_top1() -> None:
    labels = np.asarray([1, 0, 2])
    best = np.eye(3)[[1, 0, 1]]
    assert top1(best, labels) == pytest.approx(2 / 3)
    assert top1(best[:, :, None, None], labels) == pytest.approx(2 / 3)  # [N, C, 1, 1]
    assert top1(np.asarray([1, 0, 1]), labels) == pytest.approx(2 / 3)  # classes themselves
    tokens = np.asarray([[0, 1], [1, 1]])
    assert top1(np.eye(2)[tokens], tokens) == 1.0
    assert top1(np.moveaxis(np.eye(3)[tokens], 2, 1), tokens) == 1.0  # a class for every pixel
    with pytest.raises(spa.UsageError, match="neither"):
        top1(np.zeros((3, 4)), np.zeros(5, int))


def test_command(cli: Cli, digits: Path, labelled: tuple[Path, Path], tmp_path: Path) -> None:
    data, labels = labelled
    chart, before = tmp_path / "chart.svg", set(tmp_path.iterdir())
    options = ("--target", "macs=0.7,macs=0.5", "--criteria", "l1,random", "--samples", "64")
    given = ("--data", data, "--labels", labels)
    done = cli("compare", digits, *options, *given, "--plot", chart)
    assert done.exit_code == 0, done.stderr
    for word in ("original", "random", "refit", "accuracy", "drift", "seconds", "●", "○", "wrote"):
        assert word in done.stdout
    assert ElementTree.parse(chart).getroot().tag.endswith("svg")
    assert set(tmp_path.iterdir()) == before | {chart}
    rows = strict_json(cli("compare", digits, *options, *given, "--json").stdout)["rows"]
    assert len(rows) == 9
    assert rows[1]["accuracy"] > 0.9
    assert set(rows[0]) == set(Row.__dataclass_fields__)


def test_a_target_out_of_reach_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(width=100)
    print_rows(console, [Row("original"), Row("l1", "macs", 0.1, failed="macs=0.1 is too far")])
    said = capsys.readouterr().out
    assert "l1: macs=0.1 is too far" in said
    assert "failed" in said


@pytest.mark.parametrize("option", ["--labels", "--plot"])
def test_paths(cli: Cli, digits: Path, option: str) -> None:
    done = cli("compare", digits, option, digits, "--data", digits)
    assert done.exit_code == 2
    assert cli("compare", digits, "--labels", digits.with_name("none.npy")).exit_code == 2
