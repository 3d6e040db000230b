"""`spa prune`: what is written, where, and what is printed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import Result
from onnx import ModelProto, StringStringEntryProto, helper

from models.builder import Net
from spa.shell import working
from tests.conftest import CUT

Cli = Callable[..., Result]
Files = Callable[[], dict[str, bytes]]
ROOT = Path(__file__).parent.parent


def python_m_spa(folder: Path, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spa", args[0], *CUT, *map(str, args[1:])],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def strict_json(text: str) -> Any:
    """Parse as the JSON standard has it: NaN and Infinity are not in it."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


# Where the result goes


def test_default_name_and_a_result_that_runs(plain: Cli, digits: Path, files: Files) -> None:
    before = digits.read_bytes()
    done = plain("prune", digits)
    assert done.exit_code == 0, done.stderr
    assert set(files()) == {"digits.onnx", "digits.pruned.onnx"}
    assert digits.read_bytes() == before
    session = ort.InferenceSession(digits.with_name("digits.pruned.onnx"))
    for batch in (1, 5):  # the free size stays free
        (logits,) = session.run(None, {"image": np.zeros((batch, 1, 8, 8), np.float32)})
        assert logits.shape == (batch, 10)


def same_path(path: Path) -> Path:
    return path


def dotted(path: Path) -> Path:
    (path.parent / "sub").mkdir()
    return path.parent / "sub" / ".." / path.name


def symlink(path: Path) -> Path:
    link = path.parent / "link.onnx"
    link.symlink_to(path)
    return link


def hard_link(path: Path) -> Path:
    link = path.parent / "hard.onnx"
    os.link(path, link)
    return link


@pytest.mark.parametrize("option", ["-o", "--plan-out"])
@pytest.mark.parametrize("other_name", [same_path, dotted, symlink, hard_link])
def test_input_is_never_overwritten(
    plain: Cli, digits: Path, option: str, other_name: Callable[[Path], Path]
) -> None:
    before = digits.read_bytes()
    done = plain("prune", digits, option, other_name(digits), "--force")
    assert done.exit_code == 2
    assert "input" in done.stderr
    assert digits.read_bytes() == before
    assert not digits.with_name("digits.pruned.onnx").exists()


@pytest.mark.parametrize("option", ["-o", "--plan-out"])
def test_external_weights_of_the_input_are_never_overwritten(
    plain: Cli, external: Path, option: str
) -> None:
    weights = external.with_name("digits.weights")
    before = weights.read_bytes()
    done = plain("prune", external, option, weights, "--force")
    assert weights.read_bytes() == before
    assert done.exit_code == 2


def test_weights_that_the_input_shares_with_the_old_out_stay(plain: Cli, external: Path) -> None:
    out, copy = external.with_name("p.onnx"), external.with_name("q.onnx")
    assert plain("prune", external, "-o", out).exit_code == 0
    shutil.copy(out, copy)  # reads the weights of p.onnx
    plain("prune", copy, "-o", out, "--force")
    assert plain("analyze", copy).exit_code == 0


def test_plan_and_model_cannot_share_a_name(plain: Cli, digits: Path) -> None:
    out = digits.with_name("out")
    assert plain("prune", digits, "-o", out, "--plan-out", out).exit_code == 2
    assert not out.exists()


def test_existing_out_needs_force(plain: Cli, digits: Path) -> None:
    out = digits.with_name("out.onnx")
    out.write_text("precious")
    refused = plain("prune", digits, "-o", out)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert out.read_text() == "precious"
    assert plain("prune", digits, "-o", out, "--force").exit_code == 0
    onnx.checker.check_model(onnx.load(out))


def test_relative_paths_in_a_real_process(digits: Path, files: Files) -> None:
    done = python_m_spa(digits.parent, "prune", "digits.onnx", "--plan-out", "plan.json")
    assert done.returncode == 0, done.stderr
    assert "digits.pruned.onnx" in done.stdout
    assert set(files()) == {"digits.onnx", "digits.pruned.onnx", "plan.json"}


@pytest.mark.parametrize("folder", ["with space", "ünï", "[red]", "[/x]", ":smile:", "x" * 200])
def test_odd_folder_names_are_printed_as_they_are(plain: Cli, digits: Path, folder: str) -> None:
    out = digits.parent / folder / "o.onnx"
    out.parent.mkdir(parents=True)
    done = plain("prune", digits, "-o", out)
    assert done.exit_code == 0, done.stderr
    assert str(out) in done.stdout


# What is printed


def test_json_is_one_document_and_nothing_else(plain: Cli, digits: Path) -> None:
    done = plain("prune", digits, "--json", "-v")
    assert done.exit_code == 0
    assert done.stderr == ""
    found = strict_json(done.stdout)
    assert found["out"] == str(digits.with_name("digits.pruned.onnx"))
    assert found["macs"]["after"] < found["macs"]["before"]
    assert found["verification"]["law"] < 1e-4
    assert found["bytes"]["after"] == pytest.approx(Path(found["out"]).stat().st_size, rel=0.01)


