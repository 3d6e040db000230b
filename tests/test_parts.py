"""Models whose weights stand beside them compute what the whole models compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from models.builder import Net
from models.vision import MAKERS
from spa import run as runs
from spa.parts import parts
from spa.reader import load


def net_of(kind: type = np.float32, **options: object) -> ModelProto:
    net = Net("parts", opset=8 if options else 17)
    x = net.input("x", [2, 64], kind)
    y = net.node("MatMul", x, net.const(np.eye(64, dtype=kind), "large"))
    return net.model(net.node("Add", y, net.const(np.ones(64, kind), "small")), **options)  # type: ignore[arg-type]


def outputs(model: object) -> list[np.ndarray]:
    with runs.session(model) as running:  # type: ignore[arg-type]
        feeds = {i.name: np.ones([2, 64], np.float32) for i in running.get_inputs()}
        return list(runs.run(running, feeds).values())


def same(model: ModelProto, other: object) -> bool:
    whole = ort.InferenceSession(model.SerializeToString())
    feeds = {whole.get_inputs()[0].name: np.ones([2, 64], np.float32)}
    return all(map(np.array_equal, whole.run(None, feeds), outputs(other)))


def test_large_weights_stand_beside() -> None:
    model = net_of()
    apart = parts(model)
    assert list(apart.weights) == ["large"]
    assert [t.name for t in apart.model.graph.initializer] == ["small"]
    assert same(model, apart)
    assert len(apart.whole().SerializeToString()) < 2000


def test_nothing_is_changed() -> None:
    model = net_of()
    before = model.SerializeToString()
    apart = parts(load(model))
    apart.showing(["MatMul_0.out"])
    apart.reading({"own": np.zeros((64, 64), np.float32)}, {(0, 1): "own"})
    assert model.SerializeToString() == before
    assert same(model, apart)


def test_other_weights_are_read() -> None:
    model = net_of()
    values = {"own": np.zeros((64, 64), np.float32), "bias": np.full(64, 5, np.float32)}
    changed = parts(model).reading(values, {(0, 1): "own", (1, 1): "bias"})
    assert list(changed.weights) == ["own"]
    (got,) = outputs(changed)
    assert (got == 5).all()


def test_more_outputs() -> None:
    assert [v.shape for v in outputs(parts(net_of()).showing(["MatMul_0.out"]))] == [(2, 64)] * 2


def test_weights_that_nothing_reads_are_left_out() -> None:
    model = net_of()
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((99, 99)), "unread"))
    assert list(parts(model).weights) == ["large"]
    assert same(model, parts(model))


def test_old_files_where_weights_are_inputs() -> None:
    model = net_of(ir_version=3, initializers_as_inputs=True)
    assert same(model, parts(model))
    changed = parts(model).reading({"own": np.zeros((64, 64), np.float32)}, {(0, 1): "own"})
    assert (outputs(changed)[0] == 1).all()


@pytest.mark.parametrize("shift", [0, 1, 4])
def test_weights_in_a_file_are_mapped_where_they_lie_even(tmp_path: Path, shift: int) -> None:
    model = net_of()
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w", size_threshold=0)
    apart = onnx.load(path, load_external_data=False)
    (tmp_path / "w").write_bytes(bytes(shift) + (tmp_path / "w").read_bytes())
    for tensor in apart.graph.initializer:
        assert tensor.data_location == TensorProto.EXTERNAL
        for entry in tensor.external_data:
            if entry.key == "offset":
                entry.value = str(int(entry.value) + shift)
    path.write_bytes(apart.SerializeToString())
    graph = load(path)
    assert isinstance(graph.array("large"), np.memmap) is (shift != 1)
    np.testing.assert_array_equal(graph.array("large"), np.eye(64))
    assert same(net_of(), parts(graph))


@pytest.mark.parametrize("name", ["resnet18", "shufflenet_v2"])
def test_a_net(name: str) -> None:
    model = MAKERS[name](width=0.125, image=32, classes=10)
    image = {"image": np.ones((1, 3, 32, 32), np.float32)}
    with runs.session(parts(model)) as running:
        got = runs.run(running, image)
    whole = ort.InferenceSession(model.SerializeToString())
    for name_, value in zip(got, whole.run(None, image), strict=True):
        np.testing.assert_allclose(got[name_], value, rtol=1e-4, atol=1e-5)
