"""Bodies as they may be written: what passes straight through, repeats, or is not looked at."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto, helper, numpy_helper, parser

import spa
from spa import validate
from spa.errors import ValidationError
from spa.rewrite import rewrite
from tests.conftest import PLAIN
from tests.oracle import check

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'
RANDOM = np.random.default_rng(0)


def model(text: str, **weights: tuple[int, ...]) -> ModelProto:
    """A model from text, with random weights of these shapes in its own graph."""
    made = parser.parse_model(f"{HEAD} agraph {text}")
    for name, shape in weights.items():
        value = RANDOM.normal(0, 0.5, shape).astype(np.float32)
        made.graph.initializer.append(numpy_helper.from_array(value, name))
    return made


# What comes in through u and is seen through v.
ENDS = {"u": (3, 8), "v": (8, 4)}

WAYS: dict[str, tuple[str, dict[str, tuple[int, ...]], int]] = {
    # text of what makes y of a, weights, groups
    "a state that never changes": ("""
        y, c = Loop (two, yes, a, start) <body = b (int64 i, bool on, float[2, 8] s, float[2, 8] t)
            => (bool still, float[2, 8] s, float[2, 8] t2) {
            still = Identity (on)
            t2 = Add (s, t)
        }>
        """, {"start": (2, 8)}, 1),
    "a state that is forgotten": ("""
        y = Loop (two, yes, a) <body = b (int64 i, bool on, float[2, 8] s)
            => (bool still, float[2, 8] t) {
            still = Identity (on)
            t = MatMul (x, w)
        }>
        """, {"w": (3, 8)}, 1),
    "one start for two states": ("""
        p, q = Loop (two, yes, a, a) <body = b (int64 i, bool on, float[2, 8] s, float[2, 8] t)
            => (bool still, float[2, 8] s2, float[2, 8] t2) {
            still = Identity (on)
            s2 = MatMul (s, w)
            t2 = Tanh (t)
        }>
        y = Add (p, q)
        """, {"w": (8, 8)}, 1),
    "what is scanned is a state as well": ("""
        y, all = Scan <num_scan_inputs = 1, body = b (float[2, 8] s, float[8] r)
            => (float[2, 8] t, float[8] r2) {
            t = Add (s, r)
            r2 = Neg (r)
        }> (a, a)
        """, {}, 1),
    "a branch makes nothing": ("""
        y = If (flag) <
            then_branch = t () => (float[2, 8] p) { p = Relu (a) },
            else_branch = e () => (float[2, 8] k) <float[2, 8] k = {
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}> { }
        >
        """, {}, 1),
    "one constant for two outputs": ("""
        p, q = If (flag) <
            then_branch = t () => (float[2, 8] p1, float[2, 8] q1) {
                p1 = Relu (a) q1 = Neg (a) },
            else_branch = e () => (float[2, 8] k, float[2, 8] k2) <float[2, 8] k = {
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}> { k2 = Identity (k) }
        >
        y = Add (p, q)
        """, {}, 1),
    "a loop in a loop on the same state": ("""
        y = Loop (two, yes, a) <body = b (int64 i, bool on, float[2, 8] s)
            => (bool still, float[2, 8] t) {
            still = Identity (on)
            r = Loop (two, yes, s) <body = c (int64 j, bool go, float[2, 8] q)
                => (bool goes, float[2, 8] n) {
                goes = Identity (go)
                m = MatMul (q, w)
                n = Tanh (m)
            }>
            t = Add (r, s)
        }>
        """, {"w": (8, 8)}, 1),
    "a branch that is taken on and on": ("""
        y = Loop (two, yes, a) <body = b (int64 i, bool on, float[2, 8] s)
            => (bool still, float[2, 8] t) {
            still = Identity (on)
            t = If (flag) <
                then_branch = t () => (float[2, 8] p) { m = MatMul (s, w) n = Relu (m)
                    p = MatMul (n, w2) },
                else_branch = e () => (float[2, 8] p) { m = MatMul (a, w) n = Neg (m)
                    p = MatMul (n, w2) }
            >
        }>
        """, {"w": (8, 6), "w2": (6, 8)}, 2),
    "rows whose number only a round shows": ("""
        y = Loop (two, yes) <body = b (int64 i, bool on) => (bool still, float[8] r) {
            still = Identity (on)
            first = Constant <value = int64[1] {0}> ()
            start = Unsqueeze (i, first)
            end = Add (start, one)
            rows = Slice (a, start, end, first)
            m = MatMul (rows, w)
            r = ReduceSum <keepdims = 0> (m, first)
        }>
        """, {"w": (8, 8)}, 2),
    "a sum over what a round leaves": ("""
        y = Loop (two, yes, a) <body = b (int64 i, bool on, float[2, 8] s)
            => (bool still, float[2, 8] t) {
            still = Identity (on)
            m = ReduceSum <keepdims = 1> (s, one)
            n = Tanh (m)
            t = Mul (s, n)
        }>
        """, {}, 1),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_ways_to_write_a_body(way: str) -> None:
    text, weights, groups = WAYS[way]
    made = model(
        f"""(float[2, 3] x, bool flag) => (float[2, 4] z)
        <int64 two = {{2}}, bool yes = {{1}}, int64[1] one = {{1}}>
        {{
            b = MatMul (x, u)
            a = Relu (b)
            {text}
            z = MatMul (y, v)
        }}""",
        **ENDS,
        **weights,
    )
    assert not spa.analyze(made).views[0].ties.refused
    check(made, groups)


def test_a_round_may_leave_what_is_not_zero() -> None:
    """A state that starts at zero and is summed: the second walk knows better."""
    made = model(
        """(float[2, 3] x) => (float[2, 1] z)
        <int64 two = {2}, bool yes = {1}, int64[1] one = {1}, float half = {0.5}>
        {
            b = MatMul (x, u)
            a = Relu (b)
            y = Loop (two, yes, a) <body = b (int64 i, bool on, float[2, 8] s)
                => (bool still, float[2, 8] t) {
                still = Identity (on)
                t = ACT (s)
            }>
            z = ReduceSum <keepdims = 1> (y, one)
        }""",
        u=(3, 8),
    )
    for act, exact in (("Tanh", True), ("Sigmoid", False)):
        (node,) = [n for n in made.graph.node if n.op_type == "Loop"]
        node.attribute[0].g.node[1].op_type = act
        (group,) = check(made, 1)
        assert group.exact == exact


LOCKING = {
    "SequenceMap": """
        s = SequenceConstruct (a, a)
        m = SequenceMap (s) <body = b (float[2, 8] e) => (float[2, 8] f) { f = Add (e, a) }>
        y = SequenceAt (m, zero)
        """,
    "Optional": """
        o = Optional (a)
        y = OptionalGetElement (o)
        """,
    "SplitToSequence": """
        s = SplitToSequence <axis = 0> (a, two)
        y = SequenceAt (s, zero)
        """,
}


@pytest.mark.parametrize("way", LOCKING)
def test_what_is_not_looked_at_locks(way: str) -> None:
    made = model(
        f"""(float[2, 3] x) => (float[2, 4] z)
        <int64 two = {{2}}, int64 zero = {{0}}, bool yes = {{1}}>
        {{
            b = MatMul (x, u)
            c = Relu (b)
            d = MatMul (c, w)
            a = Relu (d)
            {LOCKING[way]}
            z = MatMul (y, v)
        }}""",
        u=(3, 6),
        w=(6, 8),
        v=(8, 4),
    )
    groups = check(made, 1)
    assert groups[0].size == 6
    assert any(way in lock.reason() for lock in groups.locks())


def test_a_weight_shared_with_a_body_is_cut_for_both() -> None:
    made = model(
        """(float[2, 3] x, bool flag) => (float[2, 4] z, float[2, 4] z2)
        {
            b = MatMul (x, u)
            a = Relu (b)
            z2 = MatMul (a, v)
            z = If (flag) <
                then_branch = t () => (float[2, 4] p) { p = MatMul (a, v) },
                else_branch = e () => (float[2, 4] p) { m = Neg (a) p = MatMul (m, v) }
            >
        }""",
        **ENDS,
    )
    check(made, 1)
    result = spa.prune(made, "channels=0.5", **PLAIN)
    assert {t.name: list(t.dims) for t in result.model.graph.initializer} == {
        "u": [3, 4],
        "v": [4, 4],
    }


def test_metadata_of_nodes_with_bodies_stays() -> None:
    made = model(
        """(float[2, 3] x, bool flag) => (float[2, 4] z)
        {
            b = MatMul (x, u)
            a = Relu (b)
            y = If (flag) <
                then_branch = t () => (float[2, 8] p) { p = Relu (a) },
                else_branch = e () => (float[2, 8] p) { p = Neg (a) }
            >
            z = MatMul (y, v)
        }""",
        **ENDS,
    )
    (node,) = [n for n in made.graph.node if n.op_type == "If"]
    node.doc_string = "said"
    node.metadata_props.add(key="from", value="here")
    order = [a.name for a in node.attribute]
    result = spa.prune(made, "channels=0.5", **PLAIN)
    (cut,) = [n for n in result.model.graph.node if n.op_type == "If"]
    assert cut.doc_string == "said" and cut.metadata_props[0].value == "here"
    assert [a.name for a in cut.attribute] == order
    assert helper.get_attribute_value(cut.attribute[0]).name == "t"


@pytest.mark.parametrize("branch", [0, 1])
def test_a_wrong_weight_in_a_branch_breaks_the_law(branch: int) -> None:
    """The law is not read at one branch alone."""
    made = model(
        """(float[2, 3] x, bool flag) => (float[2, 4] z)
        {
            b = MatMul (x, u)
            a = Relu (b)
            z = If (flag) <
                then_branch = t () => (float[2, 4] p) { k = Identity (v) p = MatMul (a, k) },
                else_branch = e () => (float[2, 4] q) { m = Identity (v) q = MatMul (a, m) }
            >
        }""",
        **ENDS,
    )
    groups = spa.analyze(made)
    removed = {0: np.arange(4)}
    pruned = rewrite(groups, removed)
    assert validate.verify(groups, pruned, removed).law is not None
    (node,) = [n for n in pruned.graph.node if n.op_type == "If"]
    node.attribute[branch].g.node[0].op_type = "Neg"
    with pytest.raises(ValidationError, match="the law does not hold"):
        validate.verify(groups, pruned, removed)
