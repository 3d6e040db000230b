"""Made-up inputs on which a model runs: which sizes they have, and what remains where none do."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper

from models.builder import Net, Tensor
from spa.calibration import calibrate
from spa.reader import load
from spa.run import CannotCheck
from tests.test_synthetic import first, made, of_type


def halved(net: Net, x: Tensor) -> ModelProto:
    """Only sides that halve evenly fit."""
    a = net.relu(net.conv(x, 4))
    return net.model(net.add(a, net.node("Resize", net.pool(a), None, [1.0, 1.0, 2.0, 2.0])))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (["n", 3, "h", "w"], (8, 3, 224, 224)),
        (["n", 3, 32, "w"], (8, 3, 32, 224)),
        (["n", "c", "h", "w"], (8, 3, 224, 224)),
        ([2, 3, "h", "w"], (2, 3, 224, 224)),
        ([1, 3, 32, 32], (1, 3, 32, 32)),
    ],
    ids=str,
)
def test_free_sides(shape: list[int | str], expected: tuple[int, ...]) -> None:
    net = Net("sides")
    x = net.input("x", shape)
    w = net.weight(4, 3, 3, 3)
    x = net.node("Conv", x, w, pads=[1] * 4, shape=[shape[0], 4, *shape[2:]])
    assert first(net.model(net.relu(x)))["x"].shape == expected


def test_sides_that_halve() -> None:
    net = Net("halved")
    assert first(halved(net, net.input("x", ["n", 3, "h", "w"])))["x"].shape == (8, 3, 224, 224)


def written(shape: list[int | str], sizes: list[int], name: str = "x") -> ModelProto:
    """A model that was traced at these sizes, whatever its input says."""
    net = Net("written")
    x = net.relu(net.input(name, shape))
    return net.model(net.node("Reshape", x, sizes, shape=sizes))


def test_a_batch_that_was_traced() -> None:
    assert first(written(["n", 7], [1, 7]))["x"].shape == (1, 7)


def test_a_length_that_was_traced() -> None:
    assert first(written(["n", "s", 6], [0, 54]))["x"].shape == (8, 9, 6)


def test_past_and_present() -> None:
    net = Net("total")
    now, past = net.input("now", ["batch", "s", 4]), net.input("past", ["batch", "p", 4])
    both = net.node("Concat", past, now, axis=1, shape=["batch", "t", 4])
    model = net.model(net.mul(both, net.input("attention_mask", ["batch", "t", 1])))
    feeds = first(model)
    lengths = [feeds[name].shape[1] for name in ("now", "past", "attention_mask")]
    assert lengths[0] + lengths[1] == lengths[2] and min(lengths) > 20
    assert len(feeds["now"]) == 8


def test_samples_on_the_second_axis() -> None:
    net = Net("state")
    x, h = net.input("x", ["a", "s", 6]), net.input("h", [1, None, 5])
    w, r = net.weight(1, 5, 6, fan=6), net.weight(1, 5, 5, fan=5)
    y, _ = net.nodes("RNN", [net.transpose(x, 1, 0, 2), w, r, None, None, h], 2, hidden_size=5)
    feeds = first(net.model(y))
    assert feeds["x"].shape == (8, 64, 6) and feeds["h"].shape == (1, 8, 5)


def test_named_batch_on_the_second_axis() -> None:
    net = Net("time first")
    x = net.input("x", ["time", "batch", 6])
    found = made(net.model(net.linear(x, 4)))
    assert found.batches[0]["x"].shape == (64, 8, 6) and found.count == 16


def test_no_axis_for_samples() -> None:
    net = Net("alone")
    x = net.unsqueeze(net.input("x", [3, 20, 20]), 0)
    found = made(net.model(net.conv(x, 4)))
    assert found.batches[0]["x"].shape == (3, 20, 20)
    assert len(found.batches) == found.count == 16
    assert np.corrcoef(found.batches[0]["x"].reshape(3, -1)).min() > 0.4


def test_sequences_of_tensors_get_plain_values() -> None:
    given = helper.make_tensor_sequence_value_info("xs", TensorProto.FLOAT, ["n", 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("ConcatFromSequence", ["xs"], ["y"], axis=0)
    graph = helper.make_graph([node], "sequence", [given], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = made(model)
    assert [len(value) for value in found.batches[0].values()] == [2]
    assert found.record()["samples"] == 16


def test_a_model_that_nothing_fits() -> None:
    net = Net("never")
    ids = net.input("ids", [2], np.int64)
    table = net.weight(3, 4)
    model = net.model(net.gather(table, net.add(ids, np.int64(9))))
    with pytest.raises(CannotCheck, match="no input that was tried runs: onnxruntime"):
        calibrate(load(model))


def test_no_inputs() -> None:
    model = of_type(TensorProto.FLOAT, [2, 3])
    model.graph.node[0].input[0] = "w"
    model.graph.initializer.append(helper.make_tensor("w", TensorProto.FLOAT, [2], [1, 2]))
    del model.graph.input[:]
    assert list(calibrate(load(model)).batches) == [{}]
