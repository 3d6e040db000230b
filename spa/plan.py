"""A plan: which indices of which stored tensors stay. A small JSON file, made to be kept."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.align import reordered
from spa.depth import find
from spa.errors import PlanError
from spa.graph import Graph, Order
from spa.groups import Groups, Index
from spa.states import indices
from spa.wake import shortened

FORMAT = 1
Kept = dict[str, dict[int, list[int]]]  # tensor -> axis -> kept indices


@dataclass(frozen=True)
class Plan:
    """What stays.

    kept: tensor -> axis -> kept indices, ascending; axes that stay whole are left out.
    blocks: the tensor that a removed branch adds -> the stored tensors that go with it.
    orders: (tensor, order): how tensors are put in order first, one after the other.
    shapes: tensor -> its shape before.
    made_by: the settings that produced it, for the record.
    model: a digest of the structure it was made for.
    states: inputs and outputs of the file that become smaller -> axis -> kept indices.
    gone: the stored tensors that go as a whole with units, see `spa.picks`; for the record.
    """

    kept: Kept
    shapes: dict[str, list[int]] = field(default_factory=dict)
    made_by: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    blocks: dict[str, list[str]] = field(default_factory=dict)
    orders: tuple[tuple[str, Order], ...] = ()
    states: Kept = field(default_factory=dict)
    gone: tuple[str, ...] = ()

    @property
    def allows_io_change(self) -> bool:
        """Whether inputs and outputs of the file may become smaller."""
        return bool(self.states) or self.made_by.get("allow_io_change") is True

    def to_json(self) -> str:
        body = {
            "format": FORMAT,
            "model": self.model,
            "made_by": self.made_by,
            **({"orders": [_order(*order) for order in self.orders]} if self.orders else {}),
            **({"blocks": self.blocks} if self.blocks else {}),
            **({"states": _by_text(self.states)} if self.states else {}),
            **({"gone": list(self.gone)} if self.gone else {}),
            "shapes": self.shapes,
            "kept": _by_text(self.kept),
        }
        return _json(body) + "\n"

    @staticmethod
    def from_json(text: str) -> Plan:
        """Read a plan.

        Raises:
            PlanError: if the text is not a plan of a known format.
        """
        try:
            body = json.loads(text)
            if body["format"] != FORMAT:
                raise PlanError(f"the plan has format {body['format']!r}; this spa reads {FORMAT}")
            kept, states = _by_axis(body["kept"]), _by_axis(body.get("states", {}))
            shapes = {str(t): [int(n) for n in s] for t, s in body.get("shapes", {}).items()}
            blocks = {str(b): [str(t) for t in gone] for b, gone in body.get("blocks", {}).items()}
            orders = tuple(
                (
                    str(o["tensor"]),
                    Order(int(o["axis"]), tuple(tuple(map(int, p)) for p in o["order"])),
                )
                for o in body.get("orders", [])
            )
            made_by, model = dict(body.get("made_by", {})), str(body.get("model", ""))
            with_units = tuple(map(str, body.get("gone", ())))
            return Plan(kept, shapes, made_by, model, blocks, orders, states, with_units)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PlanError(f"this is not a plan that spa wrote: {error!r}") from None

    @staticmethod
    def load(path: str | Path) -> Plan:
        """Read a plan file.

        Raises:
            PlanError: if it cannot be read or is not a plan.
        """
        try:
            return Plan.from_json(Path(path).read_text())
        except (OSError, UnicodeDecodeError) as error:
            raise PlanError(f"cannot read the plan {str(path)!r}: {error}") from None


def _by_axis(body: Any) -> Kept:
    return {
        str(tensor): {int(k): [int(i) for i in v] for k, v in axes.items()}
        for tensor, axes in body.items()
    }


def _by_text(kept: Kept) -> dict[str, dict[str, list[int]]]:
    return {t: {str(k): v for k, v in axes.items()} for t, axes in kept.items()}


def _order(tensor: str, order: Order) -> dict[str, Any]:
    return {"tensor": tensor, "axis": order.axis, "order": [list(block) for block in order.order]}


def _json(value: Any, depth: int = 1) -> str:
    """Objects spread over lines, a list on one, so that a plan can be read."""
    if not isinstance(value, dict) or not value:
        return json.dumps(value)
    rows = [f"{' ' * depth}{json.dumps(k)}: {_json(v, depth + 1)}" for k, v in value.items()]
    return "{\n" + ",\n".join(rows) + "\n" + " " * (depth - 1) + "}"


def digest(graph: Graph) -> str:
    """A digest of nodes and stored shapes: what a plan depends on, whatever the weights hold."""
    h = hashlib.sha256()
    for node in graph.nodes:
        h.update(f"{node.op_type}|{node.domain}|{node.inputs}|{node.outputs}\n".encode())
    for name, constant in graph.constants.items():
        h.update(f"{name}|{constant.shape}\n".encode())
    return h.hexdigest()[:16]


def record(
    groups: Groups, removed: Mapping[int, Index], made_by: dict[str, Any] | None = None
) -> Plan:
    """The plan that removes these units, and the blocks that the graph is to lose."""
    kept = groups.kept(removed)
    touched = {m.tensor for g, units in removed.items() if len(units) for m in groups[g].members}
    plan: dict[str, dict[int, list[int]]] = {}
    for name in groups.graph.constants:
        if name in touched:
            shape = groups.shapes.shapes[name]
            axes = kept.axes(name) or []
            plan[name] = {k: a.tolist() for k, a in enumerate(axes) if len(a) != shape[k]}
    shapes = {name: list(groups.shapes.shapes[name]) for name in plan}
    with_blocks, orders = _with_blocks(groups.graph), groups.graph.orders
    with_units = tuple(sorted(_gone_from(shortened(groups, removed)) - _gone_from(groups.graph)))
    states = {t: {k: v.tolist() for k, v in a.items()} for t, a in indices(kept).items()}
    model = digest(groups.graph)
    return Plan(plan, shapes, made_by or {}, model, with_blocks, orders, states, with_units)


def _with_blocks(graph: Graph) -> dict[str, list[str]]:
    """Block -> the stored tensors that go with it and the blocks before it."""
    found: dict[str, list[str]] = {}
    before: set[str] = set()
    for k, block in enumerate(graph.blocks):
        gone = _gone_from(replace(graph, blocks=graph.blocks[: k + 1]))
        found[block.branch] = sorted(gone - before)
        before = gone
    return found


def _gone_from(graph: Graph) -> set[str]:
    """The stored tensors that only dead nodes read."""
    read = {graph.constants[n].source for n in graph.constants.keys() - graph.forgotten}
    return {graph.constants[n].source for n in graph.forgotten} - read


def in_order(groups: Groups, plan: Plan) -> Groups:
    """The groups of the model in the order that a plan puts it in.

    Raises:
        PlanError: if the plan names what the model does not have, or what is no order of it.
    """
    if not plan.orders:
        return groups
    _check_model(groups, plan)
    for tensor, order in plan.orders:
        shape = groups.shapes.shapes.get(tensor, ())
        fits = tensor in groups.graph.constants and 0 <= order.axis < len(shape)
        blocks = len(order.order)
        fits = fits and blocks > 0 and (blocks == 1 or (order.axis > 0 and shape[0] % blocks == 0))
        if not fits or any(sorted(b) != list(range(shape[order.axis])) for b in order.order):
            raise PlanError(f"the plan puts {tensor!r} in an order that does not fit it")
    return reordered(groups, list(plan.orders))


def without_blocks(groups: Groups, plan: Plan) -> Groups:
    """The groups without the blocks that a plan removes.

    Raises:
        PlanError: if one is not a branch of the model that can be removed.
    """
    if not plan.blocks:
        return groups
    _check_model(groups, plan)
    found = find(groups)
    known = {block.branch: block for block in found.blocks}
    for name in plan.blocks:
        if name not in known:
            raise PlanError(
                f"the plan removes the branch that adds {name!r}; the model has none that can be "
                "removed by that name"
            )
    blocks = tuple(b for b in found.blocks if b.branch in plan.blocks)
    if len({b.sum for b in blocks}) < len(blocks):
        raise PlanError("the plan removes both sides of one sum")
    return replace(groups, graph=replace(groups.graph, blocks=blocks))


def compose(first: Plan, then: Plan) -> Plan:
    """Two cuts in a row as one: ``then`` was made for what ``first`` leaves."""
    kept = {tensor: dict(axes) for tensor, axes in first.kept.items()}
    for tensor, axes in then.kept.items():
        mine = kept.setdefault(tensor, {})
        for axis, stays in axes.items():
            mine[axis] = [mine[axis][k] for k in stays] if axis in mine else stays
    return Plan(kept)


def shared(graph: Graph) -> frozenset[str]:
    """The constants that are one reader's share of one in the file."""
    uses = Counter(constant.source for constant in graph.constants.values())
    return frozenset(name for name, c in graph.constants.items() if uses[c.source] > 1)


