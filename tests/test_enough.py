"""How many units have to stay where the best few of an axis are picked."""

from __future__ import annotations

import numpy as np
import pytest

import spa
from models.builder import Net
from spa.groups import Groups
from spa.rewrite import rewrite
from tests.oracle import check_cut

ROWS, COLUMNS = 4, 3


def picked(count: int, grid: bool, width: int = ROWS * COLUMNS) -> Groups:
    """The best few of a layer; as a grid, the layer is split in two axes before."""
    net = Net("best")
    y = net.linear(net.input("x", (5, 6)), width)
    if grid:
        y = net.reshape(net.relu(net.reshape(y, [5, ROWS, -1])), [5, -1])
    best, _ = net.nodes("TopK", [y, [count]], 2, axis=-1)
    return spa.analyze(net.model(net.linear(best, 3)))


def test_of_one_group_as_many_as_are_picked() -> None:
    (group,) = [g for g in picked(5, grid=False) if g.size == ROWS * COLUMNS]
    assert group.least == 5


@pytest.mark.parametrize("count", range(1, ROWS * COLUMNS + 1))
def test_of_two_that_cross_enough_together(count: int) -> None:
    groups = picked(count, grid=True)
    by_size = {group.size: g for g, group in enumerate(groups)}
    rows, columns = (groups[by_size[n]] for n in (ROWS, COLUMNS))
    assert rows.least * columns.least >= count
    spare = [(rows.least - 1) * columns.least, rows.least * (columns.least - 1)]
    assert min(rows.least, columns.least) == 1 or min(spare) < count
    removed = {by_size[g.size]: np.arange(g.size - g.least) for g in (rows, columns)}
    check_cut(groups, rewrite(groups, removed), removed)
