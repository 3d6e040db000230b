"""Find the sites of a model: nodes that sum channels against a stored weight, y = x W + b.

A site is where removed channels are missed, and where the weights that remain can make up for
them. Every site is brought to one form: its rows are samples (of batches, of positions), and

    y[row, g, o] = sum over i, t of  W[g, o, i, t] * x[row, g, i, t]

before any activation that is fused into the node, with g the groups, o and i the output and input
channels of a group, t the taps of its kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa import reals, scales
from spa.graph import WEIGHTS, Graph, Node
from spa.rules import MICROSOFT

Floats = NDArray[np.floating[Any]]
Place = tuple[int, int]  # node, position of an input
STACKED = 1 << 16  # inputs of all products of a stack together, beyond which it is no site


@dataclass(frozen=True)
class Bias:
    """Where a change of a site's output by a constant can be stored.

    place: the input that holds it, a constant of shape (outputs,), or for the gates of recurrent
    layers (directions, 2 outputs). scale: what one unit of it adds to the output: 1, or -1 for the
    running mean of the BatchNormalization that follows. own: whether the site itself adds it.
    step: what one of what is stored stands for.
    """

    place: Place
    scale: int
    own: bool
    step: Floats | float = 1.0

    def moved(self, stored: NDArray[Any], change: Floats) -> NDArray[Any]:
        """What is stored, with the outputs changed by so much, shape (g, o)."""
        if stored.ndim == 1:
            return np.asarray(stored + self.scale * change.ravel() / self.step)
        new = stored.astype(np.float64)
        new[:, : new.shape[1] // 2] += change.reshape(len(new), -1)
        return new


@dataclass(frozen=True)
class Site:
    """One such node.

    x: the data it sums. y: what it makes; of recurrent layers, which keep that to themselves, "".
    axis: x's axis of channels, groups outermost.
    weight: the constant it sums against. place: the input that holds that.
    forward, backward: the stored array to W[g, o, i, t] and back, to the nearest that can be
        stored. rounds: whether that may be another.
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
    rounds: bool = False
    stacked: bool = False  # whether the groups are an axis of their own, in x and in the weight

    @property
    def out_axis(self) -> int:
        """The axis of the output channels in the stored weight."""
        return self.in_axis + 1 if self.stacked else 1 - self.in_axis


def sites(graph: Graph) -> list[Site]:
    """All sites in the order of the nodes; weights that several nodes read have none."""
    found = []
    for node in graph.nodes:
        kind = _KINDS.get((node.domain.removeprefix("ai.onnx"), node.op_type))
        given = _given(graph, node, kind) if kind is not None else None
        site = kind.make(graph, given) if kind is not None and given is not None else None
        if site is not None:
            found.append(_in_numbers(graph, node, site))
    return found


@dataclass(frozen=True)
class _Given:
    """What a site is made of.

    x: its data, as they are before they are quantised where that happens as they come.
    at: the place of its weight. bias: None for none. y: the result at its scale.
    """

    node: Node
    x: str
    at: Place
    bias: Bias | None
    y: str


def _given(graph: Graph, node: Node, kind: _Kind) -> _Given | None:
    x, at, last = node.inputs[0], place(graph, node, kind.weight), scales.scaled_by(graph, node)
    if at is None or last is None or last.home or x not in graph.activations:
        return None
    before = graph.nodes[graph.makers[x]] if x in graph.makers else None
    if before is not None and before.op_type == "DynamicQuantizeLinear":
        x = before.inputs[0]
    elif scales.of_data(graph, node, 0) is None:
        return None
    bias = None if kind.bias is None else _bias(graph, last, kind.bias)
    return _Given(node, x, at, bias, last.outputs[0])


def _in_numbers(graph: Graph, node: Node, site: Site) -> Site:
    """The site in real numbers, where its weights or its data are quantised."""
    data = scales.of_data(graph, node, 0) if site.x == node.inputs[0] else None
    if data is not None and data.scale is not None:

        def rows(x: Floats, most: int, random: np.random.Generator) -> Floats:
            return plain.rows(reals.decoded(data, x), most, random)

        plain, site = site, replace(site, rows=rows)
    if not scales.is_quantised(graph, site.weight):
        return site
    kind, inner = graph.array(site.weight).dtype, site

    def forward(codes: Floats) -> Floats:
        return inner.forward(reals.real(graph, site.weight, np.asarray(codes).astype(kind)))

    def backward(w: Floats, shape: tuple[int, ...]) -> Floats:
        return reals.stored(graph, site.weight, inner.backward(w, shape))

    return replace(site, forward=forward, backward=backward, rounds=True)


