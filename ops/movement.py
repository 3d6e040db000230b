"""Operators that move data: they run on ids as they run on values."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.rules import MICROSOFT, Axes, Axis, Op, Quantised, Resized, Sized, is_whole, rule, whole


@rule("Transpose")
def transpose(op: Op) -> list[Axes]:
    axes = op.input()
    return [[axes[k] for k in op.attr("perm", range(len(axes))[::-1])]]


@rule("Concat")
def concat(op: Op) -> list[Axes]:
    at, present = op.axis(), [list(op.input(k)) for k in range(len(op.axes)) if op.has(k)]
    alone = {k: axis for k, axes in enumerate(present) if (axis := op.join(axes[at], k))}
    for k, axis in alone.items():
        present[k][at] = axis
    (out,) = _joined(op, at, present)
    starts = np.cumsum([0, *(len(axes[at].ids) for axes in present)])
    for k in alone:
        op.joins(out[at], int(starts[k]), k)
    return [out]


@rule(
    "QLinearConcat",
    quantised={k: Quantised((k + 1,), k + 2) for k in range(2, 302, 3)},
    domain=MICROSOFT,
    text="as Concat; scales and zero points beside",
)
def qlinear_concat(op: Op) -> list[Axes]:
    parts = range(2, len(op.axes), 3)  # each with its scale and its zero point
    return _joined(op, op.axis(k=2), [op.input(k) for k in parts])


def _joined(op: Op, at: int, present: list[Axes]) -> list[Axes]:
    out = list(present[0])
    for axes in present[1:]:
        for k, axis in enumerate(axes):
            if k != at:
                out[k] = op.meet(axis, out[k])
    if all(is_whole(axes[at]) for axes in present):
        out[at] = whole(sum(len(axes[at].ids) for axes in present))
    else:
        ids = np.concatenate([axes[at].ids for axes in present])
        out[at] = Axis(ids, all(axes[at].zero for axes in present))
    return [out]


# Split -----------------------------------------------------------------------------------------


def _by_data(op: Op) -> bool:
    return op.has(1) and op.activation[1] and op.values[1] is None


def _resize_split(node: Sized) -> Resized:
    at, op, kept = node.op.axis(), node.op, node.kept[0]
    assert kept is not None
    if _by_data(op):
        return Resized()  # the axis is whole
    ends = np.cumsum([shape[at] for shape in op.out_shapes if shape is not None])
    # What is picked alone has size 1, also where it goes.
    new = np.diff(np.searchsorted(kept[at], ends), prepend=0).tolist()
    if op.has(1):
        return Resized(inputs={1: np.asarray(new, np.int64)})
    if "split" in op.node.attrs:
        return Resized(attrs={"split": new})
    if new == [shape[at] for shape in op.out_shapes if shape is not None] or len(set(new)) == 1:
        return Resized()
    if op.opset < 13:
        return Resized(attrs={"split": new})
    return Resized(attrs={"num_outputs": None}, inputs={1: np.asarray(new, np.int64)})


@rule("Split", resize=_resize_split)
def split(op: Op) -> list[Axes]:
    at = op.axis()
    op.lock_input(1, "lists sizes")
    if _by_data(op):
        op.lock(op.input()[at], "split into sizes that depend on the data")
        whole_at = [whole(op.out_shape(k)[at]) for k in range(len(op.out_shapes))]
        return [[*op.input()[:at], axis, *op.input()[at + 1 :]] for axis in whole_at]
    ends = np.cumsum([op.out_shape(k)[at] for k in range(len(op.out_shapes))])
    outputs = []
    for end, k in zip(ends, range(len(ends)), strict=True):
        out, size = list(op.input()), op.out_shape(k)[at]
        if is_whole(out[at]) or (size == 1 and op.pick(out[at], end - 1, k)):
            out[at] = whole(size)
        else:
            out[at] = out[at]._replace(ids=out[at].ids[end - size : end])
        outputs.append(out)
    return outputs


# Slice -----------------------------------------------------------------------------------------


def _slices(op: Op) -> list[tuple[int, int, int, int]]:
    """(axis, start, end, step) as read at the sizes of the analysis."""
    starts, ends = _edges(op)
    axes, steps = op.value(3, "axes"), op.value(4, "steps")
    rank = len(op.shape())
    return [
        (
            int(np.ravel(axes)[i]) % rank if axes is not None else i,
            int(starts[i]),
            int(ends[i]),
            int(np.ravel(steps)[i]) if steps is not None else 1,
        )
        for i in range(len(starts))
    ]


def _edges(op: Op) -> list[NDArray[Any]]:
    named = ((1, "starts"), (2, "ends"))
    return [np.ravel(np.asarray(op.attr(a, op.values[k:][:1]))) for k, a in named]


def _moving(op: Op) -> set[int] | None:
    """The axes cut at positions that free sizes decide; None where a position is not known."""
    known = [op.values[k] is not None for k in (1, 2) if op.has(k)]
    if not all(known) or (op.has(4) and op.fixed(4) is None):
        return None
    cuts, moved = _slices(op), set[int]()
    for k in (1, 2):
        still = op.still[k] if op.has(k) else None
        moved |= set() if still is None else set(np.flatnonzero(~still.ravel()).tolist())
    return {cuts[i][0] for i in moved}


def _resize_slice(node: Sized) -> Resized:
    op = node.op
    moving = _moving(op)
    if moving is None:
        return Resized()  # the axes it cuts are whole
    kept = node.kept[0]
    assert kept is not None
    starts, ends = [], []
    for axis, start, end, step in _slices(op):
        size, left = op.shape()[axis], len(kept[axis])
        if abs(step) == 1:
            edges, back = slice(start, end, step).indices(size)[:2], int(step < 0)
            new = tuple(int(np.searchsorted(kept[axis], e + back)) - back for e in edges)
            if slice(start, end, step).indices(left)[:2] != new:
                start, end = new[0], new[1] if new[1] >= 0 else -left - 1
        starts.append(start)
        ends.append(end)
    if not op.has(1):
        return Resized(attrs={"starts": starts, "ends": ends})
    kind = _edges(op)[0].dtype
    return Resized(inputs={1: np.asarray(starts, kind), 2: np.asarray(ends, kind)})


@rule("Slice", resize=_resize_slice)
def slice_(op: Op) -> list[Axes]:
    out = list(op.input())
    for k in range(1, len(op.axes)):
        op.lock_input(k, "lists positions")
    moving = _moving(op)
    if moving is None:
        for k, (axis, n) in enumerate(zip(op.input(), op.out_shape(), strict=True)):
            axes = op.value(3) if op.has(3) else np.arange(op.shape(1)[0])
            if k in np.ravel(axes) % len(out):
                op.lock(axis, "sliced at positions computed at run time")
                out[k] = whole(n)
        return [out]
    for at in moving:
        op.lock(out[at], "sliced at positions computed at run time")
    for at, start, end, step in _slices(op):
        axis = out[at]
        ids = axis.ids[start:end:step]
        first = range(len(axis.ids))[start:end:step]
        if is_whole(axis) or (len(ids) == 1 and op.pick(axis, first[0])):
            out[at] = whole(len(ids))
        elif abs(step) != 1:
            out[at] = _lane(op, axis, start, end, step)
        elif len(ids) != len(axis.ids) or step == -1:
            out[at] = axis._replace(ids=ids)
    return [out]


def _lane(op: Op, axis: Axis, start: int, end: int, step: int) -> Axis:
    """Every step-th index: what stands between two picks goes or stays with the pick, so that the
    stored step still hits the same ones."""
    size = len(axis.ids)
    ids = axis.ids[start:end:step]
    if step < 0 or size % step or not 0 <= start < step or len(ids) != size // step:
        op.lock(axis, f"sliced with step {step}")
        return whole(len(ids))
    rows = axis.ids.reshape(-1, step)
    op.tie(rows[:, 1:], rows[:, :1])
    return axis._replace(ids=ids)


# Gather ----------------------------------------------------------------------------------------


def _resize_gather(node: Sized) -> Resized:
    at, kept = node.op.axis(), node.kept[0]
    assert kept is not None
    size = node.op.shape()[at]
    if len(kept[at]) == size or node.op.pointed(1) is not None:
        return Resized()
    return Resized(inputs={1: _renumbered(node.op.value(1), size, kept[at])})


def _renumbered(old: NDArray[Any], size: int, kept: NDArray[np.intp]) -> NDArray[Any]:
    """Stored positions on an axis as positions among its kept indices."""
    at = old % size
    return np.searchsorted(kept, at[np.isin(at, kept)] if at.ndim else at).astype(old.dtype)


@rule("Gather", resize=_resize_gather)
def gather(op: Op) -> list[Axes]:
    at = op.axis()
    data, indices = op.input(0), op.fixed(1)
    before, after = data[:at], data[at + 1 :]
    op.lock_input(1, "lists positions")
    if op.indexes(1, data[at]):
        middle = [whole(n) for n in op.shape(1)]
    elif indices is None or indices.ndim > 1:
        op.lock(data[at], "indexed at run time" if indices is None else "indexed by a table")
        if not op.activation[0] and after:
            op.kind(after[-1], "embedding")
        middle = [whole(n) for n in op.shape(1)]
    elif indices.ndim == 0:
        if not op.pick(data[at], int(indices)):
            op.lock(data[at]._replace(ids=data[at].ids[[int(indices)]]), "the index picked here")
        middle = []
    elif is_whole(data[at]) or (len(indices) == 1 and op.pick(data[at], int(indices[0]))):
        middle = [whole(len(indices))]
    else:
        middle = [data[at]._replace(ids=data[at].ids[indices])]
    return [before + middle + after]


@rule("GatherElements", text="locks axis; the other axes couple data and indices")
def gather_elements(op: Op) -> list[Axes]:
    at, out = op.axis(), []
    for k, (data, index) in enumerate(zip(op.input(0), op.input(1), strict=True)):
        if k == at or len(data.ids) != len(index.ids):
            if k != at or not op.indexes(1, data):
                op.lock(data, "indexed at run time")
            op.lock(index, "lists positions")
            out.append(whole(len(index.ids)))
        else:
            op.tie(data.ids, index.ids)
            out.append(index if is_whole(data) else data)
    return [out]


def _rows(op: Op) -> NDArray[Any] | None:
    """The stored positions of a GatherND that picks along the first axis alone."""
    indices, shape = op.fixed(1), op.shape(1)
    first = not op.attr("batch_dims", 0) and shape[-1] == 1 and len(shape) <= 2
    return indices[..., 0] if indices is not None and first else None


def _resize_gather_nd(node: Sized) -> Resized:
    rows, kept = _rows(node.op), node.kept[0]
    assert kept is not None
    size = node.op.shape()[0]
    if rows is None or len(kept[0]) == size:
        return Resized()
    return Resized(inputs={1: _renumbered(rows, size, kept[0])[..., None]})


_PICKS = "picks by a stored list, else locks the axes it indexes; the axes behind them pass"


@rule("GatherND", resize=_resize_gather_nd, text=_PICKS)
@rule("GatherND", resize=_resize_gather_nd, text=_PICKS, domain=MICROSOFT)
def gather_nd(op: Op) -> list[Axes]:
    data, indices, rows = op.input(0), op.input(1), _rows(op)
    op.lock_input(1, "lists positions")
    if rows is not None:
        picked = data[0]._replace(ids=data[0].ids[np.atleast_1d(rows)])
        if rows.ndim:
            return [[picked, *data[1:]]]
        op.lock(picked, "the index picked here")
        return [data[1:]]
    batch = op.attr("batch_dims", 0)
    first = batch + op.shape(1)[-1]
    listed = op.lists(1, data[batch:first])
    for k, axis in enumerate(data[:first], -batch):
        if k not in listed:
            op.lock(axis, "indexed by a table")
    return [[*(whole(len(axis.ids)) for axis in indices[:-1]), *data[first:]]]


@rule("Scatter ScatterElements", text="locks axis; the other axes couple data and updates")
def scatter_elements(op: Op) -> list[Axes]:
    at, out = op.axis(), []
    for k, (data, index, new) in enumerate(zip(*map(op.input, range(3)), strict=True)):
        if k == at and op.indexes(1, data):
            op.lock(new, "written to at positions")
            out.append(data._replace(zero=False))
        elif k == at or len(data.ids) != len(index.ids):
            for axis in (data, index, new):
                op.lock(axis, "written to at positions")
            out.append(whole(len(data.ids)))
        else:
            op.tie(data.ids, index.ids)
            out.append(op.meet(data, new))
    return [out]


@rule("ScatterND", text="locks the axes it writes to at unknown positions; those behind pass")
def scatter_nd(op: Op) -> list[Axes]:
    data, new = op.input(0), op.input(2)
    op.lock_input(1, "lists positions")
    first, rows = op.shape(1)[-1], len(op.shape(1)) - 1
    listed = op.lists(1, data[:first])
    for axis in (*(a for k, a in enumerate(data[:first]) if k not in listed), *new[:rows]):
        op.lock(axis, "written to at positions")
    out = [
        axis._replace(zero=False) if k in listed else whole(len(axis.ids))
        for k, axis in enumerate(data[:first])
    ]
    return [out + [op.meet(*pair) for pair in zip(data[first:], new[rows:], strict=True)]]


# Pad -------------------------------------------------------------------------------------------


def _pads(op: Op) -> dict[int, tuple[int, int]]:
    """Axis -> how many indices are added before and behind."""
    pads = np.ravel(op.value(1, "pads")).astype(int)
    rank = len(op.shape())
    axes = op.value(3) if op.has(3) else range(rank)
    half = len(pads) // 2
    return {int(k) % rank: (int(pads[i]), int(pads[half + i])) for i, k in enumerate(axes)}


def _resize_pad(node: Sized) -> Resized:
    op, kept = node.op, node.kept_out[0]
    assert kept is not None
    if op.has(1) and op.fixed(1) is None:
        return Resized()
    before, behind = [], []
    for k, (b, e) in _pads(op).items():
        size = op.out_shape()[k]
        live = len(kept[k]) != size
        before.append(int((kept[k] < b).sum()) if live else b)
        behind.append(int((kept[k] >= size - e).sum()) if live else e)
    if not op.has(1):
        return Resized(attrs={"pads": before + behind})
    return Resized(inputs={1: np.asarray(before + behind, op.value(1).dtype)})


@rule("Pad", resize=_resize_pad)
@rule("Pad", resize=_resize_pad, domain=MICROSOFT)
def pad(op: Op) -> list[Axes]:
    op.need(1)
    for k in range(1, len(op.axes)):
        op.lock_input(k, "lists sizes")
    constant = op.attr("mode", b"constant") == b"constant"
    filler = op.fixed(2) if op.has(2) else op.attr("value", 0)
    silent = filler is not None and not np.any(filler)
    out = [axis._replace(zero=axis.zero and silent) for axis in op.input()]
    if op.has(1) and op.fixed(1) is None:  # then only the axes that keep their size pass
        return [[_same_size(op, a, n) for a, n in zip(out, op.out_shape(), strict=True)]]
    for k, (b, e) in _pads(op).items():
        n = op.out_shape()[k]
        if (b, e) == (0, 0):
            continue
        if is_whole(out[k]) or not constant or min(b, e) < 0:
            op.lock(out[k], "padded")
            out[k] = whole(n)
        else:
            added = op.fresh(max(b + e, 2)).ids  # of its own even where it is one index
            parts = [added[:b], out[k].ids, added[b : b + e]]
            out[k] = out[k]._replace(ids=np.concatenate(parts))
    return [out]


def _same_size(op: Op, axis: Axis, size: int) -> Axis:
    if len(axis.ids) == size:
        return axis
    op.lock(axis, "padded at run time")
    return whole(size)
