"""Random graphs: the law and all that goes with it, and the units themselves.

`SPA_FUZZ_EXAMPLES=10000 pytest -n auto tests/test_random_graphs.py` looks further, every time in
another place.
"""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from onnx import ModelProto

import spa
from models.builder import Net, Tensor
from spa import align, depth, validate
from spa.groups import Groups, Removed
from spa.rewrite import rewrite
from tests.drawing import Draw, branching, graphs
from tests.oracle import check, check_cut, choices

SEARCH = "SPA_FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("SPA_FUZZ_EXAMPLES", "2000"))
SHARDS = 8  # tests that share the examples, so that they can run side by side


def fuzz(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=not SEARCH,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


def some(groups: Groups, number: int) -> Removed:
    """Units to remove: of each group any number, or nearly all of every group."""
    if number % 2:
        return list(choices(groups, number, each=False))[-1] if len(groups) else {}
    random = np.random.default_rng(number)
    return {
        g: np.sort(random.permutation(group.size)[: random.integers(1, group.size)])
        for g, group in enumerate(groups)
        if random.integers(0, 4)
    }


@pytest.mark.parametrize("shard", range(SHARDS))
def test_law(shard: int) -> None:
    @fuzz(EXAMPLES // SHARDS)
    @given(graphs(), st.integers(0, 9))
    def law(model: ModelProto, units: int) -> None:
        groups = spa.analyze(model)
        removed = some(groups, units)
        check_cut(groups, rewrite(groups, removed), removed, seed=units)
        if units == 0:
            check(model, each=False)

    (law if SEARCH else seed(shard)(law))()


@pytest.mark.parametrize("shard", range(2))
def test_law_in_bodies(shard: int) -> None:
    @fuzz(EXAMPLES // 20 // 2)
    @given(branching(), st.integers(0, 9))
    def law(model: ModelProto, units: int) -> None:
        groups = spa.analyze(model)
        removed = some(groups, units)
        check_cut(groups, rewrite(groups, removed), removed, seed=units)

    (law if SEARCH else seed(shard)(law))()


def test_two_views_beside_each_other_on_one_axis() -> None:
    """Found by `test_law`: a group free in the second view only, concatenated with another."""
    net = Net("two_views")
    rows = net.relu(net.gemm(net.input("x", (1, 6)), 6 * 16, bias=False))
    image = net.reshape(rows, [1, 6, 4, 4])  # in the first view the last factor is live, and locked
    both = net.concat(net.conv(net.input("y", (1, 3, 4, 4)), 12), image)
    check(net.model(net.conv(both, 3)))


# --- over-tying, which the law cannot see ---------------------------------------------------------


class Labelled:
    """Draws a graph of few operators and keeps, by itself, what each must tie.

    ties: union-find over channels; 0 is locked.
    """

    def __init__(self, draw: Draw) -> None:
        self.draw, self.net = draw, Net("labelled")
        self.parent = [0]
        self.weights: dict[str, list[int]] = {}  # of a convolution -> labels of its outputs

    def root(self, label: int) -> int:
        while self.parent[label] != label:
            label = self.parent[label]
        return label

    def tie(self, a: list[int], b: list[int]) -> None:
        for one, other in zip(a, b, strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            self.parent[high] = low

    def fresh(self, count: int) -> list[int]:
        labels = list(range(len(self.parent), len(self.parent) + count))
        self.parent += labels
        return labels

    def conv(self, x: Tensor, out: int) -> tuple[Tensor, list[int]]:
        y = self.net.conv(x, out, 1)
        labels = self.fresh(out)
        self.weights[y.inputs[0].inputs[1].name] = labels
        return y, labels

    def step(self, x: Tensor, ids: list[int]) -> tuple[Tensor, list[int]]:
        net, draw = self.net, self.draw
        match draw(st.integers(0, 6)):
            case 0:
                return self.conv(net.relu(x), draw(st.integers(2, 4)))
            case 1 if len(ids) > 1:  # nothing is tied along an axis of one index: it is whole
                y, other = self.conv(x, len(ids))
                self.tie(ids, other)
                return net.add(x, y), ids
            case 2:
                y, other = self.conv(x, draw(st.integers(1, 4)))
                if len(other) == 1:  # broadcasts, and is whole
                    self.tie(other, [0])
                    return net.mul(x, y), ids
                return net.concat(y, x), [*other, *ids]
            case 3 if len(ids) > 1:
                cut = draw(st.integers(1, len(ids) - 1))
                a, b = net.split(x, [cut, len(ids) - cut])
                return net.concat(b, a), ids[cut:] + ids[:cut]
            case 4:
                order = draw(st.permutations(range(len(ids))))
                return net.gather(x, order, axis=1), [ids[k] for k in order]
            case 5 if len(ids) >= 4 and len(ids) % 2 == 0:
                a, b = net.nodes("Split", [x], 2, axis=1)
                half = len(ids) // 2
                self.tie(ids[:half], ids[half:])
                return net.mul(a, net.sigmoid(b)), ids[:half]
            case _:
                return net.bn(x), ids


@st.composite
def labelled(draw: Draw) -> tuple[ModelProto, dict[str, list[int]]]:
    g = Labelled(draw)
    x, ids = g.conv(g.net.input("x", [1, 3, 2, 2]), draw(st.integers(2, 4)))
    for _ in range(draw(st.integers(1, 4))):
        x, ids = g.step(x, ids)
    y, last = g.conv(x, 2)
    g.tie(last, [0, 0])
    return g.net.model(y), {w: [g.root(k) for k in labels] for w, labels in g.weights.items()}


@fuzz(max(150, EXAMPLES // 10))
@given(labelled())
def test_units_are_as_small_as_they_can_be(drawn: tuple[ModelProto, dict[str, list[int]]]) -> None:
    """The analysis ties what must be tied, no less and no more."""
    model, expected = drawn
    view = spa.analyze(model).views[0]
    found = {w: view.labels[view.ties.axes[w][0].ids].tolist() for w in expected}
    pairs = {
        (want, have)
        for w in expected
        if len(expected[w]) > 1  # an axis of one index is whole from the start
        for want, have in zip(expected[w], found[w], strict=True)
    }
    pairs.add((0, view.locked))
    assert len(pairs) == len({want for want, _ in pairs}) == len({have for _, have in pairs})


def test_branches_and_lines() -> None:
    """Whole branches go, and lines are put in order, wherever they are found."""
    seen = {"branches": 0, "lines": 0}

    @fuzz(EXAMPLES // 16)
    @given(graphs(), st.integers(0, 9))
    def hold(model: ModelProto, units: int) -> None:
        groups = spa.analyze(model)
        blocks = {block.sum: block for block in depth.find(groups).blocks}
        if blocks:
            seen["branches"] += 1
            shorter = replace(groups, graph=replace(groups.graph, blocks=tuple(blocks.values())))
            removed = some(groups, units)
            pruned = rewrite(shorter, removed)
            validate.check_file(groups.graph, pruned)
            assert validate.verify(shorter, pruned, removed, units).law is not None
        lines = align.find(groups)
        steps = [s for one in lines for s in align.orders(one, align.scores(groups, one, {}))]
        if steps:
            seen["lines"] += 1
            made = align.reordered(groups, steps)
            assert max(validate.verify(made, made.graph.model, {}, units).drift.values()) < 1e-3

    hold()
    assert all(seen.values())
