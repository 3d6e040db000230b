"""Find the products of two activations over an axis that weights make: queries with keys.

Where both sides are, up to one factor per head, outputs of sites that were only moved about, what
one side's removed channels did can be given to the weights of the other. Whether they were is seen
by running the model with those outputs replaced by numbers that tell where they go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ValueInfoProto, helper

from spa import run as runs
from spa.graph import Graph, Node
from spa.parts import Parts, parts
from spa.protos import copy_without
from spa.run import ORT_ERRORS, Feeds
from spa.sites import Floats, Site, sites

Index = NDArray[np.intp]
SCALAR_OPS = frozenset(("Mul", "Div", "Add", "Sub", "Where", "Cast", "Identity", "Tanh", "Clip"))
MOVES = frozenset(
    ("Reshape", "Transpose", "Identity", "Cast", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze")
)
MIXES = frozenset(("Mul", "Div", "Concat"))
REPEATS = frozenset(("Expand", "Tile", "Flatten"))
NEAR = 1e-3  # how far a number that was only multiplied may be from a whole one


@dataclass(frozen=True)
class Side:
    """One factor of a product.

    site: whose output it is. made: the tensor, bias included. name: the tensor that is multiplied.
    channels: which output of the site stands where, shape (heads, k). scale: what it was multiplied
        by on the way, shape (heads,).
    """

    site: Site
    made: str
    name: str
    channels: Index
    scale: NDArray[np.float64]


@dataclass(frozen=True)
class Product:
    """sum over k of q[row, k] * k[column, k], for every head.

    node: of the product. sides: queries and keys; the weights of the first can take on a matrix of
        their own for every head. heads: the number of the head at every leading index of both
        sides, in a row.
    centred: whether a Softmax over the columns follows, so that only differences between columns
        count.
    views: a value of either side -> shape (leading, rows, k).
    """

    node: int
    sides: tuple[Side, Side]
    heads: Index
    centred: bool
    views: tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]

    @property
    def count(self) -> int:
        """Heads."""
        return len(self.sides[0].channels)

    @property
    def names(self) -> tuple[str, str]:
        """The two tensors."""
        return self.sides[0].name, self.sides[1].name

    def heads_at(self, lead: tuple[int, ...]) -> Index | None:
        """The head at every leading index of another batch, if the order allows one to tell."""
        wanted = prod(lead)
        for period in range(1, len(self.heads) + 1):
            if wanted % period == 0 and len(self.heads) % period == 0:
                one = self.heads[:period]
                if np.array_equal(np.tile(one, len(self.heads) // period), self.heads):
                    return np.tile(one, wanted // period)
        return None


@dataclass(frozen=True)
class _Found:
    """A product before it is known whose outputs it multiplies: its two tensors, and where the
    rows and columns are in them."""

    node: Node
    names: tuple[str, str]
    views: tuple[Callable[[Floats], Floats], Callable[[Floats], Floats]]
    centred: bool


def products(graph: Graph, feeds: Feeds) -> list[Product]:
    """All products whose sides are outputs of sites, each read by nothing else.

    Args:
        feeds: inputs that the model runs on; few samples do.
    """
    makers = {made: site for site in sites(graph) for made in [_made(graph, site)] if made}
    asked: list[tuple[_Found, tuple[str, str]]] = []
    for found in _candidates(graph):
        ends = tuple(_back(graph, name, makers) for name in found.names)
        if ends[0] is not None and ends[1] is not None:
            asked.append((found, (ends[0], ends[1])))
    if not asked:
        return []
    try:
        seen = _marks(graph, feeds, {e for _, ends in asked for e in ends}, makers, asked)
    except ORT_ERRORS:
        return []
    made = (_product(found, ends, makers, seen) for found, ends in asked)
    return [p for p in made if p is not None]


def _made(graph: Graph, site: Site) -> str:
    """The output of a site with its bias; "" where its channels are not one axis of a tensor."""
    if site.groups > 1 or graph.nodes[site.node].op_type not in ("Conv", "Gemm", "MatMul"):
        return ""
    if site.bias is None or site.bias.own:
        return site.y
    return graph.nodes[graph.readers[site.y][0]].outputs[0] if site.bias.scale == 1 else ""


# Candidates ------------------------------------------------------------------------------------


def _candidates(graph: Graph) -> Iterator[_Found]:
    for node in graph.nodes:
        if node.home or not node.is_standard:
            continue  # what a body makes cannot be seen
        read = node.inputs[:2]
        if len(read) < 2 or not graph.activations.issuperset(read) or read[0] == read[1]:
            continue
        if node.op_type == "MatMul":
            yield _Found(node, (read[0], read[1]), (_as_rows, _as_columns), _softmax(graph, node))
        elif node.op_type == "Attention" and not any(node.inputs[4:6]):
            yield _Found(node, (read[0], read[1]), (_as_rows, _as_rows), True)


def _as_rows(x: Floats) -> Floats:
    return x


def _as_columns(x: Floats) -> Floats:
    return np.swapaxes(x, -1, -2)


def _heads(count: int, queries: int) -> Callable[[Floats], Floats]:
    """A side of Attention: (batch, length, heads * size) or (batch, heads, length, size)."""

    def view(x: Floats) -> Floats:
        if x.ndim == 3:
            x = np.swapaxes(x.reshape(*x.shape[:2], count, -1), 1, 2)
        times = queries // count
        return np.repeat(x, times, axis=1) if times > 1 else x

    return view


def _softmax(graph: Graph, node: Node) -> bool:
    name = node.outputs[0]
    for _ in range(8):
        readers = [graph.nodes[k] for k in graph.readers.get(name, [])]
        usual = -1 if graph.opset("") >= 13 else 1
        if any(r.op_type == "Softmax" and r.attrs.get("axis", usual) in (-1, 3) for r in readers):
            return True
        onward = [r for r in readers if r.op_type in SCALAR_OPS]
        if len(onward) != 1:
            return False
        name = onward[0].outputs[0]
    return False


def _back(graph: Graph, name: str, makers: dict[str, Site]) -> str | None:
    """The output of a site that a tensor was moved from, if it may be one."""
    while name not in makers:
        node = graph.nodes[graph.makers[name]] if name in graph.makers else None
        if node is None or node.op_type not in MOVES | MIXES | REPEATS:
            return None
        data = node.inputs if node.op_type in MIXES else node.inputs[:1]
        found = [n for n in data if n in graph.activations]
        if len(found) > 1:
            ends = [_back(graph, n, makers) for n in found]
            return next((e for e in ends if e), None)
        if not found:
            return None
        name = found[0]
    return name


# Where the outputs of sites go -------------------------------------------------------------------

Values = dict[str, NDArray[Any]]


def _marks(
    graph: Graph,
    feeds: Feeds,
    ends: set[str],
    makers: dict[str, Site],
    asked: Sequence[tuple[_Found, tuple[str, str]]],
) -> list[Values]:
    """The sides of all products where the outputs of sites are 1, -1, and the channel's number."""
    apart = parts(graph)
    with runs.session(apart.showing(sorted(ends)), optimize=True) as running:
        shown = running.run(sorted(ends), dict(feeds))
    plain = dict(zip(sorted(ends), shown, strict=True))
    names = sorted({n for found, _ in asked for n in found.names})
    marked = _cut_open(apart, plain, names)
    seen = []
    with runs.session(marked, optimize=True) as running:
        for number in (_ones, lambda n: -_ones(n), _numbers):
            given = {f"{n}@mark": _spread(v, makers[n].axis, number) for n, v in plain.items()}
            made = dict(zip(names, running.run(names, {**feeds, **given}), strict=True))
            seen.append({**made, **{n: given[f"{n}@mark"] for n in names if n in plain}})
    return seen


