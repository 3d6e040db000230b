"""Graphs as they come: how values are stored, shared, named, typed and put into functions."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper, parser

import spa
from models.builder import Net, Tensor
from models.hazards import HAZARDS
from spa.errors import ModelError
from spa.reader import load
from tests.conftest import PLAIN
from tests.oracle import check


def two_convs(opset: int = 17, **options: Any) -> ModelProto:
    """8 channels, then 6, then the output."""
    net = Net("two", opset=opset)
    x = net.relu(net.conv(net.input("x", (2, 3, 8, 8)), 8))
    return net.model(net.conv(net.relu(net.conv(x, 6)), 4), **options)


def rewired(model: ModelProto, change: Callable[[ModelProto], None]) -> ModelProto:
    change(model)
    onnx.checker.check_model(model)
    return model


# --- where a value is stored


def as_constant(model: ModelProto, name: str, make: Callable[[Any], AttributeProto]) -> ModelProto:
    """The model with one initializer in a Constant node."""
    (tensor,) = [t for t in model.graph.initializer if t.name == name]
    node = NodeProto(op_type="Constant", output=[name], name=name)
    node.attribute.append(make(numpy_helper.to_array(tensor)))
    model.graph.initializer.remove(tensor)
    model.graph.node.insert(0, node)
    return model


def sparse(array: np.ndarray[Any, Any], name: str, flat: bool = True) -> onnx.SparseTensorProto:
    """Two thirds of the values, as ONNX stores a sparse tensor."""
    mask = np.arange(array.size).reshape(array.shape) % 3 > 0
    where = np.flatnonzero(mask) if flat else np.argwhere(mask)
    return helper.make_sparse_tensor(
        numpy_helper.from_array(array[mask], name),
        numpy_helper.from_array(where.astype(np.int64), f"{name}.where"),
        array.shape,
    )


STORED: dict[str, tuple[str, Callable[[Any], AttributeProto]]] = {
    "value": ("Conv_0.weight", lambda a: helper.make_attribute(
        "value", numpy_helper.from_array(a))),
    "value_floats": ("Conv_0.bias", lambda a: helper.make_attribute("value_floats", a.tolist())),
    "sparse_value": ("Conv_1.weight", lambda a: helper.make_attribute(
        "sparse_value", sparse(a, "", flat=False))),
    "sparse_value_flat": ("Conv_1.weight", lambda a: helper.make_attribute(
        "sparse_value", sparse(a, ""))),
}  # fmt: skip


@pytest.mark.parametrize("way", STORED)
def test_constant_node(way: str) -> None:
    check(as_constant(two_convs(), *STORED[way]), 2)


def test_constant_nodes_of_sizes() -> None:
    """Single numbers and lists of them, as the sizes of a Reshape and the bounds of a Clip."""
    net = Net("sizes")
    a = net.node(
        "Clip",
        net.conv(net.input("x", (2, 3, 4, 4)), 8),
        net.node("Constant", value_float=0.0),
        net.node("Constant", value_float=6.0),
    )
    rows = net.node("Reshape", a, net.node("Constant", value_ints=[2, 128]), shape=[2, 128])
    part = net.node("Gather", rows, net.node("Constant", value_int=0), axis=0)
    check(net.model(net.gemm(net.unsqueeze(part, 0), 5)), 1)


def test_constant_node_of_text() -> None:
    net = Net("text")
    words = net.node("Constant", value_strings=["a", "b"], shape=[2])
    words.dtype = np.dtype(np.str_)
    y = net.conv(net.relu(net.conv(net.input("x", (2, 3, 8, 8)), 8)), 4)
    model = net.model(y, net.node("Identity", words, shape=[2]))
    model.graph.output[1].type.tensor_type.elem_type = TensorProto.STRING
    check(model, 1)


@pytest.mark.parametrize("flat", [True, False])
def test_sparse_initializer(flat: bool) -> None:
    model = two_convs()
    (tensor,) = [t for t in model.graph.initializer if t.name == "Conv_1.weight"]
    model.graph.sparse_initializer.append(
        sparse(numpy_helper.to_array(tensor), "Conv_1.weight", flat)
    )
    model.graph.initializer.remove(tensor)
    onnx.checker.check_model(model)
    groups = check(model, 2)
    assert "Conv_1.weight:1" in {f"{m.tensor}:{m.axis}" for m in groups[0].members}


@pytest.mark.parametrize(
    ("where", "shape", "says"),
    [([5, 99], (4, 4), "contradicts itself"), ([0, 1], (2**20, 2**20), "too large")],
)
def test_bad_sparse_tensors(where: list[int], shape: tuple[int, ...], says: str) -> None:
    model = two_convs()
    values = numpy_helper.from_array(np.ones(2, np.float32), "spare")
    places = numpy_helper.from_array(np.asarray(where, np.int64), "places")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, places, shape))
    with pytest.raises(ModelError, match=f"'spare'.*{says}"):
        load(model)


@pytest.mark.parametrize("ir_version", [3, 8])
def test_initializers_that_are_inputs(ir_version: int) -> None:
    check(two_convs(opset=8, ir_version=ir_version, initializers_as_inputs=True), 2)


def test_unused_initializers_stay() -> None:
    model = two_convs()
    model.graph.initializer.append(numpy_helper.from_array(np.ones((8, 8), np.float32), "spare"))
    result = spa.prune(model, "channels=0.5", **PLAIN)
    assert "spare" in {t.name for t in result.model.graph.initializer}
    check(model, 2)


# --- a value that several nodes read


def shared_bias(wires: str, distinct: bool) -> ModelProto:
    """Three convolutions of 8 channels, whose biases are one tensor, or equal, or differ."""

    def body(net: Net, x: Tensor) -> Tensor:
        b = net.uniform(-1, 1, 8, name="bias")
        for k in range(3):
            own = b
            if distinct:
                own = net.const(b.values + np.float32(k), f"bias_of_{k}")
            elif wires == "copies":
                own = net.const(b.values, f"bias_of_{k}")
            for _ in range({"aliases": int(k > 0), "chain": k}.get(wires, 0)):
                own = net.node("Identity", own)
            w = net.weight(8, x.shape[1], 3, 3)
            x = net.relu(net.node("Conv", x, w, own, pads=[1] * 4))
        return x

    net = Net("shared")
    return net.model(net.conv(body(net, net.input("x", (2, 3, 8, 8))), 4))


@pytest.mark.parametrize("distinct", [False, True])
@pytest.mark.parametrize("wires", ["one", "aliases", "chain", "copies"])
def test_a_shared_bias_couples_nothing(wires: str, distinct: bool) -> None:
    check(shared_bias(wires, distinct), 3)


def test_weight_shared_through_identity() -> None:
    """Tied to itself where both layers have the same ends, free where a copy is made."""
    net = Net("tied")
    w = net.weight(8, 8, 3, 3)
    x = net.relu(net.conv(net.input("x", (2, 3, 8, 8)), 8))
    for weight in (w, net.node("Identity", w)):
        x = net.relu(net.node("Conv", x, weight, pads=[1] * 4))
    check(net.model(net.conv(x, 4)), 3)


def test_scale_shared_by_normalisations() -> None:
    net = Net("norms")
    parts = [net.uniform(0.5, 1, 8) for _ in range(4)]
    x = net.input("x", (2, 3, 8, 8))
    for _ in range(2):
        x = net.node("BatchNormalization", net.conv(x, 8), *parts)
    check(net.model(net.conv(x, 4)), 2)


# --- element types


def typed(model: ModelProto, kind: int) -> ModelProto:
    """The model with every float made one of this kind."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            array = numpy_helper.to_array(tensor).astype(helper.tensor_dtype_to_np_dtype(kind))
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for info in (*model.graph.input, *model.graph.output):
        info.type.tensor_type.elem_type = kind
    del model.graph.value_info[:]
    return model


