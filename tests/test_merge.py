"""Units whose weights are a multiple of another's can go without loss."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

import spa
from models.builder import Net, Tensor
from spa import run as runs
from spa.merge import RIDGE, Likeness, combined, nearest, stand_ins
from spa.rewrite import rewrite
from spa.settings import Settings
from spa.study import gather, make_up

UNITS = 4  # and as many again, each a multiple of one of them
SCALES = np.asarray([0.5, 3.0, 1.5, 2.0], np.float32)


def plain(net: Net, x: Tensor) -> Tensor:
    return net.conv(net.relu(net.conv(x, 2 * UNITS)), 3)


def normed(net: Net, x: Tensor) -> Tensor:
    return net.conv(net.relu(net.bn(net.conv(x, 2 * UNITS, bias=False))), 3)


def depthwise(net: Net, x: Tensor) -> Tensor:
    y = net.relu(net.conv(x, 2 * UNITS))
    return net.conv(net.relu(net.conv(y, 2 * UNITS, groups=2 * UNITS)), 3, 1)


def residual(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x, 2 * UNITS)
    return net.conv(net.relu(net.add(y, net.bn(net.conv(x, 2 * UNITS, 1, bias=False)))), 3)


def flattened(net: Net, x: Tensor) -> Tensor:
    return net.gemm(net.flatten(net.relu(net.conv(x, 2 * UNITS))), 3)


def gated(net: Net, x: Tensor) -> Tensor:
    return net.conv(net.mul(net.relu(net.conv(x, 2 * UNITS)), net.conv(x, 2 * UNITS)), 3)


# The net, and the power of the scale at what reads the units. That of depthwise has no exact one:
# the bias behind it has the power 1.
NETS: dict[str, tuple[Callable[[Net, Tensor], Tensor], int]] = {
    f.__name__: (f, power)
    for f, power in (
        (plain, 1),
        (normed, 1),
        (residual, 1),
        (flattened, 1),
        (gated, 2),
    )
}


def doubled(make: Callable[[Net, Tensor], Tensor]) -> ModelProto:
    """The second half of the units are multiples of the first, batch normalisation included."""
    net = Net("doubled", seed=3)
    model = net.model(make(net, net.input("x", ["n", 2, 5, 5])))
    for tensor in model.graph.initializer:
        w = numpy_helper.to_array(tensor).copy()
        if len(w) != 2 * UNITS:
            continue
        first = w[:UNITS]
        times = SCALES.reshape(-1, *[1] * (w.ndim - 1))
        same = tensor.name.endswith((".scale", ".var"))
        w[UNITS:] = first if same else first * times
        tensor.CopyFrom(numpy_helper.from_array(w, tensor.name))
    return model


def output(model: ModelProto, x: NDArray[np.float32]) -> NDArray[np.float32]:
    with runs.session(model) as running:
        return np.asarray(running.run(None, {"x": x})[0])


@pytest.mark.parametrize("how", ["merge", "reconstruct"])
@pytest.mark.parametrize("name", NETS)
def test_multiples_merge_without_loss(name: str, how: str) -> None:
    make, power = NETS[name]
    model = doubled(make)
    groups = spa.analyze(model)
    (g,) = [k for k, group in enumerate(groups) if group.size == 2 * UNITS]
    removed = {g: np.arange(UNITS, 2 * UNITS)}
    for mixed in stand_ins(groups, removed, nearest).values():
        size = len(mixed) // (2 * UNITS)
        units = mixed[::size, ::size]
        assert np.allclose(units[UNITS:, :UNITS], np.diag(SCALES**power), atol=1e-5)
        assert np.array_equal(units[:UNITS], np.eye(2 * UNITS)[:UNITS])
    x = np.random.default_rng(0).normal(size=(64, 2, 5, 5)).astype(np.float32)
    settings = Settings(criterion="l1", compensate=how, repair="none", data={"x": x})
    groups, done = make_up(groups, removed, settings, gather(groups, settings, print), print)
    assert done is not None and len(done.helped) == 1
    if how == "merge":
        assert np.allclose(output(rewrite(groups, removed), x), output(model, x), atol=1e-4)
    else:  # a ridge spreads what one unit alone could do
        assert done.drift[1] < 0.2 * done.drift[0]


def test_depthwise_kernels_multiply() -> None:
    groups = spa.analyze(doubled(depthwise))
    (g,) = [k for k, group in enumerate(groups) if group.size == 2 * UNITS]
    (mixed,) = [
        m
        for m in stand_ins(groups, {g: np.arange(UNITS, 2 * UNITS)}, nearest).values()
        if len(m) > 1
    ]
    assert np.allclose(mixed[UNITS:, :UNITS], np.diag(SCALES**2), atol=1e-5)


def slow_nearest(
    rows: NDArray[np.float64], bias: NDArray[np.float64], stay: list[int], unit: int
) -> tuple[int, float] | None:
    scales = [np.linalg.norm(rows[unit]) / np.linalg.norm(rows[k]) for k in stay]
    cosines = [
        rows[unit] @ rows[k] / np.linalg.norm(rows[unit]) / np.linalg.norm(rows[k]) for k in stay
    ]
    apart = np.asarray([abs(s * bias[k] - bias[unit]) for s, k in zip(scales, stay, strict=True)])
    apart = (apart - apart.min()) / (apart.max() - apart.min())
    far = [0.85 * (1 - c) + 0.15 * a for c, a in zip(cosines, apart, strict=True)]
    best = far.index(min(far))
    return (stay[best], float(scales[best])) if cosines[best] >= 0.1 else None


def test_nearest_by_cosine_and_bias() -> None:
    random = np.random.default_rng(5)
    rows, bias = random.normal(size=(12, 6)), random.normal(size=12)
    stay, gone = [0, 3, 4, 7, 9], [1, 2, 5, 6, 8, 10, 11]
    found = nearest(Likeness(rows @ rows.T, bias), np.asarray(stay), np.asarray(gone))
    by_unit = {unit: (other, scale) for unit, other, scale in found}
    for unit in gone:
        wanted = slow_nearest(rows, bias, stay, unit)
        if wanted is None:
            assert unit not in by_unit
        else:
            assert by_unit[unit][0] == wanted[0]
            assert by_unit[unit][1] == pytest.approx(wanted[1])


def test_nothing_stands_in_for_what_is_zero_or_unlike() -> None:
    rows = np.asarray([[1.0, 0], [0, 1], [0, 0], [-1, 0]])
    found = nearest(Likeness(rows @ rows.T, np.zeros(4)), np.asarray([0, 2]), np.asarray([1, 3]))
    assert list(found) == []


def test_a_combination_is_least_squares() -> None:
    random = np.random.default_rng(6)
    rows = random.normal(size=(7, 20))
    stay, gone = np.asarray([0, 2, 3, 6]), np.asarray([1, 4, 5])
    found = np.zeros((7, 7))
    for unit, other, scale in combined(Likeness(rows @ rows.T, np.zeros(7)), stay, gone):
        found[unit, other] = scale
    pull = np.sqrt(RIDGE) * np.diag(np.linalg.norm(rows[stay], axis=1))
    for unit in gone:
        design, wanted = np.vstack([rows[stay].T, pull]), np.r_[rows[unit], np.zeros(4)]
        best = np.linalg.lstsq(design, wanted, rcond=None)[0]
        np.testing.assert_allclose(found[unit, stay], best, rtol=1e-6)


def test_nothing_is_combined_of_what_is_zero() -> None:
    rows = np.asarray([[1.0, 0], [0, 0], [0, 0]])
    likeness = Likeness(rows @ rows.T, np.zeros(3))
    assert list(combined(likeness, np.asarray([0, 1]), np.asarray([2]))) == []
    assert list(combined(likeness, np.asarray([1]), np.asarray([0]))) == []
