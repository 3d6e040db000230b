"""What every site of the dense network sees on calibration inputs.

Made-up inputs give a network other statistics than the data it was trained on; the correlations
between channels survive better than the marginals. So where inputs are made up, the network is
*settled* on its way: after every convolution the mean and the variance of each channel are set to
those it is known, or likely, to have had in training:

- where a BatchNormalization follows, exactly its own: its running statistics are replaced by those
  of the made-up inputs, so that what leaves it has mean beta and deviation gamma;
- where it was folded into the convolution, what this reads gets the means and the scale that its
  biases tell (`spa.settle`), and the deviations of what it makes go towards one another.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.doubt import agreement, chance
from spa.graph import Graph
from spa.logits import SeenProduct, see
from spa.parts import Parts, parts
from spa.products import Product, products
from spa.run import Feeds
from spa.settle import Affine, believe, likely_scale, settle, usual
from spa.sites import Floats, Place, Site, place, sites
from spa.stream import Stream

Matrix = NDArray[np.float64]

WIDE = 1536  # input channels times taps; beyond it the taps of a kernel are taken for samples
ROWS = 4096
BINS, SAMPLED = 100, 1024  # of the entropy, and the rows that it is taken over
# Of correlations towards none at least: on real inputs, and on made-up ones.
SHRINK, SHRINK_MADE_UP = 0.02, 0.03
ALIVE = 0.3  # of the variance of its layer: what a channel dead on made-up inputs counts for


@dataclass(frozen=True)
class Seen:
    """What one site saw.

    weights: dense, shape (g, o, i, t).
    mean: of its inputs, shape (g, i, u); u is t, or 1 where taps were taken for samples.
    covariance: of its inputs, centred, shape (g, i u, i u).
    zeros: the share of zeros among its inputs, shape (g, i).
    shrink: how much of the correlations is not believed.
    entropy: of the values of its inputs, in nats, shape (g, i), see `entropies`.
    energy: E |W x - mean|^2, or E |W x|^2 where the site has no bias to take up a mean.
    """

    site: Site
    weights: Floats
    mean: Matrix
    covariance: Matrix
    zeros: Matrix
    energy: float
    shrink: float = SHRINK
    entropy: Matrix = field(default_factory=lambda: np.zeros((0, 0)))

    @property
    def taps(self) -> int:
        return int(self.mean.shape[2])

    def second(self) -> Matrix:
        """The second moments that a removal is judged by, shape (g, i u, i u): about the mean where
        the site has a bias to take that up, else about zero."""
        if self.site.bias is not None:
            return self.covariance
        flat = self.mean.reshape(len(self.mean), -1)
        return np.asarray(self.covariance + flat[:, :, None] * flat[:, None, :])

    def matrices(self) -> Matrix:
        """The weights as (g, outputs, i * u); taps that were taken for samples count as outputs."""
        g, _, i, t = self.weights.shape
        w = self.weights if self.taps == t else np.moveaxis(self.weights, 3, 2)
        return np.asarray(w.reshape(g, -1, i * self.taps), np.float64)


@dataclass(frozen=True)
class Measured:
    """The dense network on calibration inputs.

    sites: node -> what it saw. statistics: BatchNormalization node -> mean and variance of what it
    read. settled: folded convolution -> what settling does to its output; empty on real inputs.
    made_up: whether the inputs are. products: node -> what it saw.
    """

    sites: Mapping[int, Seen]
    statistics: Mapping[int, tuple[Matrix, Matrix]]
    settled: Mapping[int, Affine]
    made_up: bool
    products: Mapping[int, SeenProduct] = field(default_factory=dict)


def measure(
    graph: Graph,
    batches: Sequence[Feeds],
    others: Sequence[Feeds] = (),
    seed: int = 0,
    memory: int = 2 << 30,
) -> Measured:
    """Run the dense network once and look at every site.

    Args:
        others: where inputs are made up, some of another kind; the network is settled on its way
            then.
        memory: bytes for held activations.
    """
    made_up, count = bool(others), len(batches)
    found, statistics = dict[int, Seen](), dict[int, tuple[Matrix, Matrix]]()
    settled, seen_products = dict[int, Affine](), dict[int, SeenProduct]()
    stops = every_stop(graph)
    apart = own(parts(graph), graph, stops)
    along = with_products(stops, products(graph, batches[0]))
    with Stream(apart, [*batches, *others], goals(graph, along), memory) as run:
        for node, site in along.items():
            if isinstance(site, Product):
                pair = run(site.names)
                q, k = ([b[name] for b in pair[:count]] for name in site.names)
                if (what := see(site, q, k, seed)) is not None:
                    seen_products[node] = what
                continue
            name = site.x if site else graph.nodes[node].inputs[0]
            x = [b[name] for b in run([name])]
            if site is None:
                statistics[node] = channel_statistics(x[:count])
                if made_up:
                    run.replace(
                        named(apart, zip(norm_places(graph, node), statistics[node], strict=True))
                    )
                continue
            seen, made = _look(graph, site, x[:count], x[count:], seed, bool(settled))
            if made_up and site.bias is not None and _is_folded(graph, site, x[0]):
                bias = stored(apart, graph, site.bias.place)
                seen, settled[node] = _likely(seen, made, bias, _coverage(site, x[0]))
                new = settle(site, settled[node], seen.weights, bias, graph)
                run.replace(named(apart, new.items()))
            found[node] = seen
    return Measured(found, statistics, settled, made_up, seen_products)


def entropies(rows: Floats) -> Matrix:
    """The entropy of every channel's values over equal bins of their range, by some rows.

    Args:
        rows: shape (g, rows, i, t).
    """
    x = rows[:, :SAMPLED, :, rows.shape[3] // 2].swapaxes(1, 2)  # (g, i, rows)
    low, high = x.min(2, keepdims=True), x.max(2, keepdims=True)
    bins = np.minimum((x - low) / np.where(high > low, high - low, 1) * BINS, BINS - 1)
    channel = np.arange(x[..., 0].size).reshape(*x.shape[:2], 1)
    flat = (bins.astype(np.int64) + channel * BINS).ravel()
    share = np.bincount(flat, minlength=channel.size * BINS).reshape(*x.shape[:2], BINS)
    share = share / x.shape[2]
    return np.asarray(-(share * np.log(np.where(share > 0, share, 1))).sum(2))


def _revived(covariance: Matrix) -> Matrix:
    """What lifts every variance to a share of the usual one of its site: a channel that made-up
    inputs leave dead may well live on others."""
    own_ = np.einsum("gff->gf", covariance)
    missing = np.maximum(ALIVE * own_.mean(1, keepdims=True) - own_, 0)
    return np.asarray(missing[:, :, None] * np.eye(covariance.shape[1]))


def every_stop(graph: Graph) -> dict[int, Site | None]:
    """Sites, and None for BatchNormalization nodes with stored statistics, in order."""
    stops: dict[int, Site | None] = {
        n.index: None
        for n in graph.nodes
        if n.op_type == "BatchNormalization"
        and not n.attrs.get("training_mode", 0)
        and all(place(graph, n, k) for k in (3, 4))
        and n.inputs[0] in graph.activations
    }
    stops.update({s.node: s for s in sites(graph)})
    return dict(sorted(stops.items()))


def with_products(
    stops: Mapping[int, Site | None], found: Iterable[Product]
) -> dict[int, Site | Product | None]:
    """The stops with products of activations among them, in order."""
    every: dict[int, Site | Product | None] = {**stops, **{p.node: p for p in found}}
    return dict(sorted(every.items()))


def goals(graph: Graph, stops: Mapping[int, Site | Product | None]) -> list[str]:
    """The tensors that are looked at, as often as they are."""
    found: list[str] = []
    for node, stop in stops.items():
        if isinstance(stop, Product):
            found += stop.names
        else:
            found.append(stop.x if stop else graph.nodes[node].inputs[0])
    return found


def sampled(
    site: Site, x: Sequence[Floats], seed: int, rows: int, first: int = 0
) -> NDArray[np.float32]:
    """Rows of a site's inputs from every batch, shape (g, rows, i, t); the same positions for
    streams of equal shapes. Where there is no row at all, one of zeros.

    Args:
        rows: how many in all, at most. first: the number of the first batch.
    """
    most = -(-rows // max(len(x), 1))
    parts_ = [
        site.rows(v, most, np.random.default_rng((seed, site.node, first + k)))
        for k, v in enumerate(x)
    ]
    whole = np.concatenate(parts_).astype(np.float32, copy=False)
    if not len(whole):  # an expert that no token went to
        whole = np.zeros((1, *whole.shape[1:]), np.float32)
    # An infinite input says nothing of a sum, and one would spoil every moment.
    return np.moveaxis(np.nan_to_num(whole, copy=False, posinf=0.0, neginf=0.0), 1, 0)


def _look(
    graph: Graph,
    site: Site,
    x: Sequence[Floats],
    others: Sequence[Floats],
    seed: int,
    guessed: bool,
) -> tuple[Seen, Matrix]:
    """What a site sees, and the deviations of the outputs it makes of it, shape (g, o)."""
    w = site.forward(np.asarray(graph.array(site.weight), np.float32))
    g, o, i, t = w.shape
    most = max(ROWS, 4 * i * (t if i * t <= WIDE else 1))
    rows = sampled(site, x, seed, most)
    made = np.matmul(rows.reshape(g, -1, i * t), np.swapaxes(w.reshape(g, o, -1), 1, 2))
    mean, deviation = made.mean(1, dtype=np.float64), made.std(1, dtype=np.float64)
    zeros = (rows == 0).mean((1, 3))
    middle, flat, covariance = _centred(rows)
    energy = float((deviation**2).sum() + (0 if site.bias is not None else (mean**2).sum()))
    if others:
        other = _centred(sampled(site, others, seed, most, len(x)))[2]
        shrink = max(SHRINK_MADE_UP, 1 - agreement(covariance, other, middle.shape[1] // i))
    else:
        shrink = max(SHRINK, chance(flat, covariance))
    if guessed:
        covariance += _revived(covariance)
    seen = Seen(
        site,
        w,
        middle.reshape(g, i, -1),
        covariance,
        zeros,
        energy,
        shrink,
        entropies(rows),
    )
    return seen, deviation


def _centred(rows: Floats) -> tuple[Matrix, Floats, Matrix]:
    """The mean of rows, shape (g, f), what is left of them, (g, rows, f), and their covariance."""
    g, _, i, t = rows.shape
    taps = i * t <= WIDE
    flat = (rows if taps else np.moveaxis(rows, 3, 2)).reshape(g, -1, i * (t if taps else 1))
    middle = flat.mean(1, dtype=np.float64)
    flat = flat - middle[:, None].astype(np.float32)
    covariance = np.matmul(np.swapaxes(flat, 1, 2), flat).astype(np.float64) / flat.shape[1]
    return middle, flat, covariance


# --- settling -----------------------------------------------------------------------------------


def _is_folded(graph: Graph, site: Site, x: Floats) -> bool:
    """A convolution with a bias of its own, into which BatchNormalization may have been folded. Of
    one place a picture, as in gates and heads, there are no statistics to normalise by."""
    own_bias = site.bias is not None and site.bias.own
    is_conv = graph.nodes[site.node].op_type == "Conv" and not site.rounds
    after = [graph.nodes[k].op_type for k in graph.readers.get(site.y, ())]
    free = site.y not in graph.outputs and "BatchNormalization" not in after
    return is_conv and own_bias and free and prod(x.shape[2:]) > 1


def _likely(
    seen: Seen, deviation: Matrix, bias: NDArray[Any], coverage: Matrix
) -> tuple[Seen, Affine]:
    """A site as it would have seen training data, and what brings it there.

    Args:
        deviation: of its outputs, shape (g, o). coverage: of taps, shape (t,).
    """
    g, o, i, t = seen.weights.shape
    w = np.einsum("goit,t->goi", seen.weights, coverage, dtype=np.float64)
    b = bias.astype(np.float64).reshape(g, o)
    taps = seen.mean.shape[2]
    mean = seen.mean.sum(2) / (coverage.sum() if taps == t else 1)
    variance = np.einsum("gff->gf", seen.covariance).reshape(g, i, taps).mean(2)
    here = usual(deviation)
    found = believe(w, b, mean, variance, here)
    shift = found.shift[:, :, None] * coverage
    middle = b + np.einsum("goi,gi->go", w, found.gain * mean + found.shift)
    believed = replace(
        seen,
        mean=found.gain * seen.mean + (shift if taps == t else found.shift[:, :, None]),
        covariance=found.gain**2 * seen.covariance,
        energy=found.gain**2 * seen.energy,
    )
    scale = likely_scale(deviation) ** found.sure
    return believed, Affine(found.gain, shift, scale.ravel(), middle.ravel())


def _coverage(site: Site, x: Floats) -> Matrix:
    """How often every tap of a kernel lies inside, shape (t,)."""
    ones = site.rows(np.ones_like(x[:1]), ROWS, np.random.default_rng(0))
    return np.asarray(ones.mean((0, 1, 2)), np.float64)


def channel_statistics(x: Sequence[Floats]) -> tuple[Matrix, Matrix]:
    """Mean and variance of every channel, axis 1, over batches."""
    axes = (0, *range(2, x[0].ndim))
    count = sum(v.size // v.shape[1] for v in x)
    mean = np.asarray(sum(v.sum(axes, dtype=np.float64) for v in x) / count)
    shape = (1, -1, *[1] * (x[0].ndim - 2))
    middle = mean.reshape(shape).astype(x[0].dtype)
    square = sum(((v - middle) ** 2).sum(axes, dtype=np.float64) for v in x)
    return mean, np.asarray(square / count)


# --- a model whose weights at the stops can be replaced one by one ------------------------------


def places(graph: Graph, stops: Mapping[int, Site | None]) -> Iterator[Place]:
    """The inputs that hold weights, biases and statistics of stops."""
    for node, site in stops.items():
        if site is None:
            yield from norm_places(graph, node)
        else:
            yield site.place
            if site.bias is not None:
                yield site.bias.place


def norm_places(graph: Graph, node: int) -> list[Place]:
    """Where a BatchNormalization has its mean and its variance."""
    return [p for k in (3, 4) if (p := place(graph, graph.nodes[node], k))]


def own(
    apart: Parts,
    graph: Graph,
    stops: Mapping[int, Site | None],
    more: Sequence[Place] = (),
) -> Parts:
    """The same model where each of these inputs reads an initializer of its own."""
    values, reads = {}, {}
    for node, position in dict.fromkeys([*places(graph, stops), *more]):
        name = f"{node}.{position}@own"
        values[name] = stored(apart, graph, (node, position))
        reads[node, position] = name
    return apart.reading(values, reads)


def stored(apart: Parts, graph: Graph, place: Place) -> NDArray[Any]:
    """What a model stores for the input of a node."""
    from onnx import numpy_helper

    name = apart.node(place[0]).input[place[1]]
    if name in apart.weights:
        return apart.weights[name]
    for tensor in apart.model.graph.initializer:
        if tensor.name == name:
            return np.asarray(numpy_helper.to_array(tensor))
    return np.asarray(graph.array(graph.nodes[place[0]].inputs[place[1]]))


def named(apart: Parts, values: Iterable[tuple[Place, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """Values for inputs of nodes by the names of the initializers that they read, as stored."""
    found = {}
    for (node, position), value in values:
        name = apart.node(node).input[position]
        kind = apart.weights[name].dtype if name in apart.weights else _kind(apart, name)
        found[name] = np.ascontiguousarray(value.astype(kind))
    return found


def _kind(apart: Parts, name: str) -> Any:
    from onnx import helper

    for tensor in apart.model.graph.initializer:
        if tensor.name == name:
            return helper.tensor_dtype_to_np_dtype(tensor.data_type)
    raise KeyError(name)
