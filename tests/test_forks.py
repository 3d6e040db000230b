"""Inputs are made until both branches of every If were seen to run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto

import spa
from models.builder import Net, Tensor
from spa import forks, validate
from spa import run as runs
from spa.parts import parts
from spa.rewrite import rewrite

Condition = Callable[[Net, Tensor], Tensor]


def rate(net: Net, x: Tensor) -> Tensor:
    return net.node("Equal", net.input("rate", [], np.int64), np.int64(16000))


def switch(net: Net, x: Tensor) -> Tensor:
    return net.node("Not", net.input("switch", [1], np.bool_))


def share(net: Net, x: Tensor) -> Tensor:
    return net.node("Less", net.input("share", []), -0.25)


def loud(net: Net, x: Tensor) -> Tensor:
    return net.node("Greater", net.node("ReduceMax", x, keepdims=0), 8.0)


def small(net: Net, x: Tensor) -> Tensor:
    byte = net.input("byte", [], np.int8)
    return net.node("Equal", net.cast(byte, 7), np.int64(100_000))


def model(condition: Condition, least: int = 1) -> ModelProto:
    """Eight features through a branch that needs so many columns, or through another."""
    net = Net("forked")
    x = net.input("x", ["n", "w"])
    on = condition(net, x)
    a = net.relu(net.matmul(net.node("ReduceSum", x, [1], shape=["n", 1]), net.weight(1, 8)))
    bodies = {}
    for name in ("then_branch", "else_branch"):
        with net.body() as body:
            y = net.linear(net.relu(net.linear(a, 6)), 8)
            if name == "then_branch" and least > 1:
                picked = net.gather(x, [least - 1], axis=1)
                picked.shape = ["n", 1]
                y = net.add(y, picked)
            body.outputs = [y]
        bodies[name] = body
    return net.model(net.linear(net.node("If", on, shape=["n", 8], **bodies), 3))


@pytest.mark.parametrize("condition", [rate, switch, share, loud])
@pytest.mark.parametrize("least", [1, 40])
def test_both_branches_are_taken(condition: Condition, least: int) -> None:
    groups = spa.analyze(model(condition, least))
    graph, apart = groups.graph, parts(groups.graph)
    (name,) = {node.inputs[0] for node in forks.forks(graph, groups.shapes)}
    with runs.session(apart.showing([name])) as running:
        first = runs.find_inputs(graph, running)[0]
        found, unseen = forks.more(graph, groups.shapes, apart, first)
        taken = {bool(runs.run(running, i.feeds)[name].all()) for i in (first, *found)}
    assert taken == {True, False} and not unseen
    assert len(groups) == 4
    removed = {g: np.arange(2) for g in range(4)}
    verified = validate.verify(groups, rewrite(groups, removed), removed)
    assert verified.law is not None and not verified.unseen


def test_a_branch_that_no_input_takes_is_named() -> None:
    groups = spa.analyze(model(small))
    removed = {0: np.arange(2)}
    verified = validate.verify(groups, rewrite(groups, removed), removed)
    assert verified.unseen == ("If_0",)


def test_models_without_branches_run_on_nothing_more() -> None:
    net = Net("plain")
    y = net.gemm(net.relu(net.gemm(net.input("x", [2, 3]), 8)), 3)
    groups = spa.analyze(net.model(y))
    first = runs.Inputs({}, {}, {})
    assert forks.more(groups.graph, groups.shapes, parts(groups.graph), first) == ([], [])
