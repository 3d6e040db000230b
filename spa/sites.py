"""Find the sites of a model: nodes that sum channels against a stored weight, y = x W + b.

A site is where removed channels are missed, and where the weights that remain can make up for
them. Every site is brought to one form: its rows are samples (of batches, of positions), and

    y[row, g, o] = sum over i, t of  W[g, o, i, t] * x[row, g, i, t]

before any activation that is fused into the node, with g the groups, o and i the output and input
channels of a group, t the taps of its kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.graph import WEIGHTS, Graph, Node
from spa.rules import MICROSOFT

Floats = NDArray[np.floating[Any]]
Place = tuple[int, int]  # node, position of an input


@dataclass(frozen=True)
class Bias:
    """Where a change of a site's output by a constant can be stored.

    place: the input that holds it, a constant of shape (outputs,). scale: what one unit of it adds
    to the output: 1, or -1 for the running mean of the BatchNormalization that follows. own:
    whether the site itself adds it.
    """

    place: Place
    scale: int
    own: bool


@dataclass(frozen=True)
class Site:
    """One such node.

    x: the data it sums. axis: x's axis of channels, groups outermost.
    weight: the constant it sums against. place: the input that holds that.
    forward, backward: the stored array to W[g, o, i, t] and back.
    rows: (x, how many at most, random generator) -> rows of x, shape (rows, g, i, t).
    """

    node: int
    x: str
    y: str
    axis: int
    weight: str
    place: Place
    bias: Bias | None
    groups: int
    forward: Callable[[Floats], Floats]
    backward: Callable[[Floats, tuple[int, ...]], Floats]
    rows: Callable[[Floats, int, np.random.Generator], Floats]
    in_axis: int  # the axis of the input channels in the stored weight


def sites(graph: Graph) -> list[Site]:
    """All sites in the order of the nodes; weights that several nodes read have none."""
    found = []
    for node in graph.nodes:
        make = _KINDS.get((node.domain.removeprefix("ai.onnx"), node.op_type))
        site = make(graph, node) if make and node.inputs[0] in graph.activations else None
        if site is not None:
            found.append(site)
    return found


def place(graph: Graph, node: Node, position: int) -> Place | None:
    """The input that holds a stored weight for one reader alone: this one, or that of an Identity
    before it."""
    name = node.inputs[position] if position < len(node.inputs) else ""
    if not name or len(graph.readers.get(name, ())) != 1 or name in graph.outputs:
        return None
    constant = graph.constants.get(name)
    if constant is not None:
        return (node.index, position) if constant.tensor.data_type in WEIGHTS else None
    before = graph.nodes[graph.makers[name]] if name in graph.makers else None
    return place(graph, before, 0) if before and before.op_type == "Identity" else None


def _name(graph: Graph, at: Place) -> str:
    return graph.nodes[at[0]].inputs[at[1]]


def _bias(graph: Graph, node: Node, position: int) -> Bias | None:
    if 0 <= position < len(node.inputs) and node.inputs[position]:
        return _vector(graph, node, position, 1, True)
    if node.attrs.get("activation"):
        return None  # what follows is behind the activation
    readers = graph.readers.get(node.outputs[0], [])
    if len(readers) != 1 or node.outputs[0] in graph.outputs:
        return None
    after = graph.nodes[readers[0]]
    if after.op_type == "BatchNormalization" and after.inputs[0] == node.outputs[0]:
        return None if after.attrs.get("training_mode", 0) else _vector(graph, after, 3, -1, False)
    if after.op_type == "Add" and position < 0:
        return _vector(graph, after, 1 - after.inputs.index(node.outputs[0]), 1, False)
    return None


def _vector(graph: Graph, node: Node, position: int, scale: int, own: bool) -> Bias | None:
    at = place(graph, node, position)
    one = at is not None and len(graph.constants[_name(graph, at)].shape) == 1
    return Bias(at, scale, own) if at and one else None


def _conv(graph: Graph, node: Node) -> Site | None:
    at = place(graph, node, 1)
    if at is None:
        return None
    weight = _name(graph, at)
    shape, groups = graph.constants[weight].shape, int(node.attrs.get("group", 1))
    kernel = shape[2:]
    n = len(kernel)
    steps = [int(s) for s in node.attrs.get("strides", [1] * n)]
    holes = [int(d) for d in node.attrs.get("dilations", [1] * n)]
    pads = [int(p) for p in node.attrs.get("pads", [0] * 2 * n)]
    auto = node.attrs.get("auto_pad", b"NOTSET")

    def rows(x: Floats, most: int, random: np.random.Generator) -> Floats:
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, holes, strict=True)]
        around = _pads(x.shape[2:], spans, steps, pads, auto)
        return _windows(x, groups, kernel, steps, holes, around, most, random)

    def forward(w: Floats) -> Floats:
        return w.reshape(groups, shape[0] // groups, shape[1], prod(kernel))

    def backward(w: Floats, _: tuple[int, ...]) -> Floats:
        return w.reshape(shape)

    return Site(
        node.index, node.inputs[0], node.outputs[0], 1, weight, at, _bias(graph, node, 2), groups,
        forward, backward, rows, 1,
    )  # fmt: skip


def _pads(
    sizes: tuple[int, ...], spans: list[int], steps: list[int], pads: list[int], auto: bytes
) -> list[tuple[int, int]]:
    n = len(sizes)
    if auto in (b"SAME_UPPER", b"SAME_LOWER"):
        wide = [
            max((-(-s // t) - 1) * t + k - s, 0)
            for s, t, k in zip(sizes, steps, spans, strict=True)
        ]
        less = [(w // 2, w - w // 2) for w in wide]
        return less if auto == b"SAME_UPPER" else [(b, a) for a, b in less]
    return [(0, 0)] * n if auto == b"VALID" else list(zip(pads[:n], pads[n:], strict=True))


def _windows(
    x: Floats,
    groups: int,
    kernel: tuple[int, ...],
    steps: list[int],
    holes: list[int],
    around: list[tuple[int, int]],
    most: int,
    random: np.random.Generator,
) -> Floats:
    """The inputs of randomly chosen output positions, shape (rows, groups, channels, taps)."""
    n, c = x.shape[:2]
    padded = np.pad(x, [(0, 0), (0, 0), *around]) if any(map(any, around)) else x
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, holes, strict=True)]
    sizes = [(p - s) // t + 1 for p, s, t in zip(padded.shape[2:], spans, steps, strict=True)]
    total = n * prod(sizes)
    chosen = np.arange(total) if total <= most else random.choice(total, most, replace=False)
    image, *place = np.unravel_index(np.sort(chosen), (n, *sizes))
    taps = []
    for tap in np.ndindex(*kernel):
        at = (p * t + k * d for p, t, k, d in zip(place, steps, tap, holes, strict=True))
        where: tuple[Any, ...] = (image, slice(None), *at)
        taps.append(padded[where])
    return np.stack(taps, axis=-1).reshape(len(image), groups, c // groups, -1)


def _flat(axis: int) -> Callable[[Floats, int, np.random.Generator], Floats]:
    """Rows of an operator without a window: all axes but the channels are samples."""

    def rows(x: Floats, most: int, random: np.random.Generator) -> Floats:
        lines = np.moveaxis(x, axis, -1).reshape(-1, x.shape[axis])
        if len(lines) > most:
            lines = lines[np.sort(random.choice(len(lines), most, replace=False))]
        return lines[:, None, :, None]

    return rows


def _transpose(graph: Graph, node: Node) -> Site | None:
    at = place(graph, node, 1)
    if at is None or int(node.attrs.get("group", 1)) > 1:
        return None
    weight = _name(graph, at)

    # Every input position is spread on its own: taps count as outputs.
    def forward(w: Floats) -> Floats:
        return np.moveaxis(w, 0, -1).reshape(1, -1, w.shape[0], 1)

    def backward(w: Floats, shape: tuple[int, ...]) -> Floats:
        return np.moveaxis(w.reshape(*shape[1:], shape[0]), -1, 0)

    return Site(
        node.index, node.inputs[0], node.outputs[0], 1, weight, at, None, 1,
        forward, backward, _flat(1), 0,
    )  # fmt: skip


def _matrix(graph: Graph, node: Node) -> Site | None:
    """Gemm and MatMul with a stored matrix on the right, also where they are fused."""
    at = place(graph, node, 1)
    if at is None:
        return None
    weight = _name(graph, at)
    turned = any(node.attrs.get(name, 0) for name in ("transA", "transBatchA", "transBatchB"))
    if len(graph.constants[weight].shape) != 2 or turned:
        return None
    if node.attrs.get("alpha", 1.0) != 1.0 or node.attrs.get("beta", 1.0) != 1.0:
        return None
    across = bool(node.attrs.get("transB", 0))  # stored as (outputs, inputs)

    def forward(w: Floats) -> Floats:
        return (w if across else w.T)[None, :, :, None]

    def backward(w: Floats, _: tuple[int, ...]) -> Floats:
        return w[0, :, :, 0] if across else w[0, :, :, 0].T

    bias = _bias(graph, node, -1 if node.op_type.endswith("MatMul") else 2)
    return Site(
        node.index, node.inputs[0], node.outputs[0], -1, weight, at, bias, 1,
        forward, backward, _flat(-1), 1 if across else 0,
    )  # fmt: skip


# An activation that is fused into a node comes after its sum, which is what a site is about.
_KINDS: dict[tuple[str, str], Callable[[Graph, Node], Site | None]] = {
    ("", "Conv"): _conv,
    ("", "ConvTranspose"): _transpose,
    ("", "Gemm"): _matrix,
    ("", "MatMul"): _matrix,
    (MICROSOFT, "FusedConv"): _conv,
    (MICROSOFT, "FusedGemm"): _matrix,
    (MICROSOFT, "FusedMatMul"): _matrix,
    (MICROSOFT, "TransposeMatMul"): _matrix,
}
