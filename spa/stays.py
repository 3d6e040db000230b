"""What a plan keeps of the weights of sites, and what of their inputs a refit sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from spa.fit import Matrix, Moments, moments
from spa.graph import Graph
from spa.groups import Groups, Removed
from spa.measure import sampled
from spa.products import Product
from spa.settle import Affine
from spa.sites import Floats, Place, Site

ROWS = 4096


def read_at(graph: Graph, name: str) -> Place:
    """An input that is this constant."""
    node = graph.readers[name][0]
    return node, graph.nodes[node].inputs.index(name)


def is_alone(groups: Groups, removed: Removed, product: Product) -> bool:
    """Whether what is removed of the channels of both sides is read by the product alone."""
    weights = {(s.site.weight, s.site.out_axis): s for s in product.sides}
    places = [s.site.place for s in product.sides]
    places += [s.site.bias.place for s in product.sides if s.site.bias is not None]
    own_names = {groups.graph.nodes[node].inputs[position] for node, position in places}
    for g, gone in removed.items():
        for member in groups[g].members:
            side = weights.get((member.tensor, member.axis))
            if side is None or not len(gone):
                continue
            touched = np.isin(side.channels, member.index[gone])
            some, every = (np.asarray(f(touched, axis=1)) for f in (np.any, np.all))
            others = {m.tensor for m in groups[g].members} - own_names
            if others and not np.array_equal(some, every):
                return False
    return True


class Stays:
    """What is kept of a site's weights.

    all: shape (g, o, i, t). alive: groups, (g,). out: outputs of a group, (o,). into: inputs, (i,).
    """

    def __init__(
        self, site: Site, axes: Sequence[NDArray[np.intp]] | None, shape: tuple[int, ...]
    ) -> None:
        stays = np.zeros(shape, np.float32)
        stays[np.ix_(*(axes or [np.arange(n) for n in shape]))] = 1
        self.all = site.forward(stays) != site.forward(np.zeros_like(stays))
        self.alive = self.all.any((1, 2, 3))
        self.out = self.all[self.alive].any((0, 2, 3))
        self.into = self.all[self.alive].any((0, 1, 3))

    @property
    def places(self) -> list[NDArray[np.intp]]:
        return [np.flatnonzero(a) for a in (self.alive, self.out, self.into)]

    def put(self, v: Matrix, w: Floats) -> Floats:
        """Weights of what is kept, shape (g, o, i t), in the shape of all."""
        whole = np.zeros_like(w)
        whole[np.ix_(*self.places)] = v.reshape(*v.shape[:2], -1, w.shape[3])
        return whole


def seen_by(
    site: Site,
    w: Floats,
    stays: Stays,
    affine: Affine | None,
    x: Sequence[Floats],
    z: Sequence[Floats],
    chosen: tuple[int, int],
    needs: str | None,
) -> Moments:
    """Moments of a site's dense outputs and kept inputs.

    Args:
        w: dense weights. affine: what settling does to the site. x, z: what it reads in the dense
            and in the pruned network, in every batch. chosen: the seed of the rows that are looked
            at, and the number of the first batch. needs: see `spa.fit.NEEDS`.
    """
    most = max(ROWS, 4 * w.shape[2] * w.shape[3])
    inputs = sampled(site, x, chosen[0], most, chosen[1])[stays.alive]
    pruned = sampled(site, z, chosen[0], most, chosen[1])[stays.alive][:, :, stays.into]
    if affine is not None:
        inputs = affine.read(inputs, stays.alive)
        pruned = affine.read(pruned, stays.alive, stays.into)
    dense = w[stays.alive][:, stays.out]
    found = moments(
        dense.reshape(*dense.shape[:2], -1),
        inputs.reshape(*inputs.shape[:2], -1),
        pruned.reshape(*pruned.shape[:2], -1),
        site.bias is not None,
    )
    if needs != "whole":
        return found
    inputs[:, :, stays.into] = pruned
    rows = inputs.reshape(*inputs.shape[:2], -1)
    whole = np.matmul(np.swapaxes(rows, 1, 2), rows).astype(np.float64) / rows.shape[1]
    return replace(found, whole=whole)
