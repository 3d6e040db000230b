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


def shaken(graph: Graph, shapes: Shapes, apart: Parts) -> Parts:
    """The model, every weighted sum of single floats a little larger or smaller, in turn.

    Args:
        apart: the model of the graph, or one with the same nodes.
    """
    model = ModelProto()
    model.CopyFrom(apart.model)
    found = replace(apart, model=model)
    signs = ("sum@less", "sum@more")
    for name, factor in zip(signs, (1 - SHARE, 1 + SHARE), strict=True):
        model.graph.initializer.append(numpy_helper.from_array(np.float32(factor), name))
    sums = [
        node
        for node in graph.nodes
        if not node.home
        and (rule := rules.find(node.op_type, node.domain)) is not None
        and rule.macs is not None
        and shapes.dtypes.get(node.outputs[0]) == TensorProto.FLOAT
    ]
    for k, node in reversed(list(enumerate(sums))):  # what is put in moves what comes after it
        made = found.node(node.index).output
        name, made[0] = made[0], f"{made[0]}@sum"
        step = helper.make_node("Mul", [f"{name}@sum", signs[k % 2]], [name])
        model.graph.node.insert(node.at + 1, step)
    return found
