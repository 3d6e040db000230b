"""Plans: written, read, replayed to the same bytes, refused where they do not fit; `spa verify`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import numpy_helper

import spa
from models.builder import Net
from models.hazards import HAZARDS
from spa.errors import PlanError
from spa.plan import Plan, compose, record, replay
from tests.conftest import PLAIN

cut = partial(spa.prune, **PLAIN)
Cli = Callable[..., Result]
Files = Callable[[], dict[str, bytes]]

PLANS = [
    Plan({}),
    Plan({"w": {0: [0, 2], 3: [1]}}),
    Plan({"a b/ü:0": {1: list(range(100))}}, {"a b/ü:0": [3, 100]}, {"seed": 1, "only": []}, "d"),
    Plan({'quote"s': {0: [7]}, "[1, 2]": {0: [1]}}, {}, {"only": ["[1,  2]"]}),
]


@pytest.mark.parametrize("plan", PLANS)
def test_json_round_trip(plan: Plan) -> None:
    text = plan.to_json()
    assert Plan.from_json(text) == plan
    assert Plan.from_json(text).to_json() == text


def test_plan_is_small_and_readable(plain: Cli, digits: Path) -> None:
    plan = digits.with_name("plan.json")
    assert plain("prune", digits, "--plan-out", plan).exit_code == 0
    body = json.loads(plan.read_text())
    assert body["kept"]["stem.0.weight"]["0"] == sorted(body["kept"]["stem.0.weight"]["0"])
    assert body["made_by"]["target"] == {"macs": 0.7}
    assert body["made_by"]["criterion"] == "l1"
    assert plan.stat().st_size < digits.stat().st_size / 20


OPTIONS: list[tuple[str, ...]] = [
    ("--target", "macs=0.5"),
    ("--target", "params=0.6", "--criterion", "random", "--seed", "3"),
    ("--target", "channels=0.75", "--exclude", "stem"),
    ("--target", "macs=1"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=" ".join)
def test_replay_gives_the_same_bytes(plain: Cli, digits: Path, options: tuple[str, ...]) -> None:
    plan, one, two = (digits.with_name(n) for n in ("plan.json", "1.onnx", "2.onnx"))
    done = plain("prune", digits, *options, "--plan-out", plan, "-o", one)
    assert done.exit_code == 0, done.stderr
    again = digits.with_name("again.json")
    done = plain("prune", digits, "--plan", plan, "--plan-out", again, "-o", two)
    assert done.exit_code == 0, done.stderr
    assert one.read_bytes() == two.read_bytes()
    assert plan.read_bytes() == again.read_bytes()


# Weights that were made up for what is gone

FAST = ("--target", "macs=0.5", "--samples", "64")


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    path = tmp_path / "samples.npz"
    np.savez(path, image=np.random.default_rng(0).random((96, 1, 8, 8), np.float32))
    return path


def twice(cli: Cli, digits: Path, *options: object) -> tuple[Path, Path, Path]:
    """A plan, the model that it was made with, and the model that it gives."""
    plan, one, two = (digits.with_name(n) for n in ("plan.json", "1.onnx", "2.onnx"))
    done = cli("prune", digits, *options, "--plan-out", plan, "-o", one)
    assert done.exit_code == 0, done.stderr
    done = cli("prune", digits, "--plan", plan, "-o", two)
    assert done.exit_code == 0, done.stderr
    return plan, one, two


def bare(cli: Cli, digits: Path, plan: Path) -> bytes:
    """What the plan's cut alone gives: as old plans, which say nothing of compensation."""
    old = json.loads(plan.read_text())
    for name in ("compensate", "repair", "data", "samples"):
        del old["made_by"][name]
    plan, out = digits.with_name("old.json"), digits.with_name("old.onnx")
    plan.write_text(json.dumps(old))
    done = cli("prune", digits, "--plan", plan, "-o", out, "--json")
    assert json.loads(done.stdout)["inputs"] is None
    return out.read_bytes()


@pytest.mark.parametrize("with_data", [False, True])
def test_replay_gives_the_same_weights(
    cli: Cli, digits: Path, samples: Path, with_data: bool
) -> None:
    data = ("--data", samples) if with_data else ()
    plan, one, two = twice(cli, digits, *FAST, *data)
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes() != bare(cli, digits, plan)
    made_by = json.loads(plan.read_text())["made_by"]
    assert made_by["data"].get("path") == (str(samples) if with_data else None)
    done = cli("verify", digits, one, "--plan", plan, "--repeats", "1")
    assert done.exit_code == 0, done.stderr


