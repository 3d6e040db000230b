"""Mixtures of experts in all the forms that files have them in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

import spa
from models.builder import Net, Tensor
from models.mixtures import (
    EACH,
    EXPERTS,
    GROUPS,
    INNER,
    MIXTURES,
    WIDTH,
    by_best,
    by_two_best,
    group_limited,
    sorted_by_expert,
)
from spa import run
from spa.groups import Groups
from spa.mask import mask
from spa.parts import Parts, parts
from spa.rewrite import rewrite
from tests.oracle import check

Judge = Callable[[Net, Tensor], Tensor]


def experts(groups: Groups) -> int:
    """The group whose units are experts."""
    (found,) = [g for g, group in enumerate(groups) if group.size == EXPERTS]
    return found


def never_picked(groups: Groups, gone: list[int], count: int = EXPERTS) -> ModelProto:
    """The original with a router that gives these experts no share at all."""
    model = ModelProto()
    model.CopyFrom(groups.graph.model)
    vectors = {
        m.tensor
        for group in groups
        for m in group.members
        if groups.graph.constants[m.tensor].shape == (count,)
    }
    for tensor in model.graph.initializer:
        if tensor.name in vectors:
            value = np.array(numpy_helper.to_array(tensor))
            value[gone] = -1e9
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return model


@pytest.mark.parametrize("name", MIXTURES)
def test_mixture(name: str) -> None:
    make, expected, exact = MIXTURES[name]
    groups = check(make(), expected)
    assert groups[experts(groups)].exact == exact


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize("gone", [[0], [3], [0, 1], [1, 2], [2, 3]])
def test_without_some_is_as_if_they_were_never_picked(name: str, gone: list[int]) -> None:
    groups = spa.analyze(MIXTURES[name][0]())
    pruned = rewrite(groups, {experts(groups): np.asarray(gone)})
    same(parts(never_picked(groups, gone)), parts(pruned))


@pytest.mark.parametrize("name", MIXTURES)
def test_masked_so_that_they_are_not_asked_it_computes_what_the_pruned_one_does(name: str) -> None:
    groups = spa.analyze(MIXTURES[name][0]())
    removed = {experts(groups): np.asarray([0, 2])}
    masked = mask(groups, removed, parts(groups.graph), unasked=True)
    same(masked, parts(rewrite(groups, removed)))


def test_of_experts_that_read_sorted_tokens_the_width_goes() -> None:
    groups = check(sorted_by_expert(), 2)
    assert sorted(group.size for group in groups) == [INNER, WIDTH]
    why = {lock.reason() for lock in groups.locks() if lock.size == EXPERTS}
    assert len(why) == 1 and "positions" in why.pop()


def same(*models: Parts) -> None:
    feeds = {"x": np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)}
    made = []
    for model in models:
        with run.session(model) as session:
            made.append(next(iter(run.run(session, feeds).values())))
    for other in made[1:]:
        np.testing.assert_allclose(made[0], other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("below", [0.0, -np.inf])
@pytest.mark.parametrize("judge", [by_two_best, by_best])
def test_whole_groups_go_or_one_of_every_group(judge: Judge, below: float) -> None:
    groups = check(group_limited(judge, below), 3 + GROUPS * EACH)
    grid = np.arange(GROUPS * EACH).reshape(GROUPS, EACH)
    for lines, size in ((grid, GROUPS), (grid.T, EACH)):
        (g,) = [g for g, group in enumerate(groups) if group.size == size]
        assert not groups[g].exact
        assert groups[g].least == (2 if size == GROUPS or judge is by_two_best else 1)
        for line in range(size):
            pruned = rewrite(groups, {g: np.asarray([line])})
            never = never_picked(groups, lines[line].tolist(), GROUPS * EACH)
            masked = mask(groups, {g: np.asarray([line])}, parts(groups.graph), unasked=True)
            same(parts(never), masked, parts(pruned))
