"""Give the weights that remain what the removed ones did: a walk along the network, site by site.

Two streams of the calibration inputs go through the graph side by side: the dense model, and the
model with all removed slices at zero and every weight before this point already refitted. At each
site the refit aims at the *dense* output from the *pruned* input (see `spa.fit`), and is kept only
where it comes nearer to it on held-out inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.fit import moments, refit
from spa.graph import Graph
from spa.groups import Groups, Removed
from spa.parts import Parts, parts
from spa.run import Feeds
from spa.sites import Floats, Site, sites
from spa.stream import Stream
from spa.validate import mask

STRENGTHS = (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)  # lam of `spa.fit`; infinity: the bias alone
Place = tuple[int, int]  # node, position of the input


@dataclass
class Changed:
    """What compensation did.

    values: constant -> its new value, in the shape of the original.
    helped: site -> the held-out error before and after; rejected: the sites left as they were.
    """

    values: dict[Place, NDArray[Any]] = field(default_factory=dict)
    helped: dict[str, tuple[float, float]] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Options:
    """settle: make every BatchNormalization of the calibration streams see the statistics it was
    trained with. restore: re-estimate them for the pruned model. refit: change weights."""

    settle: bool = False
    rho: float = 0.3
    tau: float = 0.5
    rho_mean: float = 1.0
    repair: bool = True
    refit: bool = True
    strengths: Sequence[float] = STRENGTHS
    rows: int = 4096
    seed: int = 0
    memory: int = 2 << 30


def compensate(
    groups: Groups, removed: Removed, fit: Sequence[Feeds], held: Sequence[Feeds], options: Options
) -> Changed:
    """New values for the weights of what remains."""
    return _Walk(groups, removed, fit, held, options).run()


class _Walk:
    def __init__(
        self,
        groups: Groups,
        removed: Removed,
        fit: Sequence[Feeds],
        held: Sequence[Feeds],
        options: Options,
    ) -> None:
        self.graph, self.options = groups.graph, options
        self.kept = groups.kept(removed)
        self.fits = len(fit)
        self.batches = [*fit, *held]
        self.stops: dict[int, Site | None] = {s.node: s for s in sites(self.graph)}
        self.norms = norms(self.graph)
        self.stops.update({k: None for k in self.norms})
        places = [p for s in self.stops.values() if s for p in _places(s)]
        places += [(k, i) for k in self.norms for i in (3, 4)]
        whole = parts(self.graph)
        self.dense = own(whole, self.graph, places)
        self.masked = own(mask(groups, removed, whole), self.graph, places)
        self.done = Changed()
        self.level: float | None = None
        self.scales = {}

    def run(self) -> Changed:
        goals = {self.graph.nodes[k].inputs[0] for k in self.stops}
        half = self.options.memory // 2
        with (
            Stream(self.dense, self.batches, goals, half) as dense,
            Stream(self.masked, self.batches, goals, half) as masked,
        ):
            self.streams = dense, masked
            for node in sorted(self.stops):
                name = self.graph.nodes[node].inputs[0]
                x, z = ([b[name] for b in stream([name])] for stream in self.streams)
                site = self.stops[node]
                if site is not None and self.options.refit:
                    self._refit(site, x, z)
                    self._settle(site, x)
                elif site is None:
                    self._norm(node, x, z)
        return self.done

    def _settle(self, site: Site, x: list[Floats]) -> None:
        """Give the outputs of a convolution without BatchNormalization likely statistics."""
        if not (self.options.settle and is_folded(self.graph, site)):
            return
        stored = self.graph.array(site.weight)
        w = site.forward(np.asarray(stored, np.float32))
        places = (site.node, 1), (site.bias.node, site.bias.position)
        bias = self.value(places[1], 0)
        g, o, i, t = w.shape
        most = -(-max(self.options.rows, 4 * i * t) // max(self.fits, 1))
        rows = _by_group([self._rows(site, v, k, most) for k, v in enumerate(x[: self.fits])])
        y = np.matmul(rows, np.swapaxes(w.reshape(g, o, -1), 1, 2))
        mean, std = (f.reshape(-1) for f in (y.mean(1, dtype=np.float64), y.std(1, dtype=np.float64)))
        a, new_mean, self.level = likely(mean + bias, std, self.level, self.options)
        self.scales[site.node] = (a, mean + bias, new_mean)
        scale = site.backward(np.broadcast_to(a.reshape(g, o, 1, 1), w.shape).astype(np.float32), stored.shape)
        for which in (0, 1):
            self.put(places[0], self.value(places[0], which) * scale, which)
            self.put(places[1], (self.value(places[1], which) - mean - bias) * a + new_mean, which)

    def value(self, place: Place, which: int = 1) -> NDArray[Any]:
        found = place_value((self.dense, self.masked)[which], place)
        return found if place not in self.done.values or which == 0 else self.done.values[place]

    def put(self, place: Place, value: NDArray[Any], which: int = 1) -> None:
        value = value.astype(self.value(place).dtype)
        apart = (self.dense, self.masked)[which]
        name = apart.model.graph.node[place[0]].input[place[1]]
        self.streams[which].replace({name: np.ascontiguousarray(value)})

    # --- sites

    def _refit(self, site: Site, x: list[Floats], z: list[Floats]) -> None:
        weight = self.graph.array(site.weight)
        dense = site.forward(np.asarray(weight, np.float32))
        stays = site.forward(_stays(self.kept.axes(site.weight), weight.shape))
        i, t = dense.shape[2:]
        alive = stays.any(axis=(1, 2, 3))
        out, into = stays[alive].any(axis=(0, 2, 3)), stays[alive].any(axis=(0, 1, 3))
        if into.all() and all(np.array_equal(a, b) for a, b in zip(x, z, strict=True)):
            return
        most = -(-max(self.options.rows, 4 * i * t) // max(self.fits, 1))
        rows_x = [self._rows(site, v, k, most)[:, alive] for k, v in enumerate(x)]
        rows_z = [self._rows(site, v, k, most)[:, alive][:, :, into] for k, v in enumerate(z)]
        fx, hx = (_by_group(rows) for rows in (rows_x[: self.fits], rows_x[self.fits :]))
        fz, hz = (_by_group(rows) for rows in (rows_z[: self.fits], rows_z[self.fits :]))
        w = dense[alive][:, out].reshape(len(fx), int(out.sum()), -1)
        kept = np.flatnonzero(np.repeat(into, t))
        affine = site.bias is not None
        fitted, held = moments(w, fx, fz, affine), moments(w, hx, hz, affine)
        choices = [(w[:, :, kept].astype(np.float64), np.zeros(w.shape[:2]))]
        choices += [refit(choices[0][0], fitted, lam) for lam in (np.inf, *self.options.strengths)]
        errors = [held.error(*choice) for choice in choices]
        best = int(np.argmin(errors))
        name = self.graph.nodes[site.node].name
        if best == 0:
            self.done.rejected.append(name)
            return
        self.done.helped[name] = errors[0], errors[best]
        self._store(site, dense, alive, out, into, choices[best])

    def _store(
        self,
        site: Site,
        dense: Floats,
        alive: NDArray[np.bool_],
        out: NDArray[np.bool_],
        into: NDArray[np.bool_],
        fitted: tuple[NDArray[Any], NDArray[Any]],
    ) -> None:
        new = np.zeros_like(dense)
        t = dense.shape[3]
        change = np.zeros(dense.shape[:2])
        v, b = fitted
        at = np.ix_(np.flatnonzero(alive), np.flatnonzero(out), np.flatnonzero(into))
        new[at] = v.reshape(*v.shape[:2], -1, t)
        change[at[0][:, :, 0], at[1][:, :, 0]] = b
        stored = self.graph.array(site.weight)
        place = (site.node, 1)
        self.done.values[place] = site.backward(new, stored.shape).astype(stored.dtype)
        self.put(place, self.done.values[place])
        if site.bias is not None:
            place = (site.bias.node, site.bias.position)
            old = self.value(place)
            self.done.values[place] = (old + site.bias.scale * change.ravel()).astype(old.dtype)
            self.put(place, self.done.values[place])

    def _rows(self, site: Site, x: Floats, batch: int, most: int) -> Floats:
        random = np.random.default_rng((self.options.seed, site.node, batch))
        return site.rows(x, most, random).astype(np.float32, copy=False)

    # --- statistics

    def _norm(self, node: int, x: list[Floats], z: list[Floats]) -> None:
        mean_d, var_d = _statistics(x[: self.fits])
        mean_p, var_p = _statistics(z[: self.fits])
        places = (node, 3), (node, 4)
        mean_r, var_r = (self.value(p, 0).astype(np.float64) for p in places)
        shift = self.value(places[0]).astype(np.float64) - mean_r  # the biases of the site before
        ratio = np.ones(len(var_d))
        if self.options.repair:
            alive = var_d > 1e-12 * max(float(var_d.max()), 1e-30)
            ratio = np.where(alive, np.clip(var_p / np.where(alive, var_d, 1), 0.05, 20), 1)
            shift = mean_p - mean_d
        for place, value in zip(places, (mean_r + shift, var_r * ratio), strict=True):
            self.done.values[place] = value.astype(self.value(place).dtype)
        if self.options.settle:
            self._set(places, mean_d, var_d, 0)
            self._set(places, mean_d + shift, var_d * ratio, 1)
        else:
            self._set(places, mean_r + shift, var_r * ratio, 1)

    def _set(self, places: Sequence[Place], mean: Floats, var: Floats, which: int) -> None:
        for place, value in zip(places, (mean, var), strict=True):
            self.put(place, value.astype(self.value(place).dtype), which)


def _by_group(rows: list[Floats]) -> Floats:
    """Rows of all batches, shape (groups, rows, channels * taps)."""
    whole = np.concatenate(rows)
    return np.moveaxis(whole, 1, 0).reshape(whole.shape[1], len(whole), -1)


def is_folded(graph: Graph, site: Site) -> bool:
    return graph.nodes[site.node].op_type == "Conv" and site.bias is not None and site.bias.scale > 0 and site.y not in graph.outputs


def likely(mean, std, level, options):
    """Scale and mean that the outputs of a trained convolution are likely to have."""
    std = np.maximum(std, 1e-12)
    alive = std > 1e-6 * std.max()
    here = float(np.exp(np.log(std[alive]).mean()))
    level = here if level is None else here ** options.tau * level ** (1 - options.tau)
    want = level * (std / here) ** options.rho
    middle = float(np.median(mean))
    return np.where(alive, want / std, 1.0), middle + options.rho_mean * (mean - middle), level


def _statistics(x: list[Floats]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of every channel."""
    axes = (0, *range(2, x[0].ndim))
    count = sum(v.size // v.shape[1] for v in x)
    mean = sum(v.sum(axes, dtype=np.float64) for v in x) / count
    shape = (1, -1, *[1] * (x[0].ndim - 2))
    square = sum(
        ((v - mean.astype(v.dtype).reshape(shape)) ** 2).sum(axes, dtype=np.float64) for v in x
    )
    return mean, square / count


def norms(graph: Graph) -> list[int]:
    """BatchNormalization nodes with stored statistics of their own."""
    return [
        n.index
        for n in graph.nodes
        if n.op_type == "BatchNormalization"
        and not n.attrs.get("training_mode", 0)
        and all(i in graph.constants for i in n.inputs[3:5])
        and n.inputs[0] in graph.activations
    ]


def _places(site: Site) -> list[Place]:
    return [(site.node, 1), *([(site.bias.node, site.bias.position)] if site.bias else [])]


def own(apart: Parts, graph: Graph, places: Sequence[Place]) -> Parts:
    """The same model where each of these inputs reads an initializer of its own."""
    values, reads = {}, {}
    for node, position in dict.fromkeys(places):
        name = f"{node}.{position}@own"
        values[name] = place_value(apart, (node, position), graph)
        reads[node, position] = name
    return apart.reading(values, reads)


def place_value(apart: Parts, place: Place, graph: Graph | None = None) -> NDArray[Any]:
    from onnx import numpy_helper

    name = apart.model.graph.node[place[0]].input[place[1]]
    if name in apart.weights:
        return apart.weights[name]
    for t in apart.model.graph.initializer:
        if t.name == name:
            return numpy_helper.to_array(t)
    assert graph is not None
    return np.asarray(graph.array(name))


def _stays(axes: Sequence[NDArray[np.intp]] | None, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which elements of a stored array stay."""
    stays = np.zeros(shape, bool)
    stays[np.ix_(*(axes or [np.arange(n) for n in shape]))] = True
    return stays
