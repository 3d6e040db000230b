"""One node as its rule sees it, and all that a rule can say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper

from spa import patterns
from spa.axes import Axes, Axis, Grid, Ids, Join, Pick, Recorder, Shape, is_whole, whole

if TYPE_CHECKING:
    from spa.graph import Node


@dataclass(frozen=True)
class Op:
    """One node as its rule sees it: attributes, shapes, known values and the axes of its inputs.

    values: what each input holds, where that is computed from sizes and constants alone.
    static: whether that is the same whatever the free sizes are. still: else which elements are.
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
    still: Sequence[NDArray[np.bool_] | None] = ()

    def attr(self, name: str, default: Any = None) -> Any:
        return self.node.attrs.get(name, default)

    def tensor(self, name: str) -> NDArray[Any] | None:
        """What an attribute holds that is a tensor; None where it is absent."""
        value = self.attr(name)
        return None if value is None else numpy_helper.to_array(value)

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

    def speaks(self, *products: tuple[int, ...]) -> bool:
        """Whether a removed index of the last axis adds something to a sum of products of inputs;
        a product of which one is absent is none."""
        return any(
            not any(self.input(k)[-1].zero for k in product)
            for product in products
            if all(map(self.has, product))
        )

    # What a rule can say -------------------------------------------------------------------

    def fresh(self, size: int, zero: bool = True) -> Axis:
        """An axis of new ids; one of size 1 is whole."""
        return self.recorder.fresh(size, zero)

    def tie(self, a: Ids, b: Ids) -> None:
        """Ids at equal positions (after broadcasting) can only be removed together."""
        if a is not b:
            a, b = np.broadcast_arrays(a, b)
            self.recorder.ties.append((a.ravel(), b.ravel(), self.node.index))

    def meet(self, one: Axis, other: Axis) -> Axis:
        """The axis that an output has of two tied ones: zero where both are."""
        self.tie(one.ids, other.ids)
        live = other if is_whole(one) else one
        return live._replace(zero=one.zero and other.zero)

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

    def join(self, axis: Axis, position: int) -> Axis | None:
        """The axis of one index that an input adds to an axis of the output; None where it has to
        stay, see `spa.picks`."""
        picks = self.recorder.joined.get((self.node.index, position))
        if picks is None or len(axis.ids) != 1 or not is_whole(axis):
            return None
        known = [p for p in self.recorder.picks if (p.node, p.output) in picks]
        if len(known) < len(picks):
            return None
        # An axis of one index is whole, one index of an axis need not be.
        ids = known[0].ids[[known[0].at]] if known else self.fresh(2).ids[:1]
        for pick in known[1:]:
            self.tie(ids, pick.ids[[pick.at]])
        return Axis(ids, True)

    def joins(self, axis: Axis, at: int, position: int) -> None:
        """Say that an index of an axis of the output is what `join` gave it."""
        self.recorder.joins.append(Join(axis.ids, at, self.node.index, position))

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

    def lists(self, k: int, axes: Sequence[Axis]) -> set[int]:
        """Which of some axes input k, with a column for each, holds positions on; if it is known of
        no other column, say that they are read as that."""
        name = self.node.inputs[k]
        columns = self.recorder.columns.get(name, {})
        if len(axes) == 1 and name in self.recorder.indices:
            columns = {0: self.recorder.indices[name]}
        found = {c for c, ids in columns.items() if len(ids) == len(axes[c].ids)}
        for c in found:
            self.tie(axes[c].ids, columns[c])
        if found and found == columns.keys():
            self.recorder.understood.add((self.node.index, k))
        return found

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
