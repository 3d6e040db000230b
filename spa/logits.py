"""Match the products of queries and keys where some of what they are summed over is gone.

With q, k the dense queries and keys of a head and s, t the kept ones, the matrix M and the bias c
that keep (s M + c) t^T nearest to q k^T, over all pairs of rows, are

    M = V^T U,  c = b^T U,   where  q ~ V s + b  and  k ~ U t  in the least squares

(CORP, 2026, arXiv 2602.05243: G_q M G_k = C_q C_k). Both go into the weights that make s, so that
the products stay what they were and no operator is added. Where a Softmax follows, what is the same
for all keys of a query does not count, and k is taken about its mean over each sample's keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.fit import STRENGTHS, Index, Matrix, moments, refit, solve
from spa.products import Product, Side
from spa.sites import Floats

ROWS = 4096  # of every head
QUERIES = 16  # of every sample, where products are compared
Pair = tuple[Floats, Floats]  # the two sides of a product, shape (leading, rows, k)
KEYS = 1e-2  # the strength for the keys where the weights of queries stay as they are


@dataclass(frozen=True)
class SeenProduct:
    """What one product saw.

    queries, keys: second moments, shape (heads, k, k); of queries about the mean where the site has
    a bias. means: of queries, shape (heads, k). energy: E |q k^T|^2, summed over heads.
    """

    product: Product
    queries: Matrix
    keys: Matrix
    means: Matrix
    energy: float


def see(
    product: Product, q: Sequence[Floats], k: Sequence[Floats], seed: int
) -> SeenProduct | None:
    """Look at both sides in every batch; None where a batch does not tell its heads."""
    made = rows(product, [sides(product, *pair) for pair in zip(q, k, strict=True)], seed)
    if made is None:
        return None
    one, other = (m.astype(np.float64) for m in made)
    means = one.mean(1) if product.sides[0].site.bias is not None else np.zeros(one[:, 0].shape)
    queries, keys = (
        np.matmul(np.swapaxes(m, 1, 2), m) / m.shape[1] for m in (one - means[:, None], other)
    )
    return SeenProduct(product, queries, keys, means, float(np.einsum("hij,hji->", queries, keys)))


def sides(product: Product, q: Floats, k: Floats) -> Pair:
    """Both sides of one batch, keys centred where that does not count, leading axes in a row."""
    one, other = (view(v) for view, v in zip(product.views, (q, k), strict=True))
    if product.centred:
        other = other - other.mean(-2, keepdims=True)
    lead = np.broadcast_shapes(one.shape[:-2], other.shape[:-2])
    flat = [np.broadcast_to(v, (*lead, *v.shape[-2:])).reshape(-1, *v.shape[-2:])
            for v in (one, other)]  # fmt: skip
    return flat[0], flat[1]


def rows(product: Product, batches: Sequence[Pair], seed: int) -> tuple[Floats, Floats] | None:
    """Rows of both sides by head, shape (heads, rows, k); the same positions for arrays of equal
    shapes. None where a batch does not tell its heads.

    Args:
        batches: as of `sides`.
    """
    found: list[list[list[Floats]]] = [[[] for _ in range(product.count)] for _ in range(2)]
    for number, pair in enumerate(batches):
        heads = product.heads_at(pair[0].shape[:1])
        if heads is None:
            return None
        most = max(ROWS * product.count // (len(batches) * len(heads)), 1)
        random = np.random.default_rng((seed, product.node, number))
        for side, x in enumerate(pair):
            at = np.sort(random.permutation(x.shape[1])[:most])
            for h in range(product.count):
                found[side][h].append(x[np.ix_(heads == h, at)].reshape(-1, x.shape[2]))
    one, other = (np.stack([np.concatenate(f) for f in of_side]) for of_side in found)
    return one, other


@dataclass(frozen=True)
class Match:
    """m: shape (heads, kept, kept). c: shape (heads, kept)."""

    m: Matrix
    c: Matrix


def matches(
    q: Floats, s: Floats, k: Floats, t: Floats, kept: Index, affine: bool, full: bool = True
) -> list[Match]:
    """Candidates at several strengths of the pull towards plain removal; only biases unless full.

    Args:
        q, k: dense, shape (heads, rows, k). s, t: kept, shape (heads, rows, kept).
        affine: whether there is a bias to change.
    """
    eye = np.broadcast_to(np.eye(q.shape[2]), (len(q), q.shape[2], q.shape[2]))
    plain = np.ascontiguousarray(eye[:, :, kept])
    of_q, of_k = moments(eye, q, s, affine), moments(eye, k, t, False)
    found = []
    for lam in (np.inf, *STRENGTHS) if full else (np.inf,):
        v, b = refit(plain, of_q, lam)
        u, _ = refit(plain, of_k, KEYS if lam == np.inf else lam)
        m = np.einsum("hdi,hdj->hij", v, plain if lam == np.inf else u)
        c = np.einsum("hd,hdj->hj", b, u) * affine
        found.append(Match(m, c))
    return found


def match(
    product: Product,
    dense: Sequence[Pair],
    pruned: Sequence[Pair],
    fits: int,
    kept: Index,
    alive: Index,
    full: bool,
    seed: int,
) -> tuple[Match | None, float, float] | None:
    """The best match of some batches by what the others miss, None where none helps; and what is
    missed without and with it. None in all where a batch does not tell its heads.

    Args:
        dense, pruned: both sides in every batch. fits: how many of the batches are to fit on.
        kept: places that are left of every head. alive: the heads that are left.
    """
    if any(product.heads_at(q.shape[:1]) is None for q, _ in dense):
        return None
    fit = [rows(product, v[:fits], seed) for v in (dense, pruned)]
    (q, k), (s, t) = ([v[alive] for v in f] for f in fit if f is not None)
    affine = product.sides[0].site.bias is not None
    choices = [None, *matches(q, s[:, :, kept], k, t[:, :, kept], kept, affine, full)]
    held = dense[fits:], pruned[fits:]
    errors = [missed(product, *held, kept, alive, choice) for choice in choices]
    best = int(np.argmin(errors))
    return choices[best], errors[0], errors[best]


def without(seen: SeenProduct, gone: Index) -> tuple[Index, Match]:
    """What is kept of every head, shape (heads, kept), and how it makes up for the rest.

    Args:
        gone: places of what is removed, shape (heads, removed).
    """
    kept = np.stack([np.setdiff1d(np.arange(seen.queries.shape[1]), g) for g in gone])
    m, c = np.zeros((len(kept), *kept.shape[1:] * 2)), np.zeros(kept.shape)
    for h, at in enumerate(kept):
        v, u = (
            solve(a[np.ix_(at, at)], a[at], STRENGTHS[1]) for a in (seen.queries[h], seen.keys[h])
        )
        m[h] = v @ u.T
        c[h] = u @ (seen.means[h] - v.T @ seen.means[h][at])
    return kept, Match(m, c)


def missed(
    product: Product,
    dense: Sequence[Pair],
    pruned: Sequence[Pair],
    kept: Index,
    alive: Index,
    match: Match | None,
) -> float:
    """E |q k^T - (s M + c) t^T|^2 over E |q k^T|^2, over some queries and all keys of a sample.

    Args:
        alive: the heads that are left; the matrices of a match are theirs.
    """
    lost = whole = 0.0
    place = {h: n for n, h in enumerate(alive.tolist())}
    for (q, k), (s, t) in zip(dense, pruned, strict=True):
        heads = product.heads_at(q.shape[:1])
        assert heads is not None
        at = np.linspace(0, q.shape[1] - 1, min(QUERIES, q.shape[1])).astype(np.intp)
        here = np.flatnonzero(np.isin(heads, alive))
        number = np.asarray([place[h] for h in heads[here].tolist()], np.intp)
        wanted = np.matmul(q[here][:, at], np.swapaxes(k[here], 1, 2))
        left = s[here][:, at][:, :, kept]
        if match is not None:
            left = np.matmul(left, match.m[number].astype(s.dtype)) + match.c[number][:, None]
        got = np.matmul(left, np.swapaxes(t[here][:, :, kept], 1, 2))
        lost += float(np.square(wanted - got, dtype=np.float64).sum())
        whole += float(np.square(wanted, dtype=np.float64).sum())
    return lost / max(whole, 1e-300)


def folded(
    side: Side, alive: Index, kept: Index, match: Match, w: Floats, bias: NDArray[Any] | None
) -> tuple[Floats, NDArray[Any] | None]:
    """The weights, shape (g, o, i, t), and the bias that make s M + c instead of s.

    Args:
        alive: heads. kept: what is kept of all of them, or of every one, shape (heads, kept).
    """
    w = np.array(w, np.float64)
    bias = None if bias is None else np.array(bias, np.float64)
    for n, h in enumerate(alive.tolist()):
        here = side.channels[h, kept if kept.ndim == 1 else kept[n]]
        w[0, here] = np.einsum("ij,ikt->jkt", match.m[n], w[0, here])
        if bias is not None:
            bias[here] = match.m[n].T @ bias[here] + match.c[n] / side.scale[h]
    return w, bias


def moved(product: Product, alive: Index, kept: Index, match: Match, q: Floats) -> Floats:
    """The tensor of the first side as the new weights make it."""
    new = np.array(q, order="C")
    view = product.views[0](new)  # of the same memory: only the other side repeats
    heads = product.heads_at(view.shape[:-2])
    place = {h: n for n, h in enumerate(alive.tolist())}
    if heads is None:
        raise ValueError(f"node {product.node}: {view.shape} does not tell its heads")
    for index, head in zip(np.ndindex(*view.shape[:-2]), heads.tolist(), strict=True):
        if head in place:
            n = place[head]
            one = view[index]
            one[:, kept] = one[:, kept] @ match.m[n] + match.c[n]
    return new
