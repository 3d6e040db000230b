"""Building blocks of published networks: the groups that each topology permits, and the law."""

from __future__ import annotations

import pytest

from models.blocks import BLOCKS, FALLS_SHORT
from tests.oracle import check


@pytest.mark.parametrize("name", BLOCKS)
def test_block(name: str) -> None:
    make, ideal = BLOCKS[name]
    groups = check(make(), len(ideal))
    assert sorted((g.size, g.exact) for g in groups) == sorted(ideal.values())


@pytest.mark.parametrize("name", FALLS_SHORT)
def test_falls_short(name: str) -> None:
    """Fewer groups than the topology permits, or coarser ones, but the law holds."""
    make, ideal, today, why = FALLS_SHORT[name]
    assert why
    groups = check(make(), today)
    found = sorted((g.size, g.exact) for g in groups)
    assert found != sorted(ideal.values()), f"{name} is solved: drop its today= and why="