def _ones(n: int) -> Floats:
    return np.ones(n)


def _numbers(n: int) -> Floats:
    return np.arange(1.0, n + 1)


def _spread(like: NDArray[Any], axis: int, number: Callable[[int], Floats]) -> NDArray[Any]:
    shape = [1] * like.ndim
    shape[axis] = like.shape[axis]
    return np.ascontiguousarray(
        np.broadcast_to(number(like.shape[axis]).reshape(shape), like.shape), like.dtype
    )


def _cut_open(apart: Parts, ends: Values, names: Sequence[str]) -> Parts:
    """The model, where these tensors are inputs beside those that make them."""
    model = copy_without(apart.model, "output")
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            if name in ends:
                node.input[k] = f"{name}@mark"
    for name, value in ends.items():
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        model.graph.input.append(helper.make_tensor_value_info(f"{name}@mark", kind, value.shape))
    model.graph.output.extend(ValueInfoProto(name=n) for n in names)
    return Parts(model, apart.weights)


def _product(
    found: _Found, ends: tuple[str, str], makers: dict[str, Site], seen: Sequence[Values]
) -> Product | None:
    sides, views = [], found.views
    if found.node.op_type == "Attention":
        q, k = (
            int(found.node.attrs.get(f"{side}_num_heads", 0)) or seen[0][name].shape[1]
            for side, name in zip(("q", "kv"), found.names, strict=True)
        )
        views = _heads(q, q), _heads(k, q)
    for name, end, view in zip(found.names, ends, views, strict=True):
        read = _read([view(np.asarray(v[name], np.float64)) for v in seen])
        if read is None:
            return None
        sides.append((makers[end], end, name, *read))
    try:
        lead = np.broadcast_shapes(*(s[3].shape[:-1] for s in sides))
    except ValueError:
        return None
    wide = [np.broadcast_to(s[3], (*lead, s[3].shape[-1])).reshape(-1, s[3].shape[-1])
            for s in sides]  # fmt: skip
    scales = [np.broadcast_to(s[4], lead).reshape(-1) for s in sides]
    if wide[0].shape != wide[1].shape:
        return None
    _, first, heads = np.unique(np.hstack(wide), axis=0, return_index=True, return_inverse=True)
    made = [
        Side(site, end, name, w[first], scale[first])
        for (site, end, name, *_), w, scale in zip(sides, wide, scales, strict=True)
    ]
    alone = [len(np.unique(s.channels)) == s.channels.size for s in made]
    if not any(alone):
        return None
    order = (0, 1) if alone[0] else (1, 0)
    if found.centred and order == (1, 0):
        return None  # keys that several queries share
    return Product(
        found.node.index,
        (made[order[0]], made[order[1]]),
        heads.reshape(-1).astype(np.intp),
        found.centred,
        (views[order[0]], views[order[1]]),
    )


def _read(marks: Sequence[Floats]) -> tuple[Index, NDArray[np.float64]] | None:
    """The channel at every place, shape (*leading, k), and its factor, shape (*leading,)."""
    ones, minus, numbers = marks
    if ones.ndim < 2 or not ones.size:
        return None
    factor = ones[..., :1, :1]
    if not np.array_equal(ones, -minus) or (factor == 0).any():
        return None
    if not np.allclose(ones, factor, rtol=1e-4):
        return None
    number = numbers / factor - 1
    channels = np.rint(number[..., 0, :]).astype(np.intp)
    if np.abs(number - channels[..., None, :]).max() > NEAR * (1 + channels.max(initial=0)):
        return None
    return channels, np.asarray(factor[..., 0, 0], np.float64)