def place(graph: Graph, node: Node, position: int) -> Place | None:
    """The input that holds a stored weight for one reader alone: this one, or that of an Identity
    before it, or of what makes real numbers of quantised ones. Inside of a body there is none."""
    name = node.inputs[position] if position < len(node.inputs) else ""
    if not name or len(graph.readers.get(name, ())) != 1 or name in graph.outputs or node.home:
        return None
    constant = graph.constants.get(name)
    if constant is not None:
        scaled = scales.is_read_as_quantised(node, position)  # in 32 bits, as biases are
        known = scaled or constant.tensor.data_type in WEIGHTS
        return (node.index, position) if known else None
    before = graph.nodes[graph.makers[name]] if name in graph.makers else None
    at = scales.carrier(graph, before) if before is not None else None
    return place(graph, before, at) if before is not None and at is not None else None


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
    if at is None or len(graph.constants[_name(graph, at)].shape) != 1:
        return None
    name = _name(graph, at)
    step: Floats | float = 1.0
    if scales.is_quantised(graph, name):
        one = np.ones_like(graph.array(name))
        step = reals.real(graph, name, one) - reals.real(graph, name, np.zeros_like(one))
    return Bias(at, scale, own, step)


def _conv(graph: Graph, given: _Given) -> Site | None:
    node, weight = given.node, _name(graph, given.at)
    last = bool(node.attrs.get("channels_last", 0))
    shape, groups = graph.constants[weight].shape, int(node.attrs.get("group", 1))
    kernel = shape[2:]
    n = len(kernel)
    steps = [int(s) for s in node.attrs.get("strides", [1] * n)]
    holes = [int(d) for d in node.attrs.get("dilations", [1] * n)]
    pads = [int(p) for p in node.attrs.get("pads", [0] * 2 * n)]
    auto = node.attrs.get("auto_pad", b"NOTSET")

    def rows(x: Floats, most: int, random: np.random.Generator) -> Floats:
        x = np.moveaxis(x, -1, 1) if last else x
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, holes, strict=True)]
        around = _pads(x.shape[2:], spans, steps, pads, auto)
        return _windows(x, groups, kernel, steps, holes, around, most, random)

    def forward(w: Floats) -> Floats:
        return w.reshape(groups, shape[0] // groups, shape[1], prod(kernel))

    def backward(w: Floats, _: tuple[int, ...]) -> Floats:
        return w.reshape(shape)

    return Site(
        node.index, given.x, given.y, -1 if last else 1, weight, given.at, given.bias, groups,
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


def _transpose(graph: Graph, given: _Given) -> Site | None:
    if int(given.node.attrs.get("group", 1)) > 1:
        return None

    # Every input position is spread on its own: taps count as outputs.
    def forward(w: Floats) -> Floats:
        return np.moveaxis(w, 0, -1).reshape(1, -1, w.shape[0], 1)

    def backward(w: Floats, shape: tuple[int, ...]) -> Floats:
        return np.moveaxis(w.reshape(*shape[1:], shape[0]), -1, 0)

    return Site(
        given.node.index, given.x, given.y, 1, _name(graph, given.at), given.at, given.bias, 1,
        forward, backward, _flat(1), 0,
    )  # fmt: skip


def _matrix(graph: Graph, given: _Given) -> Site | None:
    """A product with a stored matrix on the right, also where more is fused to it."""
    node, weight = given.node, _name(graph, given.at)
    if node.op_type == "MatMul" and len(graph.constants[weight].shape) == 3:
        return _stack(graph, given)
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

    return Site(
        node.index, given.x, given.y, -1, weight, given.at, given.bias, 1, forward, backward,
        _flat(-1), 1 if across else 0,
    )  # fmt: skip


def _stack(graph: Graph, given: _Given) -> Site | None:
    """Several products at once, each with a matrix of its own: x[g] W[g], or x W[g]."""
    weight = _name(graph, given.at)
    groups, inputs, _ = graph.constants[weight].shape
    if groups < 2 or groups * inputs > STACKED:
        return None

    def rows(x: Floats, most: int, random: np.random.Generator) -> Floats:
        x = x[None] if x.ndim == 2 else x
        lines = np.moveaxis(x, -3, -2).reshape(-1, x.shape[-3], inputs)
        if len(lines) > most:
            lines = lines[np.sort(random.choice(len(lines), most, replace=False))]
        return np.broadcast_to(lines, (len(lines), groups, inputs))[..., None]

    def turned(w: Floats) -> Floats:
        return np.swapaxes(w, 1, 2)

    return Site(
        given.node.index, given.x, given.y, -1, weight, given.at, None, groups,
        lambda w: turned(w)[..., None], lambda w, _: turned(w[..., 0]), rows, 1, stacked=True,
    )  # fmt: skip


def _gates(graph: Graph, given: _Given) -> Site | None:
    """What LSTM, GRU and RNN make of their input before the recurrence, all directions in a row."""
    node, weight = given.node, _name(graph, given.at)
    shape = graph.constants[weight].shape  # (directions, gates * hidden, inputs)
    held = place(graph, node, 3)

    def forward(w: Floats) -> Floats:
        return w.reshape(1, -1, w.shape[2], 1)

    def backward(w: Floats, _: tuple[int, ...]) -> Floats:
        return w.reshape(shape)

    return Site(
        node.index, node.inputs[0], "", -1, weight, given.at,
        Bias(held, 1, True) if held else None, 1, forward, backward, _flat(-1), 2,
    )  # fmt: skip


def _blocks(graph: Graph, given: _Given) -> Site | None:
    """A product with a matrix stored as (outputs, blocks, bytes of a block): a block of inputs is a
    channel, and its inputs are taps."""
    node = given.node
    size, inputs = int(node.attrs["block_size"]), int(node.attrs["K"])
    if inputs % size or (len(node.inputs) > 4 and node.inputs[4]):
        return None
    if node.attrs.get("weight_prepacked", 0):
        return None

    def rows(x: Floats, most: int, random: np.random.Generator) -> Floats:
        lines = _flat(-1)(x, most, random)
        return lines.reshape(len(lines), 1, inputs // size, size)

    def forward(w: Floats) -> Floats:
        return w[None]

    def backward(w: Floats, _: tuple[int, ...]) -> Floats:
        return np.asarray(w[0])

    return Site(
        node.index, given.x, given.y, -1, _name(graph, given.at), given.at, given.bias, 1, forward,
        backward, rows, 1,
    )  # fmt: skip


@dataclass(frozen=True)
class _Kind:
    """make: the site. weight, bias: the inputs that hold those; -1 for an Add behind, None for no
    bias."""

    make: Callable[[Graph, _Given], Site | None]
    weight: int
    bias: int | None


# An activation that is fused into a node comes after its sum, which is what a site is about.
_KINDS = {
    ("", "Conv"): _Kind(_conv, 1, 2),
    ("", "ConvTranspose"): _Kind(_transpose, 1, None),
    ("", "Gemm"): _Kind(_matrix, 1, 2),
    ("", "MatMul"): _Kind(_matrix, 1, -1),
    ("", "ConvInteger"): _Kind(_conv, 1, -1),
    ("", "MatMulInteger"): _Kind(_matrix, 1, -1),
    ("", "QLinearConv"): _Kind(_conv, 3, 8),
    ("", "QLinearMatMul"): _Kind(_matrix, 3, -1),
    (MICROSOFT, "QLinearConv"): _Kind(_conv, 3, 8),
    (MICROSOFT, "QGemm"): _Kind(_matrix, 3, 6),
    (MICROSOFT, "DynamicQuantizeMatMul"): _Kind(_matrix, 1, 4),
    (MICROSOFT, "MatMulNBits"): _Kind(_blocks, 1, 5),
    (MICROSOFT, "MatMulIntegerToFloat"): _Kind(_matrix, 1, 6),
    ("", "LSTM"): _Kind(_gates, 1, None),
    ("", "GRU"): _Kind(_gates, 1, None),
    ("", "RNN"): _Kind(_gates, 1, None),
    (MICROSOFT, "FusedConv"): _Kind(_conv, 1, 2),
    (MICROSOFT, "FusedGemm"): _Kind(_matrix, 1, 2),
    (MICROSOFT, "FusedMatMul"): _Kind(_matrix, 1, -1),
    (MICROSOFT, "TransposeMatMul"): _Kind(_matrix, 1, -1),
}
