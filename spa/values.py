"""The values of small tensors: those that sizes are stored in or computed to."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from spa import borders
from spa import run as runs
from spa.errors import ModelError
from spa.graph import Graph, Node
from spa.protos import bodies

SMALL = 1024  # elements; a larger tensor is data, not a shape
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli"}


def is_value(tensor: TensorProto) -> bool:
    """Small integers of any shape, and lone floats: what shapes are computed from."""
    size = int(np.prod(tensor.dims, dtype=np.int64))
    whole = tensor.data_type in (TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL)
    return size <= (SMALL if whole else 1) and tensor.data_type != TensorProto.STRING


def evaluate(
    graph: Graph, node: Node, shapes: dict[str, tuple[int, ...]], values: dict[str, NDArray[Any]]
) -> list[NDArray[Any] | None] | None:
    """The outputs of a node that computes with known values only, or None."""
    if node.bodies:
        return None if node.enters else borders.joined(node, values)
    if not node.is_standard or node.op_type in _RANDOM or any(bodies(node.proto)):
        return None
    if "Sequence" in node.op_type:
        return None
    if node.op_type in ("Shape", "Size") and node.inputs[0] in shapes:
        shape = np.asarray(shapes[node.inputs[0]], np.int64)
        if node.op_type == "Size":
            return [np.asarray(shape.prod(), np.int64)]
        return [shape[node.attrs.get("start", 0) : node.attrs.get("end", len(shape))]]
    if not node.inputs or any(name and name not in values for name in node.inputs):
        return None
    feeds = {n: values[i] for n, i in zip(node.proto.input, node.inputs, strict=True) if i}
    if sum(v.size for v in feeds.values()) > SMALL or _is_expansion(node, feeds):
        return None
    got = run(graph, node, feeds)
    small = all(v.size <= SMALL and v.dtype != object for v in got or [])
    return [*got] if got is not None and small else None


def run(graph: Graph, node: Node, feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]] | None:
    """The outputs of one node as ONNX's reference makes them, else onnxruntime; or None.

    Args:
        feeds: its inputs, by their names in the file.
    """
    inputs = [
        onnx.helper.make_tensor_value_info(
            n, onnx.helper.np_dtype_to_tensor_dtype(v.dtype), v.shape
        )
        for n, v in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=n) for n in node.proto.output]
    lone = onnx.helper.make_graph([node.proto], "lone", inputs, outputs)
    try:
        got = ReferenceEvaluator(lone, opsets=graph.opsets).run(None, feeds)
    except Exception:  # the reference lacks some operators and versions
        imports = [onnx.helper.make_opsetid(d, v) for d, v in graph.opsets.items()]
        model = onnx.helper.make_model(lone, opset_imports=imports, ir_version=8)
        try:
            with runs.session(model) as running:
                got = running.run(None, feeds)
        except (ModelError, *runs.ORT_ERRORS):
            return None
    return [np.asarray(v) for v in got]


def _is_expansion(node: Node, feeds: dict[str, NDArray[Any]]) -> bool:
    """Whether evaluating would make a large tensor out of small ones."""
    if node.op_type in ("ConstantOfShape", "Expand", "Tile"):
        shape = feeds[node.proto.input[-1]]
        return bool(np.prod(shape.astype(float)) > SMALL)
    return False