def test_json_holds_no_nan(plain: Cli, write: Callable[..., Path]) -> None:
    net = Net("roots")
    y = net.gemm(net.flatten(net.conv(net.input("x", [2, 3, 4, 4]), 16)), 4)
    path = write(net.model(net.node("Sqrt", y)))  # NaN for what is below zero
    done = plain("prune", path, "--json")
    assert done.exit_code == 0
    strict_json(done.stdout)


def test_quiet_prints_nothing(plain: Cli, digits: Path) -> None:
    done = plain("prune", digits, "-q")
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    assert digits.with_name("digits.pruned.onnx").exists()


def test_human_report_has_before_and_after(plain: Cli, digits: Path) -> None:
    plain, verbose = plain("prune", digits).stdout, plain("prune", digits, "--force", "-v").stdout
    for word in ("before", "after", "MACs", "parameters", "bytes", "law", "drift", "wrote"):
        assert word in plain
    assert "stem.0.weight:0" in verbose
    assert len(verbose) > len(plain)


def test_dry_run_writes_no_model(plain: Cli, digits: Path, files: Files) -> None:
    done = plain("prune", digits, "--dry-run")
    assert done.exit_code == 0
    assert "stem.0.weight:0" in done.stdout
    assert set(files()) == {"digits.onnx"}
    found = strict_json(plain("prune", digits, "--dry-run", "--json").stdout)
    assert found["out"] is None
    assert 0.68 <= found["kept"]["macs"] <= 0.72
    assert set(files()) == {"digits.onnx"}


