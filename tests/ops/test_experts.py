"""Mixtures of experts: their width, and experts with their column of the router."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import spa
from models.builder import Net, Tensor
from spa.rewrite import rewrite
from tests.ops.cases import TOKENS, UNSEEN, Body, Case, case, contrib

EXPERTS, WIDTH = 4, 6


def _moe(
    *,
    bias: bool = True,
    fusion: int | None = None,
    gate: bool = False,
    act: str = "",
    shifted: int = -1,
    **attrs: Any,
) -> Body:
    """gate: a third matrix. act: what comes before. shifted: the matrix that does not meet what is
    read with zero."""

    def body(net: Net, a: Tensor) -> Tensor:
        a = net.node(act, a) if act else a
        router = net.reshape(net.linear(a, EXPERTS), [-1, EXPERTS])
        first = WIDTH * (2 if fusion else 1)
        inputs: list[Any] = [a, router]
        for k, (out, width) in enumerate(((first, 8), (8, WIDTH), (WIDTH, 8))[: 2 + gate]):
            w = net.weight(EXPERTS, out, width, fan=width)
            if k == shifted:
                w = net.add(w, net.relu(net.uniform(0.1, 1, EXPERTS, out, 1)))
            inputs += [w, net.uniform(-1, 1, EXPERTS, out) if bias else None]
        return contrib(net, "MoE", inputs, (2, 5, 8), swiglu_fusion=fusion, **attrs)[0]

    return body


def _summed(net: Net, a: Tensor) -> Tensor:
    """What leaves the experts is zero where it is removed."""
    return net.node("ReduceSum", _moe()(net, a), [-1])


# What is read and written, the width of the experts, and the experts, which share a probability.
CASES = [
    case("relu", 3, _moe(k=2), shape=TOKENS, inexact=1),
    case("of-what-speaks", 3, _moe(act="Sigmoid"), shape=TOKENS, inexact=1),
    case("shifted", 3, _moe(shifted=0), shape=TOKENS, inexact=1),
    case("shifted-of-what-speaks", 3, _moe(shifted=0, act="Sigmoid"), shape=TOKENS, inexact=2),
    case("summed", 3, _summed, shape=TOKENS, inexact=1),
    case("gated", 3, _moe(gate=True), shape=TOKENS, typed=True, inexact=1, **UNSEEN),
    case("gated-shifted", 3, _moe(gate=True, act="Sigmoid", shifted=2), shape=TOKENS, typed=True,
         inexact=2, **UNSEEN),
    case("no-bias", 3, _moe(bias=False, activation_type="silu"), shape=TOKENS),
    case(
        "all-of-them",
        3,
        _moe(k=4, activation_type="gelu", normalize_routing_weights=1),
        shape=TOKENS,
    ),
    case("interleaved", 3, _moe(k=2, fusion=1, activation_type="swiglu"), shape=TOKENS),
    case("mixer", 2, _moe(k=2, use_sparse_mixer=1), shape=TOKENS),


]  # fmt: skip


@pytest.mark.parametrize("row", CASES)
def test_experts(row: Case) -> None:
    row.check()


def test_no_more_experts_are_picked_than_are_left() -> None:
    groups = spa.analyze(Case("", 3, _moe(k=3), TOKENS).model())
    (at,) = [g for g, group in enumerate(groups) if group.size == EXPERTS]
    pruned = rewrite(groups, {at: np.arange(2)})
    (node,) = [n for n in pruned.graph.node if n.op_type == "MoE"]
    assert [a.i for a in node.attribute if a.name == "k"] == [2]


def test_a_gate_goes_with_what_it_gates() -> None:
    groups = spa.analyze(Case("", 3, _moe(gate=True), TOKENS, typed=True).model())
    members = {group.size: [m.tensor for m in group.members] for group in groups}
    weights = ["weight", *(f"weight_{k}" for k in range(1, 6))]
    assert set(weights) - set(members[WIDTH]) == {"weight_3"}
    assert set(weights) - set(members[8]) == {"weight_1", "weight_5"}
    assert set(weights) - set(members[EXPERTS]) == set()


def test_units_of_a_fused_gate_lie_side_by_side_or_apart() -> None:
    units = {1: [[0, 1], [2, 3]], 2: [[0, WIDTH], [1, WIDTH + 1]]}
    for fusion, pairs in units.items():
        groups = spa.analyze(Case("", 3, _moe(fusion=fusion, k=2), TOKENS, typed=True).model())
        (group,) = [group for group in groups if group.size == WIDTH]
        first = max(group.members, key=lambda member: member.index.size)
        assert first.index[:2].tolist() == pairs
