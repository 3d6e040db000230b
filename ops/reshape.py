"""Operators that split and merge axes: ids are laid on the grid of factors and read off again."""

from collections.abc import Iterator
from itertools import accumulate, pairwise
from operator import mul

import numpy as np

from spa.rules import MICROSOFT, Axes, Axis, Op, Resized, Shape, Sized, is_whole, rule, whole


def _wanted(node: Sized) -> Resized:
    """The stored shape with every live size brought up to date; -1 and 0 keep their meaning."""
    old, new, x = np.array(node.op.values[1]), node.new_out[0], node.new_in[0]
    assert new is not None and x is not None
    copies = not node.op.attr("allowzero", 0)
    for k, size in enumerate(old):
        if size > 0 or (size == 0 and copies and x[k] != new[k]):
            old[k] = new[k]
    return Resized(inputs={1: old})


@rule("Reshape", resize=_wanted, text="splits and merges axes; one factor of each stays live")
def reshape(op: Op) -> list[Axes]:
    op.lock_input(1, "lists sizes")
    if op.values[1] is None:
        for axis in op.input():  # its wanted shape could not be told: keep what it reads whole
            op.lock(axis, "reshaped to sizes that depend on the data")
    return [regrid(op, op.input(), op.out_shape())]


def _name_axes(node: Sized) -> Resized:
    """A Squeeze that names no axes would also drop a live axis that was cut down to size 1."""
    old, new = node.op.shape(), node.new_in[0]
    assert new is not None
    axes = [k for k, n in enumerate(old) if n == 1]
    if node.op.has(1) or "axes" in node.op.node.attrs or sum(n == 1 for n in new) == len(axes):
        return Resized()
    if node.op.opset < 13:
        return Resized(attrs={"axes": axes})
    return Resized(inputs={1: np.asarray(axes, np.int64)})


@rule("Squeeze", resize=_name_axes, text="drops axes of size 1")
@rule("Flatten Unsqueeze", text="splits and merges axes; one factor of each stays live")
@rule("ExpandDims", domain=MICROSOFT, text="adds an axis of size 1")
def flatten(op: Op) -> list[Axes]:
    op.lock_input(1, "lists axes")
    return [regrid(op, op.input(), op.out_shape())]


def regrid(op: Op, axes: Axes, shape: Shape) -> Axes:
    """The axes of a row-major reshape of a tensor with these axes to this shape."""
    old = tuple(len(axis.ids) for axis in axes)
    out: Axes = []
    for inner, outer in _blocks(old, shape):
        if old[inner] == shape[outer]:
            out += axes[inner]
            continue
        factors = _factors(old[inner], shape[outer])
        if factors is None:
            for axis in axes[inner]:
                op.lock(axis, f"reshaped from {old[inner]} to {shape[outer]}")
            out += [whole(n) for n in shape[outer]]
            continue
        rest = list(factors)
        parts = [p for axis in axes[inner] for p in _split(op, axis, _take(rest, len(axis.ids)))]
        rest = list(factors)
        for n in shape[outer]:
            dims = _take(rest, n)
            out.append(_merge(op, parts[: len(dims)], dims))
            del parts[: len(dims)]
    return out


def _blocks(old: Shape, new: Shape) -> Iterator[tuple[slice, slice]]:
    """The shortest runs of axes on both sides with equal products; empty tensors are one run."""
    i = j = 0
    if 0 in old:
        yield slice(0, len(old)), slice(0, len(new))
        return
    while i < len(old) or j < len(new):
        a, b, left, right = i, j, 1, 1
        if i < len(old):
            left, i = old[i], i + 1
        if j < len(new):
            right, j = new[j], j + 1
        while left != right:
            if left < right and i < len(old):
                left, i = left * old[i], i + 1
            elif right < left and j < len(new):
                right, j = right * new[j], j + 1
            else:
                raise ValueError(f"cannot reshape {old} to {new}")
        yield slice(a, i), slice(b, j)


def _factors(old: Shape, new: Shape) -> list[int] | None:
    """The coarsest factors that both sides are products of, or None where there are none."""
    if 0 in old or 0 in new:
        return None
    cuts = sorted({1, *accumulate(old, mul), *accumulate(new, mul)})
    factors = [b // a for a, b in pairwise(cuts)]
    exact = all(b % a == 0 for a, b in pairwise(cuts))
    return factors if exact else None


def _take(factors: list[int], size: int) -> list[int]:
    """Remove and return the factors, from the front, whose product is ``size``."""
    taken: list[int] = []
    product = 1
    while product < size:
        taken.append(factors.pop(0))
        product *= taken[-1]
    return taken


def _split(op: Op, axis: Axis, dims: list[int]) -> Axes:
    """One axis as its factors; where ids vary along several, its indices are cells of a grid."""
    if len(dims) <= 1:
        return [axis] * len(dims)
    if is_whole(axis):
        return [whole(n) for n in dims]
    grid = axis.ids.reshape(dims)
    varying = [k for k in range(len(dims)) if (grid != grid.take([0], k)).any()]
    if len(varying) <= 1:
        (keep,) = varying or [0]
        line = np.moveaxis(grid, keep, 0).reshape(dims[keep], -1)[:, 0]
        return [Axis(line, axis.zero) if k == keep else whole(n) for k, n in enumerate(dims)]
    out = [op.fresh(n, axis.zero) if k in varying else whole(n) for k, n in enumerate(dims)]
    op.grid(axis.ids, [part.ids if k in varying else None for k, part in enumerate(out)], dims)
    return out


def _merge(op: Op, parts: Axes, dims: list[int]) -> Axis:
    """Factors as one axis; where several are live, its indices are cells of a grid."""
    live = [k for k, part in enumerate(parts) if not is_whole(part)]
    if len(parts) == 1:
        return parts[0]
    if not live:
        return whole(int(np.prod(dims, dtype=int)))
    if len(live) == 1:
        (keep,) = live
        view = [n if k == keep else 1 for k, n in enumerate(dims)]
        ids = np.broadcast_to(parts[keep].ids.reshape(view), dims).ravel()
        return Axis(ids, parts[keep].zero)
    cells = op.fresh(int(np.prod(dims, dtype=int)), all(parts[k].zero for k in live))
    op.grid(cells.ids, [part.ids if k in live else None for k, part in enumerate(parts)], dims)
    return cells
