"""Inputs on which a model runs, with two numbers or more for every free size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import spa
from models.builder import Net, Tensor
from spa import run as runs
from spa.reader import load
from spa.run import CannotCheck, Inputs, find_inputs, same_sizes
from tests.conftest import PLAIN


def found(model: ModelProto) -> list[Inputs]:
    graph = load(model)
    with runs.session(model) as running:
        return find_inputs(graph, running)


def moves(model: ModelProto) -> bool:
    return not same_sizes([i.sizes for i in found(model)])


def halved(net: Net) -> ModelProto:
    """Only even sides fit."""
    x = net.input("x", ["n", 3, "h", "w"])
    a = net.relu(net.conv(x, 4))
    up = net.node("Resize", net.pool(a), None, [1.0, 1.0, 2.0, 2.0])
    return net.model(net.add(a, up))


def two_names(net: Net) -> ModelProto:
    return net.model(net.add(net.input("a", ["n", 3, "s"]), net.input("b", ["m", 3, "t"])))


def total(net: Net) -> ModelProto:
    """Past and present, and a mask over both."""
    now, past = net.input("now", ["n", "s", 4]), net.input("past", ["n", "p", 4])
    both = net.node("Concat", past, now, axis=1, shape=["n", "t", 4])
    return net.model(net.mul(both, net.input("mask", ["n", "t", 1])))


def unnamed_state(net: Net) -> ModelProto:
    """The batch of the state is that of the sequence, but nothing says so."""
    h = net.input("h", [1, "a", 5])
    x = net.input("x", ["b", "s", 6])
    x = net.transpose(x, 1, 0, 2)
    w, r = net.weight(1, 5, 6, fan=6), net.weight(1, 5, 5, fan=5)
    y, _ = net.nodes("RNN", [x, w, r, None, None, h], 2, hidden_size=5)
    return net.model(y)


def indices(net: Net) -> ModelProto:
    ids = net.input("ids", ["n", "s"], np.int64)
    kinds = net.input("kinds", ["n", "s"], np.int32)
    words, types = net.weight(9, 4, fan=4), net.weight(3, 4, fan=4)
    return net.model(net.add(net.gather(words, ids), net.gather(types, kinds)))


def positions(net: Net) -> ModelProto:
    """A table of eight positions: lengths above that do not run."""
    x = net.input("x", ["n", "s", 4])
    return net.model(net.add(x, net.gather(net.weight(8, 4, fan=4), _range(net, x))))


def _range(net: Net, x: Tensor) -> Tensor:
    zero, one = np.int64(0), np.int64(1)
    return net.node("Range", zero, net.dim(x, 1), one, shape=["s"], dtype=np.int64)


def fixed(net: Net) -> ModelProto:
    return net.model(net.relu(net.input("x", [2, 3])))


def scalar(net: Net) -> ModelProto:
    return net.model(net.mul(net.input("x", ["n", 3]), net.input("scale", [])))


def half(net: Net) -> ModelProto:
    return net.model(net.node("Relu", net.input("x", ["n", 3], np.float16)))


MODELS = (
    halved, two_names, total, unnamed_state, indices, positions, fixed, scalar, half
)  # fmt: skip


@pytest.mark.parametrize("make", MODELS, ids=lambda m: m.__name__)
def test_every_free_size_takes_two_numbers(make: Callable[[Net], ModelProto]) -> None:
    assert moves(make(Net(make.__name__)))


def test_outputs_are_those_of_the_run() -> None:
    model = halved(Net("halved"))
    for inputs in found(model):
        with runs.session(model) as running:
            for name, value in runs.run(running, inputs.feeds).items():
                np.testing.assert_array_equal(value, inputs.outputs[name])


def written_length() -> ModelProto:
    """The length 9 was written into the graph when it was traced."""
    net = Net("written")
    x = net.input("x", ["n", "s", 6])
    y = net.relu(net.linear(x, 8))
    y = net.node("Reshape", y, [0, 9 * 8], shape=["n", 72])
    return net.model(net.gemm(y, 5))


def test_a_size_with_one_number_is_told() -> None:
    assert same_sizes([i.sizes for i in found(written_length())]) == ["s"]
    result = spa.prune(written_length(), "channels=0.5", **PLAIN)
    assert result.verification is not None
    assert result.verification.still == ("s",)
    assert {s["s"] for s in result.verification.sizes} == {9}


@pytest.mark.parametrize("kind", [TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING])
def test_inputs_of_other_types(kind: int) -> None:
    info = helper.make_tensor_value_info("x", kind, ["n", 2])
    out = helper.make_tensor_value_info("y", kind, ["n", 2])
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "other", [info], [out])
    assert moves(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_sequences_of_tensors() -> None:
    given = helper.make_tensor_sequence_value_info("xs", TensorProto.FLOAT, ["n", 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("ConcatFromSequence", ["xs"], ["y"], axis=0)
    graph = helper.make_graph([node], "sequence", [given], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert found(model)[0].outputs["y"].shape[1] == 3


def test_weights_in_a_file_are_used_where_they_lie(tmp_path: Path) -> None:
    net = Net("external")
    model = net.model(net.gemm(net.relu(net.gemm(net.input("x", ["n", 32]), 64)), 5))
    path = tmp_path / "m.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0)
    result = spa.prune(path, "channels=0.5", **PLAIN)
    assert result.verification is not None and result.verification.law is not None


def test_an_input_that_cannot_be_made_up_is_named() -> None:
    kind = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    )
    given = helper.make_value_info("counts", kind)
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("CastMap", ["counts"], ["y"], domain="ai.onnx.ml")
    graph = helper.make_graph([node], "map", [given], [out])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    with pytest.raises(CannotCheck, match="counts"):
        found(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def test_integers_with_which_the_outputs_are_finite() -> None:
    """A mask that means only 0 and 1: other numbers make infinities of it."""
    net = Net("mask")
    mask = net.cast(net.input("mask", ["n", "s"], np.int64), TensorProto.FLOAT)
    y = net.softmax(net.mul(net.sub(1.0, mask), -3e38))
    for one in found(net.model(net.add(y, net.input("x", ["n", "s"])))):
        assert all(np.isfinite(v).all() for v in one.outputs.values())
        assert set(np.unique(one.feeds["mask"])) <= {0, 1}


def test_only_what_has_to_is_the_same_everywhere() -> None:
    """Of two inputs of integers one must be 1, as a length may; the other still indexes a table."""
    net = Net("lengths")
    ids, rows = net.input("ids", [1, 6], np.int64), net.input("rows", [1], np.int64)
    read = net.node("Gather", net.weight(20, 4), ids)
    shape = net.node("Concat", rows, [24], axis=0)
    model = net.model(net.node("Reshape", read, shape, shape=[1, 24]))
    for one in found(model):
        assert one.feeds["rows"] == [1]
        assert len(np.unique(one.feeds["ids"])) > 2


@pytest.mark.parametrize(("halve", "rows"), [(False, 40), (True, 6)])
def test_integers_index_the_tables_that_they_reach(halve: bool, rows: int) -> None:
    """A table of four matrices is looked up by what is picked on the way, one of six by ids."""
    net = Net("tables")
    ids = net.input("ids", ["n"], np.int64)
    x = net.gather(net.weight(40, 5), ids)
    _, best = net.nodes("TopK", [net.linear(x, 4), [1]], 2, axis=-1)
    x = net.matmul(net.unsqueeze(x, 1), net.gather(net.weight(4, 5, 5), net.squeeze(best, 1)))
    if halve:
        x = net.add(x, net.unsqueeze(net.gather(net.weight(6, 5), net.div(ids, np.int64(2))), 1))
    assert runs.smallest_table(load(net.model(x))) == rows
