"""Loads the nine `light_*` models of the onnx wheel with random weights in place of their stubs."""

from __future__ import annotations

from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

FOLDER = Path(onnx.__file__).parent / "backend/test/data/light"
NAMES = tuple(sorted(p.stem.removeprefix("light_") for p in FOLDER.glob("light_*.onnx")))
GAIN = {"Sum": 0.3, "Softmax": 0.25}  # by what reads a layer: no growth, no saturation


def light(name: str, seed: int = 0) -> ModelProto:
    """The model whose weights, made by ConstantOfShape in the file, are initializers."""
    model = onnx.load(FOLDER / f"light_{name}.onnx")
    graph, rng = model.graph, np.random.default_rng(seed)
    shapes = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    stubs = {n.output[0]: n.input[0] for n in graph.node if n.op_type == "ConstantOfShape"}
    sizes = {i.name: tuple(i.dims) for i in graph.initializer if i.data_type == 1}
    sizes |= {weight: tuple(int(d) for d in shapes[shape]) for weight, shape in stubs.items()}
    uses = _uses(graph)
    values = {k: _values(*uses[k], size, rng, uses) for k, size in sizes.items() if k in uses}

    gone = set(stubs.values())
    _keep(graph.node, [n for n in graph.node if n.op_type != "ConstantOfShape"])
    _keep(graph.input, [i for i in graph.input if i.name not in gone])
    _keep(graph.initializer, [i for i in graph.initializer if i.name not in gone | values.keys()])
    graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in values.items())
    known = {i.name for i in graph.input}
    graph.input.extend(  # IR version 3 wants every initializer among the inputs
        helper.make_tensor_value_info(k, 1, v.shape) for k, v in values.items() if k not in known
    )
    return model


def _uses(graph: onnx.GraphProto) -> dict[str, tuple[NodeProto, int]]:
    """The node, and the position in it, that first reads each tensor, be it reshaped on the way."""
    uses: dict[str, tuple[NodeProto, int]] = {}
    for node in reversed(graph.node):
        for position, tensor in enumerate(node.input):
            reshaped = node.op_type in ("Unsqueeze", "Reshape") and position == 0
            uses[tensor] = uses[node.output[0]] if reshaped else (node, position)
    return uses


def _values(
    node: NodeProto, position: int, size: tuple[int, ...], rng: np.random.Generator,
    uses: dict[str, tuple[NodeProto, int]],
) -> np.ndarray:  # fmt: skip
    match node.op_type, position:
        case (("Conv" | "Gemm"), 1):
            gain = GAIN.get(_reader(node, uses), 1.0)
            out = next(s for s in size if s > 1)  # behind the leading ones of a stored [1, 1, O, I]
            values = rng.normal(0, gain * sqrt(2 * out / prod(size)), size)
        case "BatchNormalization", 1:
            gain = GAIN.get(_reader(node, uses), 1.0)
            values = gain * rng.uniform(0.8, 1.2, size)
        case ("BatchNormalization", 4) | ("Mul", _):
            values = rng.uniform(0.8, 1.2, size)
        case _:
            values = rng.uniform(-0.1, 0.1, size)
    return values.astype(np.float32)


def _reader(node: NodeProto, uses: dict[str, tuple[NodeProto, int]]) -> str:
    return uses[node.output[0]][0].op_type if node.output[0] in uses else ""


def _keep(field: Any, items: list[Any]) -> None:
    """Set a repeated field of a protobuf message."""
    del field[:]
    field.extend(items)
