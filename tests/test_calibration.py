"""Calibration inputs as a whole: what they say of themselves, how they are split and limited."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from onnx import ModelProto

import spa
from models.builder import Net
from spa import batches
from spa.calibration import Calibration, byte_count, calibrate
from spa.errors import UsageError
from spa.reader import load
from spa.settings import Settings
from tests.conftest import DIGITS

Cli = Callable[..., Result]


def images(count: int) -> Any:
    return np.random.default_rng(0).random((count, 1, 8, 8), np.float32)


def digits(data: Any = "noise", **options: Any) -> Calibration:
    return calibrate(load(DIGITS), data, **options)


def values(found: Calibration) -> list[bytes]:
    """Every sample, as something to compare."""
    return [x.tobytes() for feeds in found.batches for x in feeds["image"]]


def fixed(count: int) -> ModelProto:
    net = Net("fixed")
    return net.model(net.conv(net.input("image", [count, 1, 8, 8]), 4))


# What they are


def test_noise_is_the_default() -> None:
    found = digits()
    assert (found.source, found.kind, found.count, found.note) == ("noise", "noise", 512, "")
    assert len(found.batches) == 16
    assert found.batches[0]["image"].shape == (32, 1, 8, 8)


@pytest.mark.parametrize("data", ["noise", images(50)], ids=["noise", "data"])
def test_the_seed_decides(data: Any) -> None:
    one, same, other = (digits(data, count=40, seed=seed) for seed in (3, 3, 4))
    assert values(one) == values(same) != values(other)
    assert one.digest == same.digest != other.digest
    assert len(one.digest) == 64


def test_the_digest_is_of_the_values() -> None:
    x = images(8)
    assert digits(x).digest == digits(x.astype(np.float64)).digest
    x[3, 0, 2, 2] += 1e-3
    assert digits(x).digest != digits(images(8)).digest


def test_a_record_is_json() -> None:
    record = json.loads(json.dumps(digits(images(8)).record()))
    assert record == {
        "source": "the data",
        "kind": "data",
        "samples": 8,
        "digest": digits(images(8)).digest,
    }


def test_batches_are_a_sequence() -> None:
    found = digits(images(10), batch=4).batches
    assert [len(feeds["image"]) for feeds in found] == [4, 4, 2]
    assert np.array_equal(found[-1]["image"], found[2]["image"])
    assert [len(feeds["image"]) for feeds in found[1:]] == [4, 2]
    with pytest.raises(IndexError):
        found[3]


def test_batches_are_contiguous_and_their_own() -> None:
    for data in ("noise", images(10)):
        found = digits(data, count=10).batches
        x = found[0]["image"]
        assert x.flags.c_contiguous
        x += 1
        assert not np.array_equal(x, found[0]["image"])


def test_noise_is_drawn_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    made = batches.Made.__getitem__

    def watch(self: batches.Made, rows: Any) -> Any:
        drawn.extend(rows.tolist())
        return made(self, rows)

    monkeypatch.setattr(batches.Made, "__getitem__", watch)
    found = digits(count=64)
    assert sorted(drawn) == list(range(32))
    assert len(found.batches[1]) == 1 and len(drawn) == 64


def test_a_calibration_is_taken_as_it_is() -> None:
    found = digits(count=4)
    assert digits(found) is found


def test_a_path_of_external_data(external: Path) -> None:
    assert calibrate(load(external), count=4).count == 4


# Splits


@pytest.mark.parametrize("count", [2, 3, 10, 100, 200])
def test_splits_share_no_sample(count: int) -> None:
    found = digits(images(count))
    fit, held = found.split()
    assert sorted(values(fit) + values(held)) == sorted(values(found))
    assert not set(values(fit)) & set(values(held))
    assert held.count == max(round(count / 4), 1)
    assert (fit.source, fit.kind) == ("the data", "data")


def test_noise_holds_out_the_other_family() -> None:
    found = digits(count=100)
    fit, held = found.split(0.3)
    assert (fit.count, held.count) == (70, 30)
    assert values(fit) == values(found)[:70]
    assert not set(values(held)) & set(values(found))
    smooth = [_roughness(part) for part in (fit, held)]
    assert abs(smooth[0] - smooth[1]) > 0.05


def _roughness(found: Calibration) -> float:
    x = np.concatenate([feeds["image"] for feeds in found.batches])
    x = x - x.mean((2, 3), keepdims=True)
    return float(np.abs(np.diff(x, axis=3)).mean() / np.abs(x).mean())


def test_splits_fill_the_batches_that_a_model_fixes() -> None:
    fit, held = calibrate(load(fixed(4)), images(23)).split()
    assert [len(f["image"]) for f in (*fit.batches, *held.batches)] == [4] * 5
    assert (fit.count, held.count) == (16, 4)


@pytest.mark.parametrize("count", [1, 4, 7])
def test_what_cannot_be_split(count: int) -> None:
    model = fixed(1 if count == 1 else 4)
    with pytest.raises(UsageError, match=r"the data has \d samples, .* nothing to hold out"):
        calibrate(load(model), images(count)).split()


def test_splits_of_batches_of_many_lengths() -> None:
    net = Net("lengths")
    model = net.model(net.linear(net.input("x", ["n", "s", 6]), 4))
    given = [np.ones((4, 3 + k, 6), np.float32) for k in range(5)]
    fit, held = calibrate(load(model), lambda: given).split()
    shapes = [[f["x"].shape[:2] for f in part.batches] for part in (fit, held)]
    assert shapes == [[(4, 3), (4, 4), (4, 5), (3, 6)], [(1, 6), (4, 7)]]


# Limits


def test_fewer_samples_than_asked_for() -> None:
    per_sample = 64 * 4
    for data in ("noise", images(100)):
        found = digits(data, count=90, memory=per_sample * 70)
        assert found.count == 70
        assert found.note == "70 samples instead of 90: more take over 17920 bytes"
        assert len(found.batches[0]["image"]) == 1  # of which the model makes far more


def test_at_least_one_sample() -> None:
    assert digits(memory=1).count == digits(images(5), memory=1).count == 1
    assert calibrate(load(fixed(4)), memory=1).count == 4


def test_no_note_where_there_are_no_more() -> None:
    assert digits(images(5)).note == ""


@pytest.mark.parametrize("options", [{"count": 0}, {"batch": 0}, {"count": -1}])
def test_counts_are_positive(options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="both must be 1 or more"):
        digits(**options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4GB", 4 * 10**9), ("2 GiB", 2 << 30), ("1.5gb", 1_500_000_000), ("500MB", 5 * 10**8),
     ("64kB", 64_000), ("8KiB", 8192), ("1TB", 10**12), ("123", 123), ("7b", 7), (99, 99)],
)  # fmt: skip
def test_sizes_of_memory(text: str | int, expected: int) -> None:
    assert byte_count(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "4XB", "-1GB", "0", "0.1", "1e9", "4 GB!", "nan", "iB"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size such as 500MB, 4GB or 2GiB"):
        byte_count(text)


# Sources that are not there


def test_paths(tmp_path: Path) -> None:
    cases = {
        "missing.npz": "does not exist; --data takes noise, .npz, .npy or a folder",
        "data.csv": r"data\.csv: spa reads .npz, .npy and folders of images$",
        "one.png": r"one\.png: spa reads .*: name the folder it lies in",
        "empty": r"empty holds no images \(\.png",
    }
    (tmp_path / "data.csv").write_text("1,2")
    (tmp_path / "one.png").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    for name, match in cases.items():
        with pytest.raises(UsageError, match=match):
            digits(tmp_path / name)


def test_preprocess_is_for_folders(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", images(4))
    for data in ("noise", tmp_path / "x.npy", images(4)):
        with pytest.raises(UsageError, match="--preprocess is for a folder of images"):
            digits(data, preprocess="size=8")


# Options of the command line, and what a plan says of them


def plan_of(cli: Cli, path: Path, *options: Any) -> dict[str, Any]:
    plan = path.with_name("plan.json")
    done = cli("prune", path, "--dry-run", "--plan-out", plan, *options)
    assert done.exit_code == 0, done.stderr
    made_by: dict[str, Any] = json.loads(plan.read_text())["made_by"]
    return made_by


def test_a_plan_says_what_the_data_were(cli: Cli, digits: Path) -> None:
    made_by = plan_of(cli, digits)
    assert made_by["data"] == {"source": "noise", "kind": "noise"}
    assert (made_by["samples"], made_by["preprocess"], made_by["memory"]) == (512, None, 4 << 30)
    np.save(digits.with_name("x.npy"), images(4))
    made_by = plan_of(
        cli, digits, "--data", digits.with_name("x.npy"), "--samples", 9, "--memory", "1GB"
    )
    path = str(digits.with_name("x.npy"))
    assert made_by["data"] == {"source": "x.npy", "kind": "data", "path": path}
    assert (made_by["samples"], made_by["memory"]) == (9, 10**9)


def test_a_plan_holds_no_arrays() -> None:
    result = spa.api.draft(spa.load(DIGITS), settings=Settings(data={"image": images(4)}))
    assert json.loads(result.plan.to_json())["made_by"]["data"]["source"] == "the data"
    settings = Settings(data=digits(images(4)))
    assert settings.record()["data"]["digest"] == digits(images(4)).digest
    assert replace(settings, samples=3).data is settings.data


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (("--data", "missing.npz"), "missing.npz does not exist"),
        (("--samples", 0), "0 is not in the range"),
        (("--memory", "lots"), "memory 'lots' is not a size"),
        (("--preprocess", "size=8"), "--preprocess is for a folder of images"),
        (("--data", ".", "--preprocess", "size=0"), "'size=0' is none of"),
    ],
)
def test_bad_options(cli: Cli, digits: Path, options: tuple[Any, ...], match: str) -> None:
    done = cli("prune", digits, *options)
    assert done.exit_code == 2
    assert match in " ".join(done.stderr.split())
    assert not digits.with_name("digits.pruned.onnx").exists()


@pytest.mark.parametrize("option", ["-o", "--plan-out"])
def test_data_are_never_overwritten(cli: Cli, digits: Path, option: str) -> None:
    data = digits.with_name("x.npy")
    np.save(data, images(4))
    os.link(data, digits.with_name("link.npy"))
    before = data.read_bytes()
    for out in (data, digits.with_name("link.npy")):
        done = cli("prune", digits, "--data", data, option, out, "--force")
        assert done.exit_code == 2
        assert "is an input, or holds weights or data" in done.stderr
        assert data.read_bytes() == before


def test_images_are_never_overwritten(cli: Cli, digits: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    path = digits.with_name("pictures") / "a.png"
    path.parent.mkdir()
    image.new("L", (9, 9)).save(path)
    before = path.read_bytes()
    assert cli("prune", digits, "--data", path.parent, "-o", path, "--force").exit_code == 2
    assert path.read_bytes() == before
