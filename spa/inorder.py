"""Find gathers that read everything in order, which move nothing.

torch.export writes ``as_strided`` as a flattened tensor, from which each element is picked by its
place; where memory lay in order already, the result is the tensor that was flattened.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from spa.graph import Graph, Node
from spa.protos import bodies
from spa.shapes import Shapes

_MOST = 1 << 24  # places that are worked out
_STEPS = 64  # nodes that work them out


def in_order(graph: Graph, shapes: Shapes) -> dict[int, str]:
    """Gather nodes that make the tensor again that was flattened for them -> that tensor."""
    found = {}
    for node in graph.nodes:
        if node.op_type != "Gather" or node.home or not node.is_standard:
            continue
        maker = graph.makers.get(node.inputs[0])
        flat = graph.nodes[maker] if maker is not None else None
        if flat is None or flat.op_type not in ("Reshape", "Flatten") or node.attrs.get("axis", 0):
            continue
        source = flat.inputs[0]
        shape, made = shapes.shapes.get(source), shapes.shapes.get(node.outputs[0])
        if shape is None or shape != made or len(shapes.shapes.get(node.inputs[0], ())) != 1:
            continue
        size = prod(shape)
        places = _places(graph, shapes, node.inputs[1]) if 1 < size <= _MOST else None
        if places is not None and np.array_equal(places, np.arange(size).reshape(shape)):
            found[node.index] = source
    return found


def _places(graph: Graph, shapes: Shapes, name: str) -> NDArray[Any] | None:
    """What a tensor holds, where that is worked out from sizes and constants alone."""
    steps: dict[int, Node] = {}
    known: dict[str, NDArray[Any]] = {}
    waiting = [name]
    while waiting:
        read = waiting.pop()
        maker = graph.makers.get(read)
        if read in shapes.values:
            known[read] = shapes.values[read]
        elif read in graph.constants:
            known[read] = graph.array(read)
        elif maker is None or len(steps) == _STEPS or any(bodies(graph.nodes[maker].proto)):
            return None
        elif maker not in steps:
            steps[maker] = graph.nodes[maker]
            waiting += [n for n in graph.nodes[maker].inputs if n]
    if name in known:
        return known[name]
    lone = onnx.helper.make_graph(
        [_renamed(steps[k]) for k in sorted(steps)],
        "places",
        [onnx.ValueInfoProto(name=n) for n in known],
        [onnx.ValueInfoProto(name=name)],
    )
    try:
        evaluator = ReferenceEvaluator(lone, opsets=graph.opsets)
        (places,) = evaluator.run(None, dict(known))
    except Exception:  # the reference lacks some operators and versions: then nothing is known
        return None
    return np.asarray(places)


def _renamed(node: Node) -> onnx.NodeProto:
    """A node as it stands in the index, where a small constant has a name for each reader."""
    proto = onnx.NodeProto()
    proto.CopyFrom(node.proto)
    del proto.input[:]
    proto.input.extend(node.inputs)
    return proto
