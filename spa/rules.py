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

from spa.axes import Axes, Axis, Shape, is_whole, whole
from spa.follow import follow, foretell
from spa.op import Op

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
            op_type, key[0], family, run, text, resize, macs, quantised, enter, shapes, partial,
            states or {},
        )  # fmt: skip


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
