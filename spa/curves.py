"""What every group loses with every unit that it gives up, on calibration inputs.

One greedy run of exact block-OBS over the dense network gives each group its order and its whole
curve of error against width (see `spa.fit.order`); an error is a share of the energy of the
outputs of the sites that read the group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spa.compensate import is_folded, likely, Options, _places, _statistics, norms, own, place_value
from spa.fit import Demand, Index, Matrix, order
from spa.groups import Groups
from spa.parts import parts
from spa.run import Feeds
from spa.sites import Floats, Site, sites
from spa.stream import Stream

WIDE = 1536  # inputs times taps; beyond it the taps of a kernel are taken for samples


@dataclass(frozen=True)
class Curve:
    """order: positions of units, the first to go first, all but the last. loss: after each."""

    order: Index
    loss: Matrix


@dataclass(frozen=True)
class Load:
    """What one site reads. covariance: of its inputs, shape (g, f, f). energy: of its outputs."""

    site: Site
    weights: Floats  # (g, o, i, t)
    covariance: Matrix
    taps: int
    energy: float


def curves(
    groups: Groups, batches: Sequence[Feeds], options: Options, shrink: float = 0.1
) -> dict[int, Curve]:
    """The curve of every group that sites read; groups without are left out."""
    readers = _readers(groups)
    loads: dict[int, Load] = {}
    found: dict[int, Curve] = {}
    last = {g: max(k for k, _ in read) for g, read in readers.items()}
    for load in measured(groups, batches, options):
        loads[load.site.node] = load
        for g in [g for g, k in last.items() if k == load.site.node]:
            demands = [d for k, units in readers[g] for d in _demands(loads[k], units, shrink)]
            found[g] = Curve(*order(demands, groups[g].size))
    return found


def _readers(groups: Groups) -> dict[int, list[tuple[int, Index]]]:
    """Group -> the sites whose input channels it holds, and its units there."""
    by_weight = {(s.weight, s.in_axis): s.node for s in sites(groups.graph)}
    found: dict[int, list[tuple[int, Index]]] = {}
    for g, group in enumerate(groups):
        for member in group.members:
            node = by_weight.get((member.tensor, member.axis))
            if node is not None:
                found.setdefault(g, []).append((node, member.index))
    return found


def _demands(load: Load, units: Index, shrink: float) -> list[Demand]:
    places = (units[:, :, None] * load.taps + np.arange(load.taps)).reshape(len(units), -1)
    demands = []
    for k, h in enumerate(load.covariance):
        w = load.weights[k].astype(np.float64)
        w = w.reshape(len(w), -1) if load.taps > 1 or w.shape[2] == 1 else np.moveaxis(w, 2, 1).reshape(-1, w.shape[1])
        h = (1 - shrink) * h + shrink * np.diag(np.diag(h)) + 1e-8 * np.eye(len(h)) * np.trace(h) / len(h)
        demands.append(Demand(w, h, places, 1 / max(load.energy, 1e-300)))
    return demands


def measured(groups: Groups, batches: Sequence[Feeds], options: Options):
    """Every site of the dense network with the covariance of its inputs, in order."""
    graph = groups.graph
    stops: dict[int, Site | None] = {s.node: s for s in sites(graph)}
    if options.settle:
        stops.update({k: None for k in norms(graph)})
    places = [(k, i) for k, s in stops.items() if s is None for i in (3, 4)]
    level = None
    if options.settle:
        places += [q for s in stops.values() if s and is_folded(graph, s) for q in _places(s)]
    dense = own(parts(graph), graph, places)
    with Stream(dense, batches, {graph.nodes[k].inputs[0] for k in stops}, options.memory) as run:
        for node in sorted(stops):
            x = [b[graph.nodes[node].inputs[0]] for b in run([graph.nodes[node].inputs[0]])]
            site = stops[node]
            if site is None:
                for k, value in zip((3, 4), _statistics(x), strict=True):
                    old = place_value(dense, (node, k))
                    run.replace({dense.model.graph.node[node].input[k]: value.astype(old.dtype)})
            else:
                yield _load(groups, site, x, options)
                if options.settle and is_folded(graph, site):
                    w = site.forward(np.asarray(graph.array(site.weight), np.float32))
                    bp = (site.bias.node, site.bias.position)
                    bias = place_value(dense, bp, graph)
                    g, o, i, t = w.shape
                    rows = np.concatenate([site.rows(v, -(-max(options.rows, 4 * i * t) // len(x)), np.random.default_rng((options.seed, site.node, k))) for k, v in enumerate(x)]).astype(np.float32, copy=False)
                    rows = np.moveaxis(rows, 1, 0).reshape(g, len(rows), -1)
                    y = np.matmul(rows, np.swapaxes(w.reshape(g, o, -1), 1, 2))
                    mean, std = (f.reshape(-1) for f in (y.mean(1, dtype=np.float64), y.std(1, dtype=np.float64)))
                    a, new, level = likely(mean + bias, std, level, options)
                    stored = graph.array(site.weight)
                    sc = site.backward(np.broadcast_to(a.reshape(g, o, 1, 1), w.shape).astype(np.float32), stored.shape)
                    run.replace({dense.model.graph.node[site.node].input[1]: np.ascontiguousarray(stored * sc).astype(np.float32),
                                 dense.model.graph.node[bp[0]].input[bp[1]]: ((bias - mean - bias) * a + new).astype(np.float32)})


def _load(groups: Groups, site: Site, x: list[Floats], options: Options) -> Load:
    w = site.forward(np.asarray(groups.graph.array(site.weight), np.float32))
    g, o, i, t = w.shape
    taps = t if i * t <= WIDE else 1
    most = -(-max(options.rows, 4 * i * taps) // len(x))
    rows = np.concatenate(
        [
            site.rows(v, most, np.random.default_rng((options.seed, site.node, k)))
            for k, v in enumerate(x)
        ]
    ).astype(np.float32, copy=False)
    rows = np.moveaxis(rows, 1, 0)  # (g, rows, i, t)
    if taps == t:
        rows = rows.reshape(g, -1, i * t)
        flat = w.reshape(g, o, i * t)
    else:
        rows = np.moveaxis(rows, 3, 2).reshape(g, -1, i)
        flat = np.moveaxis(w, 3, 2).reshape(g, o * t, i)
    if site.bias is not None:
        rows = rows - rows.mean(1, keepdims=True)
    h = np.matmul(np.swapaxes(rows, 1, 2), rows).astype(np.float64) / rows.shape[1]
    energy = float(np.einsum("gof,gfh,goh->", flat, h, flat, optimize=True))
    return Load(site, w, h, taps, energy)
