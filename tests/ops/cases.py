"""One row of a table of operator cases: a producer of live channels, the operator, a consumer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

import spa
from models.builder import Dim, Net, Tensor
from models.graph import graphs_of
from spa import rules, run
from spa.groups import Group, Groups
from spa.parts import parts
from spa.rewrite import rewrite
from spa.rules import MICROSOFT
from tests.oracle import check

IMAGE = (2, 3, 6, 6)
SIGNAL = (2, 3, 8)
VOLUME = (2, 3, 4, 4, 4)
TOKENS = (2, 5, 6)  # channels last
ROWS = (4, 6)
LINEAR = (TOKENS, ROWS)

CHANNELS = 8  # that the producer makes

Made = Tensor | tuple[Tensor, ...]
Body = Callable[[Net, Tensor], Made]


@dataclass(frozen=True)
class Case:
    """An operator between a producer and a consumer.

    groups: how many groups the whole has; the producer's channels, if free, are one of them.
    body: (net, what the producer made) -> what the consumer reads, or a tuple of graph outputs.
    exact: whether all groups are exact, or none is; None leaves that open.
    inexact: how many groups are inexact; None leaves that open.
    runnable: whether onnxruntime has a kernel; if not, only shapes are checked.
    refused: whether the rule does not fit a node, and locks what is around it.
    typed: whether the file declares the types of inner tensors, as few real files do.
    """

    name: str
    groups: int
    body: Body
    shape: tuple[int, ...] = IMAGE
    opset: int = 17
    exact: bool | None = None
    runnable: bool = True
    refused: bool = False
    typed: bool = False
    inexact: int | None = None

    def model(self) -> ModelProto:
        net = Net(self.name, opset=self.opset)
        made = self.body(net, produce(net, net.input("x", self.shape)))
        outputs = made if isinstance(made, tuple) else (consume(net, made, self.shape),)
        model = net.model(*outputs, ir_version=8 if self.opset < 19 else 10)
        if not self.typed:
            for graph in graphs_of(model.graph):
                del graph.value_info[:]
        return model

    def check(self) -> None:
        groups = check(self.model(), self.groups, runnable=self.runnable)
        _check_foretold(groups)
        refused = groups.views[0].ties.refused
        assert bool(refused) == self.refused, f"refused: {refused}"
        if self.exact is not None:
            assert {g.exact for g in groups} <= {self.exact}
        if self.inexact is not None:
            assert sum(not g.exact for g in groups) == self.inexact


def _check_foretold(groups: Groups) -> None:
    """What patterns tell of shapes, which is asked for where nothing else tells them, is so."""
    ties = groups.views[0].ties
    for index, op in ties.ops.items():
        rule = rules.find(op.node.op_type, op.node.domain)
        if rule is not None and rule.shapes is not None and index not in ties.refused:
            for told, shape in zip(rule.shapes(op), op.out_shapes, strict=False):
                assert told is None or shape is None or told == shape, (op.node.op_type, told)


def case(name: str, groups: int, body: Body, *, bug: str = "", **options: Any) -> Any:
    """A row for pytest; `bug` says what is known to be wrong."""
    marks = [pytest.mark.xfail(strict=True, reason=bug)] if bug else []
    return pytest.param(Case(name, groups, body, **options), id=name, marks=marks)


def produce(net: Net, x: Tensor, channels: int = CHANNELS) -> Tensor:
    if x.shape in map(list, LINEAR):
        return net.linear(x, channels)
    return net.conv(x, channels, 1)


def consume(net: Net, y: Tensor, shape: tuple[int, ...] = IMAGE) -> Tensor:
    if y.dtype != np.float32:
        y = net.cast(y, TensorProto.FLOAT)
    if shape in LINEAR or len(y.shape) == 2:
        return net.linear(y, 5)
    return net.conv(y, 5, 1)


def contrib(
    net: Net, op: str, inputs: Sequence[Any], *shapes: Sequence[Dim], **attrs: Any
) -> list[Tensor]:
    """A node of onnxruntime's own domain, for whose outputs ONNX infers no shapes."""
    given = list(inputs)
    while given[-1] is None:
        given.pop()
    return net.nodes(op, given, len(shapes), shapes=shapes, domain=MICROSOFT, **attrs)


# Without a kernel on the CPU; shapes are then as the patterns say.
UNSEEN: dict[str, Any] = {"runnable": False}


def summed(net: Net, y: Tensor, axis: int = 1) -> Tensor:
    """The sum over the channels, which sees what a removed channel leaves behind."""
    if y.dtype != np.float32:
        y = net.cast(y, TensorProto.FLOAT)
    return net.node("ReduceSum", y, [axis], keepdims=1)


