"""The benchmark of accuracy: what is run, what is not run again, how bars are judged."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

import spa
from benchmarks import quality
from benchmarks.cost_quality import line_through
from benchmarks.quality import METHODS, Clock, Job, Row, digits, groups_digest, jobs, meaning, read
from benchmarks.quality_page import Table, bars, page
from models import fashion

TRAINED = quality.NETS
JOB = Job("vgg_bn", "spa", "images", 0.5, 0, 250)


def row(method: str, inputs: str, after: float, net: str = "vgg", target: float = 0.5) -> Row:
    seconds = {"scoring": 1.0, "reading": 0.5}
    key = f"{net} {method} {inputs} {target}"
    return Row(key, "code", net, method, inputs, target, 0, 2000, 90.0, after, 0.5, 0.4, seconds)


def test_methods_are_settings_of_spa() -> None:
    for method in METHODS.values():
        spa.settings.Settings(**method.options).check()
        assert set(method.inputs) <= {*quality.ALL, "none"}


def test_a_key_names_all_that_counts() -> None:
    keys = {JOB.key("file", "code"), JOB.key("other", "code"), JOB.key("file", "other")}
    for change in ({"seed": 1}, {"target": 0.7}, {"method": "l1"}, {"inputs": "noise"}):
        keys.add(replace(JOB, **change).key("file", "code"))
    assert len(keys) == 7
    assert JOB.key("file", "code") in keys


def test_what_looks_at_no_input_runs_once() -> None:
    made = list(jobs([TRAINED / "vgg.onnx", TRAINED / "vgg_bn.onnx"], 3, quick=False))
    assert len(made) == len(set(made))
    assert {j.seed for j in made if j.method == "l1"} == {0}
    assert {j.seed for j in made if j.method == "spa"} == {0, 1, 2}
    assert {j.method for j in made if j.net == "vgg_bn"} == set(METHODS)
    assert {j.method for j in made if j.net == "vgg"} == {
        name for name, method in METHODS.items() if not method.norms
    }
    few = list(jobs([TRAINED / "vgg.onnx"], 3, quick=True))
    assert {(j.seed, j.target, j.tests) for j in few} == {(0, 0.5, 2000)}


def test_telling_rows_come_first() -> None:
    made = jobs(
        [TRAINED / f"{n}.onnx" for n in ("vgg_bn", "wide_mobilenet", "vit")], 3, quick=False
    )
    first = [(j.net, j.method, j.inputs, j.target) for j in made[:9]]
    assert {(net, target) for net, _, _, target in first} == {
        ("vgg_bn", 0.5), ("wide_mobilenet", 0.8), ("vit", 0.5)
    }  # fmt: skip
    assert {(m, i) for _, m, i, _ in first} == {
        ("l1", "none"), ("spa", "noise"), ("spa", "images")
    }  # fmt: skip
    assert [j.seed for j in made] == sorted(j.seed for j in made)
    assert len(made) == len(set(made))


def test_a_digest_is_of_what_code_does() -> None:
    one = 'def f(x):\n    """Text."""\n    return x + 1  # more\n'
    other = "def f(x):\n    return (x\n        + 1)\n"
    assert meaning(one) == meaning(other) != meaning(other.replace("1", "2"))
    modules = {p.stem for p in Path(spa.__file__).parent.glob("*.py")}
    assert modules > quality.APART
    needed = {"fit", "compensate", "measure", "obs", "curves", "noise", "budget", "sites", "drift"}
    assert not needed & quality.APART


def test_a_digest_of_groups() -> None:
    one, other = (spa.analyze(TRAINED / f"{n}.onnx") for n in ("vgg", "vgg_bn"))
    assert groups_digest(one) == groups_digest(spa.analyze(TRAINED / "vgg.onnx"))
    assert groups_digest(one) != groups_digest(other)


def test_digits_are_pictures_like_those_of_clothes() -> None:
    found = digits()
    assert found.shape[1:] == (1, 28, 28) and len(found) >= quality.SAMPLES
    black, white = (np.float32((v - fashion.MEAN) / fashion.STD) for v in (0, 1))
    assert found.min() == pytest.approx(black) and found.max() == pytest.approx(white)
    assert (found[:, :, :2] == found.min()).all()


def test_rows_of_other_code_are_left_out(tmp_path: Path) -> None:
    rows = [row("spa", "noise", 80), replace(row("l1", "none", 70), code="old")]
    path = tmp_path / "rows.jsonl"
    assert read(path, "code") == {}
    path.write_text("".join(json.dumps(asdict(r)) + "\n" for r in rows))
    assert list(read(path, "code").values()) == rows[:1]


def test_a_clock_adds_up_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0])
    monkeypatch.setattr("benchmarks.quality.time.perf_counter", lambda: next(times))
    clock = Clock()
    for stage in ("one", "two", "one", ""):
        clock(stage)
    assert clock.seconds == {"reading": 1.0, "one": 2.0 + 4.0, "two": 3.0}


# Bars


def met(rows: list[Row]) -> dict[str, bool]:
    return {bar.text: bar.met for bar in bars(Table(rows))}


def test_bars_of_a_cnn() -> None:
    good = [row("spa", "images", 89), row("spa", "noise", 86), row("spa", "noise", 89, target=0.7)]
    assert list(met(good).values()) == [True] * 3
    bad = [replace(r, after=r.after - 0.05) for r in good]
    assert list(met(bad).values()) == [False] * 3


def test_bars_of_a_vit_and_of_wide_nets() -> None:
    assert list(met([row("spa", "images", 88, "vit")]).values()) == [True]
    assert list(met([row("spa", "images", 87.9, "vit")]).values()) == [False]
    for inputs, target, least in (
        ("noise", 0.9, 88),
        ("noise", 0.8, 70),
        ("images", 0.9, 95),
        ("images", 0.8, 88),
    ):
        for share, is_met in ((least + 0.1, True), (least - 0.1, False)):
            rows = [row("spa", inputs, 90 * share / 100, "wide_mobilenet", target)]
            assert list(met(rows).values()) == [is_met]


def test_best_is_among_rows_that_see_no_more() -> None:
    text = "`spa` is the best row of its inputs or less, or within 0.2"
    ours = [row("spa", "noise", 86), row("spa", "images", 89)]
    assert met([*ours, row("sweep", "images", 89.2)])[text]
    assert not met([*ours, row("sweep", "images", 89.3)])[text]
    assert not met([*ours, row("l1", "none", 86.3)])[text]
    assert met([*ours, replace(row("l1", "none", 99), error="TargetError: no")]).get(text) is None


def test_page() -> None:
    rows = [
        row("l1", "none", 50),
        row("spa", "images", 89),
        replace(row("spa", "images", 87), seed=1, key="b"),
        replace(row("dfpc", "none", 0), error="TargetError: out of reach"),
    ]
    text = page(rows, "python -m benchmarks.quality")
    assert "| spa | images | 88.00 (-2.00) | 0.500 | 1.5 |" in text
    assert "| dfpc | none | TargetError |  |  |" in text
    assert "medians over\n2 seeds" in text and "have yet to be" not in text
    assert "**3 of 7 rows have yet to be measured.**" in page(rows, "python", 3)
    assert "vgg (CNNs, 512 images), macs=0.5: loses at most 1 | 2.00 | missed" in text
    assert "Seconds of `spa` with images by stage: scoring 1.0, reading 0.5." in text
    peer = replace(row("Torch-Pruning, local", "none", 20), key="")
    later = replace(row("spa", "noise", 88), code="later")
    text = page([*rows, later, peer], "python", commits={rows[0].code: "abc", "later": "def"})
    assert "\n- `abc`: 4, of dfpc, l1, spa, on images, none\n- `def`: 1, of spa, on noise\n" in text
    assert "| Torch-Pruning, local | none | 20.00 (-70.00)" in text


def test_cost_is_drawn_as_a_line() -> None:
    one = {"samples": 16, "seconds": {"a": 1.0, "b": 5.0, "judging": 1.0}, "macs": 0.5}
    two = {"samples": 48, "seconds": {"a": 3.0, "b": 4.0, "judging": 3.0}, "macs": 0.5}
    found = line_through(one, two)
    assert found["seconds"] == {"a": 32.0, "b": 4.0, "judging": 16.0}
    assert found["total"] == 52.0


@pytest.mark.skipif(not fashion.present(), reason="needs dataset-fashion-mnist")
def test_one_row() -> None:
    bench = quality.Bench(TRAINED, "code")
    found = bench.row(replace(JOB, method="l1", inputs="none"))
    assert found.key == bench.key(replace(JOB, method="l1", inputs="none"))
    assert found.before > 85 and 0.45 < found.macs <= 0.52 and not found.error
    folds = bench.row(replace(JOB, method="fold", inputs="none"))
    assert not folds.error and not folds.refused and folds.after > found.after + 20
    assert quality.samples("images", True, 1).shape == (quality.WIDE_SAMPLES, 3, 56, 56)
    assert quality.samples("digits", False, 1).shape == (quality.SAMPLES, 1, 28, 28)
