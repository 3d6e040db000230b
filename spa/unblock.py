"""Write channels that onnxruntime holds in blocks (com.microsoft.nchwc) back as plain ai.onnx.

Files that onnxruntime saves at its level "all" keep channels in blocks of 8 or 16, as suits the
machine, with zeros up to a whole block: a convolution of I channels to O holds its weights as
(O / b, I / b, kernel, b, b), or as (O / b, I, kernel, b) where its input is not in blocks or each
channel is filtered alone. To scale channels, blocks are shown as an axis of their own, by a Reshape
to (N, C / b, H, W, b) and one back. Nothing in the file says how large a block is: it is read as
onnxruntime reads it here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from spa import run as runs
from spa.errors import ModelError
from spa.graph import Graph, Node
from spa.index import other_form
from spa.parts import Parts, parts
from spa.protos import copy_without, unused
from spa.rounding import ROUNDED, ROUNDING, shaken
from spa.shapes import Shapes

DOMAIN = "com.microsoft.nchwc"
_POOLS = ("AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool")
# The activations that it fuses, with their parameters.
_ACTIVATIONS: dict[bytes, tuple[str, ...]] = {
    b"": (),
    b"Relu": (),
    b"Sigmoid": (),
    b"Tanh": (),
    b"LeakyRelu": ("alpha",),
    b"HardSigmoid": ("alpha", "beta"),
    b"HardSwish": (),
    b"Clip": ("min", "max"),
}
_MISFITS = (IndexError, KeyError, TypeError, ValueError)  # nodes that are not as expected
_BEFORE = "*"  # stands for what the node before read
Weight = NDArray[Any]


class _UnknownError(Exception):
    """A use of blocks that has no plain form here."""


def unblock(graph: Graph, shapes: Shapes) -> Graph | None:
    """The graph without blocks; None where it has none, or where they cannot be taken away: what
    is made is run, and has to compute what the original does."""
    if not any(node.domain == DOMAIN for node in graph.nodes):
        return None
    if len(graph.bodies) > 1:  # a body might read a blocked tensor
        return None
    try:
        model = _Builder(graph, shapes, block_size()).model()
        plain = other_form(graph, model)
        return plain if _agree(graph, plain, shapes) else None
    except (_UnknownError, ModelError, *_MISFITS, *runs.ORT_ERRORS):
        return None


def _agree(graph: Graph, plain: Graph, shapes: Shapes) -> bool:
    """Whether both compute the same, up to what sums in another order do where a network rounds."""
    with runs.session(parts(graph)) as running:
        _, _, first = runs.find_first(graph, running, 0)
    try:
        made = _run(parts(plain), first.feeds)
        if runs.agree(first.outputs, made):
            return True
        again = _run(shaken(plain, shapes, parts(plain)), first.feeds)
    except runs.ORT_ERRORS:
        return False
    moved = max(runs.difference(again[name], value) for name, value in made.items())
    worst = max(runs.difference(first.outputs[name], value) for name, value in made.items())
    return worst <= min(ROUNDED, ROUNDING * moved)


def _run(model: Parts, feeds: runs.Feeds) -> runs.Outputs:
    with runs.session(model) as running:
        return runs.run(running, feeds)


def block_size() -> int:
    """How many channels onnxruntime puts in one block on this machine.

    Raises:
        ModelError: if it has no blocks here.
    """
    info = helper.make_tensor_value_info
    x, y = info("x", TensorProto.FLOAT, [1, 64, 1, 2]), info("y", TensorProto.FLOAT, [1, 64, 1, 2])
    graph = helper.make_graph([helper.make_node("ReorderInput", "x", "y", domain=DOMAIN)], "block",
                              [x], [y])  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
    with runs.session(helper.make_model(graph, opset_imports=imports, ir_version=8)) as running:
        numbers = np.arange(128, dtype=np.float32).reshape(1, 64, 1, 2)
        made = runs.run(running, {"x": numbers})["y"].ravel()
    return int(np.flatnonzero(made == 1)[0])  # the second column of the first channel


class _Builder:
    def __init__(self, graph: Graph, shapes: Shapes, block: int) -> None:
        self.graph, self.shapes, self.block = graph, shapes, block
        self.names = {*shapes.shapes, *graph.constants, *graph.makers}
        self.nodes: list[NodeProto] = []
        self.stored: dict[str, Weight] = {}
        self.alias: dict[str, str] = {}  # what a reader of one tensor reads instead
        self.weights = {n.index: self._plain(n) for n in graph.nodes if _is(n, "Conv")}
        self.same: dict[str, str] = {}  # blocked tensor -> one that has as many channels
        self.least: dict[str, int] = {}  # such a tensor -> how many of its channels are used
        for node in graph.nodes:
            self._count(node)

    # How many channels a blocked tensor has ----------------------------------------------------

    def _root(self, name: str) -> str:
        while self.same[name] != name:
            name = self.same[name]
        return name

    def _alike(self, *names: str) -> None:
        for name in names:
            self.same.setdefault(name, name)
        first = self._root(names[0])
        for name in names[1:]:
            other = self._root(name)
            self.same[other] = first
            self.least[first] = max(self.least.get(first, 1), self.least.pop(other, 1))

    def _use(self, name: str, channels: int) -> None:
        self._alike(name)
        root = self._root(name)
        self.least[root] = max(self.least.get(root, 1), channels)

    def _count(self, node: Node) -> None:
        """What a node says about the channels of what it reads and makes."""
        inputs = [n for n in node.inputs if n in self.same]
        if _is(node, "ReorderInput"):
            axis = -1 if node.attrs.get("channels_last", 0) else 1
            self._use(node.outputs[0], self.shapes.shapes[node.inputs[0]][axis])
        elif _is(node, "ReorderOutput"):
            self._use(node.inputs[0], int(node.attrs["channels"]))
        elif _is(node, "Conv"):
            self._count_conv(node)
        elif node.op_type == "Concat" and inputs:
            for name in (*node.inputs, *node.outputs):
                self._use(name, self._whole(name))
        elif _is(node, *_POOLS, "Upsample"):
            self._alike(node.inputs[0], node.outputs[0])
        elif node.domain == DOMAIN:
            raise _UnknownError(node.op_type)
        elif inputs:  # elementwise
            if node.op_type == "Reshape" and not self._shows_blocks(node):
                raise _UnknownError("another shape of blocks")
            self._alike(*inputs, *node.outputs)

    def _shows_blocks(self, node: Node) -> bool:
        """Whether a Reshape makes an axis of the blocks, or takes it back."""
        old, new = (self.shapes.shapes[name] for name in (node.inputs[0], node.outputs[0]))
        if len(old) > len(new):
            old, new = new, old
        n, channels, *places = old
        return new == (n, channels // self.block, *places, self.block)

    def _count_conv(self, node: Node) -> None:
        x, y, w = node.inputs[0], node.outputs[0], self.weights[node.index]
        rows = np.flatnonzero(w.any(axis=(1, 2, 3)))
        if node.inputs[2:3] not in ((), ("",)):
            rows = np.append(rows, np.flatnonzero(self.graph.array(node.inputs[2])))
        self._use(y, max(rows.max(initial=0) + 1, len(w) - self.block + 1))
        if len(node.inputs) > 3:
            self._alike(y, node.inputs[3])
        if int(node.attrs.get("group", 1)) > 1 and w.shape[1] == 1:
            self._alike(x, y)
        elif int(node.attrs.get("group", 1)) > 1:
            self._use(x, self._whole(x))
            self._use(y, len(w))
        elif x in self.same:
            columns = np.flatnonzero(w.any(axis=(0, 2, 3)))
            self._use(x, max(columns.max(initial=0) + 1, w.shape[1] - self.block + 1))

    def _whole(self, name: str) -> int:
        """The channels of a tensor with the zeros that fill up its last block."""
        return self.shapes.shapes[name][1]

    def _channels(self, name: str) -> int:
        return self.least[self._root(name)]

    # Nodes -------------------------------------------------------------------------------------

    def model(self) -> ModelProto:
        for node in self.graph.nodes:
            if node.domain == DOMAIN:
                self._write(node)
            elif node.op_type == "Reshape" and node.inputs[0] in self.same:
                self.alias[node.outputs[0]] = self.alias.get(node.inputs[0], node.inputs[0])
            else:
                copy = NodeProto()
                copy.CopyFrom(node.proto)
                for k, name in enumerate(node.proto.input):
                    copy.input[k] = self.alias.get(name, name)
                self.nodes.append(copy)
        source = self.graph.model
        model = copy_without(source, "node", "value_info", "initializer")
        del model.opset_import[:]
        model.opset_import.extend(o for o in source.opset_import if o.domain != DOMAIN)
        model.graph.node.extend(self.nodes)
        read = {name for node in model.graph.node for name in node.input}
        model.graph.initializer.extend(
            t for t in source.graph.initializer if t.name in read and t.name not in self.stored
        )
        model.graph.initializer.extend(
            numpy_helper.from_array(v.copy(), n) for n, v in self.stored.items()
        )
        made = {name for node in model.graph.node for name in node.output}
        model.graph.value_info.extend(
            i for i in source.graph.value_info if i.name in made and i.name not in self.same
        )
        return model

    def _write(self, node: Node) -> None:
        x, y = self.alias.get(node.inputs[0], node.inputs[0]), node.outputs[0]
        if node.op_type == "Conv":
            self._write_conv(node, x)
        elif node.op_type in ("ReorderInput", "ReorderOutput"):
            x0, channels = node.inputs[0], node.attrs.get("channels")
            if node.op_type == "ReorderOutput" and self._channels(x0) != channels:
                raise _UnknownError("a block that is read in part")
            if node.attrs.get("channels_last", 0):
                rank = len(self.shapes.shapes[node.inputs[0]])
                last = [0, *range(2, rank), 1]
                perm = (
                    last if node.op_type == "ReorderOutput" else [0, rank - 1, *range(1, rank - 1)]
                )
                self._add(node, "Transpose", [x], y, perm=perm)
            elif y in self.graph.outputs:
                self._add(node, "Identity", [x], y)
            else:
                self.alias[y] = x
        elif node.op_type == "Upsample":
            scales = self._hold(y, np.asarray(node.attrs["scales"], np.float32))
            attrs = {k: v for k, v in node.attrs.items() if k != "scales"}
            if attrs.setdefault("mode", b"nearest") == b"nearest":
                attrs["nearest_mode"] = "floor"
            attrs.setdefault("coordinate_transformation_mode", "asymmetric")
            if self.graph.opset("") < 11:
                raise _UnknownError("Resize before opset 11")
            self._add(
                node, "Resize", [x, self._hold(y, np.zeros(0, np.float32)), scales], y, **attrs
            )
        else:
            self._add(node, node.op_type, [x], y, **node.attrs)

    def _write_conv(self, node: Node, x: str) -> None:
        attrs = dict(node.attrs)
        activation, params = attrs.pop("activation", b""), attrs.pop("activation_params", [])
        if activation not in _ACTIVATIONS:
            raise _UnknownError(activation.decode())
        w, rows = self.weights[node.index], self._channels(node.outputs[0])
        if int(attrs.get("group", 1)) > 1 and w.shape[1] == 1:
            attrs["group"] = rows
        elif int(attrs.get("group", 1)) == 1 and node.inputs[0] in self.same:
            w = w[:, : self._channels(node.inputs[0])]
        inputs = [x, self._hold(node.inputs[1], w[:rows])]
        if len(node.inputs) > 2 and node.inputs[2]:
            inputs.append(self._hold(node.inputs[2], self.graph.array(node.inputs[2])[:rows]))
        steps: list[tuple[str, list[str], dict[str, Any]]] = [("Conv", inputs, attrs)]
        if len(node.inputs) > 3 and node.inputs[3]:
            steps.append(("Add", [self.alias.get(node.inputs[3], node.inputs[3])], {}))
        if activation == b"Clip" and self.graph.opset("") >= 11:
            bounds = [self._hold(node.outputs[0], np.float32(p)) for p in params]
            steps.append(("Clip", bounds, {}))
        elif activation == b"HardSwish" and self.graph.opset("") < 14:
            steps.append(("HardSigmoid", [], {"alpha": 1 / 6, "beta": 0.5}))
            steps.append(("Mul", [_BEFORE], {}))
        elif activation:
            named = dict(zip(_ACTIVATIONS[activation], params, strict=False))
            steps.append((activation.decode(), [], named))
        before = made = ""
        for k, (op_type, others, options) in enumerate(steps):
            y = node.outputs[0] if k == len(steps) - 1 else unused(node.outputs[0], self.names)
            read = [before if name == _BEFORE else name for name in others]
            self._add(node, op_type, [made, *read] if k else read, y, **options)
            before, made = made, y

    def _add(self, near: Node, op_type: str, inputs: list[str], y: str, **attrs: Any) -> None:
        taken = any(node.name == near.name for node in self.nodes)
        name = unused(near.name, self.names) if taken else near.name
        self.nodes.append(helper.make_node(op_type, inputs, [y], name=name, **attrs))

    def _hold(self, near: str, value: Weight) -> str:
        """An initializer under this name, or under one of its own where that holds another."""
        name = self.graph.constants[near].source if near in self.graph.constants else ""
        known = self.stored.get(name)
        if not name or not (known is None or np.array_equal(known, value)):
            name = unused(near, self.names)
        self.stored[name] = np.asarray(value)
        return name

    # Weights -----------------------------------------------------------------------------------

    def _plain(self, node: Node) -> Weight:
        """The weights of a convolution as (O, I, kernel)."""
        if node.inputs[1] not in self.graph.constants:
            raise _UnknownError("computed weights")
        w, b = self.graph.array(node.inputs[1]), self.block
        o, i, *kernel = w.shape
        if i < b:
            return np.moveaxis(w.reshape(o // b, i, *kernel, b), -1, 1).reshape(w.shape)
        blocks = w.reshape(o // b, i // b, *kernel, b, b)
        return np.moveaxis(blocks, (-1, -2), (1, 3)).reshape(w.shape)


def _is(node: Node, *op_types: str) -> bool:
    return node.domain == DOMAIN and node.op_type in op_types
