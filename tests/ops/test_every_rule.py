"""Every operator has a rule or a lock, every rule a row that numbers agree with."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

import spa
from spa import rules
from spa.propagate import load_rules
from tests.isolation import check_law, check_ties, is_exempt
from tests.numeric import Finder, Lone, Partition, Runner, alone, numbers
from tests.ops.cases import Case

OLDEST = 7  # the first opset that onnxruntime runs

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
    others = {(s.domain, s.name) for s in state.get_all_operator_schema()} - defined
    assert {key for key in rules.RULES if key[0] in domains} - others == defined


def test_every_operator_of_onnxruntime_has_a_rule() -> None:
    """All that it runs on the CPU, its own domains included; and no rule is for nothing."""
    load_rules()
    kernels = [k for k in state.get_all_opkernel_def() if k.provider == "CPUExecutionProvider"]
    runs = {(k.domain, k.op_name) for k in kernels}
    assert runs <= rules.RULES.keys()
    known = {(s.domain, s.name) for s in state.get_all_operator_schema()}
    known |= {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}
    assert rules.RULES.keys() <= known


def test_every_family_has_a_table() -> None:
    load_rules()
    found = {rule.family for rule in rules.RULES.values()}
    assert {f"test_{family}" for family in found} == set(FAMILIES)


# Every operator of every row, alone -------------------------------------------------------------


# Sums in eight bits saturate and round: a small change of one number often moves nothing. And
# experts are picked: most of them speak to no output.
EIGHT_BITS = (
    "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear",
    "QGemm", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "DynamicQuantizeLSTM",
    "QLinearAveragePool", "QLinearGlobalAveragePool", "QLinearReduceMean",
    "QEmbedLayerNormalization", "QMoE",
)  # fmt: skip


@lru_cache(maxsize=64)
def lone_nodes(family: str) -> list[Lone]:
    """The nodes of a family in its own rows, each distinct one once."""
    return list(_lone_nodes(family))


def _lone_nodes(family: str) -> Iterator[Lone]:
    seen = set()
    for case in _cases([f"test_{family}"]):
        groups = spa.analyze(case.model())
        ties = groups.views[0].ties
        for index, op in ties.ops.items():
            rule = rules.find(op.node.op_type, op.node.domain)
            if rule is None or rule.family != family or index in ties.refused:
                continue
            if op.node.op_type in EIGHT_BITS:
                continue
            if index in ties.recorder.apart:  # goes with all that is made from it, if at all
                continue
            lone = alone(groups, op)
            if lone is None or not _runs(lone):
                continue
            key = (op.node.op_type, op.opset, *map(str, (op.node.attrs, op.shapes, lone.fixed)))
            if (key, tuple(op.activation)) not in seen:
                seen.add((key, tuple(op.activation)))
                yield lone


def _runs(lone: Lone) -> bool:
    """Whether it runs, and its sizes are the same on all inputs."""
    foretold = [lone.op.out_shape(k) for k in lone.outputs]
    try:
        run = Runner(lone)
        for seed in range(3):
            made = run(numbers(lone, np.random.default_rng(seed), 0.2, 0.7))
            if [y.shape for y in made] != foretold:  # sizes or positions come from outside
                return False
    except (state.NotImplemented, state.InvalidGraph, state.Fail):
        return False
    return True


@lru_cache(maxsize=64)
def references(family: str) -> list[tuple[Lone, list[Partition]]]:
    """Every node with what the numbers say about it, which does not depend on its rule."""
    return [
        (lone, [] if is_exempt(lone.op) else Finder(lone).alternatives())
        for lone in lone_nodes(family)
    ]


# Attention keeps lengths and caches whole by policy, and runs with no number of heads but its own;
# its rows in test_attention hold it to the law. A node with bodies cannot run without them,
# and sequences are no arrays.
APART = ("test_lock", "test_attention", "test_contrib_attention", "test_control", "test_sequence")
NUMERIC = [f.removeprefix("test_") for f in FAMILIES if f not in APART]
# How many distinct nodes of each family run, at the least: so that none slips away.
LEAST = {
    "along": 15, "blocked": 15, "conv": 60, "elementwise": 130, "experts": 5, "linear": 40,
    "movement": 90, "norm": 50, "pool": 30, "quantize": 8, "recurrent": 10, "reduce": 70,
    "repeat": 12, "reshape": 25,
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
    for lone in lone_nodes(family):
        check_law(lone)
