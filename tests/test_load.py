"""Reading models: from files, from memory, with functions and with external data."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, parser

import spa
from models.builder import Net
from models.hazards import HAZARDS
from spa.errors import ModelError
from spa.reader import check_finite, load
from tests.conftest import DIGITS, PLAIN


def test_path_text_proto_and_graph_give_the_same(digits: Path) -> None:
    graph = load(digits)
    assert load(graph) is graph
    for other in (load(str(digits)), load(onnx.load(digits))):
        assert [n.name for n in other.nodes] == [n.name for n in graph.nodes]
        assert list(other.constants) == list(graph.constants)
        assert other.inputs == graph.inputs == ("image",)
        assert other.outputs == graph.outputs == ("logits",)
    assert graph.path == digits
    assert load(onnx.load(digits)).path is None


def test_weights_in_external_files_are_read_when_needed(external: Path) -> None:
    graph, inline = load(external), load(DIGITS)
    assert graph.model.ByteSize() < 20_000 < inline.model.ByteSize()
    for name in graph.constants:
        assert np.array_equal(graph.array(name), inline.array(name))


def test_nodes_in_any_order(digits: Path) -> None:
    model = onnx.load(digits)
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    result = spa.prune(model, "macs=0.7", **PLAIN)
    onnx.checker.check_model(result.model)
    assert result.verification is not None and result.verification.law is not None
    assert result.verification.law < 1e-4
    assert [n.name for n in model.graph.node] == [n.name for n in reversed(nodes)]
    assert len(result.groups) == len(spa.analyze(digits))


def test_relative_path(external: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(external.parent)
    assert load(external.name).array("stem.0.weight").shape == (32, 1, 3, 3)


def test_model_in_a_linked_folder(external: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(external.parent, target_is_directory=True)
    assert load(tmp_path / "link" / external.name).array("stem.0.weight").size


def test_weights_in_a_folder_below(external: Path) -> None:
    (external.parent / "weights").mkdir()
    shutil.move(external.with_name("digits.weights"), external.parent / "weights" / "w")
    model = onnx.load(external, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "weights/w"
    external.write_bytes(model.SerializeToString())
    assert np.array_equal(
        load(external).array("classifier.bias"), load(DIGITS).array("classifier.bias")
    )


def test_proto_with_unread_external_data_is_refused(external: Path) -> None:
    model = onnx.load(external, load_external_data=False)
    with pytest.raises(ModelError, match=r"'stem\.0\.weight'.*'digits\.weights'"):
        load(model)


def leaving(folder: Path) -> str:
    return "../digits.weights"


def leaving_and_coming_back(folder: Path) -> str:
    return f"../{folder.name}/digits.weights"


def absolute(folder: Path) -> str:
    return str(folder / "digits.weights")


def linked_folder(folder: Path) -> str:
    (folder / "up").symlink_to(folder.parent, target_is_directory=True)
    return "up/digits.weights"


def device(folder: Path) -> str:
    (folder / "fifo").unlink(missing_ok=True)
    os.mkfifo(folder / "fifo")
    return "fifo"


@pytest.mark.parametrize(
    ("location", "says"),
    [(leaving, "outside"), (absolute, "outside"), (linked_folder, "outside"), (device, "missing")],
)
def test_unsafe_locations(location: Callable[[Path], str], says: str, external: Path) -> None:
    where = location(external.parent)
    model = onnx.load(external, load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = where
    external.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=says):
        load(external)


def test_unsafe_location_in_a_body(tmp_path: Path) -> None:
    model = HAZARDS["if_captures_outer"][0]()
    (body,) = (a.g for n in model.graph.node for a in n.attribute if a.name == "then_branch")
    tensor = body.initializer.add(name="inner", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value="/etc/passwd")
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match=r"'inner'.*'/etc/passwd'.*refused"):
        load(path)


FUNCTIONS = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
main (float[2, 6] x) => (float[2, 3] y)
<float[6, 16] w1, float[16, 3] w2> {
   h = local.dense (x, w1)
   y = MatMul (h, w2)
}
<domain: "local", opset_import: ["" : 17]>
dense (x, w) => (y) {
   z = MatMul (x, w)
   y = Relu (z)
}
"""


def with_functions() -> ModelProto:
    model = parser.parse_model(FUNCTIONS)
    del model.graph.initializer[:]
    random = np.random.default_rng(0)
    for name, shape in (("w1", (6, 16)), ("w2", (16, 3))):
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return model


def test_local_functions_are_seen_through() -> None:
    model = with_functions()
    before = model.SerializeToString()
    result = spa.prune(model, "channels=0.5", **PLAIN)
    assert [g.size for g in result.groups] == [16]
    assert result.verification is not None
    assert result.verification.law is not None
    assert model.SerializeToString() == before


def refuse(model: ModelProto, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        load(model)


def test_no_nodes() -> None:
    refuse(helper.make_model(helper.make_graph([], "empty", [], [])), "no nodes")


def test_a_tensor_that_nothing_makes() -> None:
    net = Net("gap")
    model = net.model(net.relu(net.conv(net.input("x", [1, 3, 8, 8]), 8)))
    model.graph.node[1].input[0] = "lost"
    refuse(model, r"'Relu_0'.*'lost'")


def with_weight(array: np.ndarray[Any, Any]) -> ModelProto:
    net = Net("one")
    w = net.weight(4, 6, fan=4, name="w")
    model = net.model(net.matmul(net.input("x", [2, 4]), w))
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(array, "w"))
    return model


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(value: float, kind: type[np.floating[Any]]) -> None:
    array = np.ones((4, 6), kind)
    array[2, 3] = value
    graph = load(with_weight(array))
    with pytest.raises(ModelError, match=r"'w'.*not finite"):
        check_finite(graph, {"w"})
    if np.isinf(value):
        check_finite(graph)  # a causal mask, say


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_large_weights_are_finite(kind: type[np.floating[Any]]) -> None:
    check_finite(load(with_weight(np.full((4, 6), np.finfo(kind).max, kind))), {"w"})


def test_four_bit_weights_in_a_file(tmp_path: Path) -> None:
    model = with_weight(np.ones((4, 6), np.float32))
    tensor = helper.make_tensor("q", TensorProto.INT4, [3, 3], bytes(5), raw=True)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "d"), ("offset", "0"), ("length", "5")):
        tensor.external_data.add(key=key, value=value)
    model.graph.initializer.append(tensor)
    (tmp_path / "d").write_bytes(bytes(5))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert load(tmp_path / "m.onnx").constants["q"].shape == (3, 3)


@pytest.mark.parametrize("name", sorted(HAZARDS))
def test_loading_changes_nothing(name: str) -> None:
    model = HAZARDS[name][0]()
    before = model.SerializeToString()
    graph = load(model)
    assert sum(not node.home for node in graph.nodes) == len(model.graph.node)
    assert model.SerializeToString() == before
