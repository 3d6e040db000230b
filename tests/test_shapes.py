"""Shapes and sizes, compared with what onnxruntime computes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto, numpy_helper

import spa
from models.builder import Net
from models.hazards import HAZARDS, UNRUNNABLE
from models.vision import MAKERS
from spa.errors import ModelError
from spa.propagate import foretell
from spa.reader import load
from spa.run import make_feeds, observe
from spa.shapes import infer
from spa.sizes import bindings, free_sizes
from tests.conftest import PLAIN
from tests.ops.cases import contrib

ERRING = {"spectrum_of_a_window"}  # where ONNX's inference contradicts onnxruntime


def free_net(*shape: int | str | None) -> ModelProto:
    net = Net("free")
    x = net.input("x", [s or "unnamed" for s in shape])
    model = net.model(net.relu(x))
    for dim, size in zip(model.graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        if size is None:
            dim.ClearField("dim_param")
    del model.graph.value_info[:]
    return model


def test_free_sizes_are_found_by_name_and_place() -> None:
    graph = load(free_net("batch", 3, None, "width"))
    assert free_sizes(graph) == {
        "batch": [("x", 0, 4)],
        "x.2": [("x", 2, 4)],
        "width": [("x", 3, 4)],
    }
    assert free_sizes(load(free_net(1, 3))) == {}
    assert list(bindings(load(free_net(1, 3)))) == [{}]


@pytest.mark.parametrize("shape", [("n", 3, "h", "w"), ("n", "s", 8), ("n", "s", None)])
def test_first_binding_is_of_distinct_primes(shape: tuple[int | str | None, ...]) -> None:
    graph = load(free_net(*shape))
    first, other = (next(bindings(graph, offset)) for offset in range(2))
    assert first.keys() == other.keys() == free_sizes(graph).keys()
    for bound in (first, other):
        assert len(set(bound.values())) == len(bound)
        assert all(n > 1 and all(n % k for k in range(2, n)) for n in bound.values())
    assert all(first[name] != other[name] for name in first)


def test_one_name_is_one_size() -> None:
    net = Net("two")
    a, b = net.input("a", ["batch", 4]), net.input("b", ["batch", 4])
    graph = load(net.model(net.add(a, b)))
    shapes = infer(graph).shapes
    assert shapes["a"] == shapes["b"]


def halved(net: Net) -> onnx.ModelProto:
    """Down and up again: only even sizes fit."""
    x = net.input("x", ["n", 3, "h", "w"])
    a = net.relu(net.conv(x, 4))
    up = net.node("Resize", net.pool(a), None, [1.0, 1.0, 2.0, 2.0])
    return net.model(net.add(a, up))


def test_a_binding_that_fits_is_found() -> None:
    found = infer(load(halved(Net("halved"))))
    assert found.sizes["h"] % 2 == found.sizes["w"] % 2 == 0
    assert found.shapes["x"] == (found.sizes["n"], 3, found.sizes["h"], found.sizes["w"])


def not_inferred(model: ModelProto, *, observed: bool = False) -> list[str]:
    """Compare every inferred shape, type and value with onnxruntime's; the tensors without."""
    graph = load(model)
    found = infer(graph, observe if observed else None)
    shown = ModelProto()
    shown.CopyFrom(model)
    names = [n for node in model.graph.node for n in node.output if n not in graph.outputs]
    shown.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(shown.SerializeToString(), options)
    outputs = [o.name for o in session.get_outputs()]
    got = session.run(outputs, make_feeds(graph, found.sizes, seed=0))
    for name, value in zip(outputs, got, strict=True):
        if name in found.shapes:
            assert found.shapes[name] == value.shape, name
            assert onnx.helper.tensor_dtype_to_np_dtype(found.dtypes[name]) == value.dtype, name
        if name in found.values:
            np.testing.assert_allclose(found.values[name], value, err_msg=name)
    return [name for name in outputs if name not in found.shapes]


@pytest.mark.parametrize("name", sorted(set(HAZARDS) - UNRUNNABLE))
def test_hazards(name: str) -> None:
    assert not_inferred(HAZARDS[name][0](), observed=name in ERRING) == []


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_vision(name: str) -> None:
    model = MAKERS[name](width=0.125, image=32, classes=10, batch="batch")
    assert not_inferred(model) == []


def computed(net: Net) -> onnx.ModelProto:
    x = net.input("x", ["n", "s", 12])
    shape = net.shape_vector(net.dim(x, 0), net.dim(x, 1), 3, net.div(net.dim(x, 2), np.int64(3)))
    y = net.node("Reshape", x, shape, shape=["n", "s", 3, 4])
    return net.model(net.relu(y))


