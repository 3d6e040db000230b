"""Compensation: exact where channels depend on each other, kept only where it helps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, numpy_helper

import spa
from models.builder import Net
from spa import run as runs
from spa.compensate import compensate
from spa.compensation import Compensation
from spa.groups import Groups
from spa.measure import measure
from spa.study import make_up


def dependent(width: int, rank: int, seed: int) -> ModelProto:
    """Two linear layers between which only ``rank`` of ``width`` channels are independent."""
    net, random = Net("dependent"), np.random.default_rng(seed)
    x = net.input("x", ("batch", 6))
    first = (random.standard_normal((6, rank)) @ random.standard_normal((rank, width))).astype("f4")
    h = net.node("Gemm", x, first, random.standard_normal(width).astype("f4"), shape=("b", width))
    last = random.standard_normal((width, 3)).astype("f4")
    y = net.node("Gemm", h, last, random.standard_normal(3).astype("f4"), shape=("b", 3))
    return net.model(y)


def outputs(model: ModelProto, x: np.ndarray) -> np.ndarray:
    with runs.session(model) as running:
        return next(iter(runs.run(running, {"x": x}).values()))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(6, 12), st.integers(1, 4), st.integers(0, 10**6))
def test_exactly_dependent_channels_are_made_up_for(width: int, rank: int, seed: int) -> None:
    """With as many channels left as are independent, the pruned model equals the dense one."""
    model = dependent(width, rank, seed)
    share = (rank + 1) / width  # a bias takes one dimension more, which the refit's bias takes up
    x = np.random.default_rng(seed).standard_normal((64, 6)).astype("f4")
    result = spa.prune(
        model, f"channels={share}", round_to=1, data={"x": np.tile(x, (4, 1))}, verify=False
    )
    dense, pruned = outputs(model, x), outputs(result.model, x)
    assert result.removed
    assert np.abs(dense - pruned).max() <= 1e-5 * np.abs(dense).max()


@pytest.mark.parametrize("count", [2, 3])
def test_those_of_several_products_at_once_too(count: int) -> None:
    """Experts in a stack, each with channels of its own that depend on each other."""
    net, random, width = Net("stack"), np.random.default_rng(0), 10
    first = random.standard_normal((count, 6, 3)) @ random.standard_normal((count, 3, width))
    h = net.matmul(net.input("x", ("batch", 6)), first.astype("f4"))
    y = net.matmul(h, random.standard_normal((count, width, 3)).astype("f4"))
    model, x = net.model(y), random.standard_normal((64, 6)).astype("f4")
    data = {"x": np.tile(x, (4, 1))}
    result = spa.prune(model, "channels=0.4", round_to=1, data=data, verify=False)
    assert [len(gone) for gone in result.removed.values()] == [6]
    dense, pruned = outputs(model, x), outputs(result.model, x)
    assert np.abs(dense - pruned).max() <= 1e-5 * np.abs(dense).max()


def case(seed: int = 0) -> tuple[Groups, list[dict[str, np.ndarray]]]:
    net = Net("case")
    x = net.relu(net.bn(net.conv(net.input("x", ("n", 3, 8, 8)), 16, bias=False)))
    x = net.relu(net.conv(x, 12))
    groups = spa.analyze(net.model(net.gemm(net.flatten(net.pool(x)), 5)))
    random = np.random.default_rng(seed)
    feeds = [{"x": random.standard_normal((16, 3, 8, 8)).astype("f4")} for _ in range(4)]
    return groups, feeds


def done(method: str, repair: bool, made_up: bool = False) -> tuple[Groups, Compensation]:
    groups, feeds = case()
    removed = {g: np.arange(group.size // 2) for g, group in enumerate(groups)}
    measured = measure(groups.graph, feeds[:3], feeds[3:] if made_up else ())
    found = compensate(groups, removed, measured, feeds[:3], feeds[3:], method, repair)
    return groups, found


def test_nothing_is_changed_where_nothing_is_asked_for() -> None:
    assert not done("none", False)[1].values


def test_repair_alone_changes_statistics_alone() -> None:
    groups, found = done("none", True)
    assert found.repaired and not found.helped
    kinds = {groups.graph.nodes[node].op_type for node, _ in found.values}
    assert kinds <= {"BatchNormalization"}


@pytest.mark.parametrize("made_up", [False, True])
def test_refit_lowers_the_error_on_held_out_inputs(made_up: bool) -> None:
    _, found = done("refit", True, made_up)
    assert len(found.helped) + len(found.rejected) >= 2
    assert all(after < before for before, after in found.helped.values())


def test_the_bias_alone_is_no_better_than_the_refit() -> None:
    bias, refit = done("bias", False)[1].helped, done("refit", False)[1].helped
    for name in bias.keys() & refit.keys():
        assert refit[name][1] <= bias[name][1] * 1.05


def test_new_weights_reach_the_file_and_keep_the_law() -> None:
    net = Net("file")
    x = net.relu(net.conv(net.input("x", ("n", 3, 8, 8)), 16))
    model = net.model(net.gemm(net.flatten(net.pool(net.relu(net.conv(x, 16)))), 5))
    plain = spa.prune(model, "channels=0.5", criterion="l1", compensate="none", repair="none")
    better = spa.prune(model, "channels=0.5", criterion="l1", samples=64)
    assert better.removed.keys() == plain.removed.keys()
    assert better.compensation is not None and better.compensation.helped
    assert better.verification is not None and better.verification.law is not None
    assert better.verification.law < 1e-4
    stored = [
        {t.name: numpy_helper.to_array(t) for t in r.model.graph.initializer}
        for r in (plain, better)
    ]
    assert stored[0].keys() == stored[1].keys()
    assert any(not np.array_equal(stored[0][n], stored[1][n]) for n in stored[0])
    assert all(stored[0][n].shape == stored[1][n].shape for n in stored[0])


def test_the_given_model_keeps_its_weights() -> None:
    groups, found = done("refit", True)
    assert found.values and not groups.graph.changed


def test_what_does_not_help_at_the_output_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Net("worse")
    x = net.relu(net.conv(net.input("x", ("n", 3, 8, 8)), 16))
    model = net.model(net.gemm(net.flatten(net.pool(x)), 5))
    drafted = spa.api.draft(model, "channels=0.5", spa.api.Settings(samples=64))
    monkeypatch.setattr("spa.study.distance", lambda wanted, got: 1.0)
    groups, found = make_up(
        drafted.groups, drafted.removed, drafted.settings, drafted.study, lambda stage: None
    )
    assert found is not None and found.refused and not found.values
    assert not groups.graph.changed


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_inputs_of_recurrent_layers_are_made_up_for(kind: str, gates: int) -> None:
    """Half of what a recurrent layer reads says all, its bias takes up the rest."""
    net, random = Net(kind), np.random.default_rng(4)
    x = net.transpose(net.input("x", ("n", 5, 6)), 1, 0, 2)
    first = (random.standard_normal((6, 3)) @ random.standard_normal((3, 8))).astype("f4")
    h = net.add(net.matmul(x, net.const(first, "first")), net.const(np.ones(8, "f4"), "bias"))
    shapes = (gates * 4, 8), (gates * 4, 4), (gates * 8,)
    w, r, b = (random.standard_normal((1, *shape)).astype("f4") / 2 for shape in shapes)
    y, *_ = net.nodes(kind, [h, w, r, b], 2, hidden_size=4)
    model = net.model(y)
    data = {"x": random.standard_normal((128, 5, 6)).astype("f4")}
    result = spa.prune(model, "channels=0.5", only="first", round_to=1, data=data)
    assert [len(gone) for gone in result.removed.values()] == [4]
    dense, pruned = outputs(model, data["x"]), outputs(result.model, data["x"])
    assert np.abs(dense - pruned).max() < 1e-4


def experts(seed: int) -> ModelProto:
    """Two experts written out: rows go where a gate on a pruned layer says; to the last none go."""
    net = Net("experts", seed)
    hidden = net.relu(net.gemm(net.input("x", ("rows", 6)), 24))
    gate = net.node("ReduceSum", net.gemm(hidden, 3), [1], keepdims=0, shape=("rows",))
    made = net.gemm(hidden, 8)
    for some, least in (("some", 0.0), ("none", 1e6)):
        found = net.node("Greater", gate, np.float32(least), dtype=np.bool_)
        chosen = net.node("NonZero", found, shape=(1, some), dtype=np.int64)
        place = net.node("Squeeze", chosen, [0], shape=(some,), dtype=np.int64)
        rows = net.node("Gather", hidden, place, axis=0, shape=(some, 24))
        one = net.gemm(net.relu(net.gemm(rows, 16)), 8)
        at = net.node("Unsqueeze", place, [1], shape=(some, 1), dtype=np.int64)
        made = net.node("ScatterND", made, at, one, shape=("rows", 8))
    return net.model(net.gemm(made, 3))


@pytest.mark.parametrize("seed", range(3))
def test_rows_may_go_to_other_experts_and_to_none(seed: int) -> None:
    result = spa.prune(experts(seed), "macs=0.5", kinds=("linear",))
    assert result.compensation is not None and result.compensation.helped
    assert result.verification is not None and result.verification.law is not None
