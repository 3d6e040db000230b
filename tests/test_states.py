"""States that are inputs and outputs of a file: what is freed where these may change."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import Result
from onnx import ModelProto, TensorProto
from onnxruntime.capi import onnxruntime_pybind11_state as state_schemas

import spa
from models.builder import Net, Tensor
from spa import states
from spa.compare import compare as spa_compare
from spa.errors import PlanError, UsageError, ValidationError
from spa.groups import Groups
from spa.propagate import load_rules
from spa.rewrite import rewrite
from spa.rules import RULES
from spa.settings import ALL_KINDS, Settings
from spa.validate import check_file, verify
from tests.conftest import CUT, PLAIN
from tests.oracle import choices

Maker = Callable[[], ModelProto]
HEADS, SIZE, WIDTH = 4, 8, 12
STATES: dict[str, tuple[Maker, int, int]] = {}  # groups as it is, and with the flag
WHOLE: dict[str, Maker] = {}  # nothing that is given or made there is a state


def state(before: int, after: int) -> Callable[[Maker], Maker]:
    def put(make: Maker) -> Maker:
        STATES[make.__name__] = make, before, after
        return make

    return put


def whole(make: Maker) -> Maker:
    WHOLE[make.__name__] = make
    return make


def _split(net: Net, x: Tensor, heads: int, size: int = SIZE) -> Tensor:
    return net.transpose(net.reshape(x, [0, 0, heads, size]), 0, 2, 1, 3)


def _attend(net: Net, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q = _split(net, net.linear(x, HEADS * SIZE), HEADS)
    scores = net.div(net.matmul(q, net.transpose(k, 0, 1, 3, 2)), sqrt(SIZE))
    y = net.transpose(net.matmul(net.softmax(scores), v), 0, 2, 1, 3)
    return net.linear(net.reshape(y, [0, 0, HEADS * SIZE]), WIDTH)


def _embedded(net: Net) -> Tensor:
    ids = net.input("input_ids", ["batch", "new"], np.int64)
    return net.gather(net.weight(20, WIDTH, fan=1), ids)


def _cache(net: Net, name: str, heads: int = HEADS, length: Any = "past") -> Tensor:
    return net.input(name, ["batch", heads, length, SIZE])


def _named(tensor: Tensor, name: str) -> Tensor:
    tensor.name = name
    return tensor


def decoder(
    returned: bool = True, given: bool = True, length: Any = "past", placed: bool = False
) -> ModelProto:
    """Two layers; keys and values are joined to those of a cache by Concat."""
    net, presents = Net("decoder"), []
    x = _embedded(net)
    for layer in range(2):
        both = []
        for name in ("key", "value"):
            new = _split(net, net.linear(x, HEADS * SIZE), HEADS)
            if given:
                past = _cache(net, f"past.{layer}.{name}", length=length)
                if placed:  # what is new knows how much there was before
                    new = net.add(new, net.cast(net.dim(past, 2), TensorProto.FLOAT))
                new = net.concat(past, new, axis=2)
            both.append(new)
            if returned:
                presents.append(_named(new, f"present.{layer}.{name}"))
        x = net.add(x, _attend(net, x, *both))
    return net.model(_named(net.linear(x, 20), "logits"), *presents)


# The residual stream; heads, the size of keys and that of values in every layer.
@state(1, 7)
def concat() -> ModelProto:
    return decoder()


@state(1, 7)
def concat_of_fixed_length() -> ModelProto:
    return decoder(length=6)


@state(1, 7)
def concat_at_positions() -> ModelProto:
    return decoder(placed=True)


@state(1, 4)
def rolling() -> ModelProto:
    """The oldest step is dropped: sizes are the same on both sides."""
    net = Net("rolling")
    x, both = _embedded(net), []
    for name in ("key", "value"):
        new = _split(net, net.linear(x, HEADS * SIZE), HEADS)
        joined = net.concat(_cache(net, f"past.{name}"), new, axis=2)
        both.append(net.slice(joined, 1, 1 << 40, axis=2))
    return net.model(net.linear(net.add(x, _attend(net, x, *both)), 20), *both)


def _fused(op: str, heads: int, size: int, inner: int, **attrs: Any) -> ModelProto:
    """An operator with caches of its own; 3 steps were there before the new one."""
    net, batch, new = Net(op, opset=23), 2, 1
    ids = net.input("input_ids", [batch, new], np.int64)
    x = net.gather(net.weight(20, WIDTH, fan=1), ids)
    q, k, v = (net.linear(x, n * size) for n in (inner, heads, heads))
    past = [net.input(f"past.{n}", [batch, heads, 3, size]) for n in ("key", "value")]
    lengths = [net.const(np.asarray(n, np.int32), "lengths") for n in ([3] * batch, [4])]
    inputs = {
        "MultiHeadAttention": [q, k, v, None, None, None, *past],
        "GroupQueryAttention": [q, k, v, *past, *lengths],
        "Attention": [q, k, v, None, *past],
    }[op]
    shapes = [(batch, new, inner * size), *[(batch, heads, 4, size)] * 2]
    domain = "" if op == "Attention" else "com.microsoft"
    made = net.nodes(op, inputs, 3, shapes=shapes, domain=domain, **attrs)
    return net.model(net.linear(net.add(x, net.linear(made[0], WIDTH)), 20), *made[1:])


@state(1, 3)
def multi_head() -> ModelProto:
    return _fused("MultiHeadAttention", 4, 8, 4, num_heads=4)


@state(2, 4)
def group_query() -> ModelProto:
    return _fused("GroupQueryAttention", 2, 32, 4, num_heads=4, kv_num_heads=2)


@state(1, 4)
def attention() -> ModelProto:
    return _fused("Attention", 4, 8, 4, q_num_heads=4, kv_num_heads=4)


def _recurrent(op: str, layers: int = 1, sequence: bool = False) -> ModelProto:
    """The states of all layers are one tensor, as PyTorch has it."""
    net, hidden, gates = Net(op), 6, {"LSTM": 4, "GRU": 3}[op]
    x = net.input("x", ["steps", "batch", 5])
    names = ("h", "c")[: 2 if op == "LSTM" else 1]
    first = [net.input(f"{name}0", [layers, "batch", hidden]) for name in names]
    last: list[list[Tensor]] = [[] for _ in names]
    for layer in range(layers):
        w = net.weight(1, gates * hidden, x.shape[-1], fan=5)
        r = net.weight(1, gates * hidden, hidden, fan=hidden)
        b = net.uniform(-0.1, 0.1, 1, 2 * gates * hidden)
        start = [net.slice(f, layer, layer + 1, axis=0) if layers > 1 else f for f in first]
        made = net.nodes(op, [x, w, r, b, None, *start], 1 + len(names), hidden_size=hidden)
        x = net.squeeze(made[0], 1)
        for states_, after in zip(last, made[1:], strict=True):
            states_.append(after)
    joined = [net.concat(*each, axis=0) if layers > 1 else each[0] for each in last]
    return net.model(x if sequence else net.linear(x, 3), *joined)


@state(0, 1)
def lstm() -> ModelProto:
    return _recurrent("LSTM")


@state(0, 1)
def gru() -> ModelProto:
    return _recurrent("GRU")


@state(0, 1)
def stacked_lstm() -> ModelProto:
    return _recurrent("LSTM", layers=2)


@state(2, 3)
def window_of_a_convolution() -> ModelProto:
    """The last steps that a causal convolution has seen."""
    net = Net("window")
    x = net.transpose(net.linear(_embedded(net), 8), 0, 2, 1)
    seen = net.concat(net.input("window", ["batch", 8, 2]), x, axis=2)
    y = net.transpose(net.conv(seen, 6, 3, pad=0), 0, 2, 1)
    return net.model(net.linear(y, 20), net.slice(seen, -2, 1 << 40, axis=2))


def _causal(**attrs: Any) -> ModelProto:
    net = Net("causal", opset=27)
    x = net.transpose(net.linear(net.input("x", ["batch", "new", 6]), 8), 0, 2, 1)
    inputs = [x, net.weight(8, 1, 3), net.uniform(-1, 1, 8), net.input("seen", ["batch", 8, 2])]
    shapes = [["batch", 8, "new"], ["batch", 8, 2]]
    y, seen = net.nodes("CausalConvWithState", inputs, 2, shapes=shapes, **attrs)
    return net.model(net.linear(net.transpose(y, 0, 2, 1), 5), seen)


@state(0, 1)
def causal() -> ModelProto:
    return _causal()


@state(0, 1)
def causal_of_onnxruntime() -> ModelProto:
    return _causal(domain="com.microsoft")


# What is none, or is but one side of one.


@whole
def only_given() -> ModelProto:
    return decoder(returned=False)


@whole
def only_returned() -> ModelProto:
    return decoder(given=False)


@whole
def sequence_is_shown() -> ModelProto:
    return _recurrent("LSTM", sequence=True)


@whole
def hidden_states() -> ModelProto:
    net = Net("hidden")
    x = net.input("inputs_embeds", ["batch", "new", WIDTH])
    k, v = (_split(net, net.linear(x, HEADS * SIZE), HEADS) for _ in range(2))
    return net.model(net.layer_norm(net.add(x, _attend(net, x, k, v))))


@whole
def corrected_image() -> ModelProto:
    net = Net("image")
    x = net.input("image", ["n", 3, "h", "w"])
    return net.model(net.add(x, net.conv(net.relu(net.conv(x, 8)), 3)))


@whole
def image_passed_on() -> ModelProto:
    net = Net("passed")
    x = net.input("image", ["n", 3, "h", "w"])
    return net.model(net.conv(net.relu(net.conv(x, 8)), 3), net.node("Identity", x))


@whole
def images_side_by_side() -> ModelProto:
    net = Net("beside")
    x = net.input("image", ["n", 3, "h", "w"])
    return net.model(net.concat(x, net.conv(net.relu(net.conv(x, 8)), 3), axis=3))


@whole
def prompt_before_words() -> ModelProto:
    """What is put together and used for nothing else."""
    net = Net("prompt")
    return net.model(net.concat(net.input("prompt", ["batch", "p", WIDTH]), _embedded(net), axis=1))


def _named_groups(groups: Groups) -> list[str]:
    return [f"{group.name} ({group.size}, {group.kind})" for group in groups]


@pytest.mark.parametrize("name", STATES)
def test_states_go_with_what_they_hold(name: str) -> None:
    make, before, after = STATES[name]
    model = make()
    locked, groups = spa.analyze(model), spa.analyze(model, allow_io_change=True)
    assert len(locked) == before, _named_groups(locked)
    assert len(groups) == after, _named_groups(groups)
    for removed in choices(groups, 0):
        kept = groups.kept(removed)
        pruned = rewrite(groups, removed)
        check_file(groups.graph, pruned, sizes=states.sizes(kept))
        found = verify(groups, pruned, removed)
        assert found.law is not None and found.law < 1e-4 and not found.still
        assert not any(np.isnan(d) for d in found.drift.values())
        again = spa.analyze(pruned, allow_io_change=True)
        assert {n: again.shapes.shapes[n] for n in groups.graph.inputs} == {
            n: kept.shape(n) for n in groups.graph.inputs
        }


def test_operators_have_states_where_the_schema_has_them() -> None:
    """An input called past or initial, and the output that has the same name for present."""
    load_rules()
    schemas = {(s.domain, s.name): s for s in state_schemas.get_all_operator_schema()}

    def stems(names: list[str], start: str) -> dict[str, int]:
        found = [re.fullmatch(f"(?:{start})_?(.*)", name.lower()) for name in names]
        return {m.group(1): k for k, m in enumerate(found) if m}

    seen = 0
    for key, rule in RULES.items():
        if rule.states:
            before = stems([i.name for i in schemas[key].inputs], "past|initial")
            after = stems([o.name for o in schemas[key].outputs], "present|y")
            wanted = {k: after[name] for name, k in before.items() if name in after}
            assert rule.states == wanted, key
            seen += 1
    assert seen > 13


@pytest.mark.parametrize("name", WHOLE)
def test_all_else_stays(name: str) -> None:
    model = WHOLE[name]()
    locked, groups = spa.analyze(model), spa.analyze(model, allow_io_change=True)
    assert not groups.views[0].ties.released
    assert _named_groups(groups) == _named_groups(locked)


def changed(model: ModelProto) -> dict[str, list[Any]]:
    """The sizes in the file of its inputs and outputs."""
    return {
        info.name: [d.dim_value or d.dim_param for d in info.type.tensor_type.shape.dim]
        for info in (*model.graph.input, *model.graph.output)
    }


def test_types_say_the_new_sizes_and_free_ones_stay_free() -> None:
    model = concat()
    for output in model.graph.output[1:]:  # as exporters name what they do not know
        for k, dim in enumerate(output.type.tensor_type.shape.dim):
            dim.dim_param = f"{output.name}_dim_{k}"
    result = spa.prune(model, "channels=0.5", kinds="heads", allow_io_change=True, **PLAIN)
    found = changed(result.model)
    assert found["past.0.key"] == ["batch", 2, "past", SIZE]
    # A name that meant the size before, and may stand elsewhere, is gone.
    assert found["present.0.key"] == [
        "present.0.key_dim_0",
        "",
        "present.0.key_dim_2",
        "present.0.key_dim_3",
    ]
    assert found["input_ids"] == ["batch", "new"]
    assert found["logits"] == changed(model)["logits"]
    assert result.verification is not None and result.verification.law is not None
    assert max(result.verification.drift.values()) < 10


def test_a_cache_sliced_by_the_plan_carries_on() -> None:
    """Two steps of the smaller model are two steps of the original with zeros in it."""
    model = concat()
    result = spa.prune(model, "channels=0.5", allow_io_change=True, **PLAIN)
    groups, kept = result.groups, result.groups.kept(result.removed)
    assert result.plan.states.keys() == states.indices(kept).keys()
    assert {"past.0.key", "present.1.value"} <= result.plan.states.keys()
    ids, random = np.asarray([[3, 4]]), np.random.default_rng(0)
    caches = {
        name: random.normal(size=(1, HEADS, 3, SIZE)).astype(np.float32)
        for name in groups.graph.inputs
        if name != "input_ids"
    }
    for name, axes in result.plan.states.items():
        for axis, stays in axes.items():
            if name in caches:
                caches[name] = caches[name].take(stays, axis=axis)
    session = ort.InferenceSession(result.model.SerializeToString())
    for length in (5, 7):
        made = session.run(None, {"input_ids": ids, **caches})
        caches = dict(zip(caches, made[1:], strict=True))
        assert all(cache.shape[2] == length for cache in caches.values())


def test_inexact_units_beside_a_state_are_judged_on_the_file() -> None:
    """The width under a normalisation goes together with heads whose caches are outputs."""
    net = Net("normed")
    x, both = _embedded(net), []
    y = net.layer_norm(x)
    for name in ("key", "value"):
        new = _split(net, net.linear(y, HEADS * SIZE), HEADS)
        both.append(net.concat(_cache(net, f"past.{name}"), new, axis=2))
    model = net.model(net.linear(net.add(x, _attend(net, y, *both)), 20), *both)
    result = spa.prune(
        model, "channels=0.5", kinds=ALL_KINDS, round_to=1, samples=32, allow_io_change=True
    )
    removed, groups = result.removed, result.groups
    assert not all(groups[g].exact for g in removed)
    assert any(states.touched(groups, g) for g in removed)
    assert result.verification is not None and result.verification.law is not None
    assert result.compensation is not None
    assert np.isfinite(result.compensation.drift).all()


def test_a_state_keeps_its_order() -> None:
    """What --align would turn about would come out in another order."""
    result = spa.prune(concat(), "macs=0.8", samples=32, align=True, allow_io_change=True)
    groups = result.groups
    held = {
        member.tensor
        for g, group in enumerate(groups)
        if states.touched(groups, g)
        for member in group.members
    }
    assert held and not held & {tensor for tensor, _ in result.plan.orders}


def test_a_file_may_change_in_those_sizes_alone() -> None:
    groups = spa.analyze(concat(), allow_io_change=True)
    removed = next(r for r in choices(groups, 0) if states.sizes(groups.kept(r)))
    pruned, sizes = rewrite(groups, removed), states.sizes(groups.kept(removed))
    check_file(groups.graph, pruned, sizes=sizes)
    with pytest.raises(ValidationError, match="inputs are"):
        check_file(groups.graph, pruned)
    pruned.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    with pytest.raises(ValidationError, match="inputs are"):
        check_file(groups.graph, pruned, sizes=sizes)


def test_without_the_flag_nothing_changes() -> None:
    model = concat()
    result = spa.prune(model, "channels=0.5", kinds=ALL_KINDS, **PLAIN)
    assert changed(result.model) == changed(model)
    assert not result.plan.states


def test_usage() -> None:
    with pytest.raises(UsageError, match="more than one step"):
        Settings(steps=2, allow_io_change=True).check()
    with pytest.raises(UsageError, match="one shape"):
        spa_compare(concat(), settings=Settings(allow_io_change=True))


# The command line and plans


def test_prune_verify_and_replay(
    cli: Callable[..., Result], write: Callable[..., Path], tmp_path: Path
) -> None:
    path, plan, out = write(concat()), tmp_path / "plan.json", tmp_path / "m.pruned.onnx"
    given = ("prune", path, *CUT, "--target", "channels=0.5", "--kinds", "heads")
    done = cli(*given, "--allow-io-change", "--plan-out", plan)
    assert done.exit_code == 0, done.stderr
    line = "inputs and outputs changed: past.0.key [batch, 4, past, 8] -> [batch, 2, past, 8], "
    assert line in done.stdout.replace("\n", "")
    body = json.loads(plan.read_text())
    assert body["made_by"]["allow_io_change"] is True
    assert len(body["states"]["past.0.key"]["1"]) == 2

    done = cli("verify", path, out, "--plan", plan, "--repeats", "1", "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["verification"]["law"] < 1e-4

    first = out.read_bytes()
    done = cli("prune", path, "--plan", plan, "--force", "--json")
    assert done.exit_code == 0, done.stderr
    assert out.read_bytes() == first
    rows = {row["name"]: row for row in json.loads(done.stdout)["io_changes"]}
    row = rows["present.1.value"]
    assert (row["kind"], row["before"][1], row["after"][1]) == ("output", 4, 2)
    assert rows["past.0.key"]["after"] == ["batch", 2, "past", 8]

    body["states"]["past.0.key"]["1"] = [0, 1, 2]
    plan.write_text(json.dumps(body))
    done = cli("prune", path, "--plan", plan, "--force")
    assert done.exit_code == PlanError.exit_code
    assert "'past.0.key'" in done.stderr
    assert out.read_bytes() == first


def test_analyze_shows_what_the_flag_frees(
    cli: Callable[..., Result], write: Callable[..., Path]
) -> None:
    path = write(lstm())
    found = [
        json.loads(cli("analyze", path, "--json", *more).stdout)
        for more in ((), ("--allow-io-change",))
    ]
    assert [len(f["groups"]) for f in found] == [0, 1]
    listed = ["LSTM_0.out.1:2", "LSTM_0.out.2:2", "c0:2", "h0:2"]
    assert [f["states"] for f in found] == [[], listed]
    line = f"states that may become smaller: {', '.join(listed)}"
    assert line in cli("analyze", path, "--allow-io-change").stdout


def test_explain_takes_the_flag(cli: Callable[..., Result], write: Callable[..., Path]) -> None:
    args = ("explain", write(lstm()), "h0", "c0", "--json")
    found = [json.loads(cli(*args, *more).stdout) for more in ((), ("--allow-io-change",))]
    assert [f["coupled"] for f in found] == [False, True]
