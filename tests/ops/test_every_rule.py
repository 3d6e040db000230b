"""Every operator of onnx has a rule and every rule has a row, so that none is forgotten."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import onnx

from spa import rules
from spa.propagate import load_rules
from tests.ops.cases import Case

OLDEST = 7  # the first opset that onnxruntime runs

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
        shown |= {(node.domain, node.op_type) for node in case.model().graph.node}
    known = {key for key, rule in rules.RULES.items() if rule.family != "lock"}  # its own test
    assert known - shown == set()


def test_every_form_of_an_operator_has_a_case() -> None:
    """A form is what its versions from opset 7 on call their inputs, outputs and attributes."""
    load_rules()
    versions: dict[tuple[str, str], dict[int, object]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        found = versions.setdefault((schema.domain, schema.name), {})
        found[schema.since_version] = _form(schema)

    def form(model: onnx.ModelProto, node: onnx.NodeProto) -> tuple[str, str, object]:
        key = (node.domain, node.op_type)
        opset = next(o.version for o in model.opset_import if o.domain == node.domain)
        return *key, versions[key][max(v for v in versions[key] if v <= opset)]

    shown = {
        form(model, node)
        for model in (case.model() for case in _cases())
        for node in model.graph.node
        if (node.domain, node.op_type) in versions
    }
    for key, forms in versions.items():
        if key in rules.RULES and rules.RULES[key].family != "lock":
            oldest = max((v for v in forms if v <= OLDEST), default=0) if key[0] == "" else 0
            missing = [v for v in forms if v >= oldest and (*key, forms[v]) not in shown]
            assert not missing, f"{key}: no case for versions {missing}"


def _form(schema: onnx.defs.OpSchema) -> object:
    attributes = {
        (name, str(a.type), a.default_value.SerializeToString())
        for name, a in schema.attributes.items()
    }
    names = (tuple(v.name.lower() for v in vs) for vs in (schema.inputs, schema.outputs))
    return *names, frozenset(attributes)


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
