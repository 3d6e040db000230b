"""How much the output moves when one group alone is cut: what a group's loss is worth.

The units that its curve gives up first are removed from the dense network (the settled one, where
inputs are made up), its sites refitted in closed form, and the outputs compared on inputs that no
curve has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa import run as runs
from spa import states
from spa.curves import Curve, multipliers, readers
from spa.errors import ModelError
from spa.fit import Index, Matrix, solve
from spa.graph import Block, Graph
from spa.groups import Groups, Kept, Removed
from spa.logits import SeenProduct, folded, without
from spa.mask import mask
from spa.measure import Measured, Seen, every_stop, named, norm_places, own, stored
from spa.parts import Parts, parts
from spa.rewrite import rewrite
from spa.run import Feeds
from spa.settle import settle
from spa.sites import Place, Site

PROBE = 0.3  # the share of its units that a group gives up for the measurement
SHOWN = 8  # inner tensors that are held at a time
# How far measured drifts are believed, on a scale of logarithms from all groups alike to each as it
# was measured: on real inputs and on made-up ones.
BELIEVED, BELIEVED_MADE_UP = 0.8, 0.5
FELT = 1e-3  # and more, until its loss is no longer that of units which are all but dead


def believed(measured: Measured) -> float:
    """How far drifts are."""
    return BELIEVED_MADE_UP if measured.made_up else BELIEVED


def weights(
    groups: Groups, measured: Measured, curves: Mapping[int, Curve], batches: Sequence[Feeds]
) -> dict[int, float]:
    """Group -> a power of the drift at the output per unit of its curve's loss. A group that no
    site and no product reads counts as the usual one."""
    probe = _Probe(groups, measured, batches)
    read = readers(groups, measured.sites)
    multiplied = multipliers(groups, measured.products)
    found = {}
    for g, curve in curves.items():
        if g not in {*read, *multiplied} or not len(curve.order):
            continue
        felt = int(np.searchsorted(curve.loss, FELT)) + 1
        count = min(max(felt, round(PROBE * len(curve.order))), len(curve.order))
        units = curve.order[:count]
        drift = probe.drift(read.get(g, ()), multiplied.get(g, ()), units)
        loss = float(curve.loss[count - 1])
        if loss > 0 and 0 < drift < np.inf:
            found[g] = float((drift / loss) ** believed(measured))
    usual = float(np.median(list(found.values()))) if found else 1.0
    return {g: found.get(g, usual) for g in curves}


def losses(
    groups: Groups, blocks: Sequence[Block], measured: Measured, batches: Sequence[Feeds]
) -> Matrix:
    """What every block is worth, on the scale of curves and their weights, shape (blocks,): between
    its share of the variance of the sum that it goes into and the drift of the outputs without it,
    as far as that is believed."""
    graph = groups.graph
    wanted = outputs(groups, {}, measured, {}, batches)
    found, far = [], believed(measured)
    for block, share in zip(blocks, _shares(graph, blocks, measured, batches), strict=True):
        without = replace(groups, graph=replace(graph, blocks=(block,)))
        drift = distance(wanted, outputs(without, {}, measured, {}, batches))
        found.append(min(drift, 1e6) ** far * share ** (1 - far))
    return np.asarray(found, np.float64)


def _shares(
    graph: Graph, blocks: Sequence[Block], measured: Measured, batches: Sequence[Feeds]
) -> list[float]:
    """The variance of every branch over that of its sum, over samples at every place."""
    apart = own(parts(graph), graph, every_stop(graph))
    apart = holding(apart, _resettled(graph, apart, measured))
    spread = {name: _Spread() for b in blocks for name in (b.branch, b.sum)}
    names = list(spread)
    for some in (names[k : k + SHOWN] for k in range(0, len(names), SHOWN)):
        shown = apart.showing(name for name in some if name not in graph.outputs)
        with runs.session(shown, optimize=True) as running:
            for feeds in batches:
                made = runs.run(running, feeds)
                for name in some:
                    spread[name].add(np.asarray(made[name], np.float64))
    return [spread[b.branch].variance() / max(spread[b.sum].variance(), 1e-300) for b in blocks]


class _Spread:
    """The variance of a tensor over its first axis and over batches."""

    def __init__(self) -> None:
        self.count, self.squares, self.sums = 0, 0.0, dict[tuple[int, ...], Any]()

    def add(self, value: Matrix) -> None:
        self.count += value.shape[0]
        self.squares += float(np.square(value).sum())
        shape = value.shape[1:]
        count, total = self.sums.get(shape, (0, 0.0))
        self.sums[shape] = count + value.shape[0], total + value.sum(0)

    def variance(self) -> float:
        means = [float(np.square(t).sum()) / n for n, t in self.sums.values() if n > 1]
        return float(max(self.squares - sum(means), 0.0))


class _Probe:
    def __init__(self, groups: Groups, measured: Measured, batches: Sequence[Feeds]) -> None:
        self.graph, self.measured, self.batches = groups.graph, measured, batches
        self.whole = groups.kept({})
        apart = own(parts(self.graph), self.graph, every_stop(self.graph))
        self.plain = apart
        self.settled = holding(apart, _resettled(self.graph, apart, measured))
        self.wanted = self._outputs(self.settled)

    def drift(
        self,
        read: Sequence[tuple[Seen, Index]],
        multiplied: Sequence[tuple[SeenProduct, Index]],
        units: Index,
    ) -> float:
        values: dict[str, NDArray[Any]] = {}
        for product, places in multiplied:
            values.update(named(self.settled, self._unmatched(product, places[units].T).items()))
        for seen, places in read:
            values.update(named(self.settled, self._cut(seen, places[units].ravel()).items()))
        got = self._outputs(holding(self.settled, values))
        return distance(self.wanted, got)

    def _cut(self, seen: Seen, gone: Index) -> dict[Place, NDArray[Any]]:
        """The weights and the bias of a site that does without some of its inputs."""
        site, shrink = seen.site, seen.shrink
        g, o, i, t = seen.weights.shape
        places = (gone[:, None] * seen.taps + np.arange(seen.taps)).ravel()
        left = np.setdiff1d(np.arange(i * seen.taps), places)
        w = seen.matrices()
        change = np.zeros((g, w.shape[1]))
        middle = seen.mean.reshape(g, -1)
        for k, h in enumerate(seen.second()):
            h = (1 - shrink) * h + shrink * np.diag(np.diag(h))
            lost = w[k][:, places]
            moved = solve(h[np.ix_(left, left)], h[np.ix_(left, places)] @ lost.T, 1e-6).T
            change[k] = lost @ middle[k][places] - moved @ middle[k][left]
            w[k][:, left] += moved
            w[k][:, places] = 0
        new = w.reshape(g, o, i, t) if seen.taps == t else _from_taps(w, (g, o, i, t))
        if seen.taps != t:
            change = change.reshape(g, o, t).sum(2)
        bias = np.zeros(0)
        if site.bias is not None:
            bias = site.bias.moved(stored(self.plain, self.graph, site.bias.place), change)
        if (affine := self.measured.settled.get(site.node)) is not None:
            return settle(site, affine, new, bias, self.graph)
        shape = self.graph.constants[site.weight].shape
        values: dict[Place, NDArray[Any]] = {site.place: site.backward(new, shape)}
        if site.bias is not None:
            if site.bias.scale < 0 and self.measured.made_up:
                settled = self.measured.statistics.get(self._norm(site))
                bias = bias if settled is None else settled[0] - change.ravel()
            values[site.bias.place] = bias
        return values

    def _unmatched(self, seen: SeenProduct, gone: Index) -> dict[Place, NDArray[Any]]:
        """The weights of queries that are zero at what is removed, and match products without."""
        side = seen.product.sides[0]
        site, old = side.site, self.graph.array(side.site.weight)
        kept, match = without(seen, gone)
        at = site.bias.place if site.bias else None
        bias = None if at is None else stored(self.plain, self.graph, at)
        w = site.forward(np.asarray(old, np.float32))
        w, bias = folded(side, np.arange(len(kept)), kept, match, w, bias)
        lost = np.take_along_axis(side.channels, gone, 1).ravel()
        w[0, lost] = 0
        values: dict[Place, NDArray[Any]] = {site.place: site.backward(w, old.shape)}
        if at is not None and bias is not None:
            bias[lost] = 0
            values[at] = bias
        return values

    def _norm(self, site: Site) -> int:
        return self.graph.readers[site.y][0]

    def _outputs(self, model: Parts) -> list[NDArray[Any]]:
        return _run(model, self.batches, self.whole)


def outputs(
    groups: Groups,
    removed: Removed,
    measured: Measured,
    values: Mapping[Place, NDArray[Any]],
    batches: Sequence[Feeds],
) -> list[NDArray[Any]]:
    """All outputs of the network without some units, with new weights, on the terms on which the
    dense one was measured: settled, where the inputs are made up. Where zero is not as good as
    gone, the file itself is run, and nothing is settled."""
    graph = groups.graph
    changed = {graph.nodes[k].inputs[i]: value for (k, i), value in values.items()}
    new = replace(groups, graph=replace(graph, changed=changed))
    if not is_exact(groups, removed):
        kept = groups.kept(removed)
        fed = [states.cut(feeds, kept) for feeds in batches]
        return _run(parts(rewrite(new, removed)), fed, kept)
    apart = own(mask(new, removed, parts(graph)), graph, every_stop(graph))
    whole = groups.kept({})
    return _run(holding(apart, _resettled(graph, apart, measured)), batches, whole)


def is_exact(groups: Groups, removed: Removed) -> bool:
    """Whether a network without these units computes what it computes where they are zero."""
    return all(groups[g].exact for g, gone in removed.items() if len(gone))


def _resettled(graph: Graph, apart: Parts, measured: Measured) -> dict[str, NDArray[Any]]:
    found: dict[str, NDArray[Any]] = {}
    if not measured.made_up:
        return found
    dense = parts(graph)
    for node, (mean, var) in measured.statistics.items():
        if node in graph.dead:
            continue
        at = norm_places(graph, node)
        old, new = ([stored(p, graph, k).astype(np.float64) for k in at] for p in (dense, apart))
        moved = mean + new[0] - old[0], var * new[1] / np.where(old[1], old[1], 1)
        found.update(named(apart, zip(at, moved, strict=True)))
    for node, affine in measured.settled.items():
        if node in graph.dead:  # settled, it would add something again
            continue
        site = measured.sites[node].site
        assert site.bias is not None
        w = site.forward(np.asarray(stored(apart, graph, site.place), np.float32))
        bias = stored(apart, graph, site.bias.place)
        found.update(named(apart, settle(site, affine, w, bias, graph).items()))
    return found


def _run(model: Parts, batches: Sequence[Feeds], kept: Kept) -> list[NDArray[Any]]:
    """The outputs that are judged, flat, in the sizes of the original. None where it does not run:
    what a network makes of its inputs may decide on sizes.

    Args:
        kept: what the model has of it.
    """
    try:
        with runs.session(model, optimize=True) as running:
            made = [states.filled(runs.run(running, feeds), kept) for feeds in batches]
    except ModelError:
        return []
    made = [states.judged(outputs, kept) for outputs in made]
    names = [n for n, v in made[0].items() if v.dtype.kind == "f"]
    return [np.concatenate([m[n].reshape(-1) for m in made]) for n in names]


def _from_taps(w: Matrix, shape: tuple[int, int, int, int]) -> Matrix:
    g, o, i, t = shape
    return np.moveaxis(w.reshape(g, o, t, i), 2, 3)


def holding(apart: Parts, values: Mapping[str, NDArray[Any]]) -> Parts:
    """The same model with other values for some of its initializers."""
    from onnx import numpy_helper

    model = type(apart.model)()
    model.CopyFrom(apart.model)
    del model.graph.initializer[:]
    for tensor in apart.model.graph.initializer:
        value = values.get(tensor.name)
        model.graph.initializer.append(
            tensor if value is None else numpy_helper.from_array(value, tensor.name)
        )
    weights = {n: values.get(n, v) for n, v in apart.weights.items()}
    return replace(apart, model=model, weights=weights)


def distance(wanted: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> float:
    """Squared distance of outputs as a share of the variance of the first, the mean over outputs.

    Infinite where one is missing, is not finite or has another size.
    """
    if len(wanted) != len(got):
        return float("inf")
    found = []
    for one, other in zip(wanted, got, strict=True):
        if one.size != other.size or not np.isfinite(other).all():
            return float("inf")
        a, b = one.astype(np.float64), other.astype(np.float64)
        spread = float(a.var()) or float((a * a).mean()) or 1.0
        found.append(float(((a - b) ** 2).mean()) / spread)
    return float(np.mean(found)) if found else 0.0