# onnxruntime has no convolution of doubles, ONNX none of bfloat16 before opset 22.
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("FLOAT16", n) for n in ("residual_add", "multi_head", "squeeze_excite", "layer_norm")),
        *(("BFLOAT16", n) for n in ("multi_head", "layer_norm")),
        *(("DOUBLE", n) for n in ("residual_add", "multi_head", "layer_norm")),
    ],
)
def test_other_floats(kind: str, name: str) -> None:
    make, _ = HAZARDS[name]
    model = typed(make(), TensorProto.DataType.Value(kind))
    found = [(g.name, g.size, g.kind, g.exact) for g in spa.analyze(make())]
    runnable = kind != "BFLOAT16" and (kind, name) != ("DOUBLE", "residual_add")
    groups = check(model, len(found), runnable=runnable)
    assert [(g.name, g.size, g.kind, g.exact) for g in groups] == found


# --- names


def test_unnamed_nodes() -> None:
    model = two_convs()
    for node in model.graph.node:
        node.name = ""
    groups = check(model, 2)
    assert len({n.name for n in groups.graph.nodes}) == len(groups.graph.nodes)


def test_nodes_of_one_name() -> None:
    model = two_convs()
    for node in model.graph.node:
        node.name = "same"
    check(model, 2)


def test_the_domain_by_its_long_name() -> None:
    model = two_convs()
    for node in model.graph.node:
        node.domain = "ai.onnx"
    model.opset_import[0].domain = "ai.onnx"
    check(model, 2)


