"""A model with its sums moved by as much as another order of their terms may move them.

A network that rounds on its way (QuantizeLinear, Round, a comparison) now and then puts a number on
the other side of a step when a sum comes out different in its last digits. What that does to the
outputs says how near two ways of computing the same can be expected to come.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper

from spa import rules
from spa.graph import Graph
from spa.parts import Parts
from spa.shapes import Shapes

SHARE = 1e-6  # of a sum
ROUNDING = 3.0  # times what that does to the outputs is how far two forms of a network may differ
ROUNDED = 5e-2  # but no further than this, relative
_MEANS = {"AveragePool", "GlobalAveragePool", "ReduceMean", "ReduceSum"}
_OFTEN = 1e5  # how fast what it is moved by goes up and down with it


def shaken(graph: Graph, shapes: Shapes, apart: Parts) -> Parts:
    """The model, every number of a sum or a mean of single floats moved by a share of its own:

        y * (1 + SHARE * sin(OFTEN * y))

    Args:
        apart: the model of the graph, or one with the same nodes.
    """
    model = ModelProto()
    model.CopyFrom(apart.model)
    found = replace(apart, model=model)
    for name, value in (("sum@often", _OFTEN), ("sum@share", SHARE)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(value), name))
    sums = [
        node
        for node in graph.nodes
        if not node.home
        and (rule := rules.find(node.op_type, node.domain)) is not None
        and (rule.macs is not None or node.op_type in _MEANS)
        and shapes.dtypes.get(node.outputs[0]) == TensorProto.FLOAT
    ]
    for node in reversed(sums):  # what is put in moves what comes after it
        made = found.node(node.index).output
        name, made[0] = made[0], f"{made[0]}@sum"
        y, steps = made[0], [f"{name}@{k}" for k in ("fast", "turn", "share", "move")]
        for k, (op_type, inputs, output) in enumerate(
            (
                ("Mul", [y, "sum@often"], steps[0]),
                ("Sin", [steps[0]], steps[1]),
                ("Mul", [steps[1], "sum@share"], steps[2]),
                ("Mul", [steps[2], y], steps[3]),
                ("Add", [y, steps[3]], name),
            )
        ):
            step = helper.make_node(op_type, inputs, [output])
            model.graph.node.insert(node.at + 1 + k, step)
    return found
