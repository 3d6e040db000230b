"""What is known of tensors where bodies begin and end: shapes, values, numbers of rounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, parser

import spa
from spa import borders
from spa.cost import CostModel
from spa.graph import Graph
from spa.reader import load
from spa.shapes import Shapes, infer

LOOP = """<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2, 3] x, int64 n, bool go) => (float[2, 3] y, float[k, 2, 3] all)
<int64 four = {{4}}, bool yes = {{1}}, float[2, 3] one = {{1, 1, 1, 1, 1, 1}}>
{{
    y, all = Loop ({inputs}) <body = body (int64 i, bool on, float[2, 3] s)
        => (bool still, float[2, 3] t, float[2, 3] u) {{
        still = {still}
        t = Add (s, one)
        u = Identity (t)
    }}>
}}
"""

SCAN = """<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2, 3] x) => (float[2, 3] y, float[2, 3, 5] all)
<float[2, 5, 3] xs = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21,
    22, 23, 24, 25, 26, 27, 28, 29}>
{
    y, all = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [-1],
        body = body (float[2, 3] s, float[2, 3] x) => (float[2, 3] t, float[2, 3] u) {
        t = Add (s, x)
        u = Identity (t)
    }> (x, xs)
}
"""

IF = """<ir_version: 8, opset_import: ["" : 17]>
agraph (float[2, 3] x, bool flag) => (float[a, b] y)
<int64[2] rows = {{3, 2}}, int64[2] flat = {{1, 6}}, int64 zero = {{0}}, int64 two = {{2}}>
{{
    shape = Shape (x)
    first = Gather (shape, zero)
    even = Equal (first, two)
    size = If ({condition}) <
        then_branch = then () => (int64[2] a) {{ a = {then} }},
        else_branch = other () => (int64[2] b) {{ b = {other} }}
    >
    y = Reshape (x, size)
}}
"""


def loop(inputs: str = "four, yes, x", still: str = "Identity (on)") -> ModelProto:
    return parser.parse_model(LOOP.format(inputs=inputs, still=still))


def look(model: ModelProto) -> tuple[Graph, Shapes]:
    graph = load(model)
    return graph, infer(graph)


@pytest.mark.parametrize(
    ("inputs", "still", "rounds"),
    [
        ("four, yes, x", "Identity (on)", 4),
        ("four, , x", "Identity (yes)", 4),
        ("n, yes, x", "Identity (on)", None),
        ("four, go, x", "Identity (on)", None),
        ("four, yes, x", "Less (i, n)", None),
        (", yes, x", "Less (i, four)", None),
    ],
)
def test_rounds_of_a_loop(inputs: str, still: str, rounds: int | None) -> None:
    graph, shapes = look(loop(inputs, still))
    node = next(n for n in graph.nodes if n.op_type == "Loop" and not n.enters)
    assert borders.trips(graph, node, shapes.shapes, shapes.values) == rounds
    assert shapes.shapes.get("all") == (None if rounds is None else (rounds, 2, 3))
    assert shapes.shapes["y"] == shapes.shapes["s"] == shapes.shapes["t"] == (2, 3)
    assert borders.repeats(graph, 1, shapes.shapes, shapes.values) == (rounds or 1)
    assert borders.counts(graph) == ({"n"} if inputs.startswith("n") else set())


def test_rounds_of_a_scan() -> None:
    graph, shapes = look(parser.parse_model(SCAN))
    assert shapes.shapes["all"] == (2, 3, 5)
    assert borders.repeats(graph, 1, shapes.shapes, shapes.values) == 5
    assert {"y", "all"} <= graph.activations
    assert "t" in graph.hidden and "y" not in graph.hidden


@pytest.mark.parametrize(
    ("condition", "then", "other", "value"),
    [
        ("even", "Identity (rows)", "Identity (flat)", [3, 2]),
        ("flag", "Identity (rows)", "Identity (rows)", [3, 2]),
        ("flag", "Identity (rows)", "Identity (flat)", None),
    ],
)
def test_the_value_of_an_if(condition: str, then: str, other: str, value: Any) -> None:
    model = parser.parse_model(IF.format(condition=condition, then=then, other=other))
    _, shapes = look(model)
    assert shapes.shapes["size"] == (2,)
    assert shapes.values.get("size", np.zeros(0)).tolist() == (value or [])


def test_a_state_that_grows_has_no_shape() -> None:
    model = loop()
    body = model.graph.node[0].attribute[0].g
    body.node[1].op_type = "Concat"
    body.node[1].attribute.append(onnx.helper.make_attribute("axis", 0))
    for info in (*body.input[2:], *body.output[1:]):
        info.type.tensor_type.ClearField("shape")
    for info in model.graph.output:
        info.type.tensor_type.ClearField("shape")
    _, shapes = look(model)
    assert not {"s", "t", "u", "y", "all"} & shapes.shapes.keys()


def test_what_never_runs_costs_nothing() -> None:
    net = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
    agraph (float[2, 3] x) => (float[2, 2] y) <bool no = {0}, float[3, 2] w = {1, 2, 3, 4, 5, 6}>
    {
        y = If (no) <
            then_branch = then () => (float[2, 2] a) { b = MatMul (x, w) a = MatMul (b, b) },
            else_branch = other () => (float[2, 2] c) { c = MatMul (x, w) }
        >
    }
    """)
    assert CostModel(spa.analyze(net))().macs == 2 * 3 * 2
