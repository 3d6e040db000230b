"""Mixtures of experts: their width, and experts with their column of the router."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import spa
from models.builder import Net, Tensor
from spa.rewrite import rewrite
from tests.ops.cases import TOKENS, Body, Case, case, contrib

EXPERTS, WIDTH = 4, 6


def _moe(*, bias: bool = True, fusion: int | None = None, **attrs: Any) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        router = net.reshape(net.linear(a, EXPERTS), [-1, EXPERTS])
        first = WIDTH * (2 if fusion else 1)
        inputs: list[Any] = [a, router]
        for out, width in ((first, 8), (8, WIDTH)):
            inputs += [net.weight(EXPERTS, out, width, fan=width)]
            inputs += [net.uniform(-1, 1, EXPERTS, out) if bias else None]
        return contrib(net, "MoE", inputs, (2, 5, 8), swiglu_fusion=fusion, **attrs)[0]

    return body


# What is read and written, the width of the experts, and the experts, which share a probability.
CASES = [
    case("relu", 3, _moe(k=2), shape=TOKENS),
    case("no-bias", 3, _moe(bias=False, activation_type="silu"), shape=TOKENS),
    case(
        "all-of-them",
        3,
        _moe(k=4, activation_type="gelu", normalize_routing_weights=1),
        shape=TOKENS,
    ),
    case("interleaved", 3, _moe(k=2, fusion=1, activation_type="swiglu"), shape=TOKENS),
    case("mixer", 2, _moe(k=2, use_sparse_mixer=1), shape=TOKENS),
]


@pytest.mark.parametrize("row", CASES)
def test_experts(row: Case) -> None:
    row.check()


def test_no_more_experts_are_picked_than_are_left() -> None:
    groups = spa.analyze(Case("", 3, _moe(k=3), TOKENS).model())
    (at,) = [g for g, group in enumerate(groups) if group.size == EXPERTS]
    pruned = rewrite(groups, {at: np.arange(2)})
    (node,) = [n for n in pruned.graph.node if n.op_type == "MoE"]
    assert [a.i for a in node.attribute if a.name == "k"] == [2]
