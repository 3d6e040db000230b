"""What sites see, and what settling makes of a network on made-up inputs."""

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from models.builder import Net
from spa.index import index
from spa.measure import Measured, Seen, channel_statistics, measure
from spa.sites import sites


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
    given = feeds(scale)
    return measure(index(net(norm)), given, given[:1] if made_up else ())


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


def test_what_is_seen_of_a_folded_convolution_is_what_it_would_have_seen() -> None:
    model = net(False)
    graph = index(model)
    plain, measured = (measure(graph, feeds(), others) for others in ((), feeds()))
    assert len(measured.settled) == 2
    first = next(iter(measured.settled))  # settled before anything has changed its inputs
    affine, before, after = (m[first] for m in (measured.settled, plain.sites, measured.sites))
    mean = affine.gain * before.mean + affine.shift
    assert np.allclose(after.mean, mean, atol=1e-5)
    assert np.allclose(after.covariance, affine.gain**2 * before.covariance, rtol=1e-4, atol=1e-6)
    assert after.energy == pytest.approx(affine.gain**2 * before.energy, rel=1e-4)


def folded(gamma: float, seed: int = 0) -> tuple[ModelProto, list[dict[str, np.ndarray]]]:
    """Two convolutions behind which a BatchNormalization was folded, with beta 0 and this gamma,
    as trained on inputs of twice the size and half of the contrast of those that `feeds` makes."""
    made = Net("folded")
    x = made.relu(made.conv(made.input("x", ("n", 3, 8, 8)), 24, bias=True))
    model = made.model(made.gemm(made.flatten(made.pool(made.relu(made.conv(x, 32)))), 5))
    graph = index(model)
    real = [{"x": 2 + 0.5 * f["x"]} for f in feeds()]
    for node in [s.node for s in sites(graph)][:2]:
        seen = measure(index(model), real).sites[node]
        w = seen.matrices()
        deviation = np.sqrt(np.einsum("gof,gfh,goh->go", w, seen.covariance, w)).ravel()
        mean = np.einsum("gof,gf->go", w, seen.mean.reshape(1, -1)).ravel()
        names = graph.nodes[node].inputs
        for tensor in model.graph.initializer:
            value = numpy_helper.to_array(tensor)
            if tensor.name == names[1]:
                value = value * (gamma / deviation).reshape(-1, 1, 1, 1)
            if tensor.name == names[2]:
                value = -gamma * mean / deviation
            tensor.CopyFrom(numpy_helper.from_array(value.astype("f4"), tensor.name))
    return model, real


def test_the_scale_of_training_is_found_behind_a_fold() -> None:
    model, real = folded(0.3)
    other = [{"x": 3 * f["x"]} for f in real]
    graph = index(model)
    wanted, raw, found = (
        list(measure(graph, x, others).sites.values())[1]
        for x, others in ((real, ()), (other, ()), (other, other))
    )

    def off(seen: Seen) -> float:
        return abs(float(np.log(seen.energy / wanted.energy)))

    assert off(found) < 0.3 * off(raw)


def test_statistics_of_channels() -> None:
    x = [f["x"] for f in feeds()]
    mean, var = channel_statistics(x)
    whole = np.concatenate(x)
    assert np.allclose(mean, whole.mean((0, 2, 3))) and np.allclose(var, whole.var((0, 2, 3)))


def test_an_infinite_input_spoils_no_moment() -> None:
    given = feeds()
    given[0]["x"][0, 0, 0, 0] = np.inf
    first = next(iter(measure(index(net(False)), given).sites.values()))
    assert np.isfinite(first.covariance).all() and np.isfinite(first.mean).all()


def test_a_gate_is_not_settled() -> None:
    """Over one place a picture nothing is normalised, whatever its biases go with."""
    made = Net("gated")
    x = made.relu(made.conv(made.input("x", ("n", 3, 8, 8)), 8))
    gate = made.relu(made.conv(made.global_avg_pool(x), 8, k=1))
    x = made.mul(x, made.sigmoid(made.conv(gate, 8, k=1)))
    graph = index(made.model(made.gemm(made.flatten(made.pool(made.conv(x, 6))), 5)))
    convolutions = [n.index for n in graph.nodes if n.op_type == "Conv"]
    settled = measure(graph, feeds(), feeds()).settled
    assert list(settled) == [convolutions[0], convolutions[3]]