def test_domains_that_nothing_uses() -> None:
    model = two_convs()
    for domain in ("com.microsoft", "ai.onnx.ml", "my.own"):
        model.opset_import.append(helper.make_opsetid(domain, 1))
    check(model, 2)


# --- outputs


def test_output_is_an_input_or_a_constant() -> None:
    net = Net("through")
    x = net.input("x", (2, 3, 8, 8))
    kept = net.weight(6, 8, 3, 3)
    y = net.relu(net.node("Conv", net.relu(net.conv(x, 8)), kept))
    model = net.model(net.conv(y, 4), kept)
    model.graph.output.append(model.graph.input[0])
    check(model, 0)


def test_output_is_a_constant_node() -> None:
    net = Net("constant")
    b = net.node("Constant", value=np.arange(8, dtype=np.float32))
    y = net.node("Conv", net.input("x", (2, 3, 8, 8)), net.weight(8, 3, 3, 3), b)
    check(net.model(net.conv(net.conv(y, 6), 4), b), 1)


def test_a_constant_of_two_outputs() -> None:
    """An output that nothing computes, and another that is an inner tensor as well."""
    net = Net("outputs")
    a = net.relu(net.conv(net.input("x", (2, 3, 8, 8)), 8))
    check(net.model(net.conv(net.conv(a, 6), 4), net.node("Identity", a)), 1)


def test_empty_optional_inputs_and_outputs() -> None:
    net = Net("empty")
    a = net.node("Clip", net.conv(net.input("x", (2, 3, 8, 8)), 8), None, 6.0)
    a = net.node("Dropout", a, None, None)
    a = net.node("Resize", a, None, [1.0, 1.0, 2.0, 2.0], None)
    model = net.model(net.conv(a, 4))
    (dropout,) = [n for n in model.graph.node if n.op_type == "Dropout"]
    dropout.output.append("")
    check(model, 1)


def test_empty_outputs_before_a_full_one() -> None:
    net = Net("states")
    x = net.linear(net.input("x", (5, 2, 6)), 8)
    weights = net.weight(1, 24, 8, fan=8), net.weight(1, 24, 6, fan=6)
    made = net.nodes("LSTM", [x, *weights], 3, hidden_size=6)
    model = net.model(net.linear(made[2], 4))
    (lstm,) = [n for n in model.graph.node if n.op_type == "LSTM"]
    lstm.output[0] = lstm.output[1] = ""
    check(model, 2)


# --- functions

NESTED = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1, "inner" : 1]>
main (float[2, 6] x) => (float[2, 3] y)
<float[6, 16] w1, float[16, 12] w2, float[12, 3] w3> {
   h = local.block <slope = 0.2> (x, w1)
   g = local.block (h, w2)
   y = MatMul (g, w3)
}
<domain: "local", opset_import: ["" : 17, "inner" : 1]>
block <slope: float = 0.1> (x, w) => (y) {
   z = inner.dense (x, w)
   y = LeakyRelu <alpha: float = @slope> (z)
}
<domain: "inner", opset_import: ["" : 17]>
dense (x, w) => (y) {
   half = Constant <value_float: float = 0.5> ()
   z = MatMul (x, w)
   y = Mul (z, half)
}
"""

SHADOWED = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
main (float[2, 6] x) => (float[2, 3] y)
<float[6, 16] w1, float[16, 3] w2> {
   h = local.Relu (x, w1)
   y = MatMul (h, w2)
}
<domain: "local", opset_import: ["" : 17]>
Relu (x, w) => (y) {
   z = MatMul (x, w)
   y = Relu (z)
}
"""

INNER = '<domain: "inner", opset_import: ["" : 17]>'
OLDER = NESTED.replace(INNER, INNER.replace("17", "14"))  # where MatMul and Mul are what they are
OLDEST = NESTED.replace(INNER, INNER.replace("17", "13"))  # where Mul is another

