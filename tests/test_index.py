"""One list of all nodes: those in bodies, under names that mean one thing each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper

import spa
from models.builder import Net, Tensor
from models.graph import graphs_of
from spa.errors import ModelError
from spa.index import index
from spa.reader import load
from tests.conftest import PLAIN
from tests.oracle import check

Branch = Callable[[Net, Tensor], Tensor]


def two_layers(net: Net, x: Tensor) -> Tensor:
    return net.gemm(net.relu(net.gemm(x, 6)), 8)


def branched(then: Branch = two_layers, other: Branch = two_layers) -> ModelProto:
    """Eight features through one of two branches."""
    net = Net("branched")
    x, flag = net.input("x", [2, 3]), net.input("flag", [], np.bool_)
    a = net.relu(net.gemm(x, 8))
    bodies = {}
    for name, make in (("then_branch", then), ("else_branch", other)):
        with net.body() as body:
            body.outputs = [make(net, a)]
        bodies[name] = body
    return net.model(net.gemm(net.node("If", flag, shape=[2, 8], **bodies), 4))


def body_of(model: ModelProto, branch: str) -> GraphProto:
    (node,) = [n for n in model.graph.node if n.op_type == "If"]
    found: GraphProto = next(a.g for a in node.attribute if a.name == branch)
    return found


def named_alike(model: ModelProto) -> ModelProto:
    """The model with equal names in both branches, as exporters of functions write them."""
    then, other = (body_of(model, f"{branch}_branch") for branch in ("then", "else"))
    pairs = [*zip(then.node, other.node, strict=True)]
    names = {o: t for a, b in pairs for t, o in zip(a.output, b.output, strict=True)}
    tensors = zip(then.initializer, other.initializer, strict=True)
    names |= {o.name: t.name for t, o in tensors}
    for node, (like, _) in zip(other.node, pairs, strict=True):
        node.name = like.name
        for field in (node.input, node.output):
            for k, name in enumerate(field):
                field[k] = names.get(name, name)
    for info in (*other.initializer, *other.output, *other.value_info):
        info.name = names.get(info.name, info.name)
    onnx.checker.check_model(model)
    return model


def as_constants(model: ModelProto) -> ModelProto:
    """The model with the initializers of all bodies as Constant nodes."""
    for graph in list(graphs_of(model.graph))[1:]:
        for tensor in reversed(graph.initializer):
            node = NodeProto(op_type="Constant", output=[tensor.name])
            node.attribute.append(helper.make_attribute("value", tensor))
            graph.node.insert(0, node)
        del graph.initializer[:]
    return model


def test_names_stay_where_they_are_unique() -> None:
    graph = load(branched())
    assert graph.spelling == {}
    assert {"Gemm_1.weight", "Gemm_3.weight"} <= graph.constants.keys()
    inner = [node for node in graph.nodes if node.home]
    assert [node.op_type for node in inner] == ["Gemm", "Relu", "Gemm"] * 2
    assert [graph.nodes[b.owner].op_type for b in graph.bodies[1:]] == ["If", "If"]
    assert len({node.index for node in graph.nodes}) == len(graph.nodes)
    for node in graph.nodes:
        assert all(graph.makers.get(name, -1) < node.index for name in node.inputs)
        assert graph.proto_of(node.index, graph.model).SerializeToString() == (
            node.proto.SerializeToString()
        )


@pytest.mark.parametrize("stored", [lambda model: model, as_constants])
def test_equal_names_in_both_branches(stored: Callable[[ModelProto], ModelProto]) -> None:
    model = stored(named_alike(branched()))
    graph = load(model)
    assert {"If_0/then/Gemm_1.weight", "If_0/else/Gemm_1.weight"} <= graph.constants.keys()
    assert graph.spelled("If_0/else/Gemm_1.weight") == "Gemm_1.weight"
    assert "If_0/else/Gemm_1" in {node.name for node in graph.nodes}
    groups = check(model, 4)
    assert sorted(group.size for group in groups) == [6, 6, 8, 8]


def test_a_plan_names_constants_in_bodies(tmp_path: Path) -> None:
    model = named_alike(branched())
    result = spa.prune(model, "channels=0.5", **PLAIN)
    assert "If_0/then/Gemm_1.weight" in result.plan.kept
    again = spa.prune(model, plan=spa.Plan.from_json(result.plan.to_json()), **PLAIN)
    assert again.data == result.data
    cut = {tuple(t.dims) for graph in graphs_of(result.model.graph) for t in graph.initializer}
    assert (3, 4) in cut  # the inner layer of a branch, six by eight before
    path = tmp_path / "plan.json"
    path.write_text(result.plan.to_json())
    assert spa.verify(model, result.model, path).verification.unseen == ()


def test_a_body_may_hide_an_outer_name() -> None:
    """ONNX forbids it; some exporters write it all the same."""
    model = branched()
    then = body_of(model, "then_branch")
    for node in then.node:
        for field in (node.input, node.output):
            for k, name in enumerate(field):
                field[k] = "Gemm_0.weight" if name == "Gemm_1.weight" else name
    (held,) = [t for t in then.initializer if t.name == "Gemm_1.weight"]
    held.name = "Gemm_0.weight"
    graph = index(model)
    assert graph.constants["Gemm_0.weight"].shape == (8, 3)
    assert graph.constants["If_0/then/Gemm_0.weight"].shape == (6, 8)


def test_nodes_of_a_body_in_any_order() -> None:
    model = branched()
    for branch in ("then_branch", "else_branch"):
        nodes = body_of(model, branch).node
        backwards = [NodeProto.FromString(n.SerializeToString()) for n in reversed(nodes)]
        del nodes[:]
        nodes.extend(backwards)
    assert len(spa.analyze(model)) == 4


def test_a_body_reads_what_nothing_makes() -> None:
    model = branched()
    body_of(model, "else_branch").node[0].input[0] = "nowhere"
    with pytest.raises(ModelError, match="'nowhere', which nothing before it makes"):
        load(model)


def test_small_constants_are_split_inside_of_bodies() -> None:
    """A bias that both layers of a branch read, and the layer before it."""
    net = Net("bias")
    x, flag = net.input("x", [2, 3]), net.input("flag", [], np.bool_)
    bias = net.uniform(-1, 1, 8)

    def layer(x: Tensor) -> Tensor:
        return net.relu(net.node("Gemm", x, net.weight(8, x.shape[1]), bias, transB=1))

    a = layer(x)
    bodies = {}
    for name in ("then_branch", "else_branch"):
        with net.body() as body:
            body.outputs = [layer(layer(a))]
        bodies[name] = body
    check(net.model(net.gemm(net.node("If", flag, shape=[2, 8], **bodies), 4)), 4)


@pytest.mark.parametrize(("value", "groups"), [(0.0, 2), (0.5, 2), (np.eye(4, 6), 1)])
def test_a_first_state_of_one_number_has_no_width(value: Any, groups: int) -> None:
    """Which is one constant for each layer that starts from it; others are meant to be one."""
    net = Net("states")
    x = net.input("x", (5, 4, 3))
    state = net.const(np.broadcast_to(np.float32(value), (1, 4, 6)).copy())
    for _ in range(2):
        weights = [net.uniform(-0.5, 0.5, 1, 18, n) for n in (x.shape[-1], 6)]
        y, _ = net.nodes("GRU", [x, *weights, None, None, state], 2, hidden_size=6)
        x = net.squeeze(y, 1)
    check(net.model(net.linear(x, 2)), groups)


def test_parts_of_one_vector_are_not_split() -> None:
    """What Slice takes out of one bias belongs together again behind a Concat."""
    net = Net("slices")
    bias = net.uniform(-1, 1, 8)
    turned = net.concat(net.slice(bias, 4, 8, axis=0), net.slice(bias, 0, 4, axis=0), axis=0)
    x = net.node("Gemm", net.input("x", [2, 3]), net.weight(8, 3), turned, transB=1)
    groups = check(net.model(net.gemm(net.relu(x), 2)), 2)  # one for each half
    assert [group.size for group in groups] == [4, 4]
    assert not any("@" in m.tensor for group in groups for m in group.members)


def test_bodies_that_do_not_fit_their_node_are_left_alone() -> None:
    model = branched()
    body = body_of(model, "else_branch")
    body.output.append(body.output[0])
    graph = index(model)
    assert len(graph.bodies) == 1
    (node,) = [n for n in graph.nodes if n.op_type == "If"]
    assert node.captured == {"Relu_0.out"}


def test_sparse_tensors_in_bodies_lock() -> None:
    model = branched()
    values = helper.make_tensor("spare", TensorProto.FLOAT, [1], [1.0])
    places = helper.make_tensor("places", TensorProto.INT64, [1], [0])
    body_of(model, "then_branch").sparse_initializer.append(
        helper.make_sparse_tensor(values, places, [4])
    )
    graph = index(model)
    assert len(graph.bodies) == 1


def test_external_data_in_bodies(tmp_path: Path) -> None:
    model, path = branched(), tmp_path / "m.onnx"
    expected = spa.prune(model, "channels=0.5", **PLAIN)
    for graph in graphs_of(model.graph):
        for tensor in graph.initializer:
            onnx.external_data_helper.set_external_data(tensor, "w.data")
    for attribute in [a for n in model.graph.node for a in n.attribute]:
        assert attribute.type != AttributeProto.TENSOR
    onnx.save(model, path)
    result = spa.prune(path, "channels=0.5", **PLAIN)
    assert result.verification is not None and result.verification.law is not None
    assert result.data == expected.data


def test_who_makes_a_tensor_and_which_names_are_taken() -> None:
    net = Net("names")
    x = net.relu(net.input("x", (2, 3)))
    y = net.sigmoid(x)
    graph = index(net.model(y))
    maker = graph.maker(x.name)
    assert maker is not None and maker.op_type == "Relu" and maker in graph.own
    assert (
        graph.maker(x.name, "Relu", "Sigmoid") is maker and graph.maker(x.name, "Sigmoid") is None
    )
    assert graph.maker("x") is None
    assert graph.names() >= {"x", x.name, y.name, *(node.name for node in graph.nodes)}