def replay(groups: Groups, plan: Plan) -> dict[int, Index]:
    """The units that a plan removes.

    Raises:
        PlanError: if the plan was made for another model, names what the model does not have,
            empties an axis, or keeps one part of what is coupled and drops another.
    """
    _check_model(groups, plan)
    gone = _gone(groups, plan)
    removed = _units(groups, gone)
    after = groups.kept(removed)
    for (tensor, axis), flags in gone.items():
        axes_kept = after.axes(tensor)
        assert axes_kept is not None
        if not np.array_equal(axes_kept[axis], np.flatnonzero(~flags)):
            odd = sorted(set(np.flatnonzero(flags).tolist()) & set(axes_kept[axis].tolist()))
            raise PlanError(
                f"the plan removes indices {odd[:8]} of axis {axis} of {tensor!r} without what is "
                "coupled to them, or they are locked; 'spa analyze' lists the groups"
            )
    made = {t: {k: v.tolist() for k, v in a.items()} for t, a in indices(after).items()}
    if plan.states and plan.states != made:
        odd_names = sorted(t for t in {*made, *plan.states} if made.get(t) != plan.states.get(t))
        raise PlanError(
            f"the plan keeps other indices of {odd_names[0]!r} than what is coupled to it; remove "
            "'states' from the plan to have them follow"
        )
    return removed


