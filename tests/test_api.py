"""The Python API: the same stages and words as the command line; and the demonstration."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import Result
from onnx import ModelProto, numpy_helper

import spa
from models.builder import Net
from models.hazards import HAZARDS
from models.vision import MAKERS
from spa import errors
from spa.demo import NAMES
from spa.settings import ALL_KINDS, Settings
from tests.conftest import DIGITS, PLAIN
from tests.test_cli import strict_json

cut = partial(spa.prune, **PLAIN)
Cli = Callable[..., Result]


def removed_from(result: spa.Result) -> set[str]:
    return {result.groups[g].name for g, units in result.removed.items() if len(units)}


def test_path_text_proto_and_graph_give_the_same_model(digits: Path) -> None:
    given = (digits, str(digits), onnx.load(digits), spa.load(digits))
    made = [spa.prune(model, "macs=0.6", samples=64) for model in given]
    assert len({m.model.SerializeToString(deterministic=True) for m in made}) == 1
    assert all(m.plan == made[0].plan for m in made)


def test_api_and_command_line_give_the_same_bytes(cli: Cli, digits: Path) -> None:
    assert cli("prune", digits, "--target", "macs=0.6").exit_code == 0
    spa.save(spa.prune(digits, {"macs": 0.6}).model, digits.with_name("api.onnx"))
    pruned, api = (digits.with_name(f"{n}.onnx") for n in ("digits.pruned", "api"))
    assert pruned.read_bytes() == api.read_bytes()


def test_what_cannot_be_met_is_said_before_inputs_are_looked_at(digits: Path) -> None:
    def inputs() -> list[np.ndarray]:
        raise AssertionError("too early")

    with pytest.raises(spa.TargetError, match="out of reach"):
        spa.prune(digits, "macs=0.1", min_keep=16, data=inputs)
    with pytest.raises(spa.UsageError, match="matches no node"):
        spa.prune(digits, only="nowhere", data=inputs)


@pytest.mark.parametrize("name", sorted(HAZARDS))
def test_the_given_model_is_not_changed(name: str) -> None:
    model = HAZARDS[name][0]()
    before = model.SerializeToString(deterministic=True)
    result = cut(model, "channels=0.5", kinds=ALL_KINDS)
    assert model.SerializeToString(deterministic=True) == before
    assert result.model is not model
    spa.verify(model, result.model, result.plan, repeats=1)
    assert model.SerializeToString(deterministic=True) == before


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str], digits: Path) -> None:
    result = spa.prune(digits, samples=64)
    spa.analyze(digits)
    spa.verify(digits, result.model, result.plan, repeats=1)
    cut(HAZARDS["custom_operator"][0](), "channels=0.5")
    with pytest.raises(errors.TargetError):
        cut(digits, "macs=0.1", min_keep=60)
    assert capfd.readouterr() == ("", "")


def test_result() -> None:
    result = cut(DIGITS, "params=0.5")
    figures, checked = result.figures, result.verification
    assert figures.share("params") == pytest.approx(0.5, abs=0.02)
    assert figures.share("params") == figures.after.params / figures.before.params
    assert figures.share("bytes") == pytest.approx(
        result.model.ByteSize() / DIGITS.stat().st_size, 0.01
    )
    assert checked is not None
    assert checked.law is not None
    assert checked.law < 1e-4
    assert checked.units == checked.law_units == sum(map(len, result.removed.values()))
    assert len(checked.sizes) == 2  # the batch is free, so two sizes were tried
    session = ort.InferenceSession(result.model.SerializeToString())
    (got,) = session.run(None, {"image": np.zeros((7, 1, 8, 8), np.float32)})
    assert got.shape == (7, 10)
    assert cut(DIGITS, verify=False).verification is None


def test_stages_are_told_in_order() -> None:
    said: list[str] = []
    cut(DIGITS, progress=said.append)
    words = ["shapes", "ids", "groups", "scoring", "allocating", "rewriting", "validating"]
    assert [line.split()[-1] for line in said] == words
    said.clear()
    spa.prune(DIGITS, samples=64, progress=said.append)
    words[3:5] = ["calibrating", "curves", "drift", "allocating", "again", "choices"]
    words[9:9] = ["compensating", "judging"]
    assert [line.split()[-1] for line in said] == words


def test_defaults_are_those_of_the_command_line() -> None:
    defaults = {k: p.default for k, p in inspect.signature(spa.prune).parameters.items()}
    for name, value in vars(Settings()).items():
        assert defaults[name] == value
    given = {p.name: p.default for p in spa.cli.prune.params}
    for name in (
        "criterion",
        "aggregate",
        "normalize",
        "scope",
        "steps",
        "compensate",
        "repair",
        "seed",
        "min_keep",
        "target",
        "data",
        "samples",
    ):
        assert given[name] == defaults[name]
    assert Settings(memory=given["memory"]).memory == defaults["memory"]


def test_pruning_twice() -> None:
    once = cut(DIGITS, "macs=0.7")
    twice = cut(once.model, "macs=0.7")
    assert twice.figures.before == once.figures.after
    assert twice.figures.after.macs < once.figures.after.macs
    assert [o.name for o in twice.model.graph.output] == ["logits"]


# Which groups

STEM, FIRST, THIRD, LAST = (
    f"{n}.weight:0" for n in ("stem.0", "stage1.first.0", "stage2.first.0", "stage2.second.0")
)
EVERY = {STEM, FIRST, THIRD, LAST}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, EVERY),
        ({"exclude": ["stage2"]}, {FIRST}),  # the stem feeds stage 2
        ({"exclude": ["^classifier"]}, {STEM, FIRST, THIRD}),
        ({"exclude": ["node_Conv_119$"]}, {FIRST, THIRD, LAST}),
        ({"only": ["first.*bias$"]}, {FIRST, THIRD, LAST}),  # separable.first is in the last
        ({"only": ["node_Conv_121"]}, {STEM, FIRST}),
        ({"only": [r"stage1\.first"], "exclude": ["stem"]}, {FIRST}),
        ({"only": ["stem", "classifier"]}, {STEM, LAST}),
        ({"exclude": ["^classifier.bias$"]}, EVERY),  # there, but in no group
        ({"kinds": ["conv"]}, EVERY),
    ],
)
def test_exclude_only_kinds(
    options: dict[str, Any], wanted: set[str], plain: Cli, digits: Path
) -> None:
    result = cut(digits, "channels=0.5", **options)
    assert removed_from(result) == wanted
    spelled = [
        part
        for name, values in options.items()
        for value in values
        for part in (f"--{name}", value)
    ]
    done = plain("prune", digits, "--target", "channels=0.5", "--json", *spelled)
    rows = json.loads(done.stdout)["groups"]
    assert {r["name"] for r in rows if r["after"] < r["before"]} == wanted


@pytest.mark.parametrize("name", ["node_add_40", "getitem_6", "relu_2"])
def test_names_of_activations_and_of_nodes_without_weights(name: str) -> None:
    result = cut(DIGITS, "channels=0.5", exclude=[f"^{name}$"])
    assert STEM not in removed_from(result)


def test_exact_leaves_statistics_alone(plain: Cli, write: Callable[..., Path]) -> None:
    path = write(HAZARDS["softmax_over_channels"][0]())
    loose = cut(path, "channels=0.5")
    exact = cut(path, "channels=0.5", exact=True)
    assert removed_from(loose) == {"Conv_0.weight:0", "Conv_1.weight:0"}
    assert removed_from(exact) == {"Conv_1.weight:0"}
    checked = exact.verification
    assert checked is not None
    assert checked.law_units == checked.units > 0
    assert plain("prune", path, "--target", "channels=0.5", "--exact").exit_code == 0


def test_message_where_exact_leaves_nothing() -> None:
    with pytest.raises(errors.SpaError, match="--exact"):
        cut(HAZARDS["layer_norm"][0](), exact=True)


def test_kinds_left_alone_by_default_can_be_asked_for() -> None:
    model = HAZARDS["layer_norm"][0]()
    assert cut(model, "channels=0.5", kinds=["hidden"]).removed
    with pytest.raises(errors.UsageError, match="kind hidden: name them with --kinds"):
        cut(model, "channels=0.5")


# Errors


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"exclude": ["STEM"]}, "'STEM' matches no node and no tensor"),
        ({"only": ["stem", "nosuch"]}, "'nosuch' matches no node and no tensor"),
        ({"only": [r"^classifier\.bias$"]}, r"--only \^classifier.* leaves no group"),
        ({"exclude": ["."]}, r"--exclude \. leaves no group"),
        ({"kinds": ["linear"]}, "no group is of kind linear; .*kind conv"),
        ({"kinds": []}, "no group is of kind"),
    ],
)
def test_options_that_leave_no_group(options: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.UsageError, match=says):
        cut(DIGITS, "channels=0.5", **options)


@pytest.mark.parametrize(
    "options",
    [{"criterion": "x"}, {"scope": "x"}, {"exclude": "("}, {"kinds": "x"}, {"target": {}}],
)
def test_bad_arguments_are_found_before_the_work(options: dict[str, Any]) -> None:
    said: list[str] = []
    with pytest.raises(errors.UsageError):
        cut(DIGITS, **options, progress=said.append)
    assert not said


@pytest.mark.parametrize(
    ("error", "code"),
    [("SpaError", 1), ("UsageError", 2), ("ModelError", 3), ("PlanError", 3), ("TargetError", 4),
     ("ValidationError", 5)],
)  # fmt: skip
def test_one_tree_of_errors(error: str, code: int) -> None:
    kind = getattr(spa, error)
    assert issubclass(kind, spa.SpaError)
    assert kind.exit_code == code
    assert kind is getattr(errors, error)


def test_bad_arguments_are_value_errors() -> None:
    bad: list[dict[str, Any]] = [
        {"target": "macs"}, {"target": {"macs": 0.5, "params": 0.5}}, {"criterion": "x"},
        {"scope": "x"}, {"aggregate": "x"}, {"normalize": "x"}, {"exclude": ["("]}, {"kinds": "x"},
        {"min_keep": 0},
    ]  # fmt: skip
    for options in bad:
        with pytest.raises(spa.UsageError) as caught:
            cut(DIGITS, **options)
        assert isinstance(caught.value, ValueError)


def test_one_expression_without_a_list() -> None:
    assert removed_from(cut(DIGITS, "channels=0.5", only="stem")) == {STEM}


def spoil_weight(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(tensor), tensor.name))


def spoil_output(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1


def spoil_node(model: ModelProto) -> None:
    model.graph.node[1].op_type = "NoSuchOperator"


@pytest.mark.parametrize("spoil", [spoil_weight, spoil_output, spoil_node])
def test_a_wrong_result_is_never_written(
    spoil: Callable[[ModelProto], None], plain: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite = spa.api.rewrite

    def wrong(*args: Any) -> ModelProto:
        model = rewrite(*args)
        spoil(model)
        return model

    monkeypatch.setattr("spa.api.rewrite", wrong)
    done = plain("prune", digits, "--plan-out", digits.with_name("plan.json"))
    assert (done.exit_code, done.stdout) == (5, ""), done.stderr
    assert 1 <= len(done.stderr.splitlines()) <= 2, done.stderr
    assert [p.name for p in digits.parent.iterdir()] == ["digits.onnx"]


# The demonstration


def test_demo(plain: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = plain("demo")
    assert done.exit_code == 0, done.stderr
    for word in ("accuracy", "MACs", "parameters", "bytes", "latency", "law: holds"):
        assert word in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == set(NAMES)
    onnx.checker.check_model(onnx.load("digits.pruned.onnx"))
    assert plain("demo", "--no-force").exit_code == 2
    again = strict_json(plain("demo", "--json").stdout)
    assert again["accuracy"][0] > 0.98
    assert (
        plain("verify", DIGITS, "digits.pruned.onnx", "--plan", "digits.plan.json").exit_code == 0
    )


def test_demo_keeps_accuracy(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert strict_json(cli("demo", "--json").stdout)["accuracy"][1] > 0.98


def test_demo_json_is_small(plain: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert len(plain("demo", "--json").stdout) < 10_000


# Free sizes


@pytest.mark.parametrize("maker", ["resnet18", "mobilenet_v3", "shufflenet_v2"])
def test_free_batch_stays_free(maker: str) -> None:
    model = MAKERS[maker](width=0.125, image=32, classes=10, batch="batch")
    result = cut(model, "channels=0.75")
    assert result.model.graph.input[0] == model.graph.input[0]
    assert result.model.graph.output[0] == model.graph.output[0]
    session = ort.InferenceSession(result.model.SerializeToString())
    for batch in (1, 4):
        image = np.zeros((batch, 3, 32, 32), np.float32)
        assert session.run(None, {"image": image})[0].shape == (batch, 10)


def test_free_sequence_stays_free() -> None:
    net = Net("tokens")
    x = net.input("x", ["batch", "sequence", 6])
    result = cut(net.model(net.linear(net.relu(net.linear(x, 16)), 5)), "channels=0.5")
    session = ort.InferenceSession(result.model.SerializeToString())
    for shape in ((1, 1, 6), (2, 9, 6)):
        assert session.run(None, {"x": np.zeros(shape, np.float32)})[0].shape == (*shape[:2], 5)
