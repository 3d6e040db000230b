"""What an operator's rule is, what it is given, and the registry that `ops/` fills.

A rule is the operator re-run on channel ids: it receives the ids of every axis of its inputs and
returns the ids of every axis of its outputs. Data movement runs literally; arithmetic is declared
as a pattern (see `spa.patterns`). An operator that stores a size also has a *resize*.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from spa import patterns
from spa.axes import Axes, Axis, Grid, Ids, Pick, Recorder, Shape, is_whole, whole
from spa.follow import follow, foretell

if TYPE_CHECKING:
    from spa.graph import Node

__all__ = [
    "MICROSOFT",
    "RULES",
    "Axes",
    "Axis",
    "Op",
    "Product",
    "Quantised",
    "Resized",
    "Rule",
    "Shape",
    "Sized",
    "declare",
    "find",
    "follow",
    "is_silent",
    "is_whole",
    "rule",
    "whole",
]


@dataclass(frozen=True)
class Op:
    """One node as its rule sees it: attributes, shapes, known values and the axes of its inputs.

    values: what each input holds, where that is computed from sizes and constants alone.
    static: whether that is the same whatever the free sizes are.
    empty: the inputs that are sequences with nothing in them, see `Graph.empty`.
    """

    node: Node
    opset: int
    shapes: Sequence[Shape | None]
    out_shapes: Sequence[Shape | None]
    axes: Sequence[Axes | None]
    values: Sequence[NDArray[Any] | None]
    static: Sequence[bool]
    activation: Sequence[bool]
    recorder: Recorder
    empty: frozenset[int] = frozenset()

    def attr(self, name: str, default: Any = None) -> Any:
        return self.node.attrs.get(name, default)

    def shape(self, k: int = 0) -> Shape:
        """The shape of input k, which must be present."""
        shape = self.shapes[k]
        if shape is None:
            raise patterns.PatternError(f"the shape of input {k} is not known")
        return shape

    def out_shape(self, k: int = 0) -> Shape:
        shape = self.out_shapes[k]
        if shape is None:
            raise patterns.PatternError(f"the shape of output {k} is not known")
        return shape

    def has(self, k: int) -> bool:
        return k < len(self.axes) and self.axes[k] is not None

    def input(self, k: int = 0) -> Axes:
        """The axes of input k; empty when the input is absent."""
        return (self.axes[k] if k < len(self.axes) else None) or []

    def value(self, k: int, attr: str | None = None) -> Any:
        """The known value of input k, or of the attribute that held it in older opsets.

        Raises:
            PatternError: when the value is computed from the data at run time.
        """
        if attr is not None and attr in self.node.attrs:
            return np.asarray(self.node.attrs[attr])
        if not self.has(k):
            return None
        value = self.fixed(k)
        if value is None:
            raise patterns.PatternError(f"input {k} is computed at run time")
        return value

    def need(self, *inputs: int) -> None:
        """Refuse, and so lock all, where one of these inputs holds sizes that depend on the data.

        Raises:
            PatternError: then.
        """
        for k in inputs:
            if self.has(k) and self.activation[k] and self.values[k] is None:
                raise patterns.PatternError(f"input {k} depends on the data")

    def fixed(self, k: int) -> NDArray[Any] | None:
        """The value of input k if it is known and the same whatever the free sizes are."""
        return self.values[k] if k < len(self.values) and self.static[k] else None

    def axis(self, default: int = 0, k: int = 0) -> int:
        """The attribute ``axis``, counted from the front of input k."""
        axis = int(self.attr("axis", default))
        return axis + len(self.shape(k)) if axis < 0 else axis

    # What a rule can say -------------------------------------------------------------------

    def fresh(self, size: int, zero: bool = True) -> Axis:
        """An axis of new ids; one of size 1 is whole."""
        return self.recorder.fresh(size, zero)

    def tie(self, a: Ids, b: Ids) -> None:
        """Ids at equal positions (after broadcasting) can only be removed together."""
        if a is not b:
            a, b = np.broadcast_arrays(a, b)
            self.recorder.ties.append((a.ravel(), b.ravel(), self.node.index))

    def lock(self, axis: Axis, why: str) -> None:
        if not is_whole(axis):
            self.recorder.locks.append((axis.ids, self.node.index, why))

    def lock_input(self, k: int, why: str) -> None:
        for axis in self.input(k):
            self.lock(axis, why)

    def pick(self, axis: Axis, at: int, output: int = 0) -> bool:
        """Say that an output holds one index of an axis alone; whether it goes with that index,
        and all that is made from it, see `spa.picks`."""
        if not is_whole(axis) and len(axis.ids) > 1:
            pick = Pick(axis.ids, at % len(axis.ids), self.node.index, output)
            self.recorder.picks.append(pick)
        return self.node.index in self.recorder.apart

    def points(self, axis: Axis, output: int = 0) -> None:
        """Say that an output holds positions on an axis: where it is put to any other use than
        `indexes`, the axis is locked."""
        if not is_whole(axis) and output < len(self.node.outputs):
            self.recorder.indices[self.node.outputs[output]] = axis.ids

    def pointed(self, k: int) -> Ids | None:
        """The ids of the axis on which input k holds positions, if it is known to."""
        return self.recorder.indices.get(self.node.inputs[k]) if self.has(k) else None

    def indexes(self, k: int, axis: Axis) -> bool:
        """Whether input k holds positions on an axis that goes together with this one, index by
        index; if so, say that they are read as positions on this one."""
        ids = self.pointed(k)
        if ids is None or len(ids) != len(axis.ids):
            return False
        self.tie(axis.ids, ids)
        self.recorder.understood.add((self.node.index, k))
        return True

    def asks_for(self, k: int, at: int) -> None:
        """Say that an output tells where input k, which holds positions on an axis, holds one."""
        ids = self.pointed(k)
        if ids is not None and self.pick(Axis(ids, False), at):
            self.recorder.understood.add((self.node.index, k))

    def keep(self, axis: Axis, count: int) -> None:
        """So many indices of an axis have to stay."""
        if not is_whole(axis) and count > 1:
            self.recorder.least.append((axis.ids, count))

    def inexact(self, axis: Axis) -> None:
        """Removing an index of this axis changes a statistic that runs over it."""
        if not is_whole(axis):
            self.recorder.inexact.append((axis.ids, self.node.index))

    def kind(self, axis: Axis, kind: str) -> None:
        if not is_whole(axis):
            self.recorder.kinds.append((axis.ids, kind))

    def grid(self, cells: Ids, factors: Sequence[Ids | None], dims: Sequence[int]) -> None:
        """The cells of a row-major grid of size ``dims`` go where a line of one factor goes.

        Args:
            factors: the ids of the lines of every dimension; None where all of them are kept.
        """
        lines = [
            np.broadcast_to(ids.reshape([n if i == k else 1 for i, n in enumerate(dims)]), dims)
            for k, ids in enumerate(factors)
            if ids is not None
        ]
        flat = np.stack([line.ravel() for line in lines])
        given = tuple(ids for ids in factors if ids is not None)
        self.recorder.grids.append(Grid(cells.ravel(), flat, self.node.index, given))

    def begin(self, k: int) -> Axes:
        """The axes of a state where a loop enters its body, see `Recorder`."""
        body, spoken = self.node.bodies[0], self.recorder.spoken
        axes = self.input(k)
        if k in self.empty:
            axes = self.recorder.begun[body, k] = [self.fresh(n) for n in self.out_shape(k)]
        return [
            axis._replace(zero=axis.zero and (body, k, at) not in spoken)
            for at, axis in enumerate(axes)
        ]

    def come_round(self, k: int, left: Axes) -> None:
        """Say what the rounds leave of a state."""
        body = self.node.bodies[0]
        begun = self.recorder.begun.get((body, k))
        for at, (start, end) in enumerate(zip(begun or self.input(k), left, strict=False)):
            if begun:
                self.tie(start.ids, end.ids)
            if start.zero and not end.zero:
                self.recorder.broken.add((body, k, at))

    def whole_outputs(self) -> list[Axes]:
        return [[whole(n) for n in shape] if shape else [] for shape in self.out_shapes]


# Rules as values -------------------------------------------------------------------------------

Run = Callable[[Op], list[Axes]]


@dataclass(frozen=True)
class Resized:
    """What a resize wants: new attributes, and new values for inputs that hold sizes.

    attrs: attribute name -> new value, or None to drop it.
    inputs: input position -> the value that the operator must read there after pruning.
    """

    attrs: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[int, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Sized:
    """One node before and after pruning, as its resize sees it.

    old_in, old_out, new_in, new_out: shapes; None for an absent tensor.
    kept: for every input, the kept indices of every axis.
    kept_out: the same for every output.
    pointed: for every input that holds positions on an axis the kept indices of that axis.
    """

    op: Op
    new_in: Sequence[Shape | None]
    new_out: Sequence[Shape | None]
    kept: Sequence[Sequence[NDArray[np.intp]] | None]
    kept_out: Sequence[Sequence[NDArray[np.intp]] | None]
    pointed: Sequence[NDArray[np.intp] | None] = ()


Resize = Callable[[Sized], Resized]
# Multiply-accumulates as a sum of products of axis sizes. An axis is (k, axis) of input k, or
# (-1 - k, axis) of output k.
Product = list[tuple[int, int]]
Macs = Callable[[Op], list[Product]]


@dataclass(frozen=True)
class Quantised:
    """How an input holds real numbers: scale * (stored - point).

    scales: the inputs whose product is the scale. point: the one that holds it, or -1 for zero.
    axes: the axes of the input that those of scale and point stand for, where they have fewer; a
        function where attributes decide. One that has as many counts for blocks.
    behind: the scale is multiplied to what the node makes, by a Mul that reads it.
    unpack: (node, position, what is stored there) -> its numbers one by one; the axes that may lose
        indices stay where they are, and have as many. pack: (node, numbers) -> the nearest that can
        be stored.
    """

    scales: tuple[int, ...] = ()
    point: int = -1
    axes: tuple[int, ...] | Callable[[Node], tuple[int, ...]] = ()
    behind: bool = False
    unpack: Callable[[Node, int, NDArray[Any]], NDArray[Any]] | None = None
    pack: Callable[[Node, NDArray[Any]], NDArray[Any]] | None = None


@dataclass(frozen=True)
class Rule:
    """How one operator couples its axes.

    run: the operator on ids.
    text: the declared pattern, or what the rule does in words; shown by ``spa ops``.
    resize: rewrites the sizes that the operator stores; None when it stores none.
    macs: its multiply-accumulates; None when it has none.
    enter: for an operator with a body, what the body is given.
    quantised: the inputs that hold quantised numbers, and how.
    shapes: those of its outputs by those of its inputs; None where no pattern tells them.
    partial: whether it copes with shapes that are not known.
    states: the inputs that are the state of a run before -> the output that is the one after.
    """

    op_type: str
    domain: str
    family: str
    run: Run
    text: str
    resize: Resize | None = None
    macs: Macs | None = None
    quantised: Mapping[int, Quantised] = field(default_factory=dict)
    enter: Run | None = None
    shapes: Callable[[Op], list[Shape | None]] | None = None
    partial: bool = False
    states: Mapping[int, int] = field(default_factory=dict)


RULES: dict[tuple[str, str], Rule] = {}
MICROSOFT = "com.microsoft"  # the domain of onnxruntime's own operators

# Activations that onnxruntime fuses into what is before them and that have f(0) = 0.
_SILENT = frozenset(
    b"Relu LeakyRelu Tanh ScaledTanh Elu Selu ThresholdedRelu HardSwish Gelu QuickGelu".split()
)


def is_silent(op: Op) -> bool:
    """Whether the activation fused into a node, if any, leaves zero as it is."""
    name = op.attr("activation", b"")
    if name == b"Clip":
        low, high = op.attr("activation_params", [-np.inf, np.inf])
        return bool(low <= 0 <= high)
    return not name or name in _SILENT


def find(op_type: str, domain: str) -> Rule | None:
    return RULES.get((_domain(domain), op_type))


def _domain(domain: str) -> str:
    return "" if domain == "ai.onnx" else domain


def _register(
    ops: str,
    run: Run,
    text: str,
    domain: str,
    resize: Resize | None,
    macs: Macs | None,
    family: str,
    quantised: Mapping[int, Quantised],
    enter: Run | None = None,
    shapes: Callable[[Op], list[Shape | None]] | None = None,
    partial: bool = False,
    states: Mapping[int, int] | None = None,
) -> None:
    for op_type in ops.split():
        key = (_domain(domain), op_type)
        if key in RULES:
            raise ValueError(f"two rules for operator {op_type!r} of domain {domain!r}")
        RULES[key] = Rule(
            op_type,
            key[0],
            family,
            run,
            text,
            resize,
            macs,
            quantised,
            enter,
            shapes,
            partial,
            states or {},
        )


def declare(
    ops: str,
    pattern: str | Callable[[Op], str],
    *,
    zero: str | Callable[[Op], str] = "",
    summed: str = "",
    inexact: str | Callable[[Op], str] = "",
    sizes: Callable[[Op], dict[str, int]] | None = None,
    kinds: Callable[[Op], dict[str, str]] | None = None,
    resize: Resize | None = None,
    macs: Macs | None = None,
    quantised: Mapping[int, Quantised] | None = None,
    states: Mapping[int, int] | None = None,
    domain: str = "",
) -> None:
    """Declare the rule of one or more operators as a pattern.

    Args:
        ops: operator names, separated by spaces.
        pattern: see `spa.patterns`; a function where attributes decide it.
        zero: where a removed index holds zero in the output, as a sum of products of inputs:
            ``"0 1 + 2"`` says the output is zero where input 0 or input 1 is and input 2 is too,
            ``"+"`` where all inputs are.
            Empty: never zero, because f(0) is not 0. Where outputs differ, one for each, with
            commas; the last one stands for the rest.
        summed: the same for what is summed inside, where an activation behind that differs.
        inexact: letters whose removal changes a statistic, such as C of a LayerNormalization.
        sizes: letter sizes that attributes give.
        kinds: what the user may call the axis of a letter: conv, heads, head-dim, ...
        resize, macs, quantised, states: see `Rule`.
    """

    def run(op: Op) -> list[Axes]:
        text = pattern if isinstance(pattern, str) else pattern(op)
        letters = inexact if isinstance(inexact, str) else inexact(op)
        silent = zero if isinstance(zero, str) else zero(op)
        size, kind = sizes(op) if sizes else {}, kinds(op) if kinds else {}
        return follow(op, text, silent, letters, size, kind, summed)

    def shapes(op: Op) -> list[Shape | None]:
        text = pattern if isinstance(pattern, str) else pattern(op)
        return foretell(op, text, sizes(op) if sizes else {})

    text = pattern if isinstance(pattern, str) else pattern.__doc__ or "by attributes"
    text = re.sub(r"\s*\n\s*", " ", text.strip())
    held = quantised or {}
    _register(ops, run, text, domain, resize, macs, _family(), held, shapes=shapes, states=states)


def rule(
    ops: str,
    *,
    resize: Resize | None = None,
    macs: Macs | None = None,
    enter: Run | None = None,
    quantised: Mapping[int, Quantised] | None = None,
    partial: bool = False,
    domain: str = "",
    text: str = "",
) -> Callable[[Run], Run]:
    """Register a function as the rule of one or more operators."""

    def register(run: Run) -> Run:
        said = text or (run.__doc__ or "moves ids as it moves data").strip().splitlines()[0]
        family = run.__module__.rsplit(".", 1)[-1]
        held = quantised or {}
        _register(ops, run, said, domain, resize, macs, family, held, enter, partial=partial)
        return run

    return register


def _family() -> str:
    """The module of `ops/` that is being imported now: the caller of `declare`."""
    import sys

    return str(sys._getframe(2).f_globals["__name__"]).rsplit(".", 1)[-1]
