"""Branches of a stack that go with one index of its axis: which can, and which have to stay."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import spa
from models.builder import Net, Tensor
from spa.cost import CostModel
from spa.groups import Groups
from spa.rewrite import rewrite
from spa.wake import branches, shortened
from tests.oracle import check

ROWS, WIDTH, BRANCHES = 7, 6, 3

Stacked = Callable[[Net, Tensor], list[Tensor]]


def branch(net: Net, x: Tensor) -> Tensor:
    return net.unsqueeze(net.linear(net.relu(net.linear(x, 5)), WIDTH), 1)


def stacked(parts: Stacked) -> Groups:
    """What some parts make, stacked, each times a stored number of its own, and summed."""
    net = Net("stack")
    made = parts(net, net.linear(net.input("x", (ROWS, 4)), WIDTH))
    stack = net.concat(*made, axis=1)
    y = net.mul(stack, net.uniform(0.5, 1.5, stack.shape[1], 1, name="scale"))
    return check(net.model(net.linear(net.node("ReduceSum", y, [1], keepdims=0), 3)))


def units(groups: Groups) -> list[int]:
    """The sizes of the groups on the axis of the stack."""
    return [g.size for g in groups if any(m.tensor.startswith("scale") for m in g.members)]


def _three(net: Net, x: Tensor) -> list[Tensor]:
    return [branch(net, x) for _ in range(BRANCHES)]


def _with_the_input(net: Net, x: Tensor) -> list[Tensor]:
    return [net.unsqueeze(x, 1), *_three(net, x)]


def _with_several_at_once(net: Net, x: Tensor) -> list[Tensor]:
    return [net.concat(*_three(net, x), axis=1), branch(net, x), net.unsqueeze(x, 1)]


@pytest.mark.parametrize(
    ("parts", "size"),
    [(_three, BRANCHES), (_with_the_input, BRANCHES), (_with_several_at_once, BRANCHES)],
)
def test_branches_that_can_go(parts: Stacked, size: int) -> None:
    assert units(stacked(parts)) == [size]


def test_the_branch_goes_and_its_costs() -> None:
    groups = stacked(_three)
    (g,) = [g for g, group in enumerate(groups) if group.size == BRANCHES]
    removed = {g: np.asarray([0, 2])}
    graph, pruned = shortened(groups, removed), rewrite(groups, removed)
    assert [len(n.input) for n in pruned.graph.node if n.op_type == "Concat"] == [1]
    assert len(groups.graph.model.graph.node) - len(pruned.graph.node) == len(graph.dead) == 12
    assert len(branches(groups)[g]) == BRANCHES
    assert CostModel(groups).of(groups, removed) == CostModel(spa.analyze(pruned))()


def _views(net: Net, x: Tensor) -> list[Tensor]:
    """No weights go with any of them."""
    return [net.unsqueeze(y, 1) for y in (net.relu(x), net.sigmoid(x), net.mul(x, 2.0))]


def _steps(net: Net, x: Tensor) -> list[Tensor]:
    """Each is made from the one before, by weights of its own; the last is needed by none."""
    found = [x]
    for _ in range(BRANCHES):
        found.append(net.relu(net.linear(found[-1], WIDTH)))
    return [net.unsqueeze(y, 1) for y in found[1:]]


def _stored(net: Net, x: Tensor) -> list[Tensor]:
    return [net.uniform(-1, 1, ROWS, 1, WIDTH) for _ in range(BRANCHES)]


@pytest.mark.parametrize("parts", [_views, _steps, _stored])
def test_what_has_no_weights_of_its_own_stays(parts: Stacked) -> None:
    assert units(stacked(parts)) == []


@pytest.mark.parametrize("last", [False, True])
def test_a_branch_that_is_an_output_stays(last: bool) -> None:
    net = Net("given out")
    x = net.linear(net.input("x", (ROWS, 4)), WIDTH)
    first = net.linear(x, WIDTH)
    part = net.unsqueeze(first, 1)
    stack = net.concat(part, branch(net, x), branch(net, x))
    y = net.mul(stack, net.uniform(0.5, 1.5, 3, 1, name="scale"))
    y = net.linear(net.node("ReduceSum", y, [1], keepdims=0), 3)
    assert units(check(net.model(y, part if last else first))) == [2]


def test_what_two_stacks_share_goes_with_both() -> None:
    """PLE: each task stacks experts of its own beside shared ones."""
    net = Net("shared")
    x = net.linear(net.input("x", (ROWS, 4)), WIDTH)
    shared, made = branch(net, x), []
    for k in range(2):
        stack = net.concat(branch(net, x), branch(net, x), shared)
        y = net.mul(stack, net.uniform(0.5, 1.5, 3, 1, name=f"scale{k}"))
        made.append(net.linear(net.node("ReduceSum", y, [1], keepdims=0), 3))
    groups = check(net.model(*made))
    assert units(groups) == [3, 3]
    one, two = [g for g, group in enumerate(groups) if group.size == 3]
    last = np.asarray([2])
    needed = len(shortened(groups, {one: last}).dead)
    assert needed == 0 and len(shortened(groups, {one: last, two: last}).dead) == 6


def test_half_of_a_part_cannot_go() -> None:
    """A part is a sum of two branches with shares: it would go with both, and not with one."""
    net = Net("pairs")
    x = net.linear(net.input("x", (ROWS, 4)), WIDTH)
    shares = net.sigmoid(net.linear(x, 4))
    made = [net.mul(net.slice(shares, e, e + 1), net.linear(x, WIDTH)) for e in range(4)]
    pairs = [net.unsqueeze(net.add(*made[k : k + 2]), 1) for k in (0, 2)]
    stack = net.mul(net.concat(*pairs), net.uniform(0.5, 1.5, 2, 1, name="scale"))
    y = net.linear(net.node("ReduceSum", stack, [1], keepdims=0), 3)
    groups = check(net.model(y))
    assert units(groups) == [2] and 4 not in [g.size for g in groups]
