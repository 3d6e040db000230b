"""Operators that lock: every id of every input ends locked, every output is whole."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnxruntime.capi import onnxruntime_pybind11_state as state

import spa
from models.builder import Net, Tensor
from spa.axes import Recorder, is_whole
from spa.graph import Node
from spa.propagate import load_rules
from spa.rules import RULES, Op
from tests.ops.cases import Case

load_rules()
LOCKING = sorted(key for key, rule in RULES.items() if rule.family == "lock")


@pytest.mark.parametrize(("domain", "op_type"), LOCKING)
def test_lock(domain: str, op_type: str) -> None:
    recorder = Recorder()
    axes = [[recorder.fresh(4), recorder.fresh(8)], None, [recorder.fresh(3)]]
    proto = onnx.helper.make_node(op_type, ["a", "", "c"], ["y"], domain=domain)
    op = Op(
        node=Node(0, "node", op_type, domain, ("a", "", "c"), ("y",), proto),
        opset=20,
        shapes=[(4, 8), None, (3,)],
        out_shapes=[(4, 8)],
        axes=axes,
        values=[None] * 3,
        static=[True] * 3,
        activation=[True] * 3,
        recorder=recorder,
    )
    (out,) = RULES[domain, op_type].run(op)
    assert [len(axis.ids) for axis in out] == [4, 8]
    assert all(is_whole(axis) for axis in out)
    locked = np.concatenate([ids for ids, _, _ in recorder.locks])
    assert sorted(locked.tolist()) == list(range(1, recorder.count))
    assert RULES[domain, op_type].text.startswith("locks: ")


def test_the_reason_is_the_operator_where_shapes_depend_on_the_data() -> None:
    """A list of lists of what channels hold: it has a rule, which is not refused."""

    def body(net: Net, a: Tensor) -> tuple[Tensor, ...]:
        places = net.transpose(net.node("NonZero", a, shape=[4, "n"]), 1, 0)
        return (net.nodes("Unique", [places], 1, axis=0, shapes=[["m", 4]])[0],)

    groups = spa.analyze(Case("", 0, body).model())
    refused = groups.views[0].ties.refused
    assert {groups.graph.nodes[k].op_type for k in refused} == {"Transpose"}


def test_every_locking_operator_exists() -> None:
    known = {(s.domain, s.name) for s in onnx.defs.get_all_schemas_with_history()}
    known |= {(s.domain, s.name) for s in state.get_all_operator_schema()}
    assert set(LOCKING) <= known
