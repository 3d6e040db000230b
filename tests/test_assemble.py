"""What the cut writes into bodies: sizes, corrections, types, names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import GraphProto, ModelProto, TensorProto, helper, numpy_helper

import spa
from models.builder import Dim, Net, Tensor
from models.graph import graphs_of
from spa.rewrite import rewrite
from tests.oracle import check


def body_of(model: ModelProto, name: str) -> GraphProto:
    (found,) = [
        a.g for graph in graphs_of(model.graph) for n in graph.node for a in n.attribute
        if a.name == name
    ]  # fmt: skip
    graph: GraphProto = found
    return graph


def sized(batch: Dim, then: Callable[[Net, Tensor], Tensor]) -> ModelProto:
    """A branch gives the size of one image by that of another, which may shrink."""
    net = Net("sized")
    x, flag = net.input("x", [batch, 3, 4, 4]), net.input("flag", [], np.bool_)
    a, b = net.relu(net.conv(x, 8, 1)), net.relu(net.conv(x, 8, 1))
    bodies: dict[str, Any] = {}
    with net.body() as body:
        body.outputs = [then(net, b)]
    bodies["then_branch"] = body
    with net.body() as body:
        body.outputs = [net.shape_vector(-1, 8, 16)]
    bodies["else_branch"] = body
    size = net.node("If", flag, shape=[3], **bodies)
    size.dtype = np.dtype(np.int64)
    rows = net.node("Reshape", a, size, shape=[batch, 8, 16])
    return net.model(net.conv(rows, 5, 1), net.conv(b, 5, 1))


def of_channels(net: Net, b: Tensor) -> Tensor:
    return net.shape_vector(-1, net.dim(b, 1), 16)


def of_all(net: Net, b: Tensor) -> Tensor:
    """In a way that cannot be followed back to what stores it."""
    return net.add(net.shape_vector(net.dim(b, 0), net.dim(b, 1), 16), [0, 0, 0])


@pytest.mark.parametrize("batch", [2, "n"])
@pytest.mark.parametrize(("then", "count"), [(of_channels, 2), (of_all, 1)])
def test_a_branch_leaves_the_size_that_it_left_before(
    batch: Dim, then: Callable[[Net, Tensor], Tensor], count: int
) -> None:
    """Where the branches leave different sizes, the data decide, and what has it is whole."""
    groups = check(sized(batch, then), count)
    before = body_of(groups.graph.model, "then_branch")
    pruned = rewrite(groups, {g: np.arange(4) for g in range(count)})
    after = body_of(pruned, "then_branch")
    changed = before.output[0].name != after.output[0].name or len(after.node) > len(before.node)
    assert changed == (count == 1)


def test_inner_types_shrink() -> None:
    net = Net("typed")
    x, flag = net.input("x", [2, 3]), net.input("flag", [], np.bool_)
    a = net.relu(net.gemm(x, 8))
    bodies = {}
    for name in ("then_branch", "else_branch"):
        with net.body() as body:
            body.outputs = [net.relu(net.gemm(a, 6))]
        bodies[name] = body
    model = net.model(net.gemm(net.node("If", flag, shape=[2, 6], **bodies), 4))
    groups = spa.analyze(model)
    pruned = rewrite(groups, {0: np.arange(2), 1: np.arange(3)})
    for graph in list(graphs_of(pruned.graph))[1:]:
        dims = {
            info.name: [d.dim_value for d in info.type.tensor_type.shape.dim]
            for info in (*graph.value_info, *graph.output)
        }
        assert dims[graph.output[0].name] == [2, 3]
        assert dims["Relu_0.out"] == [2, 6]  # of the graph around it
        assert [list(t.dims) for t in graph.initializer] == [[3, 6], [3]]


def test_constants_in_old_files_come_first() -> None:
    """Before IR version 4 what is added is a node, and bodies read it too."""
    net = Net("old", opset=8)
    x = net.input("x", [2, 3, 4, 4])
    shape = net.const(np.asarray([2, -1, 16]))
    a = net.node("Reshape", net.conv(x, 8, 1), shape, shape=[2, 8, 16])
    back = net.node("Reshape", a, net.const(np.asarray([2, 8, 4, 4])), shape=[2, 8, 4, 4])
    model = net.model(net.conv(back, 5, 1), ir_version=3, initializers_as_inputs=True)
    check(model, 1)


def test_nothing_else_in_a_body_changes() -> None:
    net = Net("kept")
    x, flag = net.input("x", [2, 3]), net.input("flag", [], np.bool_)
    bodies = {}
    for name in ("then_branch", "else_branch"):
        with net.body() as body:
            body.outputs = [net.gemm(net.relu(net.gemm(x, 6)), 4)]
        bodies[name] = body
    model = net.model(net.node("If", flag, shape=[2, 4], **bodies))
    then = body_of(model, "then_branch")
    then.doc_string = "kept"
    then.initializer.append(numpy_helper.from_array(np.ones(3, np.float32), "spare"))
    then.node[0].doc_string = "first"
    model.graph.node[0].attribute.append(helper.make_attribute("spa.extra", "x"))
    del model.graph.node[0].attribute[-1]
    groups = spa.analyze(model)
    assert rewrite(groups, {}).SerializeToString(deterministic=True) == (
        model.SerializeToString(deterministic=True)
    )
    pruned = rewrite(groups, {0: np.arange(2)})
    cut = body_of(pruned, "then_branch")
    assert cut.doc_string == "kept" and cut.node[0].doc_string == "first"
    assert [n.name for n in cut.node] == [n.name for n in then.node]
    assert [t.name for t in cut.initializer] == [t.name for t in then.initializer]
    assert {t.data_type for t in cut.initializer} == {TensorProto.FLOAT}
