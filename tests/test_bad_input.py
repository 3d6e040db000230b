"""What cannot be done: a message of one or two lines, an exit code, and nothing half-written."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models.builder import Net
from tests.conftest import DIGITS

Cli = Callable[..., Result]
Files = Callable[[], dict[str, bytes]]
Args = list[str | Path]


def model(folder: Path, proto: ModelProto | None = None) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(DIGITS.read_bytes() if proto is None else proto.SerializeToString())
    return path


def external(folder: Path, location: str = "m.weights", **entries: object) -> Path:
    """The digits with one weight that points to a file; ``None`` leaves an entry out."""
    proto = onnx.load(DIGITS)
    tensor = proto.graph.initializer[1]
    (folder / "m.weights").write_bytes(tensor.raw_data)
    pointed = {"location": location, "offset": 0, "length": len(tensor.raw_data), **entries}
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in pointed.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return model(folder, proto)


def with_value(value: float, tensor: str) -> Callable[[Path], Args]:
    def make(folder: Path) -> Args:
        proto = onnx.load(DIGITS)
        stored = next(t for t in proto.graph.initializer if t.name == tensor)
        array = numpy_helper.to_array(stored).copy()
        array.flat[0] = value
        stored.CopyFrom(numpy_helper.from_array(array, tensor))
        return [model(folder, proto)]

    return make


def bytes_of(content: bytes, name: str = "m.onnx") -> Callable[[Path], Args]:
    def make(folder: Path) -> Args:
        (folder / name).write_bytes(content)
        return [folder / name]

    return make


def proto_of(make_proto: Callable[[], ModelProto]) -> Callable[[Path], Args]:
    return lambda folder: [model(folder, make_proto())]


def given(*options: str) -> Callable[[Path], Args]:
    """A good model and bad options."""
    return lambda folder: [model(folder), *options]


def external_with(location: str = "m.weights", **entries: object) -> Callable[[Path], Args]:
    return lambda folder: [external(folder, location, **entries)]


def empty_graph() -> ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    return helper.make_model(helper.make_graph([], "empty", [x], [x]))


def no_group() -> ModelProto:
    net = Net("lone")
    return net.model(net.conv(net.input("x", [1, 3, 8, 8]), 8))


def circle() -> ModelProto:
    proto = onnx.load(DIGITS)
    proto.graph.node[0].input[0] = proto.graph.node[-1].output[0]
    return proto


def contradicting_sizes() -> ModelProto:
    proto = onnx.load(DIGITS)
    weight = next(t for t in proto.graph.initializer if t.name == "stage1.first.0.weight")
    weight.CopyFrom(numpy_helper.from_array(np.ones((32, 5, 3, 3), np.float32), weight.name))
    return proto


def missing_weights(folder: Path) -> Args:
    path = external(folder)
    (folder / "m.weights").unlink()
    return [path]


def truncated_weights(length: object) -> Callable[[Path], Args]:
    def make(folder: Path) -> Args:
        path = external(folder, length=length)
        (folder / "m.weights").write_bytes(bytes(100))
        return [path]

    return make


def outside(link: bool) -> Callable[[Path], Args]:
    def make(folder: Path) -> Args:
        inner = folder / "inner"
        inner.mkdir()
        path = external(inner, "link" if link else "../m.weights")
        (inner / "m.weights").rename(folder / "m.weights")
        if link:
            (inner / "link").symlink_to(folder / "m.weights")
        return [path]

    return make


def absolute(folder: Path) -> Args:
    return [external(folder, str(folder / "m.weights"))]


def under_a_file(folder: Path) -> Args:
    return [model(folder), "-o", folder / "m.onnx" / "out.onnx"]


@dataclass(frozen=True)
class Case:
    """make: writes the input, gives arguments. says: what stderr must match, case ignored."""

    make: Callable[[Path], Args]
    code: int
    says: str


TEXT = b"This is a text, and it is not a model.\n"
CASES = {
    # the model
    "text file": Case(bytes_of(TEXT), 3, "not an ONNX"),
    "text called json": Case(bytes_of(TEXT, "m.json"), 3, "not an ONNX"),
    "text called textproto": Case(bytes_of(TEXT, "m.textproto"), 3, "not an ONNX"),
    "text called onnxtxt": Case(bytes_of(TEXT, "m.onnxtxt"), 3, "not an ONNX"),
    "empty file": Case(bytes_of(b""), 3, "m.onnx.*not an ONNX"),
    "missing file": Case(lambda folder: [folder / "none.onnx"], 3, "none.onnx.*does not exist"),
    "folder": Case(lambda folder: [folder], 3, "is a folder"),
    "empty graph": Case(proto_of(empty_graph), 3, "no nodes"),
    "no group": Case(proto_of(no_group), 3, "no group.*Conv_0"),
    "nodes in a circle": Case(proto_of(circle), 3, "topological order"),
    "contradicting sizes": Case(proto_of(contradicting_sizes), 3, "node_Conv_121.*32"),
    "NaN weight": Case(with_value(np.nan, "stem.0.weight"), 3, r"stem\.0\.weight.*NaN"),
    "infinite weight": Case(with_value(np.inf, "stem.0.weight"), 3, "not finite"),
    "NaN bias": Case(with_value(np.nan, "stem.0.weight_bias"), 3, "NaN"),
    "NaN in a locked weight": Case(with_value(np.nan, "classifier.bias"), 3, "NaN"),
    "NaN, random": Case(
        lambda f: [*with_value(np.nan, "stem.0.weight")(f), "--criterion", "random"],
        3, "NaN",
    ),
    # external data
    "missing weights": Case(missing_weights, 3, "m.weights.*missing"),
    "truncated weights": Case(truncated_weights(32 * 32 * 9 * 4), 3, "m.weights.*truncated"),
    "truncated, length not stated": Case(truncated_weights(None), 3, "truncated"),
    "wrong length": Case(external_with(length=64), 3, "m.weights"),
    "offset not a number": Case(external_with(offset="x"), 3, "m.weights|offset"),
    "negative offset": Case(external_with(offset=-8), 3, "m.weights|offset"),
    "no location": Case(external_with(""), 3, "refused"),
    "outside by dots": Case(outside(link=False), 3, "outside.*refused"),
    "outside by a link": Case(outside(link=True), 3, "outside.*refused"),
    "absolute location": Case(absolute, 3, "outside.*refused"),
    # options
    "unknown criterion": Case(given("--criterion", "magic"), 2, "magic.*l1.*l2.*random"),
    "unknown aggregate": Case(given("--aggregate", "median"), 2, "median.*mean"),
    "unknown option": Case(given("--no-such-thing"), 2, "no-such-thing"),
    "no model": Case(lambda folder: [], 2, "MODEL"),
    "unknown kind": Case(given("--kinds", "toes"), 2, "toes.*conv"),
    "bad exclude": Case(given("--exclude", "conv("), 2, r"conv\(.*regular expression"),
    "bad only": Case(given("--only", "*x"), 2, r"\*x.*regular expression"),
    "negative seed": Case(given("--seed", "-1"), 2, "seed"),
    "min-keep 0": Case(given("--min-keep", "0"), 2, "min-keep"),
    "round-to 0": Case(given("--round-to", "0"), 2, "round-to"),
    **{
        f"target {text!r}": Case(given("--target", text), 2, r"target .*macs=0\.7")
        for text in ("", "macs", "0.5", "macs=", "macs=0", "macs=1.5", "macs=nan", "macs=70%",
                     "flops=0.5", "macs=-1", "macs=0.5,params=0.5")
    },
    "out of reach": Case(given("--target", "macs=0.5", "--min-keep", "60"), 4, "least.*macs="),
    "only matches nothing": Case(
        given("--only", "nosuch", "--target", "channels=0.5"), 2, "nosuch"
    ),
    # where to
    "read-only folder": Case(given("-o", "/proc/out.onnx"), 2, "cannot write.*/proc"),
    "is a folder": Case(lambda f: [model(f), "-o", f, "--force"], 2, "is a folder"),
    "folder is a file": Case(under_a_file, 2, "cannot write.*m.onnx"),
    "folder is missing": Case(given("-o", "/nonexistent/o.onnx"), 2, "cannot write.*/nonexistent"),
    "plan in a missing folder": Case(given("--plan-out", "/none/p.json"), 2, "cannot write.*/none"),
    "name too long": Case(given("-o", "x" * 300), 2, "cannot write"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_refused(case: Case, tmp_path: Path, cli: Cli, files: Files) -> None:
    args = case.make(tmp_path)
    before = files()
    done = cli("prune", *args)
    assert (done.exit_code, done.stdout) == (case.code, ""), done.stderr
    assert re.search(case.says, done.stderr, re.IGNORECASE | re.DOTALL), done.stderr
    assert 1 <= len(done.stderr.splitlines()) <= 2
    assert "Traceback" not in done.stderr
    assert files() == before


UNREADABLE = ("text file", "empty file", "missing file", "folder", "empty graph", "missing weights")


@pytest.mark.parametrize("name", UNREADABLE)
@pytest.mark.parametrize("command", ["analyze", "explain", "verify"])
def test_refused_by_every_command(command: str, name: str, tmp_path: Path, cli: Cli) -> None:
    (path,) = CASES[name].make(tmp_path)
    rest = {"explain": ["a", "b"], "verify": [DIGITS, "--plan", "p.json"]}.get(command, [])
    done = cli(command, path, *rest)
    assert (done.exit_code, done.stdout) == (3, "")
    assert re.search(CASES[name].says, done.stderr)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.9, 0.999])
def test_truncated_model(share: float, tmp_path: Path, cli: Cli, files: Files) -> None:
    whole = DIGITS.read_bytes()
    path = tmp_path / "m.onnx"
    path.write_bytes(whole[: int(share * len(whole))])
    before = files()
    done = cli("prune", path)
    assert done.exit_code == 3
    assert "truncated" in done.stderr
    assert files() == before


def test_traceback_only_with_v(cli: Cli, tmp_path: Path) -> None:
    args = CASES["NaN weight"].make(tmp_path)
    assert "Traceback" not in cli("prune", *args).stderr
    verbose = cli("prune", *args, "-v").stderr
    assert "Traceback" in verbose
    assert verbose.splitlines()[-1].startswith("spa: tensor 'stem.0.weight'")


def test_unexpected_error(cli: Cli, digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a cosmic ray")

    monkeypatch.setattr("spa.api.rewrite", fail)
    done = cli("prune", digits)
    assert done.exit_code == 1
    assert "a cosmic ray" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert "Traceback" in cli("prune", digits, "-v").stderr
    assert not digits.with_name("digits.pruned.onnx").exists()


def test_json_stays_empty_on_errors(cli: Cli, tmp_path: Path) -> None:
    done = cli("prune", *CASES["text file"].make(tmp_path), "--json")
    assert (done.exit_code, done.stdout) == (3, "")


def test_least_that_a_message_names_can_be_reached(cli: Cli, digits: Path) -> None:
    options = ("--min-keep", "20", "--round-to", "1")
    refused = cli("prune", digits, "--target", "macs=0.05", *options)
    assert refused.exit_code == 4
    least = re.search(r"macs=(0\.\d+) with", refused.stderr)
    assert least
    assert cli("prune", digits, "--target", f"macs={least[1]}", *options).exit_code == 0