def test_what_was_refused_is_refused_again(
    cli: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drifts = cycle([0.25, 0.5])  # without new weights, and with them
    monkeypatch.setattr("spa.study.distance", lambda *_: next(drifts))
    plan, one, two = twice(cli, digits, *FAST)
    assert one.read_bytes() == two.read_bytes() == bare(cli, digits, plan)
    assert cli("verify", digits, one, "--plan", plan, "--repeats", "1").exit_code == 0


def test_a_plain_plan_needs_no_inputs(plain: Cli, cli: Cli, digits: Path) -> None:
    plan = digits.with_name("plan.json")
    assert plain("prune", digits, "--plan-out", plan).exit_code == 0
    found = json.loads(cli("prune", digits, "--plan", plan, "--force", "--json").stdout)
    assert found["inputs"] is None


def test_inputs_that_are_gone(cli: Cli, digits: Path, samples: Path) -> None:
    plan, one, _ = twice(cli, digits, *FAST, "--data", samples)
    moved = samples.rename(samples.with_name("moved.npz"))
    two, again = digits.with_name("3.onnx"), digits.with_name("again.json")
    done = cli("prune", digits, "--plan", plan, "-o", two)
    assert (done.exit_code, done.stdout) == (3, "")
    assert f"{samples}, which is not there any more" in done.stderr
    assert "--data" in done.stderr
    assert cli("verify", digits, one, "--plan", plan).exit_code == 3
    done = cli("prune", digits, "--plan", plan, "--data", moved, "-o", two, "--plan-out", again)
    assert done.exit_code == 0, done.stderr
    assert one.read_bytes() == two.read_bytes()
    assert json.loads(again.read_text())["made_by"]["data"]["path"] == str(moved)
    done = cli("verify", digits, one, "--plan", plan, "--data", moved, "--repeats", "1")
    assert done.exit_code == 0, done.stderr


def test_inputs_of_python_are_given_again(digits: Path) -> None:
    data = np.random.default_rng(0).random((64, 1, 8, 8), np.float32)
    made = spa.prune(digits, "macs=0.5", data=data)
    with pytest.raises(PlanError, match="give them again"):
        spa.prune(digits, plan=made.plan)
    again = spa.prune(digits, plan=made.plan, data=data)
    assert again.model.SerializeToString() == made.model.SerializeToString()


def test_inputs_are_never_overwritten(cli: Cli, digits: Path, samples: Path) -> None:
    plan, _, _ = twice(cli, digits, *FAST, "--data", samples)
    before = samples.read_bytes()
    done = cli("prune", digits, "--plan", plan, "-o", samples, "--force")
    assert done.exit_code == 2
    assert samples.read_bytes() == before


def test_composed_cuts() -> None:
    first, then = (
        Plan({"a": {0: [1, 3, 5, 7]}, "b": {1: [0, 2]}}),
        Plan({"a": {0: [0, 2], 1: [1]}, "c": {0: [4]}}),
    )
    whole = {"a": {0: [1, 5], 1: [1]}, "b": {1: [0, 2]}, "c": {0: [4]}}
    assert compose(first, then).kept == whole
    assert first.kept["a"] == {0: [1, 3, 5, 7]}


def test_plan_of_a_dry_run_is_the_plan_of_the_run(plain: Cli, digits: Path, files: Files) -> None:
    assert plain("prune", digits, "--dry-run", "--plan-out", digits.with_name("dry")).exit_code == 0
    assert set(files()) == {"digits.onnx", "dry"}
    assert plain("prune", digits, "--plan-out", digits.with_name("wet")).exit_code == 0
    assert files()["dry"] == files()["wet"]


def test_replay_works_on_other_weights(plain: Cli, digits: Path) -> None:
    plan = cut(digits).plan
    model = onnx.load(digits)
    for tensor in model.graph.initializer:
        if tensor.data_type == 1:
            array = -2 * numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    assert cut(model, plan=plan).plan.kept == plan.kept


def test_an_edited_plan_is_followed(digits: Path) -> None:
    groups = spa.analyze(digits)
    plan = record(groups, {1: np.asarray([0, 5, 31])})
    axes = {
        "stage1.first.0.weight": 0,
        "stage1.first.0.weight_bias": 0,
        "stage1.second.0.weight": 1,
    }
    assert {t: list(a) for t, a in plan.kept.items()} == {t: [k] for t, k in axes.items()}
    for tensor, axis in axes.items():
        plan.kept[tensor][axis].remove(7)
    (removed,) = replay(groups, plan).values()
    assert removed.tolist() == [0, 5, 7, 31]


@pytest.mark.parametrize("name", sorted(n for n, (_, g) in HAZARDS.items() if g))
def test_record_and_replay_are_inverse(name: str) -> None:
    groups = spa.analyze(HAZARDS[name][0]())
    random = np.random.default_rng(0)
    removed = {
        g: np.sort(random.choice(group.size, random.integers(1, group.size), replace=False))[
            : group.size - group.least
        ]
        for g, group in enumerate(groups)
    }
    plan = Plan.from_json(record(groups, removed).to_json())
    again = replay(groups, plan)
    assert {g: u.tolist() for g, u in again.items()} == {g: u.tolist() for g, u in removed.items()}


# Plans that do not fit


def test_unreadable(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(PlanError, match=re.escape(str(path))):
            Plan.load(path)


def plan_of(tensor: str, axis: str, kept: list[int]) -> str:
    return json.dumps({"format": 1, "kept": {tensor: {axis: kept}}})


REFUSED = {
    "text": ("keep it all", "not a plan"),
    "binary": (b"\xff\xfe\x00", "plan"),
    "empty": ("", "not a plan"),
    "list": ("[1]", "not a plan"),
    "other JSON": ('{"a": 1}', "not a plan"),
    "kept is a list": ('{"format": 1, "kept": []}', "not a plan"),
    "axis is a word": (plan_of("stem.0.weight", "first", [0]), "not a plan"),
    "later format": ('{"format": 99, "kept": {}}', "format 99"),
    "another model": (plan_of("fc.w", "0", [1]), "'fc.w'.*does not have"),
    "splits a group": (plan_of("stage1.first.0.weight", "0", [0]), "coupled"),
    "touches what is locked": (plan_of("classifier.bias", "0", [0]), "classifier.bias.*locked"),
    "empties an axis": (plan_of("stem.0.weight", "0", []), "stem.0.weight.*at least one"),
    "index too high": (plan_of("stem.0.weight", "0", [32]), "stem.0.weight.*32"),
    "negative index": (plan_of("stem.0.weight", "0", [-1]), "stem.0.weight"),
    "axis too high": (plan_of("stem.0.weight", "9", [0]), "axis 9.*stem.0.weight"),
}


@pytest.mark.parametrize("text, says", REFUSED.values(), ids=list(REFUSED))
def test_refused(plain: Cli, digits: Path, files: Files, text: str | bytes, says: str) -> None:
    plan = digits.with_name("plan.json")
    plan.write_bytes(text.encode() if isinstance(text, str) else text)
    before = files()
    done = plain("prune", digits, "--plan", plan)
    assert (done.exit_code, done.stdout) == (3, ""), done.stderr
    assert re.search(says, done.stderr), done.stderr
    assert len(done.stderr.splitlines()) <= 2
    assert files() == before


def chain(width: int, op: str = "Relu") -> onnx.ModelProto:
    net = Net("chain")
    return net.model(net.gemm(net.node(op, net.gemm(net.input("x", [2, 6]), width)), 3))


@pytest.mark.parametrize("other", [chain(24), chain(16, "Tanh")], ids=["wider", "other operator"])
def test_plan_of_a_similar_model(other: onnx.ModelProto) -> None:
    plan = cut(chain(16), "channels=0.5").plan
    with pytest.raises(PlanError):
        cut(other, plan=plan)


# spa verify


@pytest.fixture
def pruned(plain: Cli, digits: Path) -> tuple[Path, Path, Path]:
    out, plan = digits.with_name("out.onnx"), digits.with_name("plan.json")
    assert plain("prune", digits, "-o", out, "--plan-out", plan).exit_code == 0
    return digits, out, plan


def test_verify(plain: Cli, pruned: tuple[Path, Path, Path], files: Files) -> None:
    digits, out, plan = pruned
    before = files()
    done = plain("verify", digits, out, "--plan", plan)
    assert done.exit_code == 0, done.stderr
    for word in ("law: holds", "drift", "latency", "MACs"):
        assert word in done.stdout
    done = plain("verify", digits, out, "--plan", plan, "--json", "--repeats", "2")
    found = json.loads(done.stdout)
    assert found["verification"]["law"] < 1e-4
    assert found["verification"]["drift"]["logits"] > 0
    assert all(seconds > 0 for seconds in found["latency"].values())
    assert found["figures"]["bytes_after"] == pytest.approx(out.stat().st_size, rel=0.01)
    assert plain("verify", digits, out, "--plan", plan, "-q").stdout == ""
    assert files() == before


def other_weights(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))


def other_output(model: onnx.ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4


def other_input_name(model: onnx.ModelProto) -> None:
    model.graph.input[0].name = model.graph.node[0].input[0] = "picture"


def other_size(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor)[1:], tensor.name))


