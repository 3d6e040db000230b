"""Feeds that are loaded or drawn when they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from spa.run import Feeds


class Column(Protocol):
    """The samples of one input; an array is one."""

    def __getitem__(self, rows: Any, /) -> Any: ...


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
            return self.column[rows[:1]][0]
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