OVERLOADED = """
<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
main (float[2, 6] x) => (float[2, 3] y)
<float[6, 16] w1, float[16, 12] w2, float[12, 3] w3> {
   h = local.dense (x, w1)
   g = local.dense (h, w2)
   y = MatMul (g, w3)
}
<domain: "local", overload: "a", opset_import: ["" : 21]>
dense (x, w) => (y) {
   z = MatMul (x, w)
   y = Relu (z)
}
<domain: "local", overload: "b", opset_import: ["" : 21]>
dense (x, w) => (y) {
   z = MatMul (x, w)
   y = Sin (z)
}
"""


def with_weights(text: str) -> ModelProto:
    """The model, with random values for what its text declares in angle brackets."""
    model = parser.parse_model(text)
    random = np.random.default_rng(0)
    for info in model.graph.value_info:
        shape = [d.dim_value for d in info.type.tensor_type.shape.dim]
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(array, info.name))
    return model


@pytest.mark.parametrize(
    ("text", "groups"),
    [(NESTED, 2), (SHADOWED, 1), (OLDER, 2)],
    ids=["nested", "shadowed", "older"],
)
def test_functions(text: str, groups: int) -> None:
    graph = load(with_weights(text))
    assert not graph.model.functions
    found = spa.prune(with_weights(text), "channels=0.5", **PLAIN)
    assert len(found.groups) == groups
    assert found.verification is not None
    assert found.verification.law is not None


def test_a_function_of_another_opset_is_left_alone() -> None:
    groups = spa.analyze(with_weights(OLDEST))
    assert len(groups) == 0
    assert set(groups.unknown) == {"dense"}


def test_overloads() -> None:
    model = with_weights(OVERLOADED)
    for node, overload in zip(model.graph.node, "ab", strict=False):
        node.overload = overload
    assert [n.op_type for n in load(model).nodes] == ["MatMul", "Relu", "MatMul", "Sin", "MatMul"]
    found = spa.prune(model, "channels=0.5", **PLAIN)
    assert [g.size for g in found.groups] == [16, 12]
    assert found.verification is not None
    assert found.verification.law is not None


# --- size

LARGE = """
import resource, sys
import spa
resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))
groups = spa.analyze(sys.argv[1])
assert [g.size for g in groups] == [16896]
cut = {"criterion": "random", "compensate": "none", "repair": "none"}
result = spa.prune(sys.argv[1], "channels=0.05", verify=False, **cut)
spa.save(result.model, sys.argv[2])
"""


def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    """Weights in a file of 2.2 GB, all of it a hole, are never in memory as a whole."""
    path, ends = tmp_path / "m.onnx", (16384, 16896, 16384)
    net = Net("large")
    h = net.relu(net.matmul(net.input("x", (1, 16384)), net.input("w0", ends[:2])))
    model = net.model(net.matmul(h, net.input("w1", ends[1:])))
    for k in (0, 1):
        tensor = model.graph.initializer.add(
            name=f"w{k}", data_type=TensorProto.FLOAT, dims=ends[k : k + 2], data_location=1
        )
        size = 4 * ends[k] * ends[k + 1]
        for key, value in (("location", "m.data"), ("offset", k * size), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
    path.write_bytes(model.SerializeToString())
    with (tmp_path / "m.data").open("wb") as file:
        file.truncate(2 * size)
    code = [sys.executable, "-c", LARGE, str(path), str(tmp_path / "small.onnx")]
    done = subprocess.run(code, capture_output=True, text=True, check=False)
    (tmp_path / "m.data").unlink()
    assert done.returncode == 0, done.stderr
    shapes = [list(t.dims) for t in onnx.load(tmp_path / "small.onnx").graph.initializer]
    assert shapes == [[16384, 845], [845, 16384]]


# --- what the file says of inner tensors


def test_a_name_for_a_size_that_changes_in_one_place_only() -> None:
    """Exporters name a merged axis, such as 8*n; where it shrinks it must not bear the name on."""
    net = Net("merged")
    x = net.input("x", ("n", 3, 8, 8))
    merged = []
    for _ in range(2):
        rows = net.relu(net.reshape(net.relu(net.conv(x, 8)), [-1, 8, 8]))
        merged += [rows, net.transpose(net.relu(net.transpose(rows, 0, 2, 1)), 0, 2, 1)]
        x = net.reshape(merged[-1], [-1, 8, 8, 8])
    model = net.model(net.conv(x, 4))
    del model.graph.value_info[:]
    model.graph.value_info.extend(
        helper.make_tensor_value_info(t.name, TensorProto.FLOAT, ["8*n", 8, 8]) for t in merged
    )
    check(model, 2)
