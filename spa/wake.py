"""What goes in the wake of removed units: the branches that are made from them alone, see
`spa.picks`."""

from __future__ import annotations

from dataclasses import replace

from spa.axes import Pick
from spa.graph import Graph
from spa.groups import Groups, Removed


def lost(groups: Groups, removed: Removed) -> set[str]:
    """The tensors that hold a removed index alone."""
    kept, ties = groups.kept(removed), groups.views[0].ties
    return {
        groups.graph.nodes[p.node].outputs[p.output]
        for p in ties.picks
        if p.at not in kept.of(p.ids)
    }


def shortened(groups: Groups, removed: Removed) -> Graph:
    """The graph that is to lose the branches that go with these units, behind those that it is to
    lose anyway."""
    finder, names = groups.views[0].ties.finder, lost(groups, removed)
    if finder is None or not names:
        return groups.graph
    return replace(groups.graph, blocks=(*groups.graph.blocks, *finder.follow(names).blocks))


def branches(groups: Groups) -> dict[int, list[frozenset[int]]]:
    """Group -> for every unit the nodes that go with it, for groups that have any."""
    ties, found = groups.views[0].ties, dict[int, list[frozenset[int]]]()
    if ties.finder is None:
        return found
    for g, group in enumerate(groups):
        unit = {label: k for k, label in enumerate(group.units.tolist())}
        mine: list[list[Pick]] = [[] for _ in unit]
        for pick in ties.picks:
            k = unit.get(int(groups.views[group.view].labels[pick.ids[pick.at]]), -1)
            if k >= 0:
                mine[k].append(pick)
        if any(mine):
            found[g] = [ties.finder.dying(some) for some in mine]
    return found