@pytest.mark.parametrize("spoil", [other_weights, other_output, other_input_name, other_size])
def test_verify_finds_what_is_wrong(
    plain: Cli, pruned: tuple[Path, Path, Path], spoil: Callable[[Any], None]
) -> None:
    digits, out, plan = pruned
    model = onnx.load(out)
    spoil(model)
    out.write_bytes(model.SerializeToString())
    done = plain("verify", digits, out, "--plan", plan, "--json")
    assert (done.exit_code, done.stdout) == (5, "")
    assert 1 <= len(done.stderr.splitlines()) <= 2, done.stderr


def test_verify_needs_the_right_plan(plain: Cli, pruned: tuple[Path, Path, Path]) -> None:
    digits, out, plan = pruned
    other = digits.with_name("other.json")
    other.write_text(cut(digits, "macs=0.5").plan.to_json())
    assert plain("verify", digits, out, "--plan", other).exit_code == 5
    assert plain("verify", digits, digits, "--plan", plan).exit_code == 5
    assert plain("verify", digits, out).exit_code == 2


def test_verify_with_external_data(plain: Cli, external: Path) -> None:
    out, plan = external.with_name("out.onnx"), external.with_name("plan.json")
    assert plain("prune", external, "-o", out, "--plan-out", plan).exit_code == 0
    done = plain("verify", external, out, "--plan", plan, "--repeats", "2")
    assert done.exit_code == 0, done.stderr
    assert "law: holds" in done.stdout
