"""Lines in order: which groups have them, that the model computes the same, plans and options."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import Result
from onnx import ModelProto, numpy_helper

import spa
from examples.apply_plan import cut
from models.builder import Net
from models.sequence import bert_like, llama_like, vit
from models.vision import MAKERS
from spa import align, validate
from spa.graph import Order
from spa.plan import Plan
from spa.rewrite import rewrite
from tests.conftest import PLAIN


def _grouped(shape: str = "plain") -> ModelProto:
    """Grouped convolutions behind one another, 4 groups of 6; or transposed; or 4 and 2 groups."""
    net = Net(shape)
    x = net.conv(net.input("x", ("batch", 3, 8, 8)), 24)
    if shape == "transposed":
        x = net.relu(net.conv_transpose(x, 24, groups=4))
    else:
        x = net.relu(net.bn(net.conv(x, 24, groups=4)))
    x = net.relu(net.conv(x, 24, groups=2 if shape == "mixed" else 4))
    return net.model(net.conv(x, 4))


def _normed() -> ModelProto:
    net = Net("group_norm", opset=21)
    x = net.conv(net.input("x", ("batch", 3, 8, 8)), 16)
    scale, bias = (net.uniform(0.8, 1.2, 16, name=n) for n in ("scale", "bias"))
    x = net.node("GroupNormalization", x, scale, bias, num_groups=4, shape=x.shape)
    return net.model(net.conv(net.relu(x), 4))


def _summed_heads() -> ModelProto:
    """Heads are added up, so place d is the same in all."""
    net = Net("summed_heads")
    x = net.input("x", ("batch", 3, 8))
    heads = net.reshape(net.linear(x, 24), [0, 3, 4, 6])
    return net.model(net.linear(net.node("ReduceSum", heads, np.asarray([2]), keepdims=0), 4))


def _one_scale_for_all() -> ModelProto:
    """Every head is scaled by the same stored vector."""
    net = Net("one_scale")
    x = net.input("x", ("batch", 3, 8))
    heads = net.mul(
        net.relu(net.reshape(net.linear(x, 24), [0, 3, 4, 6])), net.uniform(0.5, 2, 6, name="scale")
    )
    return net.model(net.linear(net.reshape(heads, [0, 3, 24]), 4))


# name -> model, and (units, lines) of the groups whose lines may be ordered
FOUND: dict[str, tuple[Callable[[], ModelProto], list[tuple[int, int]]]] = {
    "grouped": (_grouped, [(6, 4)] * 3),
    "transposed": (lambda: _grouped("transposed"), [(6, 4)] * 2),  # its outputs are no site's
    "mixed": (lambda: _grouped("mixed"), [(6, 2), (6, 4), (12, 2)]),
    "norm": (_normed, [(4, 4)]),
    "heads": (bert_like, [(8, 4)] * 4),
    "one weight for q, k, v": (lambda: vit(batch="b"), [(8, 4)] * 4),
    "values of grouped queries": (llama_like, [(8, 2)] * 2),
    "summed heads": (_summed_heads, []),
    "one scale for all": (_one_scale_for_all, []),
    "shuffle": (lambda: MAKERS["shufflenet_v2"](width=0.25, image=32, classes=4), []),
}


@pytest.mark.parametrize("name", FOUND)
def test_another_form_of_the_same_model(name: str) -> None:
    make, expected = FOUND[name]
    model = make()
    groups = spa.analyze(model)
    found = align.find(groups)
    assert sorted((lines.units, lines.lines) for lines in found) == sorted(expected)
    made = align.align(groups, {})
    if not expected:
        assert made is groups
        return
    assert {tensor for tensor, _ in made.graph.orders} == {
        m.tensor for f in found for m, _ in f.members
    }
    same = validate.verify(made, rewrite(made, {}), {})
    assert max(same.drift.values()) < 1e-5
    again = align.find(made)
    for lines in again:
        cells = align.scores(made, lines, {})
        assert (np.diff(cells, axis=0) >= -1e-9).all()
        least = np.sort(align.scores(groups, found[again.index(lines)], {}).sum(1))
        half = lines.units // 2
        assert cells[half:].sum() >= least[half:].sum()


@pytest.mark.parametrize("name", [name for name, (_, lines) in FOUND.items() if lines])
def test_the_law_holds_and_plans_replay(name: str) -> None:
    model = FOUND[name][0]()
    options: dict[str, Any] = {"round_to": 1, "align": True, **PLAIN}
    result = spa.prune(model, "channels=0.5", **options)
    assert result.verification is not None
    assert result.verification.law is not None
    plan = Plan.from_json(result.plan.to_json())
    assert plan.orders == result.plan.orders != ()
    again = spa.prune(model, plan=plan)
    assert again.model.SerializeToString() == result.model.SerializeToString()
    stored, left = (
        {t.name: numpy_helper.to_array(t) for t in m.graph.initializer}
        for m in (model, result.model)
    )
    ours = cut(stored, plan)
    names = {tensor for tensor, _ in plan.orders} & left.keys()
    assert names
    assert all(np.array_equal(ours[tensor], left[tensor]) for tensor in names)


def test_what_inputs_show() -> None:
    model = _grouped()
    result = spa.prune(model, "macs=0.6", align=True, samples=32)
    assert result.compensation is not None
    assert result.compensation.drift[1] < result.compensation.drift[0]
    again = spa.prune(model, plan=result.plan)
    assert again.model.SerializeToString() == result.model.SerializeToString()
    checked = spa.verify(model, result.model, result.plan, repeats=1)
    assert checked.verification.law is not None


def test_a_wrong_order_is_noticed() -> None:
    model = _grouped()
    groups = spa.analyze(model)
    steps = list(align.align(groups, {}).graph.orders)
    wrong = align.reordered(groups, steps[:1])
    with pytest.raises(spa.ValidationError, match="in the form that is cut"):
        validate.verify(wrong, rewrite(wrong, {}), {})
    assert not align._is_same(groups.graph, wrong.graph)
    result = spa.prune(model, "channels=0.5", align=True, **PLAIN)
    with pytest.raises(spa.ValidationError, match="in the form that is cut"):
        spa.prune(model, plan=replace(result.plan, orders=result.plan.orders[:1]))


@pytest.mark.parametrize(
    ("tensor", "order"),
    [
        ("nothing", Order(0, ((0, 1),))),
        ("Conv_0.weight", Order(0, ((0, 1),))),
        ("Conv_0.weight", Order(7, ((0,),))),
        ("Conv_0.weight", Order(0, (tuple(range(12)), tuple(range(12))))),
    ],
)
def test_plans_that_do_not_fit(tensor: str, order: Order) -> None:
    with pytest.raises(spa.PlanError, match="order"):
        spa.prune(_grouped(), plan=Plan({}, orders=((tensor, order),)))


def test_the_command_line(cli: Callable[..., Result], tmp_path: Path) -> None:
    path, out = tmp_path / "m.onnx", tmp_path / "out.onnx"
    onnx.save(_grouped(), path)
    options = ["--target", "macs=0.6", "--criterion", "l1", "--compensate", "none"]
    options += ["--repair", "none", "-o", out, "--align"]
    shown = cli("prune", path, *options)
    assert shown.exit_code == 0, shown.stderr
    assert "put in order before the choice" in shown.stdout
    body = json.loads(cli("prune", path, *options, "--force", "--json").stdout)
    assert "Conv_1.weight" in body["aligned"]
