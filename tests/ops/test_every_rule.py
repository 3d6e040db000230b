"""Every operator of onnx has a rule and every rule has a row, so that none is forgotten."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import onnx

from spa import rules
from spa.propagate import load_rules
from tests.ops.cases import Case

FAMILIES = sorted(
    p.stem for p in Path(__file__).parent.glob("test_*.py") if p.stem != "test_every_rule"
)


def _cases() -> list[Case]:
    found = []
    for family in FAMILIES:
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


def test_every_operator_of_onnx_has_a_rule() -> None:
    """Or a lock that gives its reason, which is a rule as well; and no rule is for nothing."""
    load_rules()
    defined = {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}
    domains = {domain for domain, _ in defined}
    assert {key for key in rules.RULES if key[0] in domains} == defined


def test_every_family_has_a_table() -> None:
    load_rules()
    found = {rule.family for rule in rules.RULES.values()}
    assert {f"test_{family}" for family in found} == set(FAMILIES)
