"""A stream makes what a whole run makes, lets weights change on the way, and bounds its memory."""

from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models import vision
from models.builder import Net
from spa import run as runs
from spa.parts import parts
from spa.stream import Stream


def chain() -> ModelProto:
    net = Net("chain")
    x = net.relu(net.conv(net.input("x", (2, 3, 6, 6)), 4))
    side = net.conv(x, 4)
    x = net.add(net.conv(net.relu(side), 4), x)
    return net.model(net.gemm(net.flatten(net.pool(x)), 3))


def batches(count: int = 3) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    return [{"x": random.standard_normal((2, 3, 6, 6)).astype("f4")} for _ in range(count)]


def inner(model: ModelProto) -> list[str]:
    return [n for node in model.graph.node for n in node.output]


@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_stretch_by_stretch_makes_what_one_run_makes(memory: int) -> None:
    model, feeds = chain(), batches()
    names = inner(model)
    with runs.session(parts(model).showing(names)) as running:
        want = [runs.run(running, f) for f in feeds]
    with Stream(parts(model), feeds, names, memory) as stream:
        for name in names:
            for got, whole in zip(stream([name]), want, strict=True):
                assert np.allclose(got[name], whole[name], atol=1e-5)


def test_only_what_is_read_later_is_held() -> None:
    model = chain()
    names = inner(model)
    with Stream(parts(model), batches(), [names[-1]]) as stream:
        stream([names[-1]])
        assert all(not held for held in stream._held)


def test_what_is_asked_for_twice_is_held_until_then() -> None:
    model = chain()
    first, last = inner(model)[0], inner(model)[-1]
    with Stream(parts(model), batches(), [first, last, first]) as stream:
        once = [held[first].copy() for held in stream([first])]
        stream([last])
        assert all(np.array_equal(a, b[first]) for a, b in zip(once, stream([first]), strict=True))


def test_a_size_computed_from_a_number_that_is_held() -> None:
    """ONNX's inference takes sizes joined from a tensor of unknown rank for none."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["most"], keepdims=0),
        helper.make_node("Cast", ["most"], ["side"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["side", "zero"], ["last"]),
        helper.make_node("Concat", ["last", "last"], ["sides"], axis=0),
        helper.make_node("Cast", ["sides"], ["cast"], to=TensorProto.INT64),
        helper.make_node("Concat", ["fixed", "cast"], ["sizes"], axis=0),
        helper.make_node("Resize", ["table", "", "", "sizes"], ["y"]),
    ]
    given, made = (helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [4]), ("y", None)))
    stored = [
        numpy_helper.from_array(np.asarray(v), n)
        for n, v in {"zero": [0], "fixed": [1, 1], "table": np.ones((1, 1, 2, 2), "f4")}.items()
    ]
    graph = helper.make_graph(nodes, "sizes", [given], [made], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = np.float32([1, 8, 3, 4])
    with Stream(parts(model), [{"x": x}], ["side", "y"]) as stream:
        stream(["side"])
        assert stream(["y"])[0]["y"].shape == (1, 1, 8, 8)


def test_sizes_that_are_held_in_part() -> None:
    """Nor does inference know how many numbers are joined of which it knows the rank alone."""
    nodes = [
        helper.make_node("Shape", ["x"], ["all"]),
        helper.make_node("Slice", ["all", "zero", "two"], ["first"]),
        helper.make_node("Concat", ["first", "sides"], ["sizes"], axis=0),
        helper.make_node("Resize", ["table", "", "", "sizes"], ["y"]),
    ]
    given, made = (helper.make_tensor_value_info(n, 1, s) for n, s in (("x", [1, 1]), ("y", None)))
    lists = {"zero": [0], "two": [2], "sides": [4, 4], "table": np.ones((1, 1, 2, 2), "f4")}
    stored = [numpy_helper.from_array(np.asarray(v), n) for n, v in lists.items()]
    graph = helper.make_graph(nodes, "sizes", [given], [made], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with Stream(parts(model), [{"x": np.zeros((1, 1), np.float32)}], ["first", "y"]) as stream:
        stream(["first"])
        assert stream(["y"])[0]["y"].shape == (1, 1, 4, 4)


def test_a_new_weight_counts_from_its_node_on() -> None:
    model, feeds = chain(), batches(1)
    first, last = model.graph.node[0], model.graph.node[-1]
    with Stream(parts(model), feeds, [first.output[0], last.output[0]]) as stream:
        before = stream([first.output[0]])[0][first.output[0]].copy()
        weight = next(t for t in model.graph.initializer if t.name == last.input[1])
        stream.replace({weight.name: np.zeros(tuple(weight.dims), np.float32)})
        after = stream([last.output[0]])[0][last.output[0]]
    bias = next(t for t in model.graph.initializer if t.name == last.input[2])
    assert before.any() and np.allclose(after, np.frombuffer(bias.raw_data, np.float32))


def test_files_of_what_does_not_fit_are_gone_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model = chain()
    with Stream(parts(model), batches(), inner(model), 0) as stream:
        stream([inner(model)[0]])
        assert list(tmp_path.rglob("*.npy"))
    assert not list(tmp_path.iterdir())


def test_a_whole_network() -> None:
    model = vision.resnet18()
    name = model.graph.input[0].name
    shape = [d.dim_value or 1 for d in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = [{name: np.random.default_rng(1).standard_normal(shape).astype("f4")}]
    out = model.graph.output[0].name
    with runs.session(model) as running:
        want = runs.run(running, feeds[0])[out]
    with Stream(parts(model), feeds, [out]) as stream:
        assert np.allclose(stream([out])[0][out], want, rtol=1e-3, atol=1e-4)
