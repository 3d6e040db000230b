"""Scores, against a slow reading of the paper's formula."""

from __future__ import annotations

from itertools import product
from math import prod, sqrt

import numpy as np
import pytest
from numpy.typing import NDArray

import spa
from models.builder import Net
from models.hazards import HAZARDS
from spa.criteria import CRITERIA
from spa.errors import UsageError
from spa.groups import Group, Groups
from spa.score import AGGREGATES, NORMS, score
from tests.conftest import DIGITS

POWER = {"l1": 1, "l2": 2}
MODELS = ("plain", "residual_chain", "grouped_conv", "flatten", "siamese_weight", "gated_halves",
          "matmul_with_vector", "conv_transpose", "einsum")  # fmt: skip


def aggregated(values: list[float], how: str) -> float:
    if how == "mean":
        return sum(values) / len(values)
    if how == "l2":
        return sqrt(sum(v * v for v in values))
    return {"sum": sum, "max": max, "prod": prod}[how](values)


def normalised(values: list[float], how: str) -> list[float]:
    mean = sum(values) / len(values)
    if how == "standard":
        spread = sqrt(sum((v - mean) ** 2 for v in values) / len(values))
        return [(v - mean) / spread for v in values]
    by = {"none": 1.0, "sum": sum(values), "mean": mean, "max": max(values)}[how]
    return [v / by for v in values]


def totals(groups: Groups, group: Group, power: int) -> list[list[float]]:
    """For every unit and member, one weight at a time; vectors count only where a group has
    nothing larger."""
    arrays = {m.tensor: groups.graph.array(m.tensor) for m in group.members}
    large = [m for m in group.members if sum(n > 1 for n in arrays[m.tensor].shape) > 1]
    units = []
    for unit in range(group.size):
        members = []
        for member in large or list(group.members):
            w, total = arrays[member.tensor], 0.0
            for at in np.ndindex(w.shape):
                if at[member.axis] in member.index[unit]:
                    total += abs(float(w[at])) ** power
            members.append(total)
        units.append(members)
    return units


@pytest.mark.parametrize("criterion", POWER)
@pytest.mark.parametrize("name", MODELS)
def test_against_the_slow_reading(name: str, criterion: str) -> None:
    groups = spa.analyze(HAZARDS[name][0]())
    slow = [totals(groups, group, POWER[criterion]) for group in groups]
    for aggregate, normalize in product(AGGREGATES, NORMS):
        found = score(groups, criterion, aggregate, normalize)
        for values, units in zip(found, slow, strict=True):
            wanted = normalised([aggregated(members, aggregate) for members in units], normalize)
            np.testing.assert_allclose(values, wanted, rtol=1e-4, atol=1e-4)


def weights(value: NDArray[np.floating], dtype: type = np.float32) -> Groups:
    """A chain whose hidden layer has these incoming weights, shape (units, 6)."""
    net = Net("chain")
    x = net.cast(net.input("x", [2, 6]), 10 if dtype is np.float16 else 1)
    y = net.node("MatMul", x, net.const(value.T.astype(dtype), "w1"))
    out = np.ones((len(value), 3), dtype)
    return spa.analyze(net.model(net.node("MatMul", y, net.const(out, "w2"))))


@pytest.mark.parametrize("criterion", ["l1", "l2"])
def test_small_weights_go_first(criterion: str) -> None:
    sizes = np.random.default_rng(0).permutation(16) + 1.0
    groups = weights(np.where(np.arange(6) % 2, 1, -1) * sizes[:, None])
    (found,) = score(groups, criterion)
    assert np.argsort(found).tolist() == np.argsort(sizes).tolist()


@pytest.mark.parametrize("normalize", NORMS)
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_equal_weights_give_finite_equal_scores(normalize: str, value: float) -> None:
    (found,) = score(weights(np.full((8, 6), value)), normalize=normalize)
    assert np.isfinite(found).all()
    assert np.ptp(found) < 1e-9


@pytest.mark.parametrize("normalize", ["sum", "mean", "max", "standard"])
def test_normalised_scores_do_not_depend_on_scale(normalize: str) -> None:
    model = HAZARDS["plain"][0]()
    before = score(spa.analyze(model), aggregate="prod", normalize=normalize)
    for tensor in model.graph.initializer:
        array = spa.load(model).array(tensor.name).copy()
        scaled = array * np.float32(8 if tensor.name == "Conv_0.weight" else 1)
        tensor.raw_data = scaled.tobytes()
    after = score(spa.analyze(model), aggregate="prod", normalize=normalize)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_half_precision_does_not_overflow() -> None:
    (found,) = score(weights(np.full((8, 6), 6e4), np.float16), "l2", "sum", "none")
    np.testing.assert_allclose(found, 6 * float(np.float16(6e4)) ** 2 + 3, rtol=1e-5)


def test_random_follows_the_seed() -> None:
    groups = spa.analyze(DIGITS)
    runs = [np.concatenate(score(groups, "random", seed=s)) for s in (1, 1, 2)]
    assert (runs[0] == runs[1]).all()
    assert (runs[0] != runs[2]).mean() > 0.9
    assert all(len(set(s.tolist())) == len(s) for s in score(groups, "random"))


@pytest.mark.parametrize(
    "names", [("nope", "mean", "mean"), ("l1", "nope", "mean"), ("l1", "mean", "nope")]
)
def test_unknown_names(names: tuple[str, str, str]) -> None:
    with pytest.raises(UsageError, match=r"'nope' is not known; choose one of .*,"):
        score(weights(np.ones((4, 6))), *names)


def test_criteria_say_what_they_need() -> None:
    for name, criterion in CRITERIA.items():
        assert criterion.name == name
        assert criterion.needs
        assert criterion.source
