"""Every operator that has a rule has a row, and every row shows a rule that numbers agree with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

import spa
from spa import rules
from spa.propagate import load_rules
from tests.isolation import check_law, check_ties, is_exempt
from tests.numeric import Finder, Lone, Partition, Runner, alone, numbers
from tests.ops.cases import Case

FAMILIES = sorted(
    p.stem for p in Path(__file__).parent.glob("test_*.py") if p.stem != "test_every_rule"
)


def _cases(families: list[str] = FAMILIES) -> list[Case]:
    found = []
    for family in families:
        for table in vars(import_module(f"tests.ops.{family}")).values():
            if isinstance(table, list):
                found += [row.values[0] for row in table if hasattr(row, "values")]
    return found


def test_every_rule_has_a_case() -> None:
    load_rules()
    shown = set()
    for case in _cases():
        if case.name.endswith("opset-18") and "GroupNormalization" in case.name:
            continue  # onnx's own inference refuses to build it
        shown |= {(node.domain, node.op_type) for node in case.model().graph.node}
    known = {key for key, rule in rules.RULES.items() if rule.family != "lock"}  # its own test
    assert known - shown == set()


def test_every_family_has_a_table() -> None:
    load_rules()
    found = {rule.family for rule in rules.RULES.values()}
    assert {f"test_{family}" for family in found} == set(FAMILIES)


# Every operator of every row, alone -------------------------------------------------------------


def lone_nodes(family: str) -> Iterator[Lone]:
    """The nodes of a family in its own rows, each distinct one once."""
    seen = set()
    for case in _cases([f"test_{family}"]):
        groups = spa.analyze(case.model())
        ties = groups.views[0].ties
        for index, op in ties.ops.items():
            rule = rules.find(op.node.op_type, op.node.domain)
            if rule is None or rule.family != family or index in ties.refused:
                continue
            lone = alone(groups, op)
            if lone is None or not _runs(lone):
                continue
            key = (op.node.op_type, op.opset, *map(str, (op.node.attrs, op.shapes, lone.fixed)))
            if (key, tuple(op.activation)) not in seen:
                seen.add((key, tuple(op.activation)))
                yield lone


def _runs(lone: Lone) -> bool:
    try:
        made = Runner(lone)(numbers(lone, np.random.default_rng(0), 0.2, 0.7))
    except (state.NotImplemented, state.InvalidGraph, state.Fail):
        return False
    foretold = [lone.op.out_shape(k) for k in lone.outputs]
    return [y.shape for y in made] == foretold  # else sizes or positions come from outside


@lru_cache(maxsize=64)
def references(family: str) -> list[tuple[Lone, list[Partition]]]:
    """Every node with what the numbers say about it, which does not depend on its rule."""
    return [
        (lone, [] if is_exempt(lone.op) else Finder(lone).alternatives())
        for lone in lone_nodes(family)
    ]


NUMERIC = [f.removeprefix("test_") for f in FAMILIES if f != "test_lock"]
# How many distinct nodes of each family run, at the least: so that none slips away.
LEAST = {
    "conv": 60, "elementwise": 130, "linear": 40, "movement": 90, "norm": 50, "pool": 30,
    "quantize": 8, "recurrent": 10, "reduce": 70, "reshape": 25,
}  # fmt: skip


@pytest.mark.parametrize("family", NUMERIC)
def test_rules_tie_what_numbers_tie(family: str) -> None:
    nodes = references(family)
    assert len(nodes) >= LEAST[family]
    for lone, alternatives in nodes:
        if alternatives:
            check_ties(lone, alternatives)


@pytest.mark.parametrize("family", NUMERIC)
def test_the_law_holds_on_lone_operators(family: str) -> None:
    for lone, _ in references(family):
        check_law(lone)
