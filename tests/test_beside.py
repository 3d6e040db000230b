"""Look-ups along two axes that are laid out as one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from models.builder import Net, Tensor
from spa.groups import Groups
from tests.oracle import check

ROWS, WIDTH, COUNT, PICKED = 5, 6, 4, 2

LookUp = Callable[[Net, Tensor, Tensor, Tensor], Tensor]


def looked_up(look: LookUp, opset: int = 17) -> Groups:
    """Of logits the largest are picked, and looked up in others by their positions."""
    net = Net("rows", opset=opset)
    x = net.linear(net.input("x", (ROWS, 4)), WIDTH)
    logits, other = net.linear(x, COUNT), net.linear(x, COUNT)
    _, index = net.nodes("TopK", [logits, [PICKED]], 2, axis=-1)
    return check(net.model(net.linear(look(net, other, index, x), 3)))


def units(groups: Groups) -> list[int]:
    return [g.size for g in groups if g.size == COUNT]


def _range(net: Net) -> Tensor:
    return net.const(np.arange(ROWS)[:, None])


def _by_a_stored_size(net: Net, y: Tensor, index: Tensor, x: Tensor) -> Tensor:
    at = net.add(net.mul(_range(net), np.int64(COUNT)), index)
    return net.gather(net.reshape(y, [-1]), at)


def _by_a_size(net: Net, y: Tensor, index: Tensor, x: Tensor) -> Tensor:
    at = net.add(index, net.mul(net.dim(y, 1), _range(net)))
    return net.reshape(net.gather(net.node("Flatten", y, axis=2), at), [0, PICKED])


def _by_stored_starts(net: Net, y: Tensor, index: Tensor, x: Tensor) -> Tensor:
    at = net.add(index, net.const(np.arange(ROWS)[:, None] * COUNT))
    return net.gather(net.reshape(y, [-1]), at)


@pytest.mark.parametrize("look", [_by_a_stored_size, _by_a_size, _by_stored_starts])
@pytest.mark.parametrize("opset", [11, 17])
def test_both_axes_are_looked_up(look: LookUp, opset: int) -> None:
    groups = looked_up(look, opset)
    assert units(groups) == [COUNT]
    left = [n.op_type for n in groups.graph.nodes]
    assert "GatherND" in left and "Gather" not in left and "Mul" not in left


def _by_another_size(net: Net, y: Tensor, index: Tensor, x: Tensor) -> Tensor:
    at = net.add(net.mul(_range(net), np.int64(COUNT - 1)), index)
    return net.gather(net.reshape(y, [-1]), at)


def _by_other_positions(net: Net, y: Tensor, index: Tensor, x: Tensor) -> Tensor:
    at = net.add(net.mul(_range(net), np.int64(COUNT)), net.const([0, 1]))
    return net.add(net.gather(net.reshape(y, [-1]), at), net.cast(index, 1))


def _and_given_on(net: Net, y: Tensor, index: Tensor, x: Tensor) -> Tensor:
    at = net.add(net.mul(_range(net), np.int64(COUNT)), index)
    return net.add(net.gather(net.reshape(y, [-1]), at), net.cast(at, 1))


@pytest.mark.parametrize("look", [_by_another_size, _by_other_positions, _and_given_on])
def test_other_look_ups_stay(look: LookUp) -> None:
    groups = looked_up(look)
    assert not units(groups)
    assert groups.graph.given is None
