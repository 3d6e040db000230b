"""What the biases of a folded convolution tell of its inputs, against dense Gaussians; settling."""

import numpy as np
import pytest

from models.builder import Net
from spa import settle as module
from spa.index import index
from spa.measure import Seen, measure
from spa.settle import (
    CHANNEL_SHARE,
    ERROR,
    SPREAD,
    USUAL_GAIN_SPREAD,
    USUAL_MEAN,
    USUAL_SHARE,
    Affine,
    Matrix,
    _posterior,
    believe,
    likely_scale,
    settle,
)


def layer(
    groups: int, outputs: int, inputs: int, gain: float, wrong: float, seed: int = 0
) -> tuple[Matrix, Matrix, Matrix, Matrix, float, Matrix]:
    """Weights, biases, means and variances of made-up inputs, the deviation of outputs on them;
    and the means of the inputs in training."""
    random = np.random.default_rng(seed)
    w = random.standard_normal((groups, outputs, inputs)) / np.sqrt(inputs)
    mean, variance = (
        random.uniform(0.3, 1, (groups, inputs)),
        random.uniform(0.2, 1, (groups, inputs)),
    )
    deviation = float(np.sqrt(np.einsum("goi,gi->go", w**2, variance)).mean())
    real = gain * (mean + wrong * np.sqrt(variance) * random.standard_normal(mean.shape))
    beta = gain * deviation * (0.2 * random.standard_normal((groups, outputs)) - 0.1)
    return w, beta - np.einsum("goi,gi->go", w, real), mean, variance, deviation, real


def slowly(
    w: Matrix, bias: Matrix, mean: Matrix, variance: Matrix, deviation: float
) -> tuple[float, Matrix]:
    """Gain and shift by the density of all biases together, and by its conditional mean."""
    (groups, outputs, _), n = w.shape, bias.size
    whole = np.zeros((n, mean.size))
    for g in range(groups):
        rows, columns = g * outputs, g * w.shape[2]
        whole[rows : rows + outputs, columns : columns + w.shape[2]] = w[g]
    m, d = mean.ravel(), np.diag(variance.ravel())

    def covariance(a: float, s: float, t: float) -> Matrix:
        beta = s**2 * np.eye(n) + USUAL_MEAN**2
        return a**2 * (deviation**2 * beta + t**2 * whole @ d @ whole.T)

    def prior(a: float, s: float, t: float) -> float:
        shares = sum((np.log(x / USUAL_SHARE) / SPREAD) ** 2 for x in (s, t))
        return -0.5 * float((np.log(a) / USUAL_GAIN_SPREAD) ** 2 + shares)

    grid = [(a, s, t) for a in module.GAINS for s in module.SHARES for t in module.SHARES]
    logs = [
        _log_density(bias.ravel() + a * whole @ m, covariance(a, s, t)) + prior(a, s, t)
        for a, s, t in grid
    ]
    weight = np.exp(np.asarray(logs) - max(logs))
    a, s, t = np.exp(np.log(grid).T @ weight / weight.sum())
    rest = bias.ravel() + a * whole @ m
    shift = -((a * t) ** 2) * d @ whole.T @ np.linalg.solve(covariance(a, s, t), rest)
    return float(a), shift.reshape(mean.shape)


def _log_density(x: Matrix, covariance: Matrix) -> float:
    """Of a Gaussian with mean 0, but for a constant."""
    return -0.5 * float(x @ np.linalg.solve(covariance, x) + np.linalg.slogdet(covariance)[1])


@pytest.mark.parametrize("shape", [(1, 6, 4), (1, 3, 5), (5, 1, 1)])
def test_the_posterior_is_that_of_dense_gaussians(
    shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GAINS", "SHARES"):  # fewer, for the reference is slow
        monkeypatch.setattr(module, name, getattr(module, name)[::4])
    w, bias, mean, variance, deviation, _ = layer(*shape, gain=0.6, wrong=0.3)
    made = np.einsum("goi,gi->go", w, mean)
    found = _posterior(w, bias, made, variance, deviation)
    gain, shift = slowly(w, bias, mean, variance, deviation)
    assert found.gain == pytest.approx(gain, rel=1e-6)
    assert np.allclose(found.shift, shift, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("shape", [(1, 64, 32), (1, 24, 96), (64, 1, 1), (4, 16, 8)])
@pytest.mark.parametrize("gain", [0.4, 1.0, 2.2])
def test_the_means_of_training_are_found(shape: tuple[int, int, int], gain: float) -> None:
    w, bias, mean, variance, deviation, real = layer(*shape, gain=gain, wrong=0.2, seed=1)
    found = believe(w, bias, mean, variance, deviation)
    assert found.gain == pytest.approx(gain, rel=0.25)
    before, after = (
        np.einsum("goi,gi->go", w, m - real) for m in (mean, found.gain * mean + found.shift)
    )
    assert gain == 1 or (after**2).mean() < 0.3 * (before**2).mean()
    assert np.sqrt((after**2).mean()) < 0.35 * gain * deviation


def test_biases_that_have_nothing_to_do_with_the_inputs_tell_nothing() -> None:
    w, _, mean, variance, deviation, _ = layer(1, 64, 32, 1.0, 0.2)
    made = np.einsum("goi,gi->go", w, mean)
    found = believe(w, 0.1 * made, mean, variance, deviation)  # nothing that folding would leave
    assert (found.gain, found.sure) == (1.0, 0.0) and not found.shift.any()


def test_signed_inputs_tell_no_scale() -> None:
    w, bias, mean, variance, deviation, _ = layer(1, 64, 32, 0.5, 0.2)
    found = believe(w, bias, 0 * mean, variance, deviation)
    assert found.gain == 1.0 and not found.shift.any()


def test_deviations_come_nearer_to_one_another() -> None:
    random = np.random.default_rng(0)
    for spread in (0.05, 0.4, 0.8):
        deviation = np.exp(random.normal(0, spread, (2, 16)))
        share = CHANNEL_SHARE * max(0.0, 1 - ERROR**2 / np.log(deviation).var())
        after = deviation * likely_scale(deviation)
        assert np.log(after).std() == pytest.approx(share * np.log(deviation).std(), abs=0.02)
    assert np.isfinite(likely_scale(np.zeros((1, 4)))).all()


def test_a_settled_convolution_computes_what_it_says() -> None:
    net = Net("net")
    x = net.relu(net.conv(net.input("x", ("n", 4, 6, 6)), 8, bias=True))
    graph = index(net.model(net.gemm(net.flatten(net.pool(x)), 3)))
    random = np.random.default_rng(0)
    feeds = [{"x": random.standard_normal((4, 4, 6, 6)).astype("f4")}]
    seen: Seen = next(iter(measure(graph, feeds).sites.values()))
    site, w = seen.site, seen.weights.astype(np.float64)
    assert site.bias is not None
    affine = Affine(
        0.7, random.standard_normal((1, 4, 9)), random.uniform(0.5, 2, 8), random.normal(size=8)
    )
    bias = random.standard_normal(8)
    new = settle(site, affine, w, bias, graph)
    rows = np.moveaxis(site.rows(feeds[0]["x"], 50, random), 1, 0).astype(np.float32)
    as_in_training = np.einsum("goit,grit->rgo", w, affine.read(rows)).reshape(-1, 8) + bias
    wanted = affine.mean + affine.scale * (as_in_training - affine.mean)
    changed = site.forward(np.asarray(new[site.place]))
    got = np.einsum("goit,grit->rgo", changed, rows).reshape(-1, 8) + new[site.bias.place]
    assert np.allclose(got, wanted, atol=1e-4)
