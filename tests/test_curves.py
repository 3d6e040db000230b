"""Curves: one for every group, rising, and by the weights where no site reads a group."""

import numpy as np
import pytest

import spa
from models.blocks import BLOCKS
from models.builder import Net
from spa.curves import Curve, curves, readers
from spa.groups import Groups
from spa.measure import measure


def attention() -> Groups:
    return spa.analyze(BLOCKS["self_attention"][0]())


def seen(groups: Groups) -> dict:  # type: ignore[type-arg]
    (x,) = groups.graph.inputs
    shape = groups.shapes.shapes[x]
    feeds = [{x: np.random.default_rng(0).standard_normal(shape).astype("f4")}]
    return dict(measure(groups.graph, feeds).sites)


def test_every_group_has_a_rising_curve_over_all_units_but_one() -> None:
    groups = attention()
    drawn = curves(groups, seen(groups))
    assert sorted(drawn) == list(range(len(groups)))
    for g, curve in drawn.items():
        assert len(set(curve.order.tolist())) == len(curve.order) == groups[g].size - 1
        assert (np.diff(curve.loss) >= 0).all() and np.isfinite(curve.loss).all()


def test_a_group_that_no_site_reads_goes_by_the_energy_of_its_weights() -> None:
    groups = attention()
    sites = seen(groups)
    (g,) = set(range(len(groups))) - readers(groups, sites).keys()
    energy = np.zeros(groups[g].size)
    for member in groups[g].members:
        w = np.moveaxis(groups.graph.array(member.tensor).astype(float), member.axis, 0)
        lines = (w.reshape(len(w), -1) ** 2).sum(1)
        energy += lines[member.index].sum(1) / lines.sum()
    assert curves(groups, sites)[g].order.tolist() == np.argsort(energy)[:-1].tolist()


def test_a_copy_of_a_channel_costs_nothing() -> None:
    net = Net("copy")
    x = net.conv(net.input("x", (4, 3, 6, 6)), 6, bias=False)
    twice = net.gather(x, [0, 1, 2, 3, 4, 5], axis=1)
    model = net.model(net.conv(net.relu(twice), 4, 1))
    for tensor in model.graph.initializer:
        if list(tensor.dims) == [6, 3, 3, 3]:
            w = np.frombuffer(tensor.raw_data, np.float32).reshape(6, 3, 3, 3).copy()
            w[4] = w[1]
            tensor.raw_data = w.tobytes()
    groups = spa.analyze(model)
    drawn = curves(groups, seen(groups))[0]
    assert drawn.order[0] in (1, 4)
    assert drawn.loss[0] < 0.2 * drawn.loss[1]


def test_scores_follow_the_loss() -> None:
    curve = Curve(np.asarray([2, 0]), np.asarray([0.1, 0.4]))
    assert curve.scores(3).tolist() == pytest.approx([0.4, 0.4, 0.1])
