"""Which groups a user's options leave open to pruning."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from spa.axes import is_whole
from spa.depth import find
from spa.errors import UsageError
from spa.graph import Block, Graph
from spa.groups import Groups
from spa.settings import ALIASES, ALL_KINDS, DEFAULT_KINDS, DEPTH, listed


def choose(
    groups: Groups,
    *,
    exclude: Sequence[str] = (),
    only: Sequence[str] = (),
    kinds: Sequence[str] = DEFAULT_KINDS,
) -> frozenset[int]:
    """The numbers of the groups that a user's options leave open to pruning.

    Args:
        exclude, only: regular expressions, searched for in the names of the tensors that carry a
            group's units and of the nodes that read or make those.

    Raises:
        UsageError: if an expression does not compile or matches no name of the model, if a kind
            is not known, or if no group is left and depth is not asked for.
    """
    drop, want, kinds = patterns(exclude), patterns(only), listed(kinds)
    check_kinds(kinds)
    kinds = [ALIASES.get(kind, kind) for kind in kinds]
    open_ = {g for g, group in enumerate(groups) if group.kind in kinds}
    if not open_ and DEPTH not in kinds:
        closed = ", ".join(sorted({group.kind for group in groups}))
        raise UsageError(
            f"no group is of kind {', '.join(kinds) or '(none given)'}; this model has groups of "
            f"kind {closed}: name them with --kinds"
        )
    if drop or want:
        _check_patterns(groups.graph, [*drop, *want])
        names = group_names(groups)
        open_ = {g for g in open_ if not _matches(drop, names[g])}
        open_ = {g for g in open_ if not want or _matches(want, names[g])}
    if not open_ and DEPTH not in kinds:
        given = [f"--exclude {p.pattern}" for p in drop] + [f"--only {p.pattern}" for p in want]
        raise UsageError(f"{' '.join(given)} leaves no group; 'spa analyze' lists the groups")
    return frozenset(open_)


def choose_blocks(
    groups: Groups, *, exclude: Sequence[str] = (), only: Sequence[str] = ()
) -> tuple[Block, ...]:
    """The residual branches that a user's options leave open to removal.

    Args:
        exclude, only: as for `choose`; a branch has the names of the nodes that would go with it,
            of what they make, and of what only they read.
    """
    drop, want = patterns(exclude), patterns(only)
    found = find(groups).blocks
    if drop or want:
        names = [block_names(groups.graph, block) for block in found]
        pairs = [(b, n) for b, n in zip(found, names, strict=True) if not _matches(drop, n)]
        found = tuple(b for b, n in pairs if not want or _matches(want, n))
    return found


def block_names(graph: Graph, block: Block) -> set[str]:
    alone = replace(graph, blocks=(block,))
    nodes = [graph.nodes[k] for k in alone.dead]
    names = {graph.constants[name].source for name in alone.forgotten}
    return names.union(*({node.name, *node.outputs} for node in nodes)) - {""}


def patterns(texts: Sequence[str]) -> list[re.Pattern[str]]:
    """Compiled; raises UsageError for what does not compile."""
    try:
        return [re.compile(text) for text in listed(texts)]
    except re.error as error:
        raise UsageError(f"{error.pattern!r} is not a regular expression: {error}") from None


def _check_patterns(graph: Graph, given: list[re.Pattern[str]]) -> None:
    names = {n for node in graph.nodes for n in (node.name, *node.outputs)}
    names.update(graph.inputs, (c.source for c in graph.constants.values()))
    for pattern in given:
        if not _matches([pattern], names):
            raise UsageError(f"{pattern.pattern!r} matches no node and no tensor of the model")


def check_kinds(kinds: Sequence[str]) -> None:
    """Raises UsageError for a kind that is not known."""
    known = (*ALL_KINDS, DEPTH, *ALIASES)
    if odd := set(listed(kinds)) - set(known):
        raise UsageError(f"kind {odd.pop()!r} is not known; choose of {', '.join(known)}")


def _matches(patterns: list[re.Pattern[str]], names: set[str]) -> bool:
    return any(p.search(name) for p in patterns for name in names)


def group_names(groups: Groups) -> list[set[str]]:
    """For every group the tensors that carry its units, and the nodes that read or make those."""
    graph = groups.graph
    carried: dict[str, set[int]] = {}
    for v, view in enumerate(groups.views):
        owner = np.full(len(view.labels), -1)
        for g, group in enumerate(groups):
            if group.view == v:
                owner[group.units] = g
        known: dict[int, set[int]] = {}  # tensors that share an axis share its array
        for tensor, axes in view.ties.axes.items():
            for ids in [axis.ids for axis in axes if not is_whole(axis)]:
                if id(ids) not in known:
                    known[id(ids)] = set(np.unique(owner[view.labels[ids]]).tolist()) - {-1}
                carried.setdefault(tensor, set()).update(known[id(ids)])
    names: list[set[str]] = [set() for _ in groups]
    for tensor, by in carried.items():
        for g in by:
            names[g].add(graph.constants[tensor].source if tensor in graph.constants else tensor)
    for node in graph.nodes:
        for g in set().union(*(carried.get(t, set()) for t in (*node.inputs, *node.outputs))):
            names[g].add(node.name)
    return names
