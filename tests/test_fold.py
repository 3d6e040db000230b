"""Model Folding: units that are equal fold without loss; means and factors against slow ways."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper
from scipy.cluster.vq import kmeans2

import spa
from models.builder import Net, Tensor
from spa import run as runs
from spa.compensate import compensate
from spa.fold import averages, clusters, correction, fold
from spa.groups import Groups, Removed
from spa.measure import measure
from spa.rewrite import rewrite
from tests.test_merge import UNITS, depthwise, flattened, gated, normed, plain, residual

Array = NDArray[np.float64]
SHAPE = (2, 5, 5)


def tokens(net: Net, x: Tensor) -> Tensor:
    return net.linear(net.relu(net.linear(net.flatten(x), 2 * UNITS)), 3)


NETS = {f.__name__: f for f in (plain, normed, depthwise, flattened, gated, residual, tokens)}


def twice(name: str) -> ModelProto:
    """Every unit is there twice."""
    net = Net("twice", seed=3)
    model = net.model(NETS[name](net, net.input("x", ["n", *SHAPE])))
    for tensor in model.graph.initializer:
        w = numpy_helper.to_array(tensor).copy()
        axis = w.ndim - 1 if "MatMul" in tensor.name else 0  # of what makes the units
        if w.ndim and w.shape[axis] == 2 * UNITS:
            lines = np.moveaxis(w, axis, 0)
            lines[UNITS:] = lines[:UNITS]
            tensor.CopyFrom(numpy_helper.from_array(w, tensor.name))
    return model


def output(model: ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with runs.session(model) as running:
        return np.asarray(running.run(None, {"x": x})[0])


def halved(model: ModelProto) -> tuple[Groups, Removed]:
    groups = spa.analyze(model)
    (g,) = [k for k, group in enumerate(groups) if group.size == 2 * UNITS]
    return groups, {g: np.arange(UNITS, 2 * UNITS)}


@pytest.mark.parametrize("name", NETS)
def test_equal_units_fold_without_loss(name: str) -> None:
    groups, removed = halved(twice(name))
    folded = replace(groups, graph=replace(groups.graph, changed=fold(groups, removed)))
    x = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    wanted = output(groups.graph.model, x)
    assert np.abs(output(rewrite(groups, removed), x) - wanted).max() > 1e-2
    assert np.allclose(output(rewrite(folded, removed), x), wanted, atol=1e-4)


def test_clusters_are_those_of_k_means() -> None:
    random = np.random.default_rng(0)
    points, first = random.normal(size=(40, 3)), np.arange(0, 40, 5)
    wanted = kmeans2(points, points[first], iter=200, minit="matrix")[1]
    assert np.array_equal(clusters(points, first), wanted)


def test_no_cluster_is_empty() -> None:
    points = np.asarray([[0.0], [0], [0], [1], [9]])
    assert set(clusters(points, np.asarray([0, 1, 2])).tolist()) == {0, 1, 2}


def test_averages() -> None:
    found = averages(np.asarray([0, 1, 0, 0]), 2)
    assert np.allclose(found, [[1 / 3, 0, 1 / 3, 1 / 3], [0, 1, 0, 0]])


def test_the_factor_is_that_of_the_paper() -> None:
    """N / sqrt(N + (N^2 - N) E[c]), E[c] over pairs of different units."""
    rows = np.random.default_rng(1).normal(size=(6, 9)) + 1
    cluster = np.asarray([0, 0, 1, 0, 1, 2])
    found = correction(rows, cluster, 3)
    for k in range(3):
        mine = rows[cluster == k]
        n = len(mine)
        cosines = [
            a @ b / np.linalg.norm(a) / np.linalg.norm(b)
            for i, a in enumerate(mine)
            for j, b in enumerate(mine)
            if i != j
        ]
        mean = np.mean(cosines) if cosines else 0
        assert found[k] == pytest.approx(n / np.sqrt(n + (n * n - n) * mean))


def test_the_mean_of_a_cluster_varies_as_its_units_do() -> None:
    """For inputs that do not depend on one another, and weights of one length."""
    random = np.random.default_rng(2)
    rows = random.normal(size=(5, 8)) + 0.5
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    cluster = np.zeros(5, np.intp)
    new = correction(rows, cluster, 1)[:, None] * (averages(cluster, 1) @ rows)
    x = random.normal(size=(200_000, 8))
    assert (x @ new.T).std() == pytest.approx(1, rel=1e-2)


def test_what_is_alike_decides_not_what_is_kept() -> None:
    """The kept places take the clusters, whichever units these are made of."""
    groups, _ = halved(twice("plain"))
    (g,) = [k for k, group in enumerate(groups) if group.size == 2 * UNITS]
    removed = {g: np.asarray([1, 2, 3, 5])}  # of the pairs (0, 4) ... (3, 7) one whole pair
    folded = replace(groups, graph=replace(groups.graph, changed=fold(groups, removed)))
    x = np.random.default_rng(0).normal(size=(8, *SHAPE)).astype(np.float32)
    wanted = output(groups.graph.model, x)
    lost = [np.abs(output(rewrite(m, removed), x) - wanted).max() for m in (groups, folded)]
    assert lost[1] < lost[0]


@pytest.mark.parametrize("name", ["normed", "plain"])
def test_folding_reaches_the_file(name: str) -> None:
    """Whole, with and without new statistics, of real and of made-up inputs."""
    model = twice(name)
    x = np.random.default_rng(0).normal(size=(64, *SHAPE)).astype(np.float32)
    groups, removed = halved(model)
    feeds = [{"x": part} for part in np.split(x, 4)]
    for made_up in (False, True):
        measured = measure(groups.graph, feeds[:3], feeds[3:] if made_up else ())
        for repair in (False, True):
            done = compensate(groups, removed, measured, feeds[:3], feeds[3:], "fold", repair)
            names = {groups.graph.nodes[k].inputs[i]: v for (k, i), v in done.values.items()}
            new = replace(groups, graph=replace(groups.graph, changed=names))
            got = output(rewrite(new, removed), x)
            assert np.allclose(got, output(model, x), atol=2e-3)
    for kind in ("fold", "none"):
        result = spa.prune(
            model, "channels=0.5", criterion="l1", compensate=kind, repair="none", data={"x": x}
        )
        assert result.verification is not None and (result.verification.law or 0) < 1e-4


def test_weights_that_are_no_site_stay() -> None:
    net = Net("recurrent")
    x = net.transpose(net.linear(net.input("x", ("n", 5, 6)), 8), 1, 0, 2)
    w = [net.weight(1, 16, 8), net.weight(1, 16, 4)]
    y, *_ = net.nodes("LSTM", [x, *w], 2, hidden_size=4)
    groups = spa.analyze(net.model(y))
    for g, group in enumerate(groups):
        changed = fold(groups, {g: np.arange(group.size // 2)})
        recurrent = any(m.tensor.startswith("LSTM") or m.axis == 1 for m in group.members)
        assert bool(changed) or recurrent
