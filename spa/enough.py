"""How many units of every group have to stay, where k indices of an axis do.

A group of which every unit has m indices there keeps ceil(k / m) units. Where units of two groups
cross there, as groups of experts and places in them do, what is left is a grid:

    (units left of one) x (units left of the other) x (indices where two of them cross)  >=  k
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np

from spa.axes import Ids
from spa.groups import Groups, Index


def enough(groups: Groups) -> Groups:
    """The groups, with `Group.least`."""
    least = [1] * len(groups)
    needs = [
        (units, count)
        for ids, count in groups.views[0].ties.recorder.least
        if (units := units_at(groups, ids))
    ]
    for units, count in sorted(needs, key=lambda need: len(need[0])):
        cells = np.logical_and.reduce([unit >= 0 for unit in units.values()])
        if len(units) > 1 and cells.any():
            _cross(groups, least, list(units), int(cells.sum()), count)
            continue
        for g, unit in units.items():
            met = np.bincount(unit[unit >= 0])
            each = int(met[met > 0].min())
            least[g] = max(least[g], min(-(-count // each), groups[g].size))
    found = (replace(group, least=n) for group, n in zip(groups, least, strict=True))
    return replace(groups, groups=tuple(found))


def _cross(groups: Groups, least: list[int], crossing: list[int], cells: int, count: int) -> None:
    """Let more units stay, of the group that has the most to spare, until there are enough."""
    each = cells // prod(groups[g].size for g in crossing)
    while prod(least[g] for g in crossing) * each < count:
        spare = {g: groups[g].size - least[g] for g in crossing}
        most = max(crossing, key=lambda g: spare[g])
        if not spare[most]:
            return
        least[most] += 1


def units_at(groups: Groups, ids: Ids) -> dict[int, Index]:
    """Group -> its unit at every index of an axis, -1 for none, for groups that have any there."""
    found: dict[int, Index] = {}
    for g, group in enumerate(groups):
        labels = groups.views[group.view].labels[ids]
        order = np.argsort(group.units)
        at = np.minimum(np.searchsorted(group.units[order], labels), group.size - 1)
        same = group.units[order][at] == labels
        if same.any():
            found[g] = np.where(same, order[at], -1)
    return found
