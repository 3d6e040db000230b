"""What goes in the wake of removed units: the branches that are made from them alone, see
`spa.picks`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from spa.axes import Join, Pick
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
    graph, ties = groups.graph, groups.views[0].ties
    if (finder := ties.finder) is None:
        return graph
    names, kept = lost(groups, removed), groups.kept(removed)
    inputs = {(j.node, j.position) for j in ties.joins if j.at not in kept.of(j.ids)}
    if not (names or inputs):
        return graph
    found = finder.follow(names)
    dropped = graph.dropped | found.dropped | inputs
    return replace(graph, blocks=(*graph.blocks, *found.blocks), dropped=dropped)


def branches(groups: Groups) -> dict[int, list[frozenset[int]]]:
    """Group -> for every unit the nodes that go with it, for groups that have any."""
    ties, found = groups.views[0].ties, dict[int, list[frozenset[int]]]()
    if ties.finder is None:
        return found
    for g, group in enumerate(groups):
        unit = {label: k for k, label in enumerate(group.units.tolist())}
        picks: list[list[Pick]] = [[] for _ in unit]
        joins: list[list[Join]] = [[] for _ in unit]
        labels = groups.views[group.view].labels
        for pick in ties.picks:
            if (k := unit.get(int(labels[pick.ids[pick.at]]), -1)) >= 0:
                picks[k].append(pick)
        for join in ties.joins:
            if (k := unit.get(int(labels[join.ids[join.at]]), -1)) >= 0:
                joins[k].append(join)
        if any(picks) or any(joins):
            found[g] = [ties.finder.dying(*some) for some in zip(picks, joins, strict=True)]
    return found


def belongings(
    groups: Groups, nodes: Mapping[int, list[frozenset[int]]]
) -> dict[int, list[list[str]]]:
    """Group -> for every unit the constants that only nodes read which go with it.

    Args:
        nodes: what `branches` finds.
    """
    graph, found = groups.graph, dict[int, list[list[str]]]()
    for g, units in nodes.items():
        of = {node: k for k, unit in enumerate(units) for node in unit}
        found[g] = [[] for _ in units]
        for name in graph.constants if of else ():
            read = {of.get(k, -1) for k in graph.readers.get(name, ())}
            if len(read) == 1 and -1 not in read and name not in graph.outputs:
                found[g][read.pop()].append(name)
    return found
