"""Stacks of queries, keys and values: taken apart where that is all they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, helper

import spa
from models.builder import Net, Tensor
from tests.conftest import PLAIN
from tests.oracle import check

H, D = 4, 6
FREE = ("batch", "tokens", 8)


def _attention(net: Net, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = net.softmax(net.matmul(q, net.transpose(k, 0, 1, 3, 2)))
    y = net.transpose(net.matmul(scores, v), 0, 2, 1, 3)
    return net.linear(net.reshape(y, [0, 0, H * D]), 5)


def _model(
    x: Any = (2, 5, 8), opset: int = 17, computed: bool = False, use: str = ""
) -> ModelProto:
    """One weight for queries, keys and values.

    computed: the shape of the stack is put together at run time.
    use: what else happens to the stack: it is an output, or it is read as a whole.
    """
    net = Net("stack", opset=opset)
    x = net.input("x", x)
    y = net.linear(x, 3 * H * D)
    dims = net.shape_vector(net.dim(x, 0), net.dim(x, 1), 3, H, D) if computed else [0, 0, 3, H, D]
    stack = net.node("Reshape", y, dims)
    moved = net.transpose(stack, 2, 0, 3, 1, 4)
    outputs = [_attention(net, *(net.gather(moved, np.int64(i)) for i in range(3)))]
    if use:
        outputs.append(stack if use == "output" else net.relu(moved))
    return net.model(*outputs)


@pytest.mark.parametrize("opset", [9, 12, 13, 21])
def test_queries_keys_and_values_go_apart(opset: int) -> None:
    groups = check(_model(opset=opset), 3)
    assert sorted((g.kind, g.size) for g in groups) == [("head-dim", D)] * 2 + [("heads", H)]


@pytest.mark.parametrize("computed", [False, True])
def test_free_sizes_stay_free(computed: bool) -> None:
    check(_model(FREE, computed=computed), 3)


@pytest.mark.parametrize("use", ["output", "read"])
def test_a_stack_with_another_use_stays(use: str) -> None:
    model = _model(use=use)
    groups = check(model)
    assert groups.graph.given is None
    assert groups.graph.model == model


def test_a_model_without_stacks_is_not_touched() -> None:
    net = Net("plain")
    x = net.input("x", (2, 5, 8))
    model = net.model(net.linear(net.relu(net.linear(x, 8)), 5))
    assert spa.analyze(model).graph.model == model


def test_the_model_that_came_is_run_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a stack taken apart wrongly, verification would say so."""
    from spa import unstack

    def crossed(self: Any, *args: Any) -> str:
        *given, edges = args
        turned = tuple((e + H * D) % (3 * H * D) for e in edges)
        return str(correct(self, *given, turned if turned[1] > turned[0] else edges))

    correct = unstack._Builder._slice
    monkeypatch.setattr(unstack._Builder, "_slice", crossed)
    with pytest.raises(spa.ValidationError, match="the form that is cut"):
        spa.prune(_model(), "channels=0.5", **PLAIN)


def test_names_of_nodes_can_still_be_excluded() -> None:
    model = _model()
    name = next(n.name for n in model.graph.node if n.op_type == "Reshape")
    with pytest.raises(spa.UsageError, match="leaves no group"):
        spa.prune(model, "channels=0.5", exclude=[f"^{name}"], **PLAIN)


def test_constants_made_behind_the_stack() -> None:
    """As nn.MultiheadAttention is exported: the axes of a move are a Constant node right before."""
    net = Net("late")
    stack = net.reshape(net.linear(net.input("x", (5, 2, 8)), 3 * H * D), [0, 0, 3, H * D])
    moved = net.squeeze(net.transpose(net.unsqueeze(stack, 0), 3, 1, 2, 0, 4), 3)
    parts = (net.gather(moved, np.int64(i)) for i in range(3))
    q, k, v = (net.transpose(net.reshape(p, [0, 0, H, D]), 1, 2, 0, 3) for p in parts)
    model = net.model(_attention(net, q, k, v))
    stored = {t.name: t for t in model.graph.initializer}
    for at in range(len(model.graph.node) - 1, -1, -1):
        node = model.graph.node[at]
        if node.op_type in ("Unsqueeze", "Squeeze"):
            axes = node.input[1]
            made = helper.make_node("Constant", [], [axes], name=axes, value=stored[axes])
            model.graph.initializer.remove(stored[axes])
            model.graph.node.insert(at, made)
    check(model, 3)
