"""Say what was found and done: tables for people, one JSON document for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from spa import states
from spa.allocate import TOLERANCE
from spa.api import Comparison, Draft, Figures, Result
from spa.axes import WINDOW
from spa.chart import Point, dots
from spa.compare import Row
from spa.cost import CostModel
from spa.criteria import CRITERIA
from spa.fit import SOURCES
from spa.groups import Groups, LockedAxis
from spa.outcome import aside_lines, compensation_dict, compensation_lines, input_dict, input_line
from spa.propagate import load_rules
from spa.rules import RULES
from spa.taken import block_rows, branch_lines, branches, taken, taken_table
from spa.validate import Verification


def number(n: float) -> str:
    """1,234 below ten thousand, 12.3 k, 4.56 M, 7.89 G above."""
    for unit, scale in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= 10 * scale or (n >= scale and scale > 1e3):
            return f"{n / scale:.3g} {unit}"
    return f"{n:,.0f}"


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms"


def before_after(figures: Figures) -> Table:
    table = Table(title=None)
    for title in ("", "before", "after", "kept"):
        table.add_column(title, justify="left" if not title else "right")
    rows = [
        ("MACs", figures.before.macs, figures.after.macs, "macs"),
        ("parameters", figures.before.params, figures.after.params, "params"),
    ]
    if figures.bytes_after:
        rows.append(("bytes", figures.bytes_before, figures.bytes_after, "bytes"))
    for name, before, after, measure in rows:
        table.add_row(name, number(before), number(after), f"{figures.share(measure):.1%}")
    return table


def verification_lines(found: Verification | None) -> list[str]:
    if found is None:
        return ["law: not checked"]
    if not found.runs:
        return [f"law: not checked: {found.why}"]
    lines = []
    if not found.units:
        lines.append("law: nothing was removed")
    elif found.law is None:
        lines.append("law: not checked, every removed unit is inexact (a statistic runs over it)")
    else:
        part = (
            ""
            if found.law_units == found.units
            else (f" on {found.law_units} of {found.units} removed units (the rest are inexact)")
        )
        lines.append(f"law: holds{part}, largest relative difference {found.law:.1e}")
    if found.still:
        seen = ", ".join(f"{name}={found.sizes[0][name]}" for name in found.still)
        lines.append(f"free sizes that the original ran at with one number only: {seen}")
    if found.unseen:
        names = ", ".join(found.unseen[:3]) + (", ..." if found.unseen[3:] else "")
        lines.append(f"If nodes that were seen to take only one of their branches: {names}")
    drift = ", ".join(f"{name} {value:.3f}" for name, value in found.drift.items())
    lines.append(f"drift from the original (relative L2 on random inputs, 0 is unchanged): {drift}")
    return lines


# Pruning ---------------------------------------------------------------------------------------


def group_rows(result: Draft) -> list[dict[str, Any]]:
    dead = result.groups.dead
    return [
        {
            "name": group.name,
            "kind": group.kind,
            "before": group.size,
            "after": 0 if g in dead else group.size - len(result.removed.get(g, ())),
            "exact": group.exact,
        }
        for g, group in enumerate(result.groups.groups)
    ]


def print_result(console: Console, result: Draft, verbose: bool) -> None:
    table = Table()
    for title in ("group", "kind", "units"):
        table.add_column(title, overflow="fold")
    for row in group_rows(result):
        if verbose or row["before"] != row["after"]:
            table.add_row(row["name"], row["kind"], f"{row['before']} -> {row['after']}")
    if verbose:
        console.print(table)
    console.print(before_after(result.figures))
    if line := target_line(result):
        console.print(line, highlight=False)
    if result.groups.graph.blocks:
        console.print(taken_table(result, number))
        names = ", ".join(row["node"] for row in block_rows(result))
        console.print(f"branches removed, by the node that added each: {names}", highlight=False)
    if aligned := {tensor for tensor, _ in result.plan.orders}:
        console.print(f"put in order before the choice: {len(aligned)} tensors", highlight=False)
    if changed := states.changes(result.groups, result.groups.kept(result.removed)):
        console.print(state_line(changed), highlight=False)
    console.print(input_line(result), highlight=False)
    if isinstance(result, Result):
        for line in compensation_lines(result, verbose):
            console.print(line, highlight=False)
        for line in verification_lines(result.verification):
            console.print(line, highlight=False)
    for line in aside_lines(result):
        console.print(line, highlight=False)
    if result.groups.unknown:
        console.print(unknown_line(result.groups), highlight=False)


def target_line(result: Draft) -> str:
    """Where less is kept than was asked for: why."""
    wanted = result.plan.made_by.get("target", {})
    for measure, share in wanted.items() if isinstance(wanted, dict) else ():
        if measure != "channels" and result.figures.share(measure) < share - TOLERANCE:
            kept = f"{result.figures.share(measure):.1%}"
            return f"target {measure}={share:g}: whole units come no nearer from below than {kept}"
    return ""


def state_line(changed: Sequence[dict[str, Any]]) -> str:
    """The inputs and outputs that become smaller, with their sizes."""
    sizes = [[", ".join(map(str, row[k])) for k in ("before", "after")] for row in changed]
    rows = zip(changed, sizes, strict=True)
    text = ", ".join(f"{row['name']} [{old}] -> [{new}]" for row, (old, new) in rows)
    return f"inputs and outputs changed: {text}"


def unknown_line(groups: Groups) -> str:
    names = ", ".join(f"{op} ({len(nodes)})" for op, nodes in sorted(groups.unknown.items()))
    return f"operators without a rule, kept whole around: {names}"


def result_dict(result: Draft) -> dict[str, Any]:
    figures = result.figures
    checked = result.verification if isinstance(result, Result) else None
    kept: dict[str, float | None] = {
        m: round(figures.share(m), 4) for m in ("macs", "params", "bytes")
    }
    if not figures.bytes_after:  # no model was made
        kept["bytes"] = None
    return {
        "macs": {"before": figures.before.macs, "after": figures.after.macs},
        "params": {"before": figures.before.params, "after": figures.after.params},
        "bytes": {"before": figures.bytes_before, "after": figures.bytes_after or None},
        "kept": kept,
        "groups": group_rows(result),
        "blocks": block_rows(result),
        "taken": taken(result),
        "aligned": sorted({tensor for tensor, _ in result.plan.orders}),
        "unknown_operators": result.groups.unknown,
        "set_aside": dict(result.set_aside),
        "io_changes": states.changes(result.groups, result.groups.kept(result.removed)),
        "inputs": input_dict(result),
        "compensation": compensation_dict(result),
        "verification": checked.to_dict() if checked else None,
        "plan": {t: {str(k): v for k, v in a.items()} for t, a in result.plan.kept.items()},
    }


# Analysis --------------------------------------------------------------------------------------


def analysis_dict(groups: Groups) -> dict[str, Any]:
    cost = CostModel(groups)
    full = cost()
    rows = []
    for g, group in enumerate(groups.groups):
        counts = np.zeros(len(groups), np.int64)
        counts[g] = group.size - 1
        less = cost(counts)
        rows.append(
            {
                "name": group.name,
                "size": group.size,
                "kind": group.kind,
                "exact": group.exact,
                "macs": full.macs - less.macs,
                "params": full.params - less.params,
                "members": [
                    {
                        "tensor": m.tensor,
                        "axis": m.axis,
                        "indices_per_unit": int(m.index.shape[1]),
                    }
                    for m in group.members
                ],
            }
        )
    return {
        "macs": full.macs,
        "params": full.params,
        "sizes": groups.shapes.sizes,
        "states": [f"{name}:{axis}" for name, axis in sorted(groups.released)],
        "groups": rows,
        "locked": [
            {
                "tensor": lock.tensor,
                "axis": lock.axis,
                "size": lock.size,
                "locked": lock.locked,
                "node": lock.node,
                "operator": lock.operator,
                "why": lock.why,
            }
            for lock in groups.locks()
        ],
        "blocks": branches(groups),
        "unknown_operators": groups.unknown,
        "refused": {
            groups.graph.nodes[k].name: why for k, why in groups.views[0].ties.refused.items()
        },
    }


def print_analysis(console: Console, groups: Groups, verbose: bool) -> None:
    found = analysis_dict(groups)
    table = Table(title=f"{len(groups)} groups")
    for title, right in (
        ("group", False),
        ("units", True),
        ("kind", False),
        ("exact", False),
        ("MACs", True),
        ("parameters", True),
        ("members", False),
    ):
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for row in found["groups"]:
        members = [f"{m['tensor']}:{m['axis']}" for m in row["members"]]
        shown = members if verbose else members[:4]
        more = [] if len(shown) == len(members) else [f"... {len(members) - len(shown)} more"]
        table.add_row(
            row["name"],
            str(row["size"]),
            row["kind"],
            "yes" if row["exact"] else "no",
            number(row["macs"]),
            number(row["params"]),
            "\n".join(shown + more),
        )
    console.print(table)
    console.print(
        f"in all {number(found['macs'])} MACs and {number(found['params'])} parameters; what a "
        "group carries is what the model loses with all but one of its units",
        highlight=False,
    )
    for line in branch_lines(found["blocks"], verbose):
        console.print(line, highlight=False)
    if found["states"]:
        listed = ", ".join(found["states"])
        console.print(f"states that may become smaller: {listed}", highlight=False, soft_wrap=True)
    _print_locks(console, groups.locks(), verbose)
    if groups.unknown:
        console.print(unknown_line(groups), highlight=False)
    for name, why in found["refused"].items():
        console.print(f"rule not applicable at node {name!r}, kept whole: {why}", highlight=False)


def _print_locks(console: Console, locks: list[LockedAxis], verbose: bool) -> None:
    locks = [lock for lock in locks if lock.why != WINDOW or verbose]  # kernels go without saying
    table = Table(title="locked")
    for title in ("why", "axes", "for example"):
        table.add_column(title, overflow="fold")
    if verbose:
        for lock in locks:
            table.add_row(lock.reason(), f"{lock.locked}/{lock.size}", f"{lock.tensor}:{lock.axis}")
    else:
        reasons = Counter((lock.operator, lock.why) for lock in locks)
        for (operator, why), count in reasons.most_common():
            first = next(x for x in locks if (x.operator, x.why) == (operator, why))
            what = f"{operator}: {why}" if operator else why
            table.add_row(what, str(count), f"{first.tensor}:{first.axis}")
    if locks:
        console.print(table)


# Several criteria ---------------------------------------------------------------------------------


def points(rows: Sequence[Row]) -> list[Point]:
    """What charts show of them."""
    return [
        Point(row.macs, row.drift, row.criterion, row.compensation == "none")
        for row in rows[1:]
        if not row.failed
    ]


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    table = Table()
    titles = ("criterion", "compensation", "target", "MACs kept", "drift", "accuracy", "seconds")
    labelled = rows[0].accuracy is not None
    for k, title in enumerate(titles):
        if title != "accuracy" or labelled:
            table.add_column(title, justify="left" if k < 3 else "right", overflow="fold")
    for row in rows:
        target = "" if row is rows[0] else f"{row.measure}={row.target:g}"
        done = "refused" if row.refused else row.compensation
        cells = [row.criterion, "" if row is rows[0] else done, target]
        cells += ["", "failed"] if row.failed else [f"{row.macs:.1%}", f"{row.drift:.3g}"]
        if labelled:
            cells.append("" if row.accuracy is None else f"{row.accuracy:.2%}")
        table.add_row(*cells, "" if row is rows[0] else f"{row.seconds:.1f}")
    console.print(table)
    for row in rows:
        if row.failed:
            console.print(f"{row.criterion}: {row.failed}", highlight=False)
    for line in dots(points(rows)):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(
        "drift: squared distance of the outputs from the original's on held-out inputs, over their "
        "variance; the line is logarithmic, hollow dots are without compensation",
        highlight=False,
    )


# Verification, rules, criteria -------------------------------------------------------------------


def print_comparison(console: Console, found: Comparison) -> None:
    table = before_after(found.figures)
    if found.latency_before is not None and found.latency_after is not None:
        table.add_row(
            "latency",
            milliseconds(found.latency_before),
            milliseconds(found.latency_after),
            f"{found.latency_after / found.latency_before:.1%}",
        )
    console.print(table)
    for line in verification_lines(found.verification):
        console.print(line, highlight=False)


def rule_rows() -> list[dict[str, str]]:
    load_rules()
    return [
        {
            "operator": rule.op_type,
            "domain": rule.domain or "ai.onnx",
            "family": rule.family,
            "rule": rule.text,
            "resize": "yes" if rule.resize else "",
        }
        for rule in sorted(RULES.values(), key=lambda r: (r.domain, r.op_type))
    ]


def print_rules(console: Console) -> None:
    table = Table()
    for title in ("operator", "family", "rule", "stores a size"):
        table.add_column(title, overflow="fold")
    for row in rule_rows():
        name = (
            row["operator"] if row["domain"] == "ai.onnx" else f"{row['domain']}.{row['operator']}"
        )
        table.add_row(name, row["family"], row["rule"], row["resize"])
    console.print(table)


def criterion_rows() -> list[dict[str, str]]:
    return [{"name": c.name, "needs": c.needs, "source": c.source} for c in CRITERIA.values()]


def compensation_rows() -> list[dict[str, str]]:
    return [{"name": n, "needs": needs, "source": text} for n, (needs, text) in SOURCES.items()]


def print_criteria(console: Console) -> None:
    for what, rows in (("criterion", criterion_rows()), ("compensation", compensation_rows())):
        table = Table()
        for title in (what, "needs", "source"):
            table.add_column(title, overflow="fold")
        for row in rows:
            table.add_row(row["name"], row["needs"], row["source"])
        console.print(table)
