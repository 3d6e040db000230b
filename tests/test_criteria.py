"""Every criterion against its formula, on nets small enough to do by hand."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import product
from math import sqrt
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, helper, numpy_helper

import spa
from models.blocks.table import BLOCKS
from models.builder import Net, Tensor
from models.hazards import HAZARDS
from models.mixtures import (
    EACH,
    EXPERTS,
    GROUPS,
    MIXTURES,
    PICKED,
    by_two_best,
    group_limited,
)
from models.sequence import vit
from models.vision import MAKERS
from spa import run as runs
from spa.criteria import CRITERIA, Evidence, Seen
from spa.drift import distance
from spa.errors import UsageError
from spa.groups import Groups
from spa.likeness import coactivation, similarity
from spa.mask import mask
from spa.measure import BINS, entropies
from spa.options import CHOICES
from spa.parts import parts
from spa.score import score
from spa.sites import sites
from spa.turns import angle, turns

Array = NDArray[Any]
IMAGE, TOKENS = (8, 3, 6, 6), (8, 5)


def look(groups: Groups, feeds: dict[str, Array]) -> dict[int, Seen]:
    """What the sites of a model read, all of it, one row at a time."""
    found = sites(groups.graph)
    model = deepcopy(groups.graph.model)
    inner = {s.x for s in found} - set(groups.graph.inputs)
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in sorted(inner))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    values = {**feeds, **dict(zip(sorted(inner), session.run(sorted(inner), feeds), strict=True))}
    seen = {}
    for site in found:
        rows = site.rows(values[site.x], 10**9, np.random.default_rng(0)).astype(np.float64)
        w = site.forward(groups.graph.array(site.weight))
        n, g, i, t = rows.shape
        mean = rows.mean(0)
        flat = (rows - mean).reshape(n, g, i * t)
        outputs = np.einsum("goit,ngit->ngo", w, rows - mean)
        seen[site.node] = Seen(
            site,
            w,
            mean,
            np.einsum("nga,ngb->gab", flat, flat) / n,
            (rows == 0).mean(axis=(0, 3)),
            float((outputs**2).sum() / n),
            entropy=entropies(np.moveaxis(rows, 0, 1).astype(np.float32)),
        )
    return seen


def with_taps_as_samples(seen: Seen) -> Seen:
    """What is left of it where taps were taken for samples; means and channels must agree."""
    g, i, t = seen.mean.shape
    second = seen.covariance + np.einsum("ga,gb->gab", *[seen.mean.reshape(g, -1)] * 2)
    second = np.einsum("gitjt->gij", second.reshape(g, i, t, i, t)) / t
    mean = seen.mean.mean(2, keepdims=True)
    covariance = second - np.einsum("git,gjt->gij", mean, mean)
    return replace(seen, mean=mean, covariance=covariance)


def judge(
    groups: Groups,
    name: str,
    seen: dict[int, Seen] | None = None,
    feeds: dict[str, Array] | None = None,
) -> list[Array]:
    inputs = [feeds] if feeds else []
    evidence = Evidence(groups, np.random.default_rng(0), seen or {}, inputs=inputs)
    return list(CRITERIA[name].score(evidence))


def chain(first: Array, second: Array, relu: bool = True) -> Groups:
    """x @ first, Relu, @ second: one group, first of shape (inputs, units)."""
    net = Net("chain")
    y = net.matmul(net.input("x", ["n", len(first)]), net.const(first.astype(np.float32), "first"))
    y = net.matmul(net.relu(y) if relu else y, net.const(second.astype(np.float32), "second"))
    groups = spa.analyze(net.model(y))
    assert len(groups) == 1
    return groups


def normal(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


# The registry


def test_the_command_line_names_all() -> None:
    assert CHOICES["criterion"] == tuple(CRITERIA)


def test_every_criterion_says_where_it_is_from() -> None:
    needs = {"nothing", "weights", "calibration inputs", "gradients"}
    for name, criterion in CRITERIA.items():
        assert criterion.name == name
        assert criterion.needs in needs
        assert criterion.source


NAMES = ("resnet18", "mobilenet_v2", "resnext50", "densenet121", "unet", "shufflenet_v2")
DISTINCT = ["l1", "l2", "random", "wanda", "flap", "geometric-median", "similarity", "dfpc"]
NETS: dict[str, Callable[[], ModelProto]] = {
    **{name: partial(MAKERS[name], 0.125, 32, 5, batch=3) for name in NAMES},
    "resnet18, folded": partial(MAKERS["resnet18"], 0.125, 32, 5, batch=3, bn=False),
    "vit, fused": partial(vit, batch=3),
    "vit, split": partial(vit, batch=3, split=True),
    "attention": BLOCKS["self_attention"][0],
    **{name: HAZARDS[name][0] for name in ("flatten", "conv_transpose", "siamese_weight")},
}


@pytest.mark.parametrize("net", NETS)
def test_every_unit_of_every_net_has_a_score(net: str) -> None:
    groups = spa.analyze(NETS[net]())
    assert len(groups)
    shapes = groups.shapes.shapes
    feeds = {n: normal(*shapes[n]) for n in groups.graph.inputs}
    dense = look(groups, feeds)
    sampled = {k: with_taps_as_samples(s) for k, s in dense.items()}
    for name, seen in product(CRITERIA, (dense, sampled)):
        found = score(groups, name, seen=seen, inputs=[feeds])
        assert [s.shape for s in found] == [(g.size,) for g in groups], name
        assert all(np.isfinite(s).all() for s in found), name
        spread = [np.ptp(s) for s in found if len(s) > 2]  # two points are as far from each other
        assert max(spread) > 0, name
        if name in DISTINCT:
            assert min(spread) > 0, name  # apoz may tie, gammas may be equal


def test_activity_needs_calibration_inputs() -> None:
    groups = chain(normal(5, 6), normal(6, 3))
    for name, criterion in CRITERIA.items():
        if criterion.needs == "calibration inputs":
            with pytest.raises(UsageError, match=f"'{name}' needs calibration inputs"):
                score(groups, name)
        else:
            assert len(score(groups, name)) == 1


def test_norm_is_for_scores_that_do_not_compare() -> None:
    groups = chain(normal(5, 6), normal(6, 3))
    feeds = {"x": normal(*TOKENS)}
    seen = look(groups, feeds)
    for name, criterion in CRITERIA.items():
        plain, by_max = (
            score(groups, name, normalize=n, seen=seen, inputs=[feeds])[0] for n in ("none", "max")
        )
        same = np.allclose(plain, by_max)
        assert same == criterion.normalized or plain.max() == pytest.approx(1), name


# Weights


def test_l1_grows_with_what_makes_a_unit() -> None:
    first, second = normal(5, 6), normal(6, 3)
    before = score(chain(first, second), aggregate="sum", normalize="none")[0]
    first[:, 2] *= 10
    after = score(chain(first, second), aggregate="sum", normalize="none")[0]
    grown = 9 * np.abs(first[:, 2]).sum() / 10
    np.testing.assert_allclose(after - before, [0, 0, grown, 0, 0, 0], atol=1e-5)


def test_random_is_its_seed() -> None:
    groups = chain(normal(5, 6), normal(6, 3))
    one, again, other = (score(groups, "random", seed=s)[0].tolist() for s in (3, 3, 4))
    assert one == again
    assert sorted(one) != sorted(other)


def test_lamp_is_a_share_of_what_is_not_smaller() -> None:
    """Squares 4, 1, 9 of the maker; 1, 1, 4 of the reader, two of them equal."""
    groups = chain(np.diag([2.0, 1, -3]), np.diag([1.0, -1, 2]))
    (found,) = score(groups, "lamp", "sum")
    makes, reads = [4 / 13, 1 / 14, 9 / 9], [1 / 6, 1 / 6, 4 / 4]
    np.testing.assert_allclose(found, np.add(makes, reads), rtol=1e-6)


def test_lamp_of_nothing_is_nothing() -> None:
    (found,) = score(chain(np.zeros((5, 4)), np.zeros((4, 3))), "lamp")
    assert found.tolist() == [0, 0, 0, 0]


def normed(scale: Array, variance: Array, epsilon: float = 0.5) -> tuple[Net, Tensor]:
    net = Net("normed")
    c = len(scale)
    y = net.conv(net.input("x", IMAGE), c, bias=False)
    zeros = np.zeros(c, np.float32)
    vectors = [net.const(v.astype(np.float32)) for v in (scale, zeros, zeros, variance)]
    return net, net.relu(net.node("BatchNormalization", y, *vectors, epsilon=epsilon))


def test_bn_scale_is_the_size_of_gamma() -> None:
    gamma = np.array([0.5, -2.0, 1.0, 0.0])
    net, y = normed(gamma, np.ones(4))
    groups = spa.analyze(net.model(net.conv(net.conv(y, 6), 5)))
    carried, bare = judge(groups, "bn-scale")
    np.testing.assert_allclose(carried, np.abs(gamma))
    np.testing.assert_allclose(bare, judge(groups, "l1")[1])


def test_geometric_median_of_points_on_a_line() -> None:
    at = np.array([0.0, 1, 2, 4, 9])
    groups = chain(np.outer([1, 0, 0], at), normal(5, 3))  # readers do not count
    (found,) = judge(groups, "geometric-median")
    np.testing.assert_allclose(found, np.abs(at[:, None] - at).sum(axis=1), rtol=1e-6)
    assert found.argmin() == 2


def test_geometric_median_of_many_equal_units() -> None:
    groups = chain(np.ones((3, 1100)) * 0.1, normal(1100, 2))
    assert judge(groups, "geometric-median")[0].max() < 1e-3


def test_similarity_is_the_distance_at_which_a_unit_is_merged() -> None:
    """0 and 1 become one, then 4 and 6, then all. Of two the longer one stays; the mean of all is
    nearer to 1 than to 6."""
    at = np.array([0.0, 1, 4, 6])
    groups = chain(np.outer([1, 0, 0], at), normal(4, 3))  # readers do not count
    (found,) = judge(groups, "similarity")
    length = at.mean()
    np.testing.assert_allclose(found * length, [1, 12, 2, 6], rtol=1e-6)


def test_similarity_looks_at_all_that_makes_a_unit() -> None:
    """Units 0 and 1 are one in the first weight and far apart in the second, 2 and 3 alike in both,
    which has numbers a thousand times as large."""
    net = Net("gated")
    x = net.input("x", TOKENS)
    first, second = normal(5, 4), 1000 * normal(5, 4)
    first[:, 1], first[:, 3], second[:, 3] = first[:, 0], first[:, 2], second[:, 2]
    both = (net.matmul(x, net.const(w.astype(np.float32))) for w in (first, second))
    groups = spa.analyze(net.model(net.linear(net.mul(*both), 3)))
    (found,) = judge(groups, "similarity")
    assert np.argmin(found) in (2, 3)
    assert sorted(found)[0] < 1e-3 < sorted(found)[1]


@pytest.mark.parametrize("name", MIXTURES)
def test_similarity_removes_one_of_two_experts_with_one_row_of_the_router(name: str) -> None:
    model = MIXTURES[name][0]()
    groups = spa.analyze(model)
    (g,) = [g for g, group in enumerate(groups) if group.size == EXPERTS]
    routers = {m.tensor: np.array(groups.graph.array(m.tensor)) for m in groups[g].members}
    routers = {name: w for name, w in routers.items() if w.ndim == 2 and w.shape[1] == EXPERTS}
    for w in routers.values():
        w[:, 2] = w[:, 0] * 1.001
    graph = replace(groups.graph, changed=routers)
    found = score(replace(groups, graph=graph), "similarity")[g]
    assert set(np.argsort(found)[[0, -1]].tolist()) & {0, 2}
    assert np.argmin(found) in (0, 2)


@pytest.mark.parametrize("name", ["compared", "looped", "looked_up", "looked_up_by_two_best"])
def test_experts_that_are_asked_together_are_nearer(name: str) -> None:
    model = MIXTURES[name][0]()
    groups = spa.analyze(model)
    (g,) = [g for g, group in enumerate(groups) if group.size == EXPERTS]
    x = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
    graph = groups.graph
    weights = [
        np.asarray(graph.array(f"MatMul_{k}.{w}")) for k in (0, 1) for w in ("weight", "bias")
    ]
    first, shift, router, bias = weights
    best = np.argsort((x @ first + shift) @ router + bias, axis=1)[:, -PICKED:]
    marks = (best[:, :, None] == np.arange(EXPERTS)).any(axis=1).astype(float)
    both, each = marks.T @ marks, marks.sum(axis=0)
    evidence = Evidence(groups, np.random.default_rng(0), {}, inputs=[{"x": x[:25]}, {"x": x[25:]}])
    found = coactivation(evidence)
    np.testing.assert_allclose(found[g], both / (each[:, None] + each - both))
    assert found.keys() == {g} and not coactivation(replace(evidence, inputs=()))
    nearer, plain = similarity(evidence)[g], similarity(replace(evidence, inputs=()))[g]
    assert (np.sort(nearer) <= np.sort(plain)).all() and nearer.sum() < plain.sum()


def test_positions_in_a_group_and_of_groups_are_counted_apart() -> None:
    groups = spa.analyze(group_limited(by_two_best))
    x = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    found = coactivation(Evidence(groups, np.random.default_rng(0), {}, inputs=[{"x": x}]))
    assert sorted(len(both) for both in found.values()) == [EACH, GROUPS]
    for both in found.values():
        assert (np.diag(both) <= 1).all() and (both >= 0).all() and (both <= 1).all()


ONE_BY_ONE = ("sliced", "compared", "looped", "joined", "summed_at_once")


@pytest.mark.parametrize("name", ONE_BY_ONE)
@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_an_expert_is_judged_by_all_of_its_weights(name: str, criterion: str, power: int) -> None:
    """By its column of the router and both of its matrices, as if they were stacked."""
    groups = spa.analyze(MIXTURES[name][0]())
    (g,) = [g for g, group in enumerate(groups) if group.size == EXPERTS]
    matrices = [groups.graph.array(f"MatMul_{k}.weight") for k in range(2 + 2 * EXPERTS)]
    sizes = [np.abs(w).astype(np.float64) ** power for w in matrices]
    rows = [sizes[1].sum(axis=0)]
    rows += [np.asarray([w.sum() for w in sizes[2 + k :: 2][:EXPERTS]]) for k in range(2)]
    np.testing.assert_allclose(judge(groups, criterion)[g], np.mean(rows, axis=0), rtol=1e-5)


@pytest.mark.parametrize("criterion", ["l1", "l2", "lamp", "obspa"])
@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_an_expert_of_small_weights_goes_first(name: str, criterion: str) -> None:
    model = MIXTURES[name][0]()
    for tensor in model.graph.initializer:
        if tensor.name in ("MatMul_4.weight", "MatMul_5.weight"):
            small = numpy_helper.to_array(tensor) / 8
            tensor.CopyFrom(numpy_helper.from_array(small, tensor.name))
    result = spa.prune(
        model, "channels=0.75", criterion=criterion, kinds=("linear",), round_to=1, samples=8
    )
    (g,) = [g for g, group in enumerate(result.groups) if group.size == EXPERTS]
    assert result.removed[g].tolist() == [1]


def sums(groups: Groups, name: str, axis: int) -> Array:
    w = np.abs(groups.graph.array(name)).astype(np.float64)
    return np.asarray(w.sum(axis=tuple(k for k in range(w.ndim) if k != axis)))


def test_dfpc_is_the_product_along_the_way() -> None:
    gamma, variance = np.array([1.0, -2, 0.5, 3]), np.array([1.0, 2, 3, 4])
    net, y = normed(gamma, variance)
    groups = spa.analyze(net.model(net.conv(y, 5)))
    gain = np.abs(gamma) / np.sqrt(variance + 0.5)
    wanted = sums(groups, "Conv_0.weight", 0) * gain * sums(groups, "Conv_1.weight", 1)
    np.testing.assert_allclose(judge(groups, "dfpc")[0], wanted, rtol=1e-5)


def test_dfpc_adds_every_pair_of_maker_and_reader_after_it() -> None:
    net = Net("residual")
    a = net.relu(net.conv(net.input("x", IMAGE), 4))  # read by Conv_1, and with Conv_2 by Conv_3
    b = net.conv(net.relu(net.conv(a, 6)), 4)
    groups = spa.analyze(net.model(net.conv(net.add(a, b), 5)))
    first, last = sums(groups, "Conv_0.weight", 0), sums(groups, "Conv_2.weight", 0)
    inner, outer = sums(groups, "Conv_1.weight", 1), sums(groups, "Conv_3.weight", 1)
    wanted = first * inner + (first + last) * outer
    np.testing.assert_allclose(judge(groups, "dfpc")[0], wanted, rtol=1e-5)


def test_dfpc_goes_through_a_depthwise_convolution() -> None:
    net = Net("depthwise")
    y = net.conv(net.relu(net.conv(net.input("x", IMAGE), 4)), 4, groups=4)
    groups = spa.analyze(net.model(net.conv(y, 5)))
    wanted = np.prod([sums(groups, f"Conv_{k}.weight", a) for k, a in ((0, 0), (1, 0), (2, 1))], 0)
    np.testing.assert_allclose(judge(groups, "dfpc")[0], wanted, rtol=1e-5)


def test_dfpc_through_flatten_sums_the_readers_of_a_channel() -> None:
    net = Net("flat")
    y = net.flatten(net.conv(net.input("x", (2, 3, 4, 4)), 4))
    groups = spa.analyze(net.model(net.gemm(y, 5)))
    reads = sums(groups, "Gemm_0.weight", 1).reshape(4, 16).sum(axis=1)
    wanted = sums(groups, "Conv_0.weight", 0) * reads
    np.testing.assert_allclose(judge(groups, "dfpc")[0], wanted, rtol=1e-5)


# Calibration inputs


def hidden(groups: Groups, x: Array) -> Array:
    return np.asarray(np.maximum(x @ groups.graph.array("first"), 0), np.float64)


def observed() -> tuple[Groups, Array, Array, dict[int, Seen]]:
    groups, x = chain(normal(5, 6), normal(6, 3)), normal(*TOKENS)
    return groups, hidden(groups, x), groups.graph.array("second"), look(groups, {"x": x})


def test_wanda_is_weight_times_norm() -> None:
    groups, z, w, seen = observed()
    norm = np.linalg.norm(z, axis=0) / sqrt(len(z))
    wanted = (np.abs(w) * norm[:, None]).sum(axis=1)
    np.testing.assert_allclose(judge(groups, "wanda", seen)[0], wanted, rtol=1e-5)


def test_flap_is_weighted_variance_in_deviations() -> None:
    groups, z, w, seen = observed()
    fluctuation = z.var(axis=0) * (w**2).sum(axis=1)
    wanted = (fluctuation - fluctuation.mean()) / fluctuation.std()
    np.testing.assert_allclose(judge(groups, "flap", seen)[0], wanted, rtol=1e-4)


def test_apoz_is_the_share_of_activity() -> None:
    groups, z, _, seen = observed()
    np.testing.assert_allclose(judge(groups, "apoz", seen)[0], (z > 0).mean(axis=0))


def test_entropy_is_that_of_a_histogram() -> None:
    groups, z, _, seen = observed()
    wanted = []
    for column in z.T:
        share = np.histogram(column, BINS, (column.min(), column.max()))[0] / len(column)
        wanted.append(-sum(p * np.log(p) for p in share if p))
    np.testing.assert_allclose(judge(groups, "entropy", seen)[0], wanted, rtol=1e-5)


def test_what_never_changes_has_no_entropy() -> None:
    assert entropies(np.ones((2, 8, 3, 4), np.float32)).tolist() == [[0, 0, 0], [0, 0, 0]]


def test_cfsp_is_shares_times_activation() -> None:
    groups, z, w, seen = observed()
    rms = np.sqrt((z**2).mean(axis=0))
    under = np.abs(w) * rms[:, None]
    first = np.abs(groups.graph.array("first"))
    fine = (under / under.sum(axis=0)).sum(axis=1) + (first.T / first.sum(axis=1)).sum(axis=1)
    (found,) = judge(groups, "cfsp", seen)
    np.testing.assert_allclose(found, fine * rms / (fine * rms).mean(), rtol=1e-5)


def residual_blocks() -> tuple[Groups, dict[str, Array]]:
    """Two blocks, the second of which adds little."""
    net = Net("blocks")
    x = net.linear(net.input("x", ("n", 5)), 8)
    for gain in (1.0, 0.01):
        x = net.add(x, net.linear(net.relu(net.linear(x, 6)), 8, bias=False, gain=gain))
    return spa.analyze(net.model(net.linear(x, 3))), {"x": normal(64, 5)}


def test_cfsp_weighs_a_block_by_how_far_it_turns_the_stream() -> None:
    groups, feeds = residual_blocks()
    found = judge(groups, "cfsp", look(groups, feeds), feeds)
    inner = [s.mean() for s, group in zip(found, groups, strict=True) if group.size == 6]
    assert len(inner) == 2 and inner[1] < 0.1 * inner[0]
    turned = turns(Evidence(groups, np.random.default_rng(0), {}, inputs=[feeds]))
    assert sorted(turned.values()) == pytest.approx(sorted(inner))


def test_turns_are_angles() -> None:
    a, b = np.asarray([[1.0, 0], [1, 1], [0, 2]]), np.asarray([[0.0, 3], [2, 2], [0, -1]])
    np.testing.assert_allclose(angle(a, b), [0.5, 0, 1], atol=1e-6)
    assert angle(a, b[:, :1]).tolist() == [0] and angle(0 * a, b).tolist() == [0, 0, 0]


@pytest.mark.parametrize("net", ["conv", "flat", "grouped", "tokens"])
def test_perturbation_is_the_drift_without_a_unit(net: str) -> None:
    """Against the model in which the unit is masked, one at a time."""
    made = Net(net)
    if net == "tokens":
        y = made.linear(made.relu(made.linear(made.input("x", (2, 7, 5)), 6)), 4)
    else:
        y = made.relu(made.conv(made.input("x", (4, 3, 5, 5)), 8))
        groups_ = 2 if net == "grouped" else 1
        y = made.gemm(made.flatten(y), 3) if net == "flat" else made.conv(y, 6, groups=groups_)
    groups = spa.analyze(made.model(y))
    shape = groups.shapes.shapes["x"]
    feeds = {"x": normal(*shape)}
    (found,) = judge(groups, "perturbation", None, feeds)
    apart = parts(groups.graph)
    with runs.session(apart) as running:
        dense = [*runs.run(running, feeds).values()]
    for unit in range(groups[0].size):
        with runs.session(mask(groups, {0: np.asarray([unit])}, apart)) as running:
            masked = [*runs.run(running, feeds).values()]
        assert found[unit] == pytest.approx(distance(dense, masked), rel=1e-4)


def test_perturbation_takes_some_units_together_where_there_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("spa.perturb.RUNS", 3)
    groups = chain(normal(5, 6), normal(6, 3))
    (found,) = judge(groups, "perturbation", None, {"x": normal(*TOKENS)})
    order = np.argsort(judge(groups, "l1")[0])
    assert [found[order[k]] for k in (0, 2, 4)] == [found[order[k]] for k in (1, 3, 5)]
    assert len(set(found.tolist())) == 3


def test_perturbation_asks_for_inputs() -> None:
    with pytest.raises(UsageError, match="needs calibration inputs"):
        judge(chain(normal(5, 6), normal(6, 3)), "perturbation")


@pytest.mark.parametrize("name", ["wanda", "flap", "obs-diagonal", "perturbation"])
def test_a_unit_without_effect_goes_first(name: str) -> None:
    second = normal(6, 3)
    second[4] = 0
    groups = chain(normal(5, 6), second)
    feeds = {"x": normal(64, 5)}
    found = judge(groups, name, look(groups, feeds), feeds)[0]
    assert found.argmin() == 4


def loss_by_refit(z: Array, w: Array, gone: list[int], centred: bool) -> float:
    """What is left of z w where these inputs go and least squares refits the others."""
    z = z - z.mean(axis=0) if centred else z
    rest = np.delete(z, gone, axis=1)
    y = z @ w
    return float(((y - rest @ np.linalg.lstsq(rest, y, rcond=None)[0]) ** 2).sum() / len(z))


def test_nothing_is_lost_where_inputs_never_change() -> None:
    net = Net("still")
    y = net.relu(net.gemm(net.input("x", [8, 5]), 6))
    groups = spa.analyze(net.model(net.gemm(y, 3)))
    seen = look(groups, {"x": np.ones((8, 5), np.float32)})
    assert judge(groups, "obs-diagonal", seen)[0] == pytest.approx(np.zeros(6), abs=1e-9)


@pytest.mark.parametrize("bias", [False, True])
def test_obs_is_the_loss_after_the_best_refit(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spa.activity.SHRINK", 0.0)
    net = Net("obs")
    y = net.relu(net.gemm(net.input("x", [200, 5]), 6))
    groups = spa.analyze(net.model(net.gemm(y, 3, bias=bias)))
    x, graph = normal(200, 5), groups.graph
    z = np.maximum(x @ graph.array("Gemm_0.weight").T + graph.array("Gemm_0.bias"), 0)
    z, w = z.astype(np.float64), graph.array("Gemm_1.weight").T
    seen = look(groups, {"x": x})
    energy = ((z - z.mean(axis=0)) @ w).var(axis=0).sum()
    wanted = [loss_by_refit(z, w, [c], bias) / energy for c in range(6)]
    np.testing.assert_allclose(judge(groups, "obs-diagonal", seen)[0], wanted, rtol=1e-4)


def test_obs_takes_a_channel_with_all_its_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spa.activity.SHRINK", 0.0)
    net = Net("taps")
    y = net.relu(net.conv(net.input("x", (40, 2, 5, 5)), 3))
    groups = spa.analyze(net.model(net.conv(y, 4, pad=0)))
    seen = look(groups, {"x": normal(40, 2, 5, 5)})
    reader = max(seen.values(), key=lambda s: s.site.node)
    h, w = reader.covariance[0], reader.weights[0].reshape(4, -1).astype(np.float64)
    for c, found in enumerate(judge(groups, "obs-diagonal", seen)[0]):
        gone = np.arange(9 * c, 9 * c + 9)
        kept = np.setdiff1d(np.arange(27), gone)
        best = w[:, kept] + w[:, gone] @ h[np.ix_(gone, kept)] @ np.linalg.inv(
            h[np.ix_(kept, kept)]
        )
        change = w.copy()
        change[:, kept] -= best
        loss = np.einsum("of,fh,oh->", change, h, change)
        assert found == pytest.approx(loss / reader.energy, rel=1e-4)


def test_taps_as_samples_agree_where_every_tap_sees_the_same() -> None:
    """Without borders, a map of one value for each image has equal taps."""
    net = Net("flat maps")
    y = net.relu(net.conv(net.input("x", (30, 2, 4, 4)), 3, k=1))
    groups = spa.analyze(net.model(net.conv(y, 4, pad=0)))
    x = np.broadcast_to(normal(30, 2, 1, 1), (30, 2, 4, 4)).copy()
    dense = look(groups, {"x": x})
    sampled = {k: with_taps_as_samples(s) for k, s in dense.items()}
    for name in ("wanda", "flap", "apoz"):
        one, other = judge(groups, name, dense)[0], judge(groups, name, sampled)[0]
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6, err_msg=name)


# obspa judges such a group by the energy of its weights: tests/test_curves.py.
BY_SITES = [n for n, c in CRITERIA.items() if "inputs" in c.needs and n != "obspa"]


@pytest.mark.parametrize("name", BY_SITES)
def test_groups_that_nothing_reads_are_judged_by_size(name: str) -> None:
    """Of heads, sizes of q and k, sizes of v, the second is read by no site."""
    groups = spa.analyze(BLOCKS["self_attention"][0]())
    evidence = Evidence(groups, np.random.default_rng(0), {})
    unread = [g for g, readers in enumerate(evidence.readers) if not readers]
    assert len(unread) == 1
    (x,) = groups.graph.inputs
    feeds = {x: normal(*groups.shapes.shapes[x])}
    found = judge(groups, name, look(groups, feeds), feeds)
    size = judge(groups, "l1")[unread[0]]
    mine = found[unread[0]]
    np.testing.assert_array_equal(np.argsort(mine), np.argsort(size))
    assert np.corrcoef(mine, size)[0, 1] == pytest.approx(1)
    others = [s.mean() for g, s in enumerate(found) if g not in unread]
    assert mine.mean() == pytest.approx(np.mean(others), abs=1e-9)


def test_units_of_many_inputs_sum_them() -> None:
    """A head of v is read at as many inputs as it has, a flattened channel at every position."""
    net = Net("flat")
    y = net.flatten(net.relu(net.conv(net.input("x", (8, 3, 4, 4)), 4)))
    groups = spa.analyze(net.model(net.gemm(y, 5)))
    seen = look(groups, {"x": normal(8, 3, 4, 4)})
    reader = max(seen.values(), key=lambda s: s.site.node)
    size = np.sqrt(np.diag(reader.covariance[0]) + reader.mean[0, :, 0] ** 2)
    wanted = (np.abs(reader.weights[0, :, :, 0]).sum(axis=0) * size).reshape(4, 16).sum(axis=1)
    np.testing.assert_allclose(judge(groups, "wanda", seen)[0], wanted, rtol=1e-6)
