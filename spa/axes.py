"""The ids on the axes of a tensor, and the record of what ties and locks them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int32]
Shape = tuple[int, ...]

# What a user may call a group; the first of these that one of its axes was given names it.
KINDS = ("heads", "head-dim", "hidden", "embedding", "recurrent", "conv", "linear")

WINDOW = "an axis of a window, a map or a list"

LOCKED = 0  # the id that everything locked is tied to

AxisName = tuple[str, int]  # tensor, axis
Released = frozenset[AxisName]  # axes of inputs and outputs of the file that may lose indices


class Axis(NamedTuple):
    """One axis of one tensor.

    ids: the channel id of every index, shape (size,).
    zero: whether the values at a removed index are zero in the masked original (the law's right
        side), so that a sum over them adds nothing.
    """

    ids: Ids
    zero: bool


Axes = list[Axis]


def whole(size: int) -> Axis:
    """An axis of which nothing can be removed."""
    return Axis(np.broadcast_to(np.int32(LOCKED), (size,)), False)


def is_whole(axis: Axis) -> bool:
    return axis.ids.strides == (0,) or not axis.ids.any()


class Grid(NamedTuple):
    """An axis that is a product of several axes, of which more than one may lose indices.

    cells: the ids of the axis, shape (size,); a cell goes exactly when one of its lines goes.
    lines: for each factor the id of the line that every cell lies on, shape (factors, size).
    node: the index of the node that lays the grid.
    factors: for each factor the ids of its lines, each once.
    """

    cells: Ids
    lines: Ids
    node: int
    factors: tuple[Ids, ...]


class Pick(NamedTuple):
    """One index of an axis, which a node takes out alone.

    ids: of the whole axis. at: the index. node, output: the tensor that holds it.
    """

    ids: Ids
    at: int
    node: int
    output: int


class Join(NamedTuple):
    """One index of an axis, which is all that an input of a Concat adds to it.

    ids: of the whole axis. at: the index. node, position: the input.
    """

    ids: Ids
    at: int
    node: int
    position: int


# (node, position of an input) -> the (node, output) that pick what goes with it.
Joined = Mapping[tuple[int, int], tuple[tuple[int, int], ...]]

Promise = tuple[int, int, int]  # body, input of the node that runs it, axis


class Recorder:
    """Collects what the rules say: ties, grids, locks, inexact ids and the kinds of axes.

    Where a body of a loop begins, it is not known yet whether what a round leaves of a state is
    zero where an index is removed; it is taken to be so where the state starts with zero.

    begun: the axes of states that start as nothing, by body and input of the node that runs it.
    spoken: the axes of states of which that is known to be wrong. broken: those found so.
    apart: the nodes that pick what can go with all that is made from it, see `spa.picks`.
    joined: the inputs that a Concat can go on without, and what they go with if it is more.
    indices: tensors that hold positions on an axis -> the ids of that axis. columns: tensors whose
        last axis lists positions on several axes -> column -> the ids of its axis, where known.
        understood: the (node, position of an input) that read such a tensor as that.
    least: axes with the number of indices that have to stay.
    """

    def __init__(
        self,
        spoken: frozenset[Promise] = frozenset(),
        apart: frozenset[int] = frozenset(),
        joined: Joined = MappingProxyType({}),
    ) -> None:
        self.spoken, self.apart, self.joined = spoken, apart, joined
        self.broken: set[Promise] = set()
        self.begun: dict[tuple[int, int], Axes] = {}
        self.count = LOCKED + 1
        self.ties: list[tuple[Ids, Ids, int]] = []
        self.grids: list[Grid] = []
        self.locks: list[tuple[Ids, int, str]] = []
        self.inexact: list[tuple[Ids, int]] = []
        self.kinds: list[tuple[Ids, str]] = []
        self.picks: list[Pick] = []
        self.joins: list[Join] = []
        self.indices: dict[str, Ids] = {}
        self.columns: dict[str, dict[int, Ids]] = {}
        self.understood: set[tuple[int, int]] = set()
        self.least: list[tuple[Ids, int]] = []

    def fresh(self, size: int, zero: bool = True) -> Axis:
        """An axis of new ids; one of size 1 broadcasts and is never removed, so it is whole."""
        if size <= 1:
            return whole(size)
        self.count += size
        return Axis(np.arange(self.count - size, self.count, dtype=np.int32), zero)
