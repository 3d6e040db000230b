"""What sites see, and what settling makes of a network on made-up inputs."""

import numpy as np
import pytest
from onnx import ModelProto

from models.builder import Net
from spa.index import index
from spa.measure import CHANNEL_SHARE, Measured, channel_statistics, measure


def net(norm: bool) -> ModelProto:
    made = Net("net")
    x = made.input("x", ("n", 3, 8, 8))
    for width in (8, 12):
        x = made.conv(x, width, bias=not norm)
        x = made.relu(made.bn(x) if norm else x)
    return made.model(made.gemm(made.flatten(made.pool(x)), 5))


def feeds(scale: float = 1.0) -> list[dict[str, np.ndarray]]:
    random = np.random.default_rng(0)
    made = [scale * random.standard_normal((8, 3, 8, 8)) for _ in range(3)]
    return [{"x": m.astype("f4")} for m in made]


def seen(norm: bool, made_up: bool, scale: float = 1.0) -> Measured:
    return measure(index(net(norm)), feeds(scale), made_up)


def test_moments_are_those_of_the_rows() -> None:
    x = np.concatenate([f["x"] for f in feeds()])
    first = next(iter(seen(False, False).sites.values()))
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    taps = [padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    rows = np.moveaxis(np.stack(taps, -1), 1, 3).reshape(-1, 27)
    assert first.mean.shape == (1, 3, 9) and first.covariance.shape == (1, 27, 27)
    assert np.allclose(first.mean.ravel(), rows.mean(0), atol=1e-5)
    assert np.allclose(first.covariance[0], np.cov(rows.T, bias=True), atol=1e-4)
    made = rows @ first.matrices()[0].T
    assert first.energy == pytest.approx(made.var(0).sum(), rel=1e-3)


def test_real_inputs_settle_nothing() -> None:
    assert not seen(False, False).settled and not seen(False, False).made_up


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_normalised_nets_see_the_same_whatever_the_scale_of_made_up_inputs(scale: float) -> None:
    """A settled BatchNormalization takes out how loud the inputs are."""
    *_, last = seen(True, True).sites.values()
    *_, other = seen(True, True, scale).sites.values()
    assert np.allclose(last.mean, other.mean, rtol=1e-2, atol=1e-3)


def test_folded_convolutions_are_brought_to_one_level() -> None:
    measured = seen(False, True)
    assert len(measured.settled) == 2
    for node, affine in measured.settled.items():
        site = measured.sites[node]
        made = np.einsum(
            "gof,gfh,goh->go", site.matrices(), site.covariance, site.matrices()
        ).ravel()
        before, after = np.sqrt(made), np.sqrt(made) * affine.scale
        assert np.log(after).std() < (CHANNEL_SHARE + 0.05) * np.log(before).std()
        assert np.abs(affine.to - np.median(affine.to)).max() <= 1.01 * after.max()


def test_statistics_of_channels() -> None:
    x = [f["x"] for f in feeds()]
    mean, var = channel_statistics(x)
    whole = np.concatenate(x)
    assert np.allclose(mean, whole.mean((0, 2, 3))) and np.allclose(var, whole.var((0, 2, 3)))


def test_an_infinite_input_spoils_no_moment() -> None:
    given = feeds()
    given[0]["x"][0, 0, 0, 0] = np.inf
    first = next(iter(measure(index(net(False)), given, False).sites.values()))
    assert np.isfinite(first.covariance).all() and np.isfinite(first.mean).all()
