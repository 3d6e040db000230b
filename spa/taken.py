"""Say what was taken from where, and which branches could go: tables for people, dicts for JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from rich.table import Table

from spa.api import Draft
from spa.cost import CostModel
from spa.depth import find
from spa.groups import Groups
from spa.settings import ALL_KINDS, DEPTH

Row = dict[str, Any]


def taken(result: Draft) -> list[Row]:
    """What was taken: whole branches first, then widths by the kind of their groups.

    units: how many went, ``of`` how many. macs, params: what that saves beyond the rows before.
    """
    groups, removed = result.groups, result.removed
    cost, counts = CostModel(groups), np.zeros(len(groups), np.int64)
    rows, before = list[Row](), cost()

    def row(kind: str, units: int, of: int) -> None:
        nonlocal before
        now = cost(counts)
        macs, params = before.macs - now.macs, before.params - now.params
        rows.append({"kind": kind, "units": units, "of": of, "macs": macs, "params": params})
        before = now

    if groups.graph.blocks:
        row(DEPTH, len(groups.graph.blocks), len(find(groups).blocks))
    for kind in ALL_KINDS:
        some = [g for g in range(len(groups)) if groups[g].kind == kind and g not in groups.dead]
        counts[some] = [len(removed.get(g, ())) for g in some]
        if counts[some].any():
            row(kind, int(counts[some].sum()), sum(groups[g].size for g in some))
    return rows


def taken_table(result: Draft, number: Callable[[float], str]) -> Table:
    """Args: number: how a count is written."""
    table = Table()
    for title in ("taken from", "units", "MACs", "parameters"):
        table.add_column(title, justify="left" if title == "taken from" else "right")
    full = result.figures.before
    for row in taken(result):
        pairs = (row["macs"], full.macs), (row["params"], full.params)
        saved = [f"{number(part)} ({part / max(whole, 1):.1%})" for part, whole in pairs]
        table.add_row(row["kind"], f"{row['units']} of {row['of']}", *saved)
    return table


def block_rows(result: Draft) -> list[Row]:
    """The branches that were removed: the tensor that each added, the node that added it, and the
    stored tensors that went with it."""
    graph, gone = result.groups.graph, result.plan.blocks
    return [
        {"branch": b.branch, "node": graph.nodes[b.node].name, "tensors": gone[b.branch]}
        for b in graph.blocks
    ]


def branches(groups: Groups) -> Row:
    """The residual branches that can be removed, what each carries, and those that cannot."""
    found, cost, nodes = find(groups), CostModel(groups), groups.graph.nodes
    full, none, rows = cost(), np.zeros(len(groups), np.int64), []
    for block in found.blocks:
        left = cost.without(replace(groups.graph, blocks=(block,)))(none)
        saved = {"macs": full.macs - left.macs, "params": full.params - left.params}
        rows.append({"branch": block.branch, "node": nodes[block.node].name, **saved})
    return {"removable": rows, "held": found.held}


def branch_lines(found: Row, verbose: bool) -> Iterator[str]:
    """The same in words."""
    names = [row["node"] for row in found["removable"]]
    if names:
        shown = names if verbose else names[:3]
        more = [] if len(shown) == len(names) else ["..."]
        listed = ", ".join([*shown, *more])
        yield f"residual branches that --kinds depth can remove ({len(names)}): {listed}"
    for name, why in found["held"].items():
        yield f"the branch that {name!r} adds stays: {why}"
