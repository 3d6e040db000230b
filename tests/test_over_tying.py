"""Whole graphs against numbers: no unit is larger than it must be, and none is smaller.

The law cannot see over-tying: one giant group obeys it. Here every operator of a random graph is
run on its own (see `tests.numeric`), what it ties is joined over the graph, and the units must be
those of the analysis. Where an axis is a product of several live factors, the numbers leave the
choice open, and the analysis must have made one of the choices, everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice, product

import numpy as np
import pytest
from hypothesis import given, seed
from onnx import ModelProto

import spa
from models.builder import Net
from models.hazards import HAZARDS
from spa.graph import WEIGHTS
from spa.groups import Groups, View
from spa.rules import Op
from tests.drawing import graphs
from tests.isolation import WHOLE_OUTPUTS, Alone, is_accepted, is_exempt
from tests.numeric import LOCKED, Finder, Lone, Partition, Slice, alone
from tests.test_random_graphs import EXAMPLES, SEARCH, fuzz

CHOICES = 256  # combinations of choices tried, where the analysis does not show which it took
_known: dict[tuple[str, ...], list[Partition]] = {}


def alternatives(lone: Lone) -> list[Partition]:
    """What a node may tie, over the names of its tensors; by its own rule where numbers cannot
    tell."""
    names = list(dict.fromkeys([*lone.inputs.values(), *lone.outputs.values()]))
    plain = {name: f"t{k}" for k, name in enumerate(names)}
    bare = replace(
        lone,
        inputs={k: plain[n] for k, n in lone.inputs.items()},
        outputs={k: plain[n] for k, n in lone.outputs.items()},
    )
    if is_exempt(lone.op):
        found = [Alone(bare, 0).partition]
    else:
        node = lone.op.node
        fixed = {k: (value.dtype, value.shape, value.tobytes()) for k, value in lone.fixed.items()}
        what = (lone.op.opset, node.attrs, lone.op.shapes, fixed, bare.inputs)
        if (key := (node.op_type, *map(str, what))) not in _known:
            _known[key] = Finder(bare).alternatives()
        found = _known[key]
    back = {short: name for name, short in plain.items()}
    return [_renamed(partition, back) for partition in found]


def _renamed(partition: Partition, names: dict[str, str]) -> Partition:
    """The same over other names; ids of a rule, which are numbered anew in every node, go."""
    made = Partition()
    for root, unit in partition.units().items():
        here = [(names[tensor], axis, index) for tensor, axis, index in unit if tensor in names]
        for one in here:
            made.tie(one, LOCKED if root == LOCKED else here[0])
    return made


class Reference:
    """One view of the analysis of a graph, and what the numbers say instead."""

    def __init__(self, groups: Groups, view: View) -> None:
        self.groups, self.view = groups, view
        self.shapes = groups.shapes.shapes
        self.sizes = {
            (name, a): n
            for name, axes in view.ties.axes.items()
            for a, n in enumerate(self.shapes[name])
            if n > 1 and len(axes) == len(self.shapes[name])
        }
        self.analysis = Partition()
        for name, axis in self.sizes:
            for i, label in enumerate(view.labels[view.ties.axes[name][axis].ids].tolist()):
                one = (name, axis, i)
                self.analysis.tie(one, LOCKED if label == view.locked else ("#", 0, label))
        self.analysis.lock_full(self.sizes)
        self.wanted = {
            (name, axis, i)
            for (name, axis), n in self.sizes.items()
            if name in groups.graph.constants
            and groups.graph.constants[name].tensor.data_type in WEIGHTS
            for i in range(n)
        }
        self.sure = Partition()  # locks, and the ties of nodes without a choice
        self.open: list[list[Partition]] = []
        for name in (*groups.graph.inputs, *groups.graph.outputs):
            self._lock_tensor(name)
        for op in view.ties.ops.values():
            self._visit(op)

    def _lock_tensor(self, name: str) -> None:
        for tensor, axis in self.sizes:
            if tensor == name:
                for i in range(self.sizes[tensor, axis]):
                    self.sure.lock((tensor, axis, i))

    def _visit(self, op: Op) -> None:
        node, ties = op.node, self.view.ties
        lone = alone(self.groups, op)
        if node.index in ties.refused or node.index in ties.unknown:
            for name in (*node.inputs, *node.outputs):
                self._lock_tensor(name)
            return
        # What computes with sizes has no numbers to change: alone, a Range over the channels is a
        # constant, and only its rule knows that with fewer channels it counts anew. What a stack
        # can go on without is seen by what makes it.
        stacks = any(join.node == node.index for join in ties.joins)
        if lone is None or stacks or self._reads_one_of_many(op):
            self._join(self.sure, self._by_rule(op, everywhere=stacks))
            return
        may = alternatives(lone)
        fits = [p for p in may if self._fits(p)]
        assert fits, f"{node.op_type} {node.name!r}: the analysis ties less than it must"
        if len(fits) == 1:
            self._join(self.sure, fits[0])
        else:
            self.open.append(fits)
        self._lock_accepted(op)

    def _reads_one_of_many(self, op: Op) -> bool:
        """An axis cut down to one index, which alone would be taken for one that broadcasts."""
        return any(
            len(axis.ids) == 1 and axis.ids[0]
            for name in {*op.node.inputs, *op.node.outputs}
            for axis in self.view.ties.axes.get(name, [])
        )

    def _by_rule(self, op: Op, everywhere: bool = False) -> Partition:
        """What the rule ties, of the node's own tensors or of all: an index of a stack goes with
        one that was picked far before it."""
        found, here = Partition(), f"#{op.node.index}"

        def node(ident: int) -> Slice:
            return (here, 0, ident) if ident else LOCKED

        own = {*op.node.inputs, *op.node.outputs}
        said = {int(j.ids[j.at]) for j in self.view.ties.joins if j.node == op.node.index}
        for a, b, index in self.view.ties.recorder.ties:
            said |= {*a.tolist(), *b.tolist()} if index == op.node.index else set()
        for name in self.view.ties.axes if everywhere else own:
            for axis, made in enumerate(self.view.ties.axes.get(name, [])):
                if len(made.ids) > 1 or made.ids.any():
                    for i, ident in enumerate(made.ids.tolist()):
                        if name not in own and ident not in said:
                            continue
                        found.tie((name, axis, i), node(ident))
        grids = zip(self.view.ties.recorder.grids, self.view.chosen, strict=True)
        chosen = [(a, b, grid.node) for grid, (a, b) in grids]
        for a, b, index in [*self.view.ties.recorder.ties, *chosen]:
            if index == op.node.index:
                for one, other in zip(a.tolist(), b.tolist(), strict=True):
                    found.tie(node(one), node(other))
        for ids, index, _ in self.view.ties.recorder.locks:
            if index == op.node.index:
                for ident in ids.tolist():
                    found.lock(node(ident))
        return found

    def _fits(self, partition: Partition) -> bool:
        """Whether the analysis ties all that this choice ties."""
        return all(
            self.analysis.root(one) == self.analysis.root(root)
            for root, unit in partition.units().items()
            for one in unit
            if one == LOCKED or one[:2] in self.sizes
            if root == LOCKED or root[:2] in self.sizes
        )

    @staticmethod
    def _join(whole: Partition, part: Partition) -> None:
        for root, unit in part.units().items():
            for one in unit:
                whole.tie(one, root)

    def _lock_accepted(self, op: Op) -> None:
        """The locks that are there by policy, see `tests.isolation`."""
        gone: set[int] = set()
        for ids, index, why in self.view.ties.recorder.locks:
            if index == op.node.index and is_accepted(op, why):
                gone.update(ids.tolist())
        for one, ident in self._ids(op):
            loose = one[0] in op.node.outputs and op.node.op_type in WHOLE_OUTPUTS
            if ident in gone or (loose and ident == 0):
                self.sure.lock(one)
            if ident == 0 and op.node.op_type == "Concat" and self._is_single(op, one):
                self.sure.lock(one)

    def _ids(self, op: Op) -> Iterator[tuple[Slice, int]]:
        for name in {*op.node.inputs, *op.node.outputs}:
            for axis, made in enumerate(self.view.ties.axes.get(name, [])):
                if (name, axis) in self.sizes:
                    for i, ident in enumerate(made.ids.tolist()):
                        yield (name, axis, i), ident

    @staticmethod
    def _is_single(op: Op, one: Slice) -> bool:
        return one[0] in op.node.outputs and any(s and s[one[1]] == 1 for s in op.shapes)

    def differs(self) -> str:
        """How the units differ from those of the analysis under every choice; or nothing."""
        have = self.analysis.blocks(self.wanted)
        first = ""
        for choice in islice(product(*self.open), CHOICES):
            whole = self.sure.copy()
            for part in choice:
                self._join(whole, part)
            whole.lock_full(self.sizes)
            want = whole.blocks(self.wanted)
            if want == have:
                return ""
            first = first or f"the analysis has {_text(have - want)}; numbers {_text(want - have)}"
        return first


def _text(blocks: frozenset[frozenset[Slice]]) -> str:
    shown = [
        " ".join("locked" if s == LOCKED else f"{s[0]}:{s[1]}[{s[2]}]" for s in sorted(block)[:8])
        for block in blocks
    ]
    return " | ".join(sorted(shown)[:3])


def check_units(model: ModelProto) -> Groups:
    groups = spa.analyze(model)
    for view in groups.views:
        found = Reference(groups, view).differs()
        assert not found, f"view {view.groups[0].view if view.groups else 0}: {found}"
    return groups


UNSUITED = {
    "custom_operator": "cannot be run",
    "if_captures_outer": "a node with bodies does not run alone",
    "topk_over_channels": "alone, a node has all of its results; nothing reads the positions here",
}


@pytest.mark.parametrize("name", sorted(HAZARDS.keys() - UNSUITED.keys()))
def test_hazards_tie_what_numbers_tie(name: str) -> None:
    assert check_units(narrow(HAZARDS[name][0]())) is not None


def narrow(model: ModelProto) -> ModelProto:
    """One free side is enough: numbers look at every index of an axis that merges both."""
    del model.graph.value_info[:]
    for info in (*model.graph.input, *model.graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if dim.dim_param == "w":
                dim.dim_value = 4
    return model


SHARDS = 4


@pytest.mark.parametrize("shard", range(SHARDS))
def test_random_graphs_tie_what_numbers_tie(shard: int) -> None:
    @fuzz(EXAMPLES // 10 // SHARDS)
    @given(graphs())
    def units(model: ModelProto) -> None:
        check_units(model)

    (units if SEARCH else seed(shard)(units))()


def test_the_reference_sees_over_tying_and_under_tying() -> None:
    net = Net("sees")
    x = net.relu(net.gemm(net.input("x", [2, 3]), 6))
    groups = check_units(net.model(net.gemm(x, 2)))
    view = groups.views[0]
    ids = view.ties.axes["Gemm_0.weight"][0].ids
    for wrong in (np.where(view.labels == view.labels[ids[1]], view.labels[ids[0]], view.labels),):
        assert Reference(groups, replace(view, labels=wrong)).differs()
    alone_now = view.labels.copy()
    alone_now[ids[0]] = alone_now.max() + 1
    if (alone_now[view.ties.axes["Gemm_0.bias"][0].ids[0]]) != alone_now[ids[0]]:
        with pytest.raises(AssertionError, match="less than it must"):
            Reference(groups, replace(view, labels=alone_now))


def test_nodes_alike_are_two() -> None:
    """Where numbers cannot judge an operator, its rule is taken at its word, node by node."""
    net = Net("alike")
    x = net.node("LRN", net.conv(net.input("x", (1, 3, 2, 2)), 4), size=3)
    x = net.node("LRN", net.conv(x, 4), size=3)
    assert len(check_units(net.model(net.conv(x, 2)))) == 2