def test_dry_run_does_not_claim_a_size(plain: Cli, digits: Path) -> None:
    found = strict_json(plain("prune", digits, "--dry-run", "--json").stdout)
    assert found["bytes"]["after"] is None
    assert found["kept"].get("bytes") is None


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_takes_no_more(digits: Path, options: list[str]) -> None:
    args = [sys.executable, "-m", "spa", "prune", *CUT, "digits.onnx", "--dry-run", *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            args, cwd=digits.parent, env=env, stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "spa: cannot read or write: No space left on device\n"


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_output_that_nobody_reads(digits: Path, options: list[str]) -> None:
    args = [sys.executable, "-m", "spa", "prune", *CUT, "digits.onnx", "--dry-run", *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        args, cwd=digits.parent, env=env, stdout=write, stderr=subprocess.PIPE, text=True
    )
    os.close(write)
    assert done.returncode == 1
    assert "bug" not in done.stderr
    assert len(done.stderr.splitlines()) <= 1


def test_report_where_nothing_was_removed(plain: Cli, digits: Path) -> None:
    done = plain("prune", digits, "--target", "channels=1")
    assert done.exit_code == 0
    assert "nothing was removed" in done.stdout
    assert "inexact" not in done.stdout


def test_criteria_with_needs_and_sources(plain: Cli) -> None:
    found = strict_json(plain("criteria", "--json").stdout)
    rows = {row["name"]: row for row in found["criteria"]}
    ways = {row["name"]: row for row in found["compensations"]}
    assert ways["fold"]["needs"] == "weights" and ways["refit"]["needs"] == "calibration inputs"
    assert rows["l1"]["needs"] == rows["dfpc"]["needs"] == "weights"
    assert rows["wanda"]["needs"] == "calibration inputs"
    assert rows["lamp"]["source"].startswith("Lee et al. 2021")
    table = plain("criteria").stdout
    assert all(name in table for name in (*rows, *ways))
    assert plain("criteria", "-q").stdout == ""


@pytest.mark.parametrize("name", ["lamp", "bn-scale", "geometric-median", "similarity", "dfpc"])
def test_criteria_that_look_at_weights_prune(plain: Cli, digits: Path, name: str) -> None:
    done = plain("prune", digits, "--criterion", name, "--json")
    assert done.exit_code == 0, done.stderr
    assert strict_json(done.stdout)["kept"]["macs"] == pytest.approx(0.7, abs=0.02)


def test_help_names_every_criterion(plain: Cli) -> None:
    text = " ".join(plain("prune", "--help").stdout.split())
    text = text.replace("- ", "-")  # a line may end there
    assert "geometric-median" in text
    assert "obs-diagonal" in text


def test_criteria_that_look_at_inputs_prune(plain: Cli, digits: Path) -> None:
    done = plain("prune", digits, "--criterion", "wanda", "--samples", 64, "--json")
    assert done.exit_code == 0, done.stderr
    assert strict_json(done.stdout)["inputs"]["samples"] == 64


def test_no_arguments_show_the_help(plain: Cli) -> None:
    done = plain()
    assert "Usage:" in done.output
    assert "prune" in done.output


@pytest.mark.parametrize("args", [["nosuch"], ["--nosuch"], ["explain", "m.onnx"], ["verify"]])
def test_usage_errors_take_two_lines(plain: Cli, args: list[str]) -> None:
    done = plain(*args)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("spa: ")
    assert len(done.stderr.splitlines()) == 2


def test_ascii_terminal(digits: Path) -> None:
    done = python_m_spa(digits.parent, "prune", "digits.onnx", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "70.4%" in done.stdout or "MACs" in done.stdout


# Same in, same out


def test_same_seed_gives_the_same_bytes_in_any_process(digits: Path) -> None:
    made = []
    for hash_seed in "12":
        folder = digits.parent / hash_seed
        folder.mkdir()
        shutil.copy(digits, folder)
        args = ("digits.onnx", "--criterion", "random", "--seed", "7", "--plan-out", "plan.json")
        done = python_m_spa(folder, "prune", *args, PYTHONHASHSEED=hash_seed)
        assert done.returncode == 0, done.stderr
        names = ("digits.pruned.onnx", "plan.json")
        made.append([(folder / name).read_bytes() for name in names])
    assert made[0] == made[1]


def test_another_seed_gives_another_model(plain: Cli, digits: Path) -> None:
    outs = [digits.with_name(f"{seed}.onnx") for seed in range(2)]
    for seed, out in enumerate(outs):
        args = ("--criterion", "random", "--seed", seed, "-o", out)
        assert plain("prune", digits, *args).exit_code == 0
    assert outs[0].read_bytes() != outs[1].read_bytes()


def rich_model() -> ModelProto:
    """A model with everything in it that a tool could lose."""
    net = Net("rich")
    a = net.relu(net.conv(net.input("x", ["batch", 3, 8, 8]), 16))
    y = net.gemm(net.flatten(net.global_avg_pool(net.conv(a, 8))), 4)
    model = net.model(y)
    graph = model.graph
    model.producer_name, model.producer_version, model.domain = "maker", "1.2", "org.example"
    model.model_version, model.doc_string, graph.doc_string = 42, "a model", "a graph"
    model.opset_import.append(helper.make_opsetid("org.example", 3))
    for k, item in enumerate((model, graph, graph.node[0], graph.input[0], graph.output[0])):
        item.metadata_props.append(StringStringEntryProto(key=f"k{k}", value="v"))
    for item in (*graph.node, *graph.initializer, *graph.input, *graph.output):
        item.doc_string = f"about {item.name}"
    model.ir_version = 10
    return model


def test_everything_but_the_weights_is_kept(plain: Cli, write: Callable[..., Path]) -> None:
    path = write(rich_model())
    assert plain("prune", path, "--target", "params=0.5").exit_code == 0
    before, after = onnx.load(path), onnx.load(path.with_name("m.pruned.onnx"))
    assert after.ByteSize() < before.ByteSize()
    for model in (before, after):
        del model.graph.value_info[:]  # sizes of inner tensors: they may change, or go
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
            tensor.ClearField("dims")
    assert str(after) == str(before)


def test_metadata_of_tensors_is_kept(plain: Cli, write: Callable[..., Path]) -> None:
    model = rich_model()
    for tensor in model.graph.initializer:
        tensor.metadata_props.append(StringStringEntryProto(key="k", value="v"))
    path = write(model)
    assert plain("prune", path, "--target", "params=0.5").exit_code == 0
    after = onnx.load(path.with_name("m.pruned.onnx")).graph.initializer
    assert [t.name for t in after if not t.metadata_props] == []


def test_inner_sizes_that_the_file_states_are_right(plain: Cli, write: Callable[..., Path]) -> None:
    path = write(rich_model())
    assert plain("prune", path, "--target", "channels=0.5").exit_code == 0
    after = onnx.load(path.with_name("m.pruned.onnx"))
    stated = {i.name: i.type for i in after.graph.value_info}
    assert stated
    del after.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(after, strict_mode=True).graph.value_info
    found = {i.name: i.type for i in inferred}
    for name, type_ in stated.items():
        pairs = zip(type_.tensor_type.shape.dim, found[name].tensor_type.shape.dim, strict=True)
        assert all(a == b or not a.dim_value for a, b in pairs), name


def test_a_log_names_slow_stages_only(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = Event()

    def echo(*args: Any, **options: Any) -> None:
        click.echo(*args, **options)
        said.set()

    monkeypatch.setattr("spa.shell.click", SimpleNamespace(echo=echo))
    with working(False, patience=600) as progress:
        progress("calibrating")
    with working(True, patience=0) as progress:
        progress("calibrating")
    assert capsys.readouterr() == ("", "")
    with working(False, patience=0) as progress:
        said.wait(60)
        said.clear()
        progress("compensating")
        said.wait(60)
    assert capsys.readouterr() == ("", "spa: loading ...\nspa: compensating ...\n")
