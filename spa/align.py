"""Line up what every group of a convolution or a norm, and every head, needs least.

A unit such as "channel c of every group" ties a cell of each group only because counts have to
agree. Which cells make up a unit is free: within a group, channels may be put in any order that all
weights follow, and the network computes the same. Here each *line* (a group, a head) is ordered by
the scores of its cells, so that the cells that a unit loses are the least of every line. That is
another form of the same model, made before anything is chosen, and checked by running both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from spa import run as runs
from spa.errors import ModelError
from spa.evidence import stored
from spa.graph import Graph, Order
from spa.groups import Group, Groups, Member
from spa.index import index
from spa.measure import Seen
from spa.parts import parts
from spa.rewrite import rewrite
from spa.sites import Site, sites
from spa.solve import labels
from spa.states import touched

Codes = NDArray[np.int64]  # of the indices of an axis: line * units + unit, or -1
Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Lines:
    """A group whose units have a cell in each of several lines.

    members: where each of them has its cells, as codes, shape (blocks, size of the axis): blocks of
        axis 0, where a kernel stands for one group each, else one.
    """

    group: int
    units: int
    lines: int
    members: tuple[tuple[Member, Codes], ...]


def find(groups: Groups) -> list[Lines]:
    """The groups whose lines may be put in order one by one."""
    label = labels(groups.views[0].ties.recorder, locks=False).astype(np.int64)
    kernels = {s.weight: s for s in sites(groups.graph) if s.groups > 1 and not s.stacked}
    free = (g for g in range(len(groups)) if not touched(groups, g))  # a state keeps its order
    found = (_lines(groups, g, label, kernels) for g in free)
    return [lines for lines in found if lines is not None]


def _lines(
    groups: Groups, g: int, label: NDArray[np.int64], kernels: Mapping[str, Site]
) -> Lines | None:
    group, axes = groups[g], groups.views[0].ties.axes
    code = _codes(groups, group, label)
    count = int(code.max(initial=-1)) // group.size + 1
    if count < 2:
        return None
    members = []
    for member in group.members:
        site = kernels.get(member.tensor)
        if site is not None and member.axis == 1:  # it has the inputs or outputs of one group
            name = site.x if site.in_axis == 1 else site.y
            found = code[label[axes[name][site.axis].ids]].reshape(site.groups, -1)
        else:
            found = code[label[axes[member.tensor][member.axis].ids]][None]
            if (found[0, member.index] < 0).any():
                if not _is_flat(groups.graph, member):
                    return None
                continue
        if not all(_is_even(row, group.size) for row in found):
            return None
        members.append((member, found))
    return Lines(g, group.size, count, tuple(members))


def _codes(groups: Groups, group: Group, label: NDArray[np.int64]) -> Codes:
    """The code of every label that is a cell of the group, line * units + unit; -1 for others, and
    everywhere where one of its grids does not follow its inner factor alone.

    Cells that lie on one line of an outer factor of any grid are on one line here.
    """
    view, none = groups.views[group.view], np.full(int(label.max()) + 1, -1, np.int64)
    place = np.full(int(view.labels.max()) + 1, -1, np.int64)
    place[group.units] = np.arange(group.size)
    ones, others, code = list[Codes](), list[Codes](), none.copy()
    for grid in view.ties.recorder.grids:
        here = place[view.labels[grid.cells]]
        mine = here >= 0
        if not mine.any():
            continue
        follows = place[view.labels[grid.lines[:, mine]]] == here[mine]
        if len(grid.lines) < 2 or follows[:-1].any() or not follows[-1].all():
            return none
        cells = label[grid.cells[mine]]
        code[cells] = here[mine]
        for line in label[grid.lines[:-1, mine]]:
            ones.append(cells)
            others.append(line)
    if not ones:
        return none
    n = len(none)
    used = np.zeros(n, bool)
    used[np.concatenate(others)] = True
    for grid in view.ties.recorder.grids:  # a line of queries lies on the line of its keys
        for line in label[grid.lines]:
            both = used[label[grid.cells]] & used[line]
            ones.append(label[grid.cells][both] + n)
            others.append(line[both])
    ends = np.concatenate([*ones, *(line + n for line in others)])
    _, ends = np.unique(ends, return_inverse=True)
    cells, lines = np.split(ends.ravel(), 2)
    size = int(ends.max()) + 1
    joined = coo_array((np.ones(len(cells), np.int8), (cells, lines)), shape=(size, size))
    component = connected_components(joined, directed=False)[1]
    known = np.flatnonzero(code >= 0)
    number = np.unique(component[: len(known)], return_inverse=True)[1]  # cells come first
    code[known] += number.ravel() * group.size
    return np.asarray(code)


def _is_even(codes: Codes, units: int) -> bool:
    """Whether every line that is there has all units, all equally often."""
    known, times = np.unique(codes[codes >= 0], return_counts=True)
    lines, held = np.unique(known // units, return_counts=True)
    alike = all(len(np.unique(times[known // units == line])) == 1 for line in lines)
    return bool((held == units).all() and alike)


def _is_flat(graph: Graph, member: Member) -> bool:
    """Whether all units hold the same there, so that their order does not matter."""
    part = np.asarray(graph.array(member.tensor)).take(member.index.ravel(), axis=member.axis)
    return bool((part == part.take([0], axis=member.axis)).all())


def scores(groups: Groups, lines: Lines, seen: Mapping[int, Seen]) -> Scores:
    """What every cell is worth, shape (units, lines): the energy that the sites reading it make of
    it, as a share of all of theirs; by magnitudes where no site that was seen reads it."""
    by_weight = {(s.site.weight, s.site.in_axis): s for s in seen.values()}
    found, plain = np.zeros(lines.units * lines.lines), np.zeros(lines.units * lines.lines)
    for member, codes in lines.members:
        w = np.abs(stored(groups.graph, member.tensor).astype(np.float64))
        if w.ndim > 1:
            sums = np.stack([_sums(part, member.axis) for part in np.split(w, len(codes))])
            _add(plain, codes, sums / max(sums.sum(), 1e-300))
        site = by_weight.get((member.tensor, member.axis))
        if site is not None:
            energy = np.square(site.matrices()).sum(1) * np.einsum("gff->gf", site.second())
            each = energy.reshape(len(energy), -1, site.taps).sum(2)
            each = each.sum(0) if site.site.stacked else each
            _add(found, codes.reshape(each.shape), each / max(site.energy, 1e-300))
    return np.asarray((found if found.any() else plain).reshape(lines.lines, lines.units).T)


def _sums(w: NDArray[np.float64], axis: int) -> Scores:
    return np.asarray(w.sum(axis=tuple(k for k in range(w.ndim) if k != axis)))


def _add(total: Scores, codes: Codes, values: Scores) -> None:
    known = codes >= 0
    np.add.at(total, codes[known], values[known])


def orders(lines: Lines, cells: Scores) -> Iterator[tuple[str, Order]]:
    """For every member where its parts come from, so that every line rises with the scores."""
    rise = np.argsort(cells.T, axis=1, kind="stable")  # (line, rank) -> unit
    source = (rise + np.arange(lines.lines)[:, None] * lines.units).ravel()
    for member, codes in lines.members:
        order = np.tile(np.arange(codes.shape[1]), (len(codes), 1))
        for row, here in zip(order, codes, strict=True):
            held = np.flatnonzero(here >= 0)
            sort = held[np.argsort(here[held], kind="stable")]
            known, first, times = np.unique(here[sort], return_index=True, return_counts=True)
            wanted = np.searchsorted(known, source[known])
            for at, start, many in zip(wanted, first, times, strict=True):
                row[sort[start : start + many]] = sort[first[at] : first[at] + many]
        yield member.tensor, Order(member.axis, tuple(map(tuple, order.tolist())))


def align(groups: Groups, seen: Mapping[int, Seen]) -> Groups:
    """The groups of a form of the model in which lines are in order; the same groups where there is
    nothing to put in order, or nothing that could be checked."""
    steps = [list(orders(one, scores(groups, one, seen))) for one in find(groups)]
    if not steps:
        return groups
    made = reordered(groups, [step for some in steps for step in some])
    if _is_same(groups.graph, made.graph):
        return made
    good = [some for some in steps if _is_same(groups.graph, reordered(groups, some).graph)]
    return reordered(groups, [step for some in good for step in some]) if good else groups


def reordered(groups: Groups, steps: list[tuple[str, Order]]) -> Groups:
    """The groups of the model whose constants are put in order."""
    graph, values = groups.graph, dict(groups.graph.changed)
    for tensor, order in steps:
        value = values.get(tensor)
        values[tensor] = order.put(np.asarray(graph.array(tensor)) if value is None else value)
    model = rewrite(replace(groups, graph=replace(graph, changed=values)), {})
    made = index(model, graph.path)
    given = graph.given or graph.model
    return replace(groups, graph=replace(made, given=given, orders=tuple(steps)))


def _is_same(one: Graph, other: Graph) -> bool:
    """Whether two forms of a model compute the same on random inputs."""
    if other.constants.keys() != one.constants.keys():
        return False
    try:
        with runs.session(parts(one)) as running, runs.session(parts(other)) as again:
            _, _, first = runs.find_first(one, running, 0)
            made = runs.run(again, first.feeds)
    except (ModelError, *runs.ORT_ERRORS):
        return False
    return runs.agree(first.outputs, made)