def summing(body: Body, axis: int = 1) -> Body:
    """An operator with that sum behind it."""

    def sum_up(net: Net, a: Tensor) -> Tensor:
        made = body(net, a)
        assert isinstance(made, Tensor)
        return summed(net, made, axis)

    return sum_up


def turned(body: Body, *perm: int) -> Body:
    """The channels of an image where an operator has another axis, and back again."""

    def turn(net: Net, a: Tensor) -> Made:
        made = body(net, net.transpose(a, *perm))
        assert isinstance(made, Tensor)
        return net.transpose(made, *np.argsort(perm).tolist())

    return turn


def of_numbers(read: Callable[[Net, Tensor, Tensor], Tensor]) -> Body:
    """What is made of the numbers of the three largest channels, summed over these."""

    def body(net: Net, a: Tensor) -> Tensor:
        _, at = net.nodes("TopK", [a, [3]], 2, axis=1)
        return net.node("ReduceSum", read(net, a, at), [1], keepdims=0)

    return body


def check_axes(
    body: Body, op_type: str, letters: str, terms: Sequence[str], made: Sequence[str] = ()
) -> list[Group]:
    """A group for every letter, with just those axes of what is stored that it stands for, in the
    order of the letters.

    terms: for each input of a node an item for each axis, the letters of a product or one size;
        a digit in a product is a size too. made: the same for the constants behind it, in order.
    """
    groups = spa.analyze(Case("", 0, body, TOKENS, typed=True).model())
    (node,) = [n for n in groups.graph.nodes if n.op_type == op_type]
    behind = [f"behind_{k}" if k else "behind" for k in range(len(made))]
    laid = {
        (name, axis): factors
        for name, term in zip((*node.inputs, *behind), (*terms, *made), strict=False)
        for axis, factors in enumerate(term.split())
    }
    found = [{p for m in g.members if (p := (m.tensor, m.axis)) in laid} for g in groups]
    wanted = [{place for place, factors in laid.items() if x in factors} for x in letters]
    assert sorted(map(sorted, filter(None, found))) == sorted(map(sorted, wanted))
    lettered = [groups[found.index(places)] for places in wanted]
    size = {x: group.size for x, group in zip(letters, lettered, strict=True)}
    for x, group in zip(letters, lettered, strict=True):
        for member in group.members:
            factors = laid.get((member.tensor, member.axis), "")
            n = groups.graph.constants[member.tensor].shape[member.axis]
            dims = [size.get(f) or int(f) for f in factors if f in size or f.isdigit()]
            if x in factors and len(dims) == len(factors) and n % np.prod(dims) == 0:
                first = np.arange(n).reshape(-1, *dims).take(0, axis=1 + factors.index(x))
                assert sorted(member.index[0].tolist()) == first.ravel().tolist(), factors
    return lettered


def check_as_if_never_there(row: Case, gone: list[int]) -> None:
    """Where channels are picked by their size the law is inexact, and a stronger equation holds:
    without some, what is made is what it would be if these were the smallest by far."""
    groups = spa.analyze(row.model())
    (g,) = [g for g, group in enumerate(groups) if _PRODUCED in {m.tensor for m in group.members}]
    last = ModelProto()
    last.CopyFrom(groups.graph.model)
    for tensor in last.graph.initializer:
        if tensor.name == _PRODUCED:
            value = np.array(numpy_helper.to_array(tensor))
            value[gone] = -1e9
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    feeds = {"x": np.random.default_rng(0).normal(size=row.shape).astype(np.float32)}
    made = []
    for model in (last, rewrite(groups, {g: np.asarray(gone)})):
        with run.session(parts(model)) as session:
            made.append(next(iter(run.run(session, feeds).values())))
    np.testing.assert_allclose(*made, rtol=1e-5, atol=1e-6)


_PRODUCED = "MatMul_0.bias"  # of the producer of tokens and rows


# Operators of onnxruntime on quantised numbers ---------------------------------------------------

SCALE, POINT = np.float32(0.05), np.uint8(120)
CODE = (SCALE, POINT)


def quantise(net: Net, a: Tensor) -> Tensor:
    return net.node("QuantizeLinear", a, *CODE)


def dequantise(net: Net, q: Tensor) -> Tensor:
    return net.node("DequantizeLinear", q, *CODE)


def coded(
    net: Net, op: str, *inputs: Any, shape: Sequence[Any], dtype: Any = np.uint8, **attrs: Any
) -> Tensor:
    return net.nodes(op, inputs, shapes=[shape], dtype=dtype, domain="com.microsoft", **attrs)[0]


def codes(net: Net, *shape: int, low: int = 90, high: int = 150, dtype: Any = np.uint8) -> Tensor:
    """A stored tensor of quantised numbers."""
    return net.const(net.rng.integers(low, high, shape).astype(dtype), "codes")
