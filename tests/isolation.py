"""One rule on one node, compared with what the operator itself shows (see `tests.numeric`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa import rules
from spa.axes import WINDOW, Axes, Ids, Recorder, whole
from spa.factors import Pairs, choices
from spa.rules import Op, Sized
from spa.solve import labels
from tests.numeric import (
    LOCKED,
    RANGES,
    Array,
    Lone,
    Partition,
    Runner,
    Slice,
    close,
    numbers,
)

# Locks that numbers do not ask for, and why they are there all the same.
ACCEPTED = (
    WINDOW,  # windows and maps are whole by policy; some have one pixel, or overlap nowhere
    "lists ",  # sizes and positions: what an operator reads is brought up to date, not removed
    "counts ",
    "padded",  # only zeros are added to channels, edges are not
    "resampled",
    "sliced with step",
    "sliced at positions computed at run time",
    "the index picked here",
    "indexed by a table",
    "indexed at run time",
    "the result is an index into this axis",
    "the result depends on positions",
    "reshaped from",  # to sizes that share no factors
    "holds the two values",
)
# The same for letters of patterns, by operator.
KEPT = {
    ("LSTM", "d"), ("GRU", "d"), ("RNN", "d"),  # a direction
    ("CropAndResize", "n"), ("CropAndResize", "r"),
    ("RoiAlign", "n"), ("RoiAlign", "r"), ("MaxRoiPool", "n"), ("MaxRoiPool", "r"),  # boxes
}  # fmt: skip


def is_accepted(op: Op, why: str) -> bool:
    """Whether a lock is there by policy."""
    rule = rules.find(op.node.op_type, op.node.domain)
    if why == WINDOW and rule is not None and rule.family not in ("conv", "pool"):
        return op.node.op_type in ("LRN", "GroupNormalization", "Trilu")
    letter = (op.node.op_type, why.removeprefix("kept whole as ").strip("'"))
    return why.startswith(ACCEPTED) or letter in KEPT


class Alone:
    """The rule of a node, run on fresh ids, with one choice of the factors of its grids.

    zero: for every input, whether removed indices hold zero there.
    views: how many choices there are.
    """

    def __init__(self, lone: Lone, view: int, zero: dict[int, bool] | None = None) -> None:
        self.lone, self.recorder = lone, Recorder()
        self.axes: list[Axes | None] = []
        node = lone.op.node
        for k, name in enumerate(node.inputs):
            again = [j for j in range(k) if name and node.inputs[j] == name]
            if not name:
                self.axes.append(None)
            elif again:
                self.axes.append(self.axes[again[0]])
            elif k in lone.inputs:
                silent = (zero or {}).get(k, True)
                self.axes.append([self.recorder.fresh(n, silent) for n in lone.op.shape(k)])
            else:
                self.axes.append([whole(n) for n in lone.op.shape(k)])
        self.op = replace(lone.op, axes=self.axes, recorder=self.recorder)
        rule = rules.find(node.op_type, node.domain)
        assert rule is not None
        self.rule = rule
        self.outputs = rule.run(self.op)
        for name in lone.outputs.values():  # as of a file: positions that are given out lock
            if name in self.recorder.indices:
                ids = self.recorder.indices[name]
                self.recorder.locks.append(
                    (ids, node.index, "the result is an index into this axis")
                )
        self.accepted: list[Slice] = []
        chosen = choices(self.recorder.grids, labels(self.recorder))
        self.views = len(chosen)
        self.partition = self._partition(chosen[view])

    def _partition(self, chosen: list[Pairs]) -> Partition:
        found = Partition()

        def node(ident: int) -> Slice:
            return ("#", 0, ident) if ident else LOCKED

        for name, axis, ids in self.slices():
            for i, ident in enumerate(ids.tolist()):
                found.tie((name, axis, i), node(ident))
        for a, b in [*((a, b) for a, b, _ in self.recorder.ties), *chosen]:
            for one, other in zip(a.tolist(), b.tolist(), strict=True):
                found.tie(node(one), node(other))
        for ids, _, why in self.recorder.locks:
            known = is_accepted(self.op, why)
            for ident in ids.tolist():
                found.lock(node(ident))
                if known:
                    self.accepted.append(node(ident))
        found.lock_full(self.lone.sizes())
        return found

    def slices(self) -> Iterator[tuple[str, int, Ids]]:
        """Tensor, axis and ids of all axes that can take part."""
        for k, name in self.lone.inputs.items():
            for axis, made in enumerate(self.axes[k] or []):
                if len(made.ids) > 1:
                    yield name, axis, made.ids
        for k, name in self.lone.outputs.items():
            if k < len(self.outputs):
                for axis, made in enumerate(self.outputs[k]):
                    if len(made.ids) > 1:
                        yield name, axis, made.ids

    def with_accepted_locks(self, reference: Partition) -> Partition:
        """The reference with the locks that are there by policy."""
        found, known = reference.copy(), set(self.accepted)
        for name, axis, ids in self.slices():
            for i, ident in enumerate(ids.tolist()):
                if ("#", 0, ident) in known or (not ident and self._may_be_whole(name, axis)):
                    found.lock((name, axis, i))
        found.lock_full(self.lone.sizes())
        return found

    def _may_be_whole(self, name: str, axis: int) -> bool:
        """Outputs that are whole because of axes that the rule was not asked about."""
        if name in self.lone.inputs.values():
            return False
        if self.op.node.op_type == "Concat":  # an axis of one index is whole from the start
            return any(shape is not None and shape[axis] == 1 for shape in self.op.shapes)
        if self.rule.family == "conv" and axis > 1:
            return True  # windows are whole by policy, also those that hold nothing but padding
        return self.op.node.op_type in WHOLE_OUTPUTS


WHOLE_OUTPUTS = {
    "Pad": "padded at run time",
    "Tile": "a count of repeats is not brought up to date",
    "CenterCropPad": "its wanted size is not brought up to date",
    "RoiAlign": "a list of boxes",
    "CropAndResize": "a list of boxes",
    "MaxRoiPool": "a list of boxes",
}


def is_exempt(op: Op) -> bool:
    """Where a rule ties, for a reason, what numbers cannot or do not ask to tie."""
    match op.node.op_type:
        case "Slice":  # a stored step ties neighbours, so that it still hits the same ones
            return op.has(4) and bool(np.any(op.values[4] != 1))
        case "LRN":  # sums over neighbours: marked as inexact, not locked
            return True
        case "Conv":  # one row of one channel: likewise
            return op.shape(1)[:2] == (1, 1) and len(op.shape(1)) == 3
        case "TensorScatter" | "Scatter" | "ScatterElements" | "ScatterND":
            # Where it writes is taken to be computed at run time.
            return True
        case "MoE":  # what goes in and what comes out have one width
            return True
        case "LinearAttentionGate":  # what one output is made of has the shape of the other's
            return op.has(3)
        case "GRU":  # its reset gate mixes all units within one step
            return True
        case "LSTM" | "RNN":  # lengths ask for more than one step, clipping hides small changes,
            # and a coupled gate is stored but not read
            return op.has(4) or bool({"clip", "input_forget"} & op.node.attrs.keys())
        case "MatMulBnb4" | "GatherBlockQuantized":  # bytes hold several numbers, in blocks
            return True
        case "MatMulNBits":  # what shares a byte is tied, and a block that is not full is whole
            fits = op.attr("K") % op.attr("block_size") == 0
            return not fits or op.has(3) or op.attr("bits") < 4
        case "Pow":  # to the power of nothing is one
            return op.fixed(1) is not None and not np.any(op.fixed(1))
    return False


def views(lone: Lone) -> range:
    return range(Alone(lone, 0).views)


def check_ties(lone: Lone, alternatives: list[Partition]) -> None:
    """The rule ties what the numbers tie, for one choice of live factors; no less, no more."""
    wanted = {(*ref, i) for ref, n in lone.sizes().items() for i in range(n)}
    for view in views(lone):
        one = Alone(lone, view)
        have = one.partition.blocks(wanted)
        refs = [one.with_accepted_locks(p) for p in alternatives]
        if any(have == p.blocks(wanted) for p in refs):
            continue
        want = refs[0].blocks(wanted)
        what = "more" if any(p.is_finer(one.partition) for p in refs) else "other things"
        raise AssertionError(
            f"{lone.op.node.op_type} in view {view} ties {what}: "
            f"{_text(have - want)}, numbers say {_text(want - have)}"
        )


def check_law(lone: Lone) -> None:
    """The law on one operator, for one unit of every kind, whether or not zeros go in.

    What the rule calls exact is; where it says that a removed index holds zero, it does; and the
    operator runs once the unit is cut out and its stored sizes are what the resize wants.
    """
    random = np.random.default_rng(0)
    inputs = sorted(lone.inputs)
    silent = product((True, False), repeat=len(inputs)) if len(inputs) <= 5 else _few(len(inputs))
    patterns = list(silent)
    whole_run = Runner(lone)
    for view in views(lone):
        for flags in patterns:
            zero = dict(zip(inputs, flags, strict=True))
            if len({(lone.inputs[k], zero[k]) for k in inputs}) > len(set(lone.inputs.values())):
                continue  # one tensor read twice is the same twice
            one = Alone(lone, view, zero)
            for unit in _one_of_each(one):
                _check_unit(one, unit, zero, whole_run, random)


def _few(count: int) -> list[tuple[bool, ...]]:
    loud = [tuple(k != j for k in range(count)) for j in range(count)]
    return [(True,) * count, (False,) * count, *loud]


def _one_of_each(one: Alone) -> list[list[Slice]]:
    found: dict[Any, list[Slice]] = {}
    sizes = one.lone.sizes()
    for root, unit in one.partition.units().items():
        real = [s for s in unit if s[0] != "#"]
        if root != LOCKED and any(s[0] in one.lone.inputs.values() for s in real):
            found.setdefault(tuple(sorted((t, a) for t, a, _ in real)), unit)
    for unit in found.values():
        assert all((t, a) in sizes for t, a, _ in unit if t != "#")
    return list(found.values())


def _check_unit(
    one: Alone, unit: list[Slice], zero: dict[int, bool], run: Runner, random: np.random.Generator
) -> None:
    lone, op = one.lone, one.op
    name = f"{op.node.op_type} without {[s for s in unit if s[0] != '#'][:4]}, zeros at {zero}"
    kept_in = [
        None if not n else [_left(unit, n, a, size) for a, size in enumerate(op.shape(k))]
        for k, n in enumerate(op.node.inputs)
    ]
    kept_out = [
        [_left(unit, n, a, size) for a, size in enumerate(op.out_shape(k))] if n else None
        for k, n in enumerate(op.node.outputs)
    ]
    attrs: Any = {}
    stored: Any = {}
    if one.rule.resize is not None:
        new_in, new_out = (
            [None if axes is None else tuple(map(len, axes)) for axes in kept]
            for kept in (kept_in, kept_out)
        )
        wanted = one.rule.resize(Sized(op, new_in, new_out, kept_in, kept_out))
        attrs, stored = wanted.attrs, wanted.inputs
    cut_shapes = {k: tuple(map(len, kept_in[k] or [])) for k in lone.inputs}
    own = attrs or stored or op.node.domain
    cut = Runner(lone, attrs, stored, shapes=cut_shapes) if own else run
    exact, silent = True, {}
    for low, high in (*RANGES, (-0.7, -0.2)):
        feeds = numbers(lone, random, low, high)
        if one.rule.family == "quantize" and 2 in feeds:
            feeds[2][...] = 0  # a zero point, which stands for zero
        if one.rule.family == "quantize" and low < 0:
            continue  # a scale is above zero
        if not all(np.isfinite(y).all() for y in run(feeds)):
            continue  # roots and logarithms of less than nothing
        for k, tensor in lone.inputs.items():
            for t, a, i in unit:
                if t == tensor and zero[k]:
                    np.moveaxis(feeds[k], a, 0)[i] = _nothing(one, k)
        masked = run(feeds)
        less = {k: _take(v, kept_in[k]) for k, v in feeds.items()}
        for k, x, y in zip(lone.outputs, masked, cut(less), strict=True):
            have = _take(x, kept_out[k])
            assert have.shape == y.shape, f"{name}: {y.shape}, foretold {have.shape}"
            exact &= close(have, y)
            for a in range(x.ndim):
                at = [i for t, b, i in unit if (t, b) == (lone.outputs[k], a)]
                if at:
                    zeros = (x.take(at, axis=a) == _zero_of_output(one)).all()
                    silent[k, a] = silent.get((k, a), True) and bool(zeros)
    marked = {i for ids, _ in one.recorder.inexact for i in ids.tolist()}
    said = not any(t == "#" and i in marked for t, _, i in unit)
    assert exact or not said, f"{name}: called exact, which it is not"
    assert said or not exact or op.node.op_type in CAUTIOUS, f"{name}: not called exact"
    if not said:
        return
    for (k, a), is_silent in silent.items():
        said = one.outputs[k][a].zero
        assert is_silent or not said, f"{name}: called zero in output {k}, which it is not"
        assert said or not is_silent or op.node.op_type in CAUTIOUS, (
            f"{name}: zero in output {k}, and not called so"
        )


# Rules that may call inexact what is exact, or loud what is silent, and why.
CAUTIOUS = {
    **dict.fromkeys(
        (
            "LayerNormalization",
            "MeanVarianceNormalization",
            "SkipLayerNormalization",
            "SkipSimplifiedLayerNormalization",
        ),
        "zeros have no deviation",
    ),
    "CausalConvWithState": "a state that holds steps of the input alone",
    "CropAndResize": "boxes that lie within the picture",
    "MoE": "weights of an expert that are all zero",
    "Hardmax": "exact by luck",
    "QLinearSoftmax": "shares of many are less than a step of eight bits",
    "LRN": "exact as far as a small share of a neighbour can tell",
    **dict.fromkeys(("ArgMax", "ArgMin", "TopK"), "the first of equal indices"),
    **dict.fromkeys(
        ("MatMulNBits", "GatherBlockQuantized"),
        "a scale is told to be zero, not codes and zero points that are equal",
    ),
    **dict.fromkeys(
        ("Concat", "QLinearConcat", "Pad"), "an axis is zero in all of its parts, or is not"
    ),
    **dict.fromkeys(
        ("IsInf", "IsNaN", "Not", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"),
        "what is false of the numbers tried",
    ),
    **dict.fromkeys(("BitShift", "BitwiseOr", "BitwiseXor", "BitwiseAnd"), "bits, hardly summed"),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), "a batch without a bias; computed weights"),
    **dict.fromkeys(("Where", "QLinearWhere"), "what a zero condition picks"),
    "MatMulBnb4": "the first of its sixteen numbers may be zero",
    **dict.fromkeys(
        (
            "Conv",
            "ConvTranspose",
            "DeformConv",
            "GroupNormalization",
            "FusedConv",
            "ConvTransposeWithDynamicPads",
            "GatedRMSNorm",
        ),
        "a grid is zero where all its lines are",
    ),
    "BatchNormalization": "statistics beside the result",
    "GlobalLpPool": "a sum over channels that stand last",
    "Pow": "an exponent that is not one number",
}


def _nothing(one: Alone, k: int) -> float:
    """What a masked slice holds: zero, what stands for it, or what a division can bear."""
    point = one.rule.quantised[k].point if k in one.rule.quantised else -1
    if point in one.lone.fixed and one.lone.fixed[point].size == 1:
        return float(one.lone.fixed[point])
    return 1.0 if one.op.node.op_type in ("Div", "Mod", "QuantizeLinear") and k == 1 else 0.0


def _zero_of_output(one: Alone) -> float:
    """The zero point of what a quantised operator makes is its last input; QLinearConcat's is 1."""
    op = one.op.node.op_type
    at = 1 if op == "QLinearConcat" else len(one.op.axes) - 1
    made = op.startswith("QLinear") or (op == "QuantizeLinear" and at == 2)
    point = one.lone.fixed.get(at) if made else None
    return float(point) if point is not None and point.size == 1 else 0.0


def _left(unit: list[Slice], tensor: str, axis: int, size: int) -> NDArray[np.intp]:
    gone = [i for t, a, i in unit if (t, a) == (tensor, axis)]
    return np.setdiff1d(np.arange(size), gone)


def _take(value: Array, kept: Sequence[NDArray[np.intp]] | None) -> Array:
    for axis, index in enumerate(kept or []):
        value = value.take(index, axis=axis)
    return value


def _text(blocks: Any) -> str:
    shown = sorted(
        " ".join("locked" if s == LOCKED else f"{s[0]}:{s[1]}[{s[2]}]" for s in sorted(block)[:9])
        for block in blocks
    )
    return " | ".join(shown[:3])