def test_computed_shapes_have_values() -> None:
    model = computed(Net("computed"))
    found = infer(load(model))
    n, s = found.sizes["n"], found.sizes["s"]
    assert any(v.tolist() == [n, s, 3, 4] for v in found.values.values())
    assert not_inferred(model) == []


def data_dependent(net: Net) -> onnx.ModelProto:
    x = net.input("x", [4, 6])
    return net.model(net.node("NonZero", x, shape=[2, "k"], dtype=np.int64), net.relu(x))


def test_a_shape_that_depends_on_data_is_left_out() -> None:
    model = data_dependent(Net("data"))
    found = infer(load(model))
    assert model.graph.node[0].output[0] not in found.shapes
    assert found.shapes[model.graph.node[1].output[0]] == (4, 6)


def test_large_tensors_are_not_evaluated() -> None:
    net = Net("large")
    zeros = net.node("ConstantOfShape", [2000, 2000], shape=[2000, 2000])
    model = net.model(net.add(net.input("x", [2000, 2000]), zeros))
    found = infer(load(model))
    assert model.graph.node[0].output[0] not in found.values
    assert found.shapes[model.graph.node[0].output[0]] == (2000, 2000)


def traced_length(net: Net) -> onnx.ModelProto:
    """Only a sequence of 9 fits; the batch is free and read at run time."""
    x = net.input("x", ["n", "s", 6])
    x = net.add(x, net.uniform(-1, 1, 1, 9, 6))
    y = net.relu(net.linear(x, 8))
    y = net.node("Reshape", y, net.shape_vector(net.dim(y, 0), 72), shape=["n", 72])
    return net.model(net.gemm(y, 5))


def test_each_free_size_that_can_move_moves() -> None:
    model = traced_length(Net("traced"))
    graph = load(model)
    found = infer(graph)
    assert found.sizes["s"] == 9
    assert any(node.op_type == "Gather" and node.outputs[0] in found.moving for node in graph.nodes)
    result = spa.prune(model, "channels=0.5", **PLAIN)
    assert result.verification is not None
    assert result.verification.still == ("s",)
    session = ort.InferenceSession(result.model.SerializeToString())
    for n in (1, 5):
        assert session.run(None, {"x": np.zeros((n, 9, 6), np.float32)})[0].shape == (n, 5)


def uneven(net: Net) -> onnx.ModelProto:
    """Sides that are no multiple of 4 do not fit; only a Reshape would say so."""
    x = net.input("x", ["n", 3, "h", "w"])
    a = net.conv(x, 4)
    n, h, w = (net.dim(a, k) for k in (0, 2, 3))
    four = np.int64(4)
    sizes = net.shape_vector(n, 4, net.div(h, four), 4, net.div(w, four), 4)
    return net.model(net.node("Reshape", a, sizes, shape=["n", 4, None, 4, None, 4]))


def test_sizes_at_which_reshapes_fit_are_found() -> None:
    found = infer(load(uneven(Net("uneven"))))
    assert found.sizes["h"] % 4 == found.sizes["w"] % 4 == 0


def test_where_no_size_fits_the_rest_is_still_known() -> None:
    net = Net("never")
    x = net.relu(net.input("x", ["n", 5]))
    y = net.node("Reshape", x, [7, 6], shape=[7, 6])  # 5 n is never 42
    model = net.model(y, net.linear(x, 4))
    assert infer(load(model)).shapes[y.name] == (7, 6)


def wrong_add(model: ModelProto) -> None:
    bias = next(t for t in model.graph.initializer if t.name == "MatMul_0.bias")
    bias.CopyFrom(numpy_helper.from_array(np.ones(7, np.float32), bias.name))


def wrong_matmul(model: ModelProto) -> None:
    weight = next(t for t in model.graph.initializer if t.name == "MatMul_0.weight")
    weight.CopyFrom(numpy_helper.from_array(np.ones((5, 8), np.float32), weight.name))


@pytest.mark.parametrize("spoil", [wrong_add, wrong_matmul])
def test_contradictions(spoil: Callable[[ModelProto], None]) -> None:
    model = HAZARDS["matmul_with_vector"][0]()
    spoil(model)
    with pytest.raises(ModelError, match="contradict"):
        infer(load(model))


