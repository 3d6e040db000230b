"""Every small graph that a structured pruner is known to get wrong."""

from __future__ import annotations

import pytest

from models.hazards import HAZARDS, UNRUNNABLE
from tests.oracle import check

# Where the maker leaves the number open: what this tool does, and why.
POLICY = {
    "dead_branch": 3,  # what nothing reads can go as well
    "gather_repeats": 3,  # channels picked twice, channels picked once, and the reader's
    "channel_pad_shortcut": 2,  # 8 real channels and the 8 that were padded, each with its reader's
    # 8 in pairs, 12 in fours, 8 in pairs; whole groups of the first and of the second
    "shuffle_between_grouped": 5,
    "shared_bias": 2,  # each reader has its copy of a bias
    "bias_shared_with_output": 1,  # likewise, so that the first convolution is free
    "multi_head": 3,  # whole heads; the dims of q and k; the dims of v
    "scale_by_shape": 2,  # the dims of q and k, whose number the scale keeps; the dims of v
    "mean_by_shape": 1,  # the divisor stays what it was
    "range_over_channels": 1,  # numbers of channels are data: only the second convolution is free
    "heads_by_shared_quotient": 4,  # the input's width, and as multi_head
    "relative_positions": 3,  # as multi_head
    "causal_by_range": 3,
    "heads_in_the_batch": 3,
}


@pytest.mark.parametrize(
    "name",
    HAZARDS,
)
def test_hazard(name: str) -> None:
    make, groups = HAZARDS[name]
    expected = POLICY[name] if groups is None else groups
    check(make(), expected, runnable=name not in UNRUNNABLE)


def test_policy_covers_what_the_makers_leave_open() -> None:
    assert set(POLICY) == {name for name, (_, groups) in HAZARDS.items() if groups is None}


@pytest.mark.parametrize("name", ["residual_chain", "multi_head", "shuffle", "flatten", "split"])
@pytest.mark.parametrize("seed", range(3))
def test_hazard_other_units(name: str, seed: int) -> None:
    check(HAZARDS[name][0](), seed=seed + 1)
