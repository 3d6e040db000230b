"""How much the output moves when one group alone is cut: what a group's loss is worth.

The units that its curve gives up first are removed from the dense network (the settled one, where
inputs are made up), its sites refitted in closed form, and the outputs compared on inputs that no
curve has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa import run as runs
from spa.curves import SHRINK, SHRINK_MADE_UP, Curve, readers
from spa.fit import Index, Matrix, solve
from spa.graph import Graph
from spa.groups import Groups
from spa.measure import Measured, Place, Seen, every_stop, named, own, settle, stored
from spa.parts import Parts, parts
from spa.run import Feeds

PROBE = 0.3  # the share of its units that a group gives up for the measurement


def weights(
    groups: Groups, measured: Measured, curves: Mapping[int, Curve], batches: Sequence[Feeds]
) -> dict[int, float]:
    """Group -> drift at the output per unit of its curve's loss."""
    probe = _Probe(groups, measured, batches)
    read = readers(groups, measured.sites)
    found = {}
    for g, curve in curves.items():
        count = max(1, round(PROBE * len(curve.order)))
        loss = float(curve.loss[count - 1])
        if g not in read or loss <= 0:
            continue
        found[g] = probe.drift(read[g], curve.order[:count]) / loss
    return found


class _Probe:
    def __init__(self, groups: Groups, measured: Measured, batches: Sequence[Feeds]) -> None:
        self.graph, self.measured, self.batches = groups.graph, measured, batches
        apart = own(parts(self.graph), self.graph, every_stop(self.graph))
        self.plain = apart
        self.settled = _with(apart, _settled(self.graph, apart, measured))
        self.wanted = self._outputs(self.settled)

    def drift(self, read: Sequence[tuple[Seen, Index]], units: Index) -> float:
        values: dict[str, NDArray[Any]] = {}
        for seen, places in read:
            for place, value in self._cut(seen, places[units].ravel()).items():
                values.update(named(self.settled, place[0], [place[1]], [value]))
        got = self._outputs(_with(self.settled, values))
        return float(np.mean([_distance(w, g) for w, g in zip(self.wanted, got, strict=True)]))

    def _cut(self, seen: Seen, gone: Index) -> dict[Place, NDArray[Any]]:
        """The weights and the bias of a site that does without some of its inputs."""
        site, shrink = seen.site, SHRINK_MADE_UP if self.measured.made_up else SHRINK
        g, o, i, t = seen.weights.shape
        places = (gone[:, None] * seen.taps + np.arange(seen.taps)).ravel()
        left = np.setdiff1d(np.arange(i * seen.taps), places)
        w = seen.matrices()
        change = np.zeros((g, w.shape[1]))
        for k, h in enumerate(seen.covariance):
            h = (1 - shrink) * h + shrink * np.diag(np.diag(h))
            lost = w[k][:, places]
            moved = solve(h[np.ix_(left, left)], h[np.ix_(left, places)] @ lost.T, 1e-6).T
            change[k] = lost @ seen.mean[k][places] - moved @ seen.mean[k][left]
            w[k][:, left] += moved
            w[k][:, places] = 0
        new = w.reshape(g, o, i, t) if seen.taps == t else _from_taps(w, (g, o, i, t))
        if seen.taps != t:
            change = change.reshape(g, o, t).sum(2)
        bias = np.zeros(0)
        if site.bias is not None:
            at = site.bias.node, site.bias.position
            bias = stored(self.plain, self.graph, at) + site.bias.scale * change.ravel()
        if (affine := self.measured.settled.get(site.node)) is not None:
            return settle(site, affine, new, bias, self.graph)
        shape = self.graph.constants[site.weight].shape
        values: dict[Place, NDArray[Any]] = {(site.node, 1): site.backward(new, shape)}
        if site.bias is not None:
            if site.bias.scale < 0 and self.measured.made_up:  # the settled mean, moved
                bias = self.measured.statistics[at[0]][0] - change.ravel()
            values[at] = bias
        return values

    def _outputs(self, model: Parts) -> list[NDArray[Any]]:
        with runs.session(model, optimize=True) as running:
            made = [runs.run(running, feeds) for feeds in self.batches]
        names = [n for n, v in made[0].items() if v.dtype.kind == "f"]
        return [np.concatenate([m[n].reshape(-1) for m in made]) for n in names]


def _from_taps(w: Matrix, shape: tuple[int, int, int, int]) -> Matrix:
    g, o, i, t = shape
    return np.moveaxis(w.reshape(g, o, t, i), 2, 3)


def _settled(graph: Graph, apart: Parts, measured: Measured) -> dict[str, NDArray[Any]]:
    values: dict[str, NDArray[Any]] = {}
    if not measured.made_up:
        return values
    for node, (mean, var) in measured.statistics.items():
        values.update(named(apart, node, (3, 4), (mean, var)))
    for node, affine in measured.settled.items():
        seen = measured.sites[node]
        assert seen.site.bias is not None
        bias = stored(apart, graph, (seen.site.bias.node, seen.site.bias.position))
        for place, value in settle(seen.site, affine, seen.weights, bias, graph).items():
            values.update(named(apart, place[0], [place[1]], [value]))
    return values


def _with(apart: Parts, values: Mapping[str, NDArray[Any]]) -> Parts:
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
    return Parts(model, {n: values.get(n, v) for n, v in apart.weights.items()})


def _distance(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Squared distance as a share of the variance of the first."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(((a - b) ** 2).mean() / max(float(a.var()), 1e-300))