def _check_model(groups: Groups, plan: Plan) -> None:
    """The plan's tensors, their shapes and, last, the digest."""
    for tensor in plan.kept:
        if tensor not in groups.graph.constants:
            raise PlanError(f"the plan names tensor {tensor!r}, which the model does not have")
    for tensor, shape in plan.shapes.items():
        here = list(groups.shapes.shapes.get(tensor, ()))
        if here != shape:
            raise PlanError(
                f"the plan was made for another model: tensor {tensor!r} has shape {here} here and "
                f"{shape} there"
            )
    if plan.model and plan.model != (here_ := digest(groups.graph)):
        raise PlanError(
            f"the plan was made for another model: nodes or stored shapes differ (digest {here_} "
            f"here, {plan.model} there); remove 'model' from the plan to replay it all the same"
        )


def _gone(groups: Groups, plan: Plan) -> dict[tuple[str, int], NDArray[np.bool_]]:
    """(tensor, axis) -> which indices the plan removes."""
    shapes = groups.shapes.shapes
    gone: dict[tuple[str, int], NDArray[np.bool_]] = {}
    for tensor, axes in plan.kept.items():
        for axis, kept in axes.items():
            size = shapes[tensor][axis] if 0 <= axis < len(shapes[tensor]) else 0
            if not kept or min(kept) < 0 or max(kept) >= size:
                raise PlanError(
                    f"the plan keeps {len(kept)} indices of axis {axis} of {tensor!r}, which has "
                    f"{size}: each must exist and at least one must stay"
                )
            gone[tensor, axis] = np.ones(size, bool)
            gone[tensor, axis][kept] = False
    return gone


def _units(groups: Groups, gone: Mapping[tuple[str, int], NDArray[np.bool_]]) -> dict[int, Index]:
    """Group -> the units that are removed from all of its members.

    One reader's share of a constant need not be told: it follows from the others.
    """
    shapes, split = groups.shapes.shapes, shared(groups.graph)
    removed: dict[int, Index] = {}
    for g, group in enumerate(groups.groups):
        told = [m for m in group.members if m.tensor not in split or (m.tensor, m.axis) in gone]
        flags = [
            gone.get((m.tensor, m.axis), np.zeros(shapes[m.tensor][m.axis], bool))[m.index]
            for m in told or group.members
        ]
        units = np.flatnonzero(np.logical_and.reduce([f.all(axis=1) for f in flags]))
        if len(units) == group.size:
            raise PlanError(f"the plan removes all of group {group.name!r}")
        if group.size - len(units) < group.least:
            raise PlanError(
                f"the plan keeps {group.size - len(units)} units of group {group.name!r}, of which "
                f"{group.least} have to stay"
            )
        if len(units):
            removed[g] = units
    return removed
