"""Give the weights that remain what the removed ones did: a walk along the network, site by site.

Two streams of the calibration inputs go through the graph side by side: the dense model, and the
model with all removed slices at zero and every weight before this point already refitted. At each
site the refit aims at the *dense* output from the *pruned* input (see `spa.fit`), and is kept only
where it comes nearer to it on held-out inputs. Made-up ones are judged with errors put on them: a
refit that tells channels apart by small differences, which others would not have, is none. At each
BatchNormalization that the file still has, the running statistics move as those of the calibration
inputs move from dense to pruned; where it was folded, what is refitted gets the deviations of the
dense outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.compensation import Compensation
from spa.fit import LOGITS, METHODS, NEEDS, Index, Matrix, restored
from spa.fold import fold
from spa.groups import Groups, Removed
from spa.logits import folded, match, moved, sides
from spa.mask import mask
from spa.measure import (
    Measured,
    channel_statistics,
    every_stop,
    goals,
    named,
    norm_places,
    own,
    stored,
    with_products,
)
from spa.merge import combined, nearest, stand_ins
from spa.parts import parts
from spa.products import Product
from spa.recurrence import Recurrence, recurrences, refitted, states_before
from spa.run import Feeds
from spa.settle import settle
from spa.sites import Floats, Place, Site
from spa.stays import Stays, is_alone, read_at, seen_by
from spa.stream import Stream
from spa.widths import Width, rescaled, spread, widths

RATIOS = 0.05, 20.0  # a variance that moves further than this was not measured but divided by zero


def compensate(
    groups: Groups,
    removed: Removed,
    measured: Measured,
    fit: Sequence[Feeds],
    held: Sequence[Feeds],
    method: str = "refit",
    repair: bool = True,
    seed: int = 0,
    memory: int = 2 << 30,
) -> Compensation:
    """New values for the weights of what remains.

    Args:
        measured: the dense network on the same kind of inputs.
        fit, held: batches to fit on, and others to judge by.
        method: one of `spa.fit.METHODS`, "fold" (see `spa.fold`), or "none".
        repair: re-estimate the statistics of BatchNormalization nodes, and the scale of layer
            normalisations over fewer channels.
        memory: bytes for held activations.
    """
    walk = _Walk(groups, removed, measured, len(fit), method, repair, seed)
    return walk.run([*fit, *held], memory)


class _Walk:
    def __init__(
        self,
        groups: Groups,
        removed: Removed,
        measured: Measured,
        fits: int,
        method: str,
        repair: bool,
        seed: int,
    ) -> None:
        self.graph, self.measured = groups.graph, measured
        self.kept = groups.kept(removed)
        self.fits, self.method, self.repair, self.seed = fits, method, repair, seed
        self.needs = NEEDS.get(method)
        self.standing = {}
        if self.needs == "standing":
            choose = nearest if method == "merge" else combined
            self.standing = stand_ins(groups, removed, choose)
        stops = every_stop(self.graph)
        asked = self.measured.products.values() if method in LOGITS else ()
        alone = [s.product for s in asked if is_alone(groups, removed, s.product)]
        self.widths = {w.node: w for w in widths(self.graph) if len(self._left(w)) < self._size(w)}
        self.stops = with_products(stops, alone)
        whole = parts(self.graph)
        self.recurrences = {
            r.node: r
            for r in (recurrences(self.graph) if method in LOGITS else ())
            if len(self._states(r)) < self.graph.constants[self._name(r.weight)].shape[2]
        }
        more = [p for w in (self.widths, self.recurrences) for v in w.values() for p in v.places]
        self.dense = own(whole, self.graph, stops, more)
        folded_ = fold(groups, removed) if method == "fold" else {}
        changed = replace(groups, graph=replace(self.graph, changed=folded_))
        self.pruned = own(mask(changed, removed, whole, unasked=True), self.graph, stops, more)
        places = {s.weight: s.place for s in stops.values() if s is not None}
        self.values: dict[Place, NDArray[Any]] = {
            places.get(n) or read_at(self.graph, n): value for n, value in folded_.items()
        }
        self.helped: dict[str, tuple[float, float]] = {}
        self.rejected: list[str] = []
        self.repaired: list[str] = []

    def run(self, batches: Sequence[Feeds], memory: int) -> Compensation:
        dead = self.graph.dead
        asked = goals(self.graph, {k: s for k, s in self.stops.items() if k not in dead})
        asked += [n for k, w in self.widths.items() if k not in dead for n in (w.x, w.y)]
        for k, r in self.recurrences.items():
            asked += [] if k in dead else [r.y, *self._given(r).values()]
        with (
            Stream(self.dense, batches, asked, memory // 2) as self.from_dense,
            Stream(self.pruned, batches, asked, memory // 2) as self.from_pruned,
        ):
            for node, site in self._in_order():
                if node in self.graph.dead:
                    if not isinstance(site, (Width, Product, Recurrence)):
                        self._settle_dense(node, site)
                    continue
                if isinstance(site, Width):
                    self._width(site)
                    continue
                if isinstance(site, Recurrence):
                    self._recurrence(site)
                    continue
                if isinstance(site, Product):
                    self._product(site)
                    continue
                name = site.x if site else self.graph.nodes[node].inputs[0]
                x, z = (
                    [b[name] for b in run([name])] for run in (self.from_dense, self.from_pruned)
                )
                if site is None:
                    self._norm(node, x, z)
                else:
                    self._site(site, x, z)
        return Compensation(self.values, self.helped, self.rejected, self.repaired)

    def _settle_dense(self, node: int, site: Site | None) -> None:
        """The dense stream still has what is in a removed block."""
        values: dict[Place, NDArray[Any]] = {}
        if self.measured.made_up and site is None:
            places, moved = norm_places(self.graph, node), self.measured.statistics[node]
            values = dict(zip(places, moved, strict=True))
        affine = self.measured.settled.get(node)
        if affine is not None and site is not None and site.bias is not None:
            bias = stored(self.dense, self.graph, site.bias.place)
            values = settle(site, affine, self.measured.sites[node].weights, bias, self.graph)
        self._tell(self.dense, self.from_dense, values)

    def _in_order(self) -> list[tuple[int, Site | Product | Width | Recurrence | None]]:
        """A recurrence comes after the site that is its node's input."""
        every = [*self.stops.items(), *self.widths.items(), *self.recurrences.items()]
        return sorted(every, key=lambda item: item[0])

    # --- sites

    def _site(self, site: Site, x: list[Floats], z: list[Floats]) -> None:
        w = self.measured.sites[site.node].weights
        stays = Stays(site, self.kept.axes(site.weight), self.graph.constants[site.weight].shape)
        untouched = stays.into.all() and all(map(np.array_equal, x, z))
        # Where the cut sends tokens to other experts, rows of both networks do not match.
        alike = all(a.shape == b.shape for a, b in zip(x, z, strict=True))
        if not untouched and alike and self.method in METHODS and stays.into.any():
            self._refit(site, w, stays, x, z)
        affine = self.measured.settled.get(site.node)
        if affine is not None and site.bias is not None:
            bias = stored(self.dense, self.graph, site.bias.place)
            new, shifted = w, bias
            if site.place in self.values:
                new = site.forward(np.asarray(self.values[site.place], np.float32))
                shifted = self.values.get(site.bias.place, bias)
            elif not stays.into.all():
                new = w * stays.all
            self._tell(self.dense, self.from_dense, settle(site, affine, w, bias, self.graph))
            settled = settle(site, affine, new, shifted, self.graph)
            self._tell(self.pruned, self.from_pruned, settled)

    def _refit(self, site: Site, w: Floats, stays: Stays, x: list[Floats], z: list[Floats]) -> None:
        affine = self.measured.settled.get(site.node)
        fitted, held = (
            seen_by(site, w, stays, affine, x[part], z[part], (self.seed, part.start or 0), need)
            for part, need in ((slice(self.fits), self.needs), (slice(self.fits, None), None))
        )
        doubt = self.measured.sites[site.node].shrink if self.measured.made_up else 0.0
        kept = np.flatnonzero(np.repeat(stays.into, w.shape[3]))
        dense = w[stays.alive][:, stays.out]
        full = dense.reshape(*dense.shape[:2], -1).astype(np.float64)
        plain = full[:, :, kept], np.zeros(full.shape[:2])
        if self.needs == "standing":
            whole = self.standing.get(site.node, np.eye(w.shape[2]))
            standing = np.asarray(np.kron(whole[:, stays.into], np.eye(w.shape[3])), np.float64)
            fitted = replace(fitted, standing=standing)

        def judged(v: Matrix, change: Matrix) -> float:
            v = self._rounded(site, w, stays, v) if site.rounds else v
            return (1 - doubt) * held.error(v, change) + doubt * held.apart(v, plain[0])

        before = judged(*plain)
        tried = METHODS[self.method](full, kept, fitted, judged)
        (v, change), after = min(tried, key=lambda found: found[1])
        name = self.graph.nodes[site.node].name
        if after >= before:
            self.rejected.append(name)
            return
        if site.rounds:
            v = self._rounded(site, w, stays, v)
        if self.repair and site.node in self.measured.settled:
            longer = restored(v, fitted, *RATIOS)
            if (now := judged(*longer)) < before:
                (v, change), after = longer, now
        self.helped[name] = before, after
        rows, columns = map(np.flatnonzero, (stays.alive, stays.out))
        new = stays.put(v, w)
        old = self.graph.array(site.weight)
        self._set(site.place, site.backward(new, old.shape).astype(old.dtype))
        if site.bias is not None:
            all_ = np.zeros(w.shape[:2])
            all_[np.ix_(rows, columns)] = change
            bias = stored(self.dense, self.graph, site.bias.place)
            new_bias = site.bias.moved(bias, all_)
            self._set(site.bias.place, new_bias.astype(bias.dtype))

    def _rounded(self, site: Site, w: Floats, stays: Stays, v: Matrix) -> Matrix:
        """Weights as they can be stored."""
        shape = self.graph.constants[site.weight].shape
        back = site.forward(site.backward(stays.put(v, w), shape))
        return back[np.ix_(*stays.places)].reshape(v.shape).astype(np.float64)

    def _set(self, place: Place, value: NDArray[Any]) -> None:
        self.values[place] = value
        self._tell(self.pruned, self.from_pruned, {place: value})

    @staticmethod
    def _tell(apart: Any, stream: Stream, values: Mapping[Place, NDArray[Any]]) -> None:
        stream.replace(named(apart, values.items()))

    # --- products of activations

    def _product(self, product: Product) -> None:
        """Match the products of queries and keys, and let the weights of queries make it so."""
        x, z = (
            [[b[n] for b in pair] for n in product.names]
            for run in (self.from_dense, self.from_pruned)
            for pair in [run(product.names)]
        )
        side = product.sides[0]
        left = [self._outputs(s.site)[s.channels] for s in product.sides]
        alive = np.flatnonzero(left[0].any(1) & left[1].any(1))
        same = (left[0][alive] == left[0][alive[:1]]).all() if len(alive) else False
        if not same or left[0][alive].all() or not np.array_equal(left[0][alive], left[1][alive]):
            return
        if any(product.heads_at(product.views[0](v).shape[:-2]) is None for v in z[0]):
            return
        kept = np.flatnonzero(left[0][alive[0]])
        found = match(
            product,
            [sides(product, *pair) for pair in zip(*x, strict=True)],
            [sides(product, *pair) for pair in zip(*z, strict=True)],
            self.fits,
            kept,
            alive,
            self.method == "refit",
            self.seed,
        )
        if found is None:
            return
        best, before, after = found
        name = self.graph.nodes[product.node].name
        if best is None:
            self.rejected.append(name)
            return
        self.helped[name] = before, after
        site, old = side.site, self.graph.array(side.site.weight)
        w = site.forward(np.asarray(self.values.get(site.place, old), np.float32))
        at = site.bias.place if site.bias else None
        bias = None if at is None else self.values.get(at, stored(self.dense, self.graph, at))
        w, bias = folded(side, alive, kept, best, w, bias)
        self._set(site.place, site.backward(w, old.shape).astype(old.dtype))
        if at is not None and bias is not None:
            self._set(at, bias.astype(stored(self.dense, self.graph, at).dtype))
        self.from_pruned.put(side.name, [moved(product, alive, kept, best, v) for v in z[0]])

    def _outputs(self, site: Site) -> NDArray[np.bool_]:
        """Which outputs of a site are kept."""
        shape = self.graph.constants[site.weight].shape
        stays = Stays(site, self.kept.axes(site.weight), shape)
        return np.asarray(stays.all.any((0, 2, 3)))

    # --- recurrences

    def _states(self, recurrence: Recurrence) -> Index:
        """The hidden units that are kept."""
        name = self._name(recurrence.weight)
        axes = self.kept.axes(name)
        return np.arange(self.graph.constants[name].shape[2]) if axes is None else axes[2]

    def _given(self, recurrence: Recurrence) -> dict[int, str]:
        """What the node reads that is computed, by position."""
        inputs = self.graph.nodes[recurrence.node].inputs
        return {k: n for k, n in enumerate(inputs) if n in self.graph.activations}

    def _recurrence(self, recurrence: Recurrence) -> None:
        """Let the kept states do what the removed ones did for the gates."""
        node, kept = self.graph.nodes[recurrence.node], self._states(recurrence)
        given = self._given(recurrence)
        dense = self.from_dense([recurrence.y, *(given[k] for k in (5,) if k in given)])
        pruned = self.from_pruned([*given.values()])
        y = [b[recurrence.y] for b in dense]
        fixed = {
            k: self.values.get((node.index, k), stored(self.pruned, self.graph, (node.index, k)))
            for k, name in enumerate(node.inputs)
            if name and k not in given
        }
        first = [b[given[5]] if 5 in given else fixed.get(5) for b in dense]
        states = [states_before(recurrence, *pair) for pair in zip(y, first, strict=True)]
        read = [{**fixed, **{k: b[n] for k, n in given.items()}} for b in pruned]
        r = np.asarray(self.graph.array(self._name(recurrence.weight)))
        full = self.method == "refit"
        best, plain, after = refitted(
            self.graph, recurrence, r, states, y, read, self.fits, kept, full
        )
        name = f"{node.name}, recurrence"
        if best is None:
            self.rejected.append(name)
            return
        self.helped[name] = plain, after
        for at, value in zip(recurrence.places, best, strict=True):
            self._set(at, value)

    # --- layer normalisations

    def _left(self, width: Width) -> Index:
        """The channels that are kept."""
        axes = self.kept.axes(self._name(width.scale))
        return np.arange(self._size(width)) if axes is None else axes[0]

    def _size(self, width: Width) -> int:
        return self.graph.constants[self._name(width.scale)].shape[0]

    def _name(self, at: Place) -> str:
        return self.graph.nodes[at[0]].inputs[at[1]]

    def _width(self, width: Width) -> None:
        """Scale and bias for fewer channels. The zeros in the pruned stream count as channels, in
        the file they do not; the stream is told what comes nearest to the file."""
        kept = self._left(width)
        y = [b[width.y] for b in self.from_dense([width.y])]
        z = [b[width.x] for b in self.from_pruned([width.x])]
        old = [stored(self.dense, self.graph, p) for p in width.places]
        line, told = rescaled(width, y, z, self.fits, kept, old, self.repair)
        if line is not None:
            self.repaired.append(self.graph.nodes[width.node].name)
            self.values.update(zip(width.places, spread(line, kept, old), strict=True))
        settled = zip(width.places, spread(told, kept, old), strict=True)
        self._tell(self.pruned, self.from_pruned, dict(settled))

    # --- statistics

    def _norm(self, node: int, x: list[Floats], z: list[Floats]) -> None:
        """var' = var * var_pruned / var_dense, and the mean moves as the means do: ratios, so that
        inputs unlike those of training do no harm."""
        places = norm_places(self.graph, node)
        stored_ = [stored(self.dense, self.graph, p) for p in places]
        old = [v.astype(np.float64) for v in stored_]
        shift, ratio = self.values.get(places[0], old[0]) - old[0], np.ones(len(old[1]))
        mean, var = channel_statistics(x[: self.fits])
        if self.repair and not all(map(np.array_equal, x, z)):
            pruned_mean, pruned_var = channel_statistics(z[: self.fits])
            alive = var > 1e-12 * max(float(var.max()), 1e-30)
            ratio = np.where(alive, np.clip(pruned_var / np.where(alive, var, 1), *RATIOS), 1)
            shift = np.where(alive, pruned_mean - mean, shift)
            self.repaired.append(self.graph.nodes[node].name)
        for place, before, value in zip(
            places, stored_, (old[0] + shift, old[1] * ratio), strict=True
        ):
            new = value.astype(before.dtype)
            if not np.array_equal(new, before):
                self._set(place, new)
        if self.measured.made_up:
            self._tell(self.dense, self.from_dense, dict(zip(places, (mean, var), strict=True)))
            settled = dict(zip(places, (mean + shift, var * ratio), strict=True))
            self._tell(self.pruned, self.from_pruned, settled)
