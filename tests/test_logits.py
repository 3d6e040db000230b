"""Matching products of queries and keys, against least squares over all pairs of rows."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

import spa
from models.blocks.table import BLOCKS
from models.builder import Net, Tensor
from spa import run as runs
from spa.calibration import calibrate
from spa.curves import multipliers
from spa.fit import Matrix
from spa.logits import Match, matches, see, sides, without
from spa.measure import measure

HEADS, SIZE = 2, 5


def rows(seed: int, count: int, size: int = SIZE) -> Matrix:
    random = np.random.default_rng(seed)
    return random.normal(size=(HEADS, count, size)) @ random.normal(size=(HEADS, size, size))


def slow(q: Matrix, s: Matrix, k: Matrix, t: Matrix, affine: bool) -> tuple[Matrix, Matrix]:
    """All pairs of rows, one unknown for every entry of M and of c."""
    s_ = np.hstack([s, np.ones((len(s), 1))]) if affine else s
    design = np.einsum("ai,bj->abij", s_, t).reshape(len(s) * len(t), -1)
    found = np.linalg.lstsq(design, (q @ k.T).ravel(), rcond=None)[0].reshape(s_.shape[1], -1)
    return found[: s.shape[1]], found[s.shape[1]] if affine else np.zeros(t.shape[1])


@pytest.mark.parametrize("affine", [False, True])
def test_matches_are_least_squares_over_pairs(affine: bool) -> None:
    q, k, kept = rows(0, 9) + 0.7 * affine, rows(1, 8), np.asarray([0, 2, 3])
    noise = rows(2, 9)[:, :, kept] * 0.1
    s, t = q[:, :, kept] + noise, k[:, :, kept]
    weakest = matches(q, s, k, t, kept, affine)[1]
    for h in range(HEADS):
        m, c = slow(q[h], s[h], k[h], t[h], affine)
        np.testing.assert_allclose(weakest.m[h], m, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(weakest.c[h], c, rtol=1e-3, atol=1e-4)


def test_only_biases_where_only_they_are_asked_for() -> None:
    q, k, kept = rows(0, 9) + 1, rows(1, 8), np.asarray([0, 2, 3])
    (one,) = matches(q, q[:, :, kept], k, k[:, :, kept], kept, True, full=False)
    assert np.array_equal(one.m, np.broadcast_to(np.eye(3), (HEADS, 3, 3))) and one.c.any()


def attention(rank: int, bias: bool) -> ModelProto:
    """Heads whose queries and keys have only some independent entries."""
    net, random = Net("attention"), np.random.default_rng(7)
    x = net.input("x", ("n", 6, 12))

    def made(name: str) -> Tensor:
        first, second = random.normal(size=(12, 2, rank)), random.normal(size=(2, rank, 8))
        w = np.einsum("ihr,hrd->ihd", first, second)
        y = net.matmul(x, net.const(w.reshape(12, 16).astype(np.float32) / 4, name))
        if bias:
            y = net.add(y, net.const(random.normal(size=16).astype(np.float32), f"{name}.bias"))
        return net.transpose(net.reshape(y, (0, 0, 2, 8)), 0, 2, 1, 3)

    q, k, v = made("q"), made("k"), made("v")
    scores = net.softmax(net.matmul(q, net.transpose(k, 0, 1, 3, 2)))
    y = net.reshape(net.transpose(net.matmul(scores, v), 0, 2, 1, 3), (0, 0, 16))
    return net.model(net.linear(y, 4))


@pytest.mark.parametrize("bias", [False, True])
def test_what_depends_is_made_up_for(bias: bool) -> None:
    """Half of every head's entries say all: without the others the outputs stay what they were. A
    bias of the keys adds the same to all keys of a query, and one of the queries is one entry more.
    """
    model = attention(3, bias)
    groups = spa.analyze(model)
    keys = [g for g in groups if g.size == 8 and any(m.tensor == "k" for m in g.members)]
    assert len(keys) == 1
    x = np.random.default_rng(0).normal(size=(256, 6, 12)).astype(np.float32)
    plain, done = (
        spa.prune(
            model,
            "channels=0.5",
            only="k",
            kinds="head-dim",
            data={"x": x},
            round_to=1,
            compensate=how,
        )
        for how in ("none", "refit")
    )
    assert [len(r) for r in done.removed.values()] == [4]
    assert done.verification is not None and (done.verification.law or 0) < 1e-4
    drifts = []
    for result in (plain, done):
        with runs.session(model) as one, runs.session(result.model) as other:
            a, b = (next(iter(runs.run(r, {"x": x[:32]}).values())) for r in (one, other))
        drifts.append(float(np.abs(a - b).max() / np.abs(a).max()))
    assert drifts[0] > 1e-2 and drifts[1] < 1e-4


@pytest.mark.parametrize("flat", [False, True])
def test_attention_in_one_operator_is_made_up_for(flat: bool) -> None:
    """Two queries share a key; queries and keys flat, or with an axis of heads."""
    net, random = Net("fused", opset=23), np.random.default_rng(7)
    x = net.input("x", ("n", 6, 12))
    sides = []
    for name, heads in (("q", 4), ("k", 2), ("v", 2)):
        first, second = random.normal(size=(12, heads, 3)), random.normal(size=(heads, 3, 8))
        w = np.einsum("ihr,hrd->ihd", first, second).reshape(12, -1).astype(np.float32) / 6
        y = net.matmul(x, net.const(w, name))
        sides.append(y if flat else net.transpose(net.reshape(y, (0, 0, heads, 8)), 0, 2, 1, 3))
    heads = {"q_num_heads": 4, "kv_num_heads": 2} if flat else {}
    y = net.node("Attention", *sides, shape=None, **heads)
    if not flat:
        y = net.node("Transpose", y, perm=[0, 2, 1, 3], shape=("n", 6, 4, 8))
        y = net.reshape(y, (0, 0, 32))
    else:
        y.shape = ("n", 6, 32)
    model = net.model(net.linear(y, 4))
    data = np.random.default_rng(0).normal(size=(256, 6, 12)).astype(np.float32)
    drifts = []
    for how in ("none", "refit"):
        options = {"only": "k", "kinds": "head-dim", "round_to": 1, "compensate": how}
        result = spa.prune(model, "channels=0.5", data={"x": data}, **options)
        assert [len(r) for r in result.removed.values()] == [4]
        with runs.session(model) as one, runs.session(result.model) as other:
            a, b = (next(iter(runs.run(r, {"x": data[:32]}).values())) for r in (one, other))
        drifts.append(float(np.abs(a - b).max() / np.abs(a).max()))
    assert drifts[0] > 1e-2 and drifts[1] < 1e-4


def test_the_order_is_by_what_products_lose() -> None:
    """Of one unit a head loses what its part of all products is, when nothing makes up for it."""
    groups = spa.analyze(BLOCKS["self_attention"][0]())
    inputs = calibrate(groups.graph, count=64)
    measured = measure(groups.graph, inputs.batches)
    (found,) = multipliers(groups, measured.products).values()
    ((seen, units),) = found
    assert units.shape == (6, 4)
    for h in range(4):
        kept, match = without(seen, units[2:3].T)
        q, k = seen.queries[h], seen.keys[h]
        at = kept[h]
        full = float(np.trace(q @ k))
        cross = match.m[h]
        lost = (
            full
            - 2 * float(np.trace(q[:, at] @ cross @ k[at]))
            + float(np.trace(q[np.ix_(at, at)] @ cross @ k[np.ix_(at, at)] @ cross.T))
        )
        passed = [a[:, at] @ np.linalg.solve(a[np.ix_(at, at)], a[at]) for a in (q, k)]
        best = full - float(np.trace(passed[0] @ passed[1]))
        assert best - 1e-6 * full <= lost <= best + 1e-2 * full


def test_a_batch_that_does_not_tell_its_heads_is_not_looked_at() -> None:
    groups = spa.analyze(BLOCKS["self_attention"][0]())
    measured = measure(groups.graph, calibrate(groups.graph, count=8).batches)
    (seen,) = measured.products.values()
    odd = np.zeros((3, 5, 5, 6), np.float32)
    assert see(seen.product, [odd], [odd], 0) is None


def test_centred_keys() -> None:
    groups = spa.analyze(BLOCKS["self_attention"][0]())
    measured = measure(groups.graph, calibrate(groups.graph, count=8).batches)
    (seen,) = measured.products.values()
    q, k = (np.random.default_rng(s).normal(size=(2, 4, 7, 6)) for s in (0, 1))
    one, other = sides(seen.product, q, np.swapaxes(k, 2, 3))
    assert one.shape == other.shape == (8, 7, 6)
    assert np.allclose(other.mean(1), 0) and np.allclose(one, q.reshape(8, 7, 6))
    assert isinstance(without(seen, np.zeros((4, 1), np.intp))[1], Match)
