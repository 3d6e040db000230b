"""Stacks written as parts side by side: which are taken for one, and what then goes."""

from __future__ import annotations

from typing import Any

import pytest

import spa
from models.blocks.table import BLOCKS
from models.builder import Net, Tensor
from spa.groups import Groups
from tests.oracle import check

WIDTH, PARTS = 6, 3


def side_by_side(
    dims: Any = (-1, PARTS, WIDTH),
    sizes: tuple[int, ...] = (WIDTH,) * PARTS,
    opset: int = 17,
    use: str = "",
    weights: bool = True,
) -> Groups:
    """Parts put together along the channels, split into parts and channels, each part times a
    stored number, and summed.

    use: what else reads the parts put together. weights: whether each has some of its own.
    """
    net = Net("parts", opset=opset)
    x = net.input("x", ("n", WIDTH))
    parts = [net.linear(net.relu(net.linear(x, 5)), n) if weights else net.relu(x) for n in sizes]
    beside = net.concat(*parts)
    shape = dims(net, x) if callable(dims) else list(dims)
    y = net.node("Reshape", beside, shape, shape=("n", PARTS, WIDTH))
    y = net.mul(y, net.uniform(0.5, 1.5, PARTS, 1, name="scale"))
    y = net.linear(net.mean(y, 1), 3)
    return check(net.model(y, *([beside] if use else [])))


def units(groups: Groups) -> list[int]:
    """The sizes of the groups on the axis of the parts."""
    found = [g.size for g in groups if any(m.tensor == "scale" for m in g.members)]
    return [n for n in found if n == PARTS]


def _computed(net: Net, x: Tensor) -> Tensor:
    return net.shape_vector(net.dim(x, 0), PARTS, WIDTH)


@pytest.mark.parametrize(
    ("dims", "opset"),
    [((-1, PARTS, WIDTH), 17), ((0, PARTS, -1), 17), ((0, PARTS, -1), 11), (_computed, 17)],
)
def test_a_part_goes_with_its_branch(dims: Any, opset: int) -> None:
    groups = side_by_side(dims, opset=opset)
    assert units(groups) == [PARTS]
    assert [n.op_type for n in groups.graph.nodes].count("Unsqueeze") >= PARTS


def test_a_stack_of_which_no_part_can_go_stays_as_it_is() -> None:
    groups = spa.analyze(BLOCKS["shuffle_of_branches"][0]())
    assert groups.graph.given is None


@pytest.mark.parametrize(
    "options", [{"use": "output"}, {"weights": False}, {"sizes": (WIDTH - 2, WIDTH, WIDTH + 2)}]
)
def test_what_is_no_stack(options: dict[str, Any]) -> None:
    groups = side_by_side(**options)
    assert not units(groups)
    assert groups.graph.given is None
