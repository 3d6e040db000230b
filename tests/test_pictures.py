"""Drawn pictures: what they have in common with photographs."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from spa.pictures import DEAD_LEAVES, FAMILIES, SPECTRAL, in_bytes, noises, picture

pytestmark = pytest.mark.parametrize("family", FAMILIES)


@cache
def drawn(family: int, count: int = 192, side: int = 48) -> NDArray[np.float64]:
    """Sample, row, column, channel; as they are after they were held as bytes."""
    made = [in_bytes(picture(family, [0, k], side, side, 3)) for k in range(count)]
    return (np.stack(made).astype(float) - 127.5) / 49


def test_a_set_is_standardised(family: int) -> None:
    made = drawn(family)
    assert np.abs(made.mean((0, 1, 2))).max() < 0.06
    assert np.abs(made.std((0, 1, 2)) - 1).max() < 0.08
    assert np.abs(made).max() < 2.61


def test_pictures_differ_in_brightness_and_contrast(family: int) -> None:
    made = drawn(family)
    assert 0.4 < made.mean((1, 2, 3)).std() < 0.6
    contrast = made.std((1, 2, 3))
    assert contrast.std() / contrast.mean() > 0.15


def test_channels_go_together(family: int) -> None:
    together = np.corrcoef(drawn(family).reshape(-1, 3).T)
    assert together.min() > 0.82
    assert together[np.triu_indices(3, 1)].max() < 0.97


def test_neighbours_are_alike(family: int) -> None:
    made = drawn(family) - drawn(family).mean((1, 2), keepdims=True)
    beside = (made[:, :, 1:] * made[:, :, :-1]).mean() / made.var()
    far = (made[:, :, 16:] * made[:, :, :-16]).mean() / made.var()
    assert beside > 0.6
    assert beside > far + 0.3


def test_the_amplitude_falls_with_the_frequency(family: int) -> None:
    made = drawn(family)[..., 0]
    power = (np.abs(np.fft.fft2(made - made.mean((1, 2), keepdims=True))) ** 2).mean(0)
    f = np.hypot(*np.meshgrid(np.fft.fftfreq(48), np.fft.fftfreq(48)))
    some = (f > 0.03) & (f < 0.35)
    slope = np.polyfit(np.log(f[some]), np.log(power[some]), 1)[0] / 2
    assert -1.6 < slope < -0.6


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize(("height", "width"), [(2, 3), (8, 8), (5, 40), (33, 17)])
def test_any_size(family: int, height: int, width: int, channels: int) -> None:
    for k in range(4):
        made = picture(family, [1, k], height, width, channels)
        assert made.shape == (height, width, channels)
        assert made.dtype == np.float32
        assert np.isfinite(made).all()


def test_a_picture_depends_on_its_seed_only(family: int) -> None:
    one, same, other = (picture(family, seed, 16, 16, 3) for seed in ([3, 5], [3, 5], [4, 5]))
    assert np.array_equal(one, same)
    assert not np.allclose(one, other)


def test_families_differ(family: int) -> None:
    """Leaves have edges: differences of neighbours are mostly small and sometimes large."""
    steps = np.diff(drawn(family)[..., 0], axis=1)
    steps /= np.sqrt((steps**2).mean((1, 2), keepdims=True))
    assert ((steps**4).mean() > 5) == (family == DEAD_LEAVES)  # 3 of a normal distribution


def test_noises_on_any_grid(family: int) -> None:
    random = np.random.default_rng(0)
    for shape in ([50], [7, 9], [4, 5, 6]):
        made = noises(random, shape, 1.0 if family == SPECTRAL else 0.5, 3)
        assert made.shape == (3, *shape)
        axes = tuple(range(1, made.ndim))
        assert np.allclose(made.mean(axes), 0, atol=1e-5)
        assert np.allclose(made.std(axes), 1, atol=1e-4)
