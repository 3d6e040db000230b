"""Layer normalisations over fewer channels, against least squares and nets that lose nothing."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

import spa
from models.builder import Net
from spa import run as runs
from spa.index import index
from spa.widths import Width, carried, far, lines, normalised, widths

WIDTH = Width(0, "x", "y", (0, 1), (0, 2), True, 1e-5)


def rows(seed: int, count: int = 60, channels: int = 5) -> np.ndarray:
    random = np.random.default_rng(seed)
    return random.normal(size=(count, channels)) @ random.normal(size=(channels, channels)) + 0.3


@pytest.mark.parametrize("affine", [False, True])
def test_lines_are_least_squares(affine: bool) -> None:
    y, n = rows(0), rows(1)
    scale, bias = np.ones(5), np.zeros(5)
    found = lines(y, n, scale, bias, affine)
    assert np.array_equal(found[0][0], scale)
    for c in range(5):
        design = np.stack([n[:, c], np.ones(60)], 1) if affine else n[:, c : c + 1]
        best = np.linalg.lstsq(design, y[:, c], rcond=None)[0]
        np.testing.assert_allclose(found[2][0][c], best[0], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found[2][1][c], best[1] if affine else 0, rtol=1e-4, atol=1e-5)
    centre = (lambda v: v - v.mean(0)) if affine else (lambda v: v)
    one = np.linalg.lstsq(centre(n).reshape(-1, 1), centre(y).ravel(), rcond=None)[0]
    np.testing.assert_allclose(found[1][0], one[0] * scale)
    assert far(y, n, found[2]) < far(y, n, found[1])


def test_rows_are_normalised_as_onnxruntime_does() -> None:
    net = Net("norm")
    model = net.model(net.layer_norm(net.input("x", ("n", 5))))
    (width,) = widths(index(model))
    x = rows(2).astype(np.float32)
    with runs.session(model) as running:
        wanted = next(iter(runs.run(running, {"x": x}).values()))
    graph = index(model)
    scale, bias = (graph.array(graph.nodes[k].inputs[i]) for k, i in width.places)
    np.testing.assert_allclose(normalised(width, x) * scale + bias, wanted, rtol=1e-3, atol=1e-4)


def test_zeros_that_are_gone_change_the_deviation_alone() -> None:
    """Where the kept channels have the mean zero: by the root of the share of those kept."""
    z, kept = rows(3, channels=6), np.asarray([0, 2, 3, 5])
    z[:, [1, 4]] = 0
    z[:, kept] -= z[:, kept].mean(1, keepdims=True)
    line = np.asarray([1.0, 2, -1, 0.5]), np.zeros(4)
    scale, bias = carried(WIDTH, z, kept, line)
    np.testing.assert_allclose(scale, line[0] * np.sqrt(4 / 6), rtol=1e-3)
    np.testing.assert_allclose(bias, 0, atol=1e-3)


def stream(silent: int, seed: int = 0) -> ModelProto:
    """A stream some of whose channels are always zero, as many as are asked for."""
    net, random = Net("stream"), np.random.default_rng(seed)
    w = random.normal(size=(6, 12)).astype(np.float32)
    w[:, : 12 - silent] -= w[:, : 12 - silent].mean(1, keepdims=True)
    w[:, 12 - silent :] = 0
    x = net.matmul(net.input("x", ("n", 6)), net.const(w, "in"))
    return net.model(net.linear(net.layer_norm(x), 3))


@pytest.mark.parametrize("compensate", ["none", "refit"])
def test_a_normalisation_without_its_silent_channels_is_repaired(compensate: str) -> None:
    """What was divided by too small a deviation is so no more. The bias of the silent channels is
    for the refit to take up."""
    model = stream(4)
    x = np.random.default_rng(1).normal(size=(256, 6)).astype(np.float32)
    drifts = {}
    for repair in ("none", "statistics"):
        result = spa.prune(
            model,
            "channels=0.67",
            criterion="l1",
            kinds=("hidden",),
            round_to=1,
            data={"x": x},
            compensate=compensate,
            repair=repair,
        )
        (gone,) = result.removed.values()
        assert gone.tolist() == [8, 9, 10, 11]
        with runs.session(model) as one, runs.session(result.model) as other:
            a, b = (next(iter(runs.run(r, {"x": x}).values())) for r in (one, other))
        drifts[repair] = float(np.abs((a - a.mean(0)) - (b - b.mean(0))).max() / np.abs(a).max())
        if repair == "statistics":
            assert result.compensation is not None and len(result.compensation.repaired) == 1
    assert drifts["statistics"] < 1e-3
    assert compensate == "refit" or drifts["none"] > 0.05


def test_the_same_channels_as_before_are_left_alone() -> None:
    model = stream(0)
    x = np.random.default_rng(1).normal(size=(64, 6)).astype(np.float32)
    result = spa.prune(model, "channels=0.5", kinds=("hidden",), data={"x": x}, round_to=1)
    assert result.verification is not None
    net = Net("other")
    y = net.linear(net.relu(net.linear(net.layer_norm(net.input("x", ("n", 6))), 8)), 3)
    done = spa.prune(net.model(y), "channels=0.5", data={"x": x}).compensation
    assert done is not None and not done.repaired