def test_sizes_are_tried_until_the_model_runs() -> None:
    """ONNX sees no fault in sizes that an operator of another domain refuses."""
    net = Net("sums")
    q, k, v = (net.linear(net.input(n, ("batch", "seq", 6)), 8) for n in "qkv")
    past = [net.input(f"past_{n}", ("batch", 2, "past", 4)) for n in "kv"]
    bias = net.input("bias", ("batch", 2, "seq", "total"))
    y = contrib(net, "MultiHeadAttention", [q, k, v, None, None, bias, *past], q.shape, num_heads=2)
    model = net.model(net.linear(y[0], 5))
    del model.graph.value_info[:]
    graph = load(model)
    sizes = infer(graph, observe).sizes
    assert sizes["total"] == sizes["past"] + sizes["seq"]
    assert not spa.analyze(model).views[0].ties.refused


def test_patterns_foretell_shapes_where_nothing_runs() -> None:
    net = Net("foretold")
    x = net.input("x", ("batch", 4, 4, 8))
    y = contrib(net, "GroupNorm", [x, *(net.uniform(0, 1, 8) for _ in "ab")], x.shape, groups=2)
    y = contrib(net, "BiasSplitGelu", [y[0], net.uniform(0, 1, 8)], ("batch", 4, 4, 4))[0]
    model = net.model(y)
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.ClearField("shape")
    graph = load(model)
    found = infer(graph, observe, foretell)
    assert found.shapes[graph.outputs[0]] == (found.sizes["batch"], 4, 4, 4)
    assert graph.outputs[0] not in infer(graph, observe).shapes


def test_an_index_has_to_be_there() -> None:
    """Steps that tracing wrote out run only where there are as many."""
    net = Net("steps")
    x = net.linear(net.input("x", (2, "steps", 5)), 8)
    y = net.node("Sum", *(net.relu(net.gather(x, k, axis=1)) for k in range(12)))
    groups = spa.analyze(net.model(net.linear(y, 3)))
    assert groups.shapes.sizes["steps"] >= 12
    assert len(groups) == 1


def test_a_window_has_to_fit() -> None:
    """At a length at which a convolution makes nothing, nothing behind it would cost anything."""
    net = Net("short")
    x = net.conv(net.input("x", ["n", 1, "t"]), 4, k=64, stride=32, pad=0)
    model = net.model(net.conv(net.relu(x), 3, k=1))
    shapes = infer(load(model))
    assert shapes.shapes["Conv_0.out"][2] > 0


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_sizes_that_were_quantised_are_known(opset: int) -> None:
    """Quantisers take what shapes are computed from for activations."""
    net = Net("quantised sizes", opset=opset)
    y = net.relu(net.conv(net.input("x", ["n", 3, 4, 4]), 8))
    width, (scale, point) = net.cast(net.dim(y, 2), 1), (np.float32(0.5), np.uint8(0))
    code = net.node("QuantizeLinear", width, scale, point, dtype=np.uint8, shape=[])
    width = net.cast(net.node("DequantizeLinear", code, scale, point, shape=[]), 7)
    y = net.node("Reshape", y, net.shape_vector(net.dim(y, 0), -1, width), shape=["n", 32, 4])
    y = net.node("ReduceSum", y, [2], keepdims=0, shape=["n", 32])
    (group,) = spa.analyze(net.model(net.gemm(y, 5)))
    assert group.size == 8


# What torch writes into opset 9 and 10, where axes were not to be counted from the end.
FROM_THE_END: list[tuple[str, dict[str, object], tuple[int, ...]]] = [
    ("Unsqueeze", {"axes": [-1]}, (2, 8, 1, 4, 1)),
    ("Unsqueeze", {"axes": [-2, 1]}, (2, 1, 8, 1, 1, 4)),
    ("Squeeze", {"axes": [-2]}, (2, 8, 4)),
    ("Slice", {"axes": [-1], "starts": [1], "ends": [3]}, (2, 8, 1, 2)),
    ("Softmax", {"axis": -1}, (2, 8, 1, 4)),
]


@pytest.mark.parametrize(("op", "attrs", "shape"), FROM_THE_END)
def test_axes_counted_from_the_end_in_old_opsets(
    op: str, attrs: dict[str, object], shape: tuple[int, ...]
) -> None:
    net = Net("end", opset=9)
    x = net.input("x", [2, 8, 1, 4])
    y = net.relu(net.node(op, net.relu(x), shape=shape, **attrs))
    model = net.model(net.node("Concat", y, y, axis=-1, shape=[*shape[:-1], 2 * shape[-1]]))
    del model.graph.value_info[:]
    assert not_inferred(model) == []
