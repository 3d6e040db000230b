"""Feeds that are loaded or drawn when they are asked for, and where samples lie in them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from spa.graph import Graph
from spa.run import Feeds
from spa.sizes import batch_sizes, channel_axis, dims


class Column(Protocol):
    """The samples of one input; an array is one."""

    def __getitem__(self, rows: Any, /) -> Any: ...


class Made:
    """Samples that are drawn or decoded when they are first asked for, and kept.

    Args:
        shape: the number of samples, and the shape of one.
        draw: makes one of them.
        finish: turns those that were asked for into what the model takes.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: Any,
        draw: Callable[[int], NDArray[Any]],
        finish: Callable[[NDArray[Any]], NDArray[Any]] = lambda kept: kept,
    ) -> None:
        self.shape = shape
        self._draw, self._finish, self._dtype = draw, finish, dtype
        self._kept: NDArray[Any] | None = None
        self._known = np.zeros(shape[0], bool)

    def __getitem__(self, rows: NDArray[np.intp]) -> NDArray[Any]:
        if self._kept is None:
            self._kept = np.empty(self.shape, self._dtype)
        for row in rows.tolist():
            if not self._known[row]:
                self._kept[row] = self._draw(row)
                self._known[row] = True
        return self._finish(self._kept[rows])


@dataclass(frozen=True)
class Slot:
    """Where the samples of one input come from, and how they are fed.

    axis: where they lie in what the model takes; None: the first row of a batch is fed alone.
    same: the column is fed as it is, whatever the sample.
    """

    column: Column
    axis: int | None
    same: bool = False

    def feed(self, rows: NDArray[np.intp]) -> Any:
        if self.same:
            return self.column
        if self.axis is None:
            value = self.column[rows[:1]][0]
            return value if isinstance(value, list) else np.asarray(value)
        value = np.asarray(self.column[rows])
        return np.ascontiguousarray(np.moveaxis(value, 0, self.axis))


Part = Mapping[str, Slot]  # a slot for every input
Row = tuple[int, int]  # a part, and a row in it


class Batches(Sequence[Feeds]):
    """Feeds, loaded or drawn when they are asked for.

    Args:
        rows: in this order.
        size: rows of a batch.
        whole: leave out the rows that do not fill one.
        weight: samples in a row.
    """

    def __init__(
        self, parts: Sequence[Part], rows: Sequence[Row], size: int, whole: bool, weight: int = 1
    ) -> None:
        self.parts, self.size, self.whole, self.weight = parts, size, whole, weight
        self._chunks = [
            chunk
            for _, mine in groupby(rows, key=lambda row: row[0])
            for chunk in _cut(list(mine), size, whole)
        ]

    @property
    def rows(self) -> list[Row]:
        return [row for chunk in self._chunks for row in chunk]

    @property
    def samples(self) -> int:
        """How many, in all."""
        return sum(map(len, self._chunks)) * self.weight

    def but(self, rows: Sequence[Row]) -> Batches:
        """Of the same parts other rows."""
        return Batches(self.parts, rows, self.size, self.whole, self.weight)

    def __len__(self) -> int:
        return len(self._chunks)

    @overload
    def __getitem__(self, at: int) -> Feeds: ...
    @overload
    def __getitem__(self, at: slice) -> list[Feeds]: ...
    def __getitem__(self, at: int | slice) -> Feeds | list[Feeds]:
        if isinstance(at, slice):
            return [self[k] for k in range(*at.indices(len(self)))]
        chunk = self._chunks[at]
        rows = np.asarray([row for _, row in chunk], np.intp)
        return {name: slot.feed(rows) for name, slot in self.parts[chunk[0][0]].items()}


def _cut(rows: list[Row], size: int, whole: bool) -> Iterator[list[Row]]:
    for k in range(0, len(rows), size):
        if k + size <= len(rows) or not whole:
            yield rows[k : k + size]


@dataclass(frozen=True)
class Limits:
    """What a user grants: samples, samples of a batch, bytes for all of them."""

    count: int
    batch: int
    memory: int

    def samples(self, per_sample: int, there: int | None = None) -> tuple[int, str]:
        """How many to take of those that are there, and a note if memory is why not more."""
        wanted = self.count if there is None else min(self.count, there)
        most = max(self.memory // max(per_sample, 1), 1)
        if most >= wanted:
            return wanted, ""
        return most, f"{most} samples instead of {wanted}: more take over {self.memory} bytes"

    def size(self, per_sample: int, count: int) -> int:
        """Samples of a batch: 1/64 of the memory at most, for what the model makes of it is far
        larger."""
        return min(count, self.batch, max(self.memory // max(64 * per_sample, 1), 1))


def batch_axes(graph: Graph) -> tuple[dict[str, int | None], int | None]:
    """For every input the axis along which samples lie; and the number of samples, if fixed."""
    infos = [i for i in graph.model.graph.input if i.name in graph.inputs]
    lead = batch_sizes(graph)
    shapes = {i.name: dims(graph, i) if i.type.HasField("tensor_type") else [] for i in infos}
    if lead:
        axes = {
            name: next((k for k, size in enumerate(shape) if size in lead), None)
            for name, shape in shapes.items()
        }
        return axes, None
    if any(_is_picture(shape) for shape in shapes.values()):
        return dict.fromkeys(shapes), None
    first = {shape[0] for shape in shapes.values() if shape}
    fixed = first.pop() if len(first) == 1 else None
    if not isinstance(fixed, int):
        return dict.fromkeys(shapes), None
    return {name: 0 if shape else None for name, shape in shapes.items()}, fixed


def _is_picture(shape: list[int | str]) -> bool:
    """Whether a fixed shape is that of one picture and not of a batch."""
    inner = [size for size in shape if isinstance(size, int)]
    axis = channel_axis(inner) if len(inner) == len(shape) else None
    return axis is not None and inner[axis] > 1 and sorted(inner)[1] >= 16
