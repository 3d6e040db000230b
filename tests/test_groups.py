"""What a person can ask about the groups: the network, the locks, `spa analyze`, `spa explain`."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise, permutations
from pathlib import Path

import networkx as nx
import numpy as np
import onnx
import pytest
from click.testing import Result

import spa
from models.builder import Net, Tensor
from models.hazards import HAZARDS
from spa.groups import explain
from tests.conftest import DIGITS
from tests.ops.cases import CODE, coded, codes, contrib, dequantise, quantise

Cli = Callable[..., Result]
STEM, FIRST, SECOND = (f"{n}.weight" for n in ("stem.0", "stage1.first.0", "stage1.second.0"))


@pytest.mark.parametrize("name", sorted(HAZARDS))
def test_groups_are_sound(name: str) -> None:
    groups = spa.analyze(HAZARDS[name][0]())
    assert len({g.name for g in groups}) == len(groups)
    used: dict[tuple[int, str, int], set[int]] = {}
    for k, group in enumerate(groups):
        assert groups[group.name] is groups[k] is group
        assert group.size >= 2
        assert group.units.shape == (group.size,)
        assert group.members
        for member in group.members:
            assert len(member.index) == group.size
            indices = member.index.ravel().tolist()
            assert len(set(indices)) == len(indices)
            assert max(indices) < groups.graph.constants[member.tensor].shape[member.axis]
            here = used.setdefault((group.view, member.tensor, member.axis), set())
            assert here.isdisjoint(indices)  # an index is in one group
            here.update(indices)
    with pytest.raises(KeyError):
        groups["no such group"]


@pytest.mark.parametrize("name", sorted(HAZARDS))
def test_network_joins_the_members_of_a_group(name: str) -> None:
    groups = spa.analyze(HAZARDS[name][0]())
    network = groups.network
    nodes = {n.name for n in groups.graph.nodes}
    for (tensor, axis), about in network.nodes(data=True):
        assert about["size"] == groups.shapes.shapes[tensor][axis]
        assert about["constant"] == (tensor in groups.graph.constants)
    for _, _, about in network.edges(data=True):
        assert about["node"] in nodes
        assert about["operator"]
    for group in groups:
        places = [(m.tensor, m.axis) for m in group.members]
        assert all(nx.has_path(network, a, b) for a, b in pairwise(places))


def test_network_of_two_chains_has_two_parts() -> None:
    net = Net("two")
    x = net.input("x", [2, 6])
    outs = [net.gemm(net.relu(net.gemm(x, 8)), 3) for _ in range(2)]
    network = spa.analyze(net.model(*outs)).network
    hidden = [n for n in network if network.nodes[n]["size"] == 8]
    parts = [p for p in nx.connected_components(network) if p & set(hidden)]
    assert len(parts) == 2


# Kinds: each row has one operator that can name the group, and one of a lesser rank at most


def _rows(net: Net) -> Tensor:
    """Six channels that no operator has named."""
    return net.mul(net.input("x", [2, 1]), net.uniform(0.5, 1, 6))


def _read(net: Net, image: Tensor) -> Tensor:
    return net.gemm(net.flatten(net.global_avg_pool(image)), 3)


def _tokens(net: Net) -> Tensor:
    return net.mul(net.input("x", [2, 5, 1]), net.uniform(0.5, 1, 6))


def _summed(net: Net, y: Tensor, axis: int = -1) -> Tensor:
    return net.node("ReduceSum", net.relu(y), [axis])


def _lstm(net: Net, x: Tensor) -> Tensor:
    w, r = net.weight(1, 16, x.shape[2]), net.weight(1, 16, 4)
    return net.nodes("LSTM", [x, w, r], 1, hidden_size=4)[0]


def _eight_bits(net: Net, x: Tensor) -> Tensor:
    w, r, code = codes(net, 1, 6, 16), codes(net, 1, 4, 16), [np.full(1, c) for c in CODE]
    inputs = [x, w, r, *[None] * 5, *code, *code]
    y = contrib(net, "DynamicQuantizeLSTM", inputs, (5, 2, 1, 4), hidden_size=4)[0]
    return _summed(net, y)


def _image(net: Net) -> Tensor:
    return net.mul(net.input("x", [2, 1, 4, 4]), net.uniform(0.5, 1, 6, 1, 1))


def _deformed(net: Net, group: int = 1) -> Tensor:
    x, offset = net.input("x", [2, 4, 6, 6]), net.input("o", [2, 18, 4, 4])
    w = net.weight(6, 4 // group, 3, 3)
    return net.node("DeformConv", x, w, offset, kernel_shape=[3, 3], group=group)


def _in_eight_bits(net: Net) -> Tensor:
    scale, zero = np.float32(0.1), np.int8(0)
    w = net.const(net.rng.integers(-60, 60, (6, 3, 3, 3)).astype(np.int8))
    x = net.input("x", [2, 3, 6, 6], np.int8)
    y = net.node("QLinearConv", x, scale, zero, w, scale, zero, scale, zero)
    return net.node("DequantizeLinear", y, scale, zero)


def _spread(net: Net) -> Tensor:
    pads, x = net.const(np.zeros(4, np.int64)), net.input("x", [2, 3, 4, 4])
    inputs = [x, net.weight(3, 6, 2, 2), pads]
    return contrib(net, "ConvTransposeWithDynamicPads", inputs, (2, 6, 5, 5))[0]


def _einsum_attention(net: Net) -> Tensor:
    x = net.input("x", [2, 5, 6])
    q, k, v = (net.reshape(net.linear(x, 8), [0, 0, 2, 4]) for _ in "qkv")
    scores = net.softmax(net.node("Einsum", q, k, equation="bqhd,bkhd->bhqk"))
    y = net.node("Einsum", scores, v, equation="bhqk,bkhd->bqhd")
    return net.linear(net.reshape(y, [0, 0, 8]), 3)


def _attention(net: Net, heads: int) -> Tensor:
    x = net.input("x", [2, 5, 6])
    q, k, v = (net.linear(x, n) for n in (heads * 4, 8, 6))
    return net.linear(net.node("Attention", q, k, v, q_num_heads=heads, kv_num_heads=2), 3)


def _rotary(net: Net) -> Tensor:
    x, angles = net.linear(net.input("x", [2, 5, 6]), 8), net.rng.uniform(0, 3, (2, 5, 2))
    cos, sin = (net.const(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
    y = net.node("RotaryEmbedding", x, cos, sin, num_heads=2)
    return net.linear(y, 3)


def _embedded(net: Net) -> Tensor:
    """Words, looked up at run time, and positions."""
    ids, row = net.input("x", [2, 5], np.int32), [net.uniform(0.5, 1, 6) for _ in "gb"]
    tables = [net.weight(9, 6), net.weight(5, 6), None]
    inputs = [ids, None, *tables, *row]
    return net.linear(contrib(net, "EmbedLayerNormalization", inputs, (2, 5, 6), (2,))[0], 3)


def _experts(net: Net) -> Tensor:
    x, router = net.input("x", [2, 5, 8]), net.mul(net.input("r", [10, 1]), net.uniform(0, 1, 4))
    inputs = [x, router, net.weight(4, 6, 8), None, net.weight(4, 8, 6)]
    return contrib(net, "MoE", inputs, (2, 5, 8))[0]


def _less_mean(net: Net, y: Tensor, quantised: bool = False) -> Tensor:
    """Less what a pool over all but two axes makes of it."""
    shape = [*y.shape[:2], *[1] * (len(y.shape) - 2)]
    if not quantised:
        return net.relu(net.sub(y, net.global_avg_pool(y)))
    inputs = [quantise(net, y), *CODE, *CODE]
    mean = coded(net, "QLinearGlobalAveragePool", *inputs, shape=shape)
    return net.relu(net.sub(y, dequantise(net, mean)))


def _skipped(net: Net) -> Tensor:
    x = net.linear(net.input("x", [2, 5, 3]), 6)
    inputs = [x, net.input("y", [2, 5, 1]), net.uniform(0.5, 1, 6)]
    return net.linear(contrib(net, "SkipSimplifiedLayerNormalization", inputs, (2, 5, 6))[0], 3)


def _projected(net: Net, x: Tensor) -> Tensor:
    w, q = codes(net, 6, 24), quantise(net, x)
    inputs = [q, w, net.uniform(-1, 1, 24), CODE[0], CODE[0], None, CODE[1], CODE[1]]
    return _summed(net, contrib(net, "QAttention", inputs, (2, 5, 8), num_heads=2)[0])


NAMED: dict[str, tuple[Callable[[Net], Tensor], set[str]]] = {
    "Conv": (lambda net: _read(net, net.conv(net.input("x", [2, 3, 4, 4]), 6)), {"conv"}),
    "Conv-input": (lambda net: net.conv(_image(net), 3), {"conv"}),
    "Conv-groups": (lambda net: _read(net, net.conv(_image(net), 6, groups=6)), {"conv"}),
    "ConvTranspose": (lambda net: _read(net, net.conv_transpose(
        net.input("x", [2, 3, 4, 4]), 6)), {"conv"}),
    "ConvTranspose-input": (lambda net: net.conv_transpose(_image(net), 3), {"conv"}),
    "DeformConv": (lambda net: _read(net, _deformed(net)), {"conv"}),
    "DeformConv-groups": (lambda net: _read(net, _deformed(net, 2)), {"conv"}),
    "QLinearConv": (lambda net: _read(net, _in_eight_bits(net)), {"conv"}),
    "ConvTransposeWithDynamicPads": (lambda net: _read(net, _spread(net)), {"conv"}),
    "Gemm": (lambda net: _summed(net, net.gemm(net.input("x", [2, 3]), 6)), {"linear"}),
    "Gemm-input": (lambda net: net.gemm(_rows(net), 3), {"linear"}),
    "MatMul": (lambda net: _summed(net, net.linear(net.input("x", [2, 5, 3]), 6)), {"linear"}),
    "MatMul-input": (lambda net: net.linear(_tokens(net), 3), {"linear"}),
    "MatMul-left": (lambda net: _summed(
        net, net.matmul(net.weight(6, 5), net.input("x", [2, 5, 3])), 1), {"linear"}),
    "MatMul-of-activations": (lambda net: _summed(net, net.matmul(net.transpose(
        _tokens(net), 0, 2, 1), net.input("y", [2, 5, 3])), 1), {"head-dim"}),
    "Einsum": (lambda net: net.node(
        "Einsum", _tokens(net), net.weight(6, 3), equation="bsd,de->bse"), {"linear"}),
    "Einsum-capitals": (lambda net: net.node(
        "Einsum", _tokens(net), net.weight(6, 3), equation="BSD,DE->BSE"), {"linear"}),
    "Einsum-heads": (lambda net: net.node("ReduceSum", net.node("Einsum", *(net.mul(net.input(
        name, [2, 5, 1, 4]), net.uniform(0.5, 1, 6, 1)) for name in "qk"),
        equation="bqhd,bkhd->bhqk"), [1]), {"heads"}),
    "Einsum-attention": (_einsum_attention, {"heads", "head-dim"}),
    "Attention": (lambda net: _attention(net, 2), {"heads", "head-dim"}),
    "Attention-shared": (lambda net: _attention(net, 6), {"heads", "head-dim"}),
    "onnxruntime's Attention": (lambda net: _summed(net, contrib(net, "Attention", [
        _tokens(net), net.weight(6, 24), net.uniform(-1, 1, 24)], (2, 5, 8), num_heads=2)[0]),
        {"heads", "head-dim", "linear"}),
    "RotaryEmbedding": (_rotary, {"heads", "head-dim"}),
    "LSTM": (lambda net: _summed(net, _lstm(net, net.input("x", [5, 2, 3]))), {"recurrent"}),
    "LSTM-input": (lambda net: _summed(
        net, _lstm(net, net.transpose(_tokens(net), 1, 0, 2))), {"linear", "recurrent"}),
    "DynamicQuantizeLSTM": (
        lambda net: _eight_bits(net, net.input("x", [5, 2, 6])), {"recurrent"}),
    "DynamicQuantizeLSTM-input": (lambda net: _eight_bits(
        net, net.transpose(_tokens(net), 1, 0, 2)), {"linear", "recurrent"}),
    "LayerNormalization": (lambda net: net.linear(net.layer_norm(net.linear(
        net.input("x", [2, 5, 3]), 6)), 3), {"hidden"}),
    "SkipLayerNormalization": (lambda net: _skipped(net), {"hidden"}),
    "QAttention": (lambda net: _projected(net, net.input("x", [2, 5, 6])), {"heads", "head-dim"}),
    "QAttention-input": (lambda net: _projected(net, _tokens(net)), {
        "heads", "head-dim", "linear"}),
    "layer norm written out": (lambda net: net.linear(net.layer_norm(net.linear(
        net.input("x", [2, 5, 3]), 6), True), 3), {"hidden"}),
    "mean over another axis": (lambda net: net.linear(net.mean(net.linear(
        net.input("x", [2, 5, 3]), 6), 1), 3), {"linear"}),
    "mean over channels": (lambda net: _read(net, net.mul(y := net.conv(net.input(
        "x", [2, 3, 4, 4]), 6), net.mean(y, 1))), {"conv"}),
    "embedding, normalised": (_embedded, {"hidden"}),
    **{
        f"pool over {'pixels' if image else 'channels'}, {quantised=}": (
            lambda net, image=image, quantised=quantised: net.node(
                "ReduceSum", _less_mean(net, net.transpose(net.conv(
                    net.input("x", [2, 3, 4, 4]), 6), 0, 2, 1, 3), quantised), [2])
            if image else net.linear(_less_mean(net, net.linear(
                net.input("x", [2, 5, 3]), 6), quantised), 3),
            {"conv"} if image else {"hidden"},
        )
        for quantised in (False, True)
        for image in (False, True)
    },
    "maximum over the last axis": (lambda net: net.linear(net.mul(y := net.linear(net.input(
        "x", [2, 5, 3]), 6), net.node("ReduceMax", y, [-1])), 3), {"linear"}),
    "rows of what is computed": (lambda net: net.linear(net.gather(net.linear(net.input(
        "x", [2, 5, 3]), 6), np.array([[0, 1]]), axis=1), 3), {"linear"}),
    "MoE": (_experts, {"linear"}),
    "embedding": (lambda net: net.linear(net.gather(
        net.weight(9, 6), net.input("x", [2, 5], np.int64)), 3), {"embedding"}),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_kinds(name: str) -> None:
    body, expected = NAMED[name]
    net = Net("kinds", opset=23)
    model = net.model(body(net), ir_version=10)
    assert {group.kind for group in spa.analyze(model)} == expected


# Explain


def test_groups_print_as_a_list() -> None:
    groups = spa.analyze(DIGITS)
    first, *rest = repr(groups).splitlines()
    assert first == f"{len(groups)} groups"
    assert rest == [f"  {g.name}: {g.size} of kind {g.kind}" for g in groups]
    assert "array(" not in repr(groups[0])


def test_explain_a_residual() -> None:
    groups = spa.analyze(DIGITS)
    path = explain(groups, STEM, SECOND)
    assert path is not None
    assert path.units == 32
    assert path.steps[0][0] == (STEM, 0)
    assert path.steps[-1] == ((SECOND, 0), "")
    operators = [by.split()[0] for _, by in path.steps[:-1]]
    assert operators == ["Conv", "Relu", "Add", "Conv"]
    back = explain(groups, SECOND, STEM)
    assert back is not None
    assert [at for at, _ in back.steps] == [at for at, _ in reversed(path.steps)]


def test_explain_agrees_with_the_groups() -> None:
    groups = spa.analyze(HAZARDS["concat_of_concats"][0]())
    weights = [n for n in groups.graph.constants if n.endswith("weight")]
    for a, b in permutations(weights, 2):
        together = any({a, b} <= {m.tensor for m in g.members} for g in groups)
        path = explain(groups, a, b)
        assert (path is not None) == together, (a, b)


def test_explain_what_is_not_there() -> None:
    groups = spa.analyze(HAZARDS["plain"][0]())
    assert explain(groups, "Conv_0.weight", "Gemm_0.weight") is None
    with pytest.raises(KeyError):
        explain(groups, "Conv_0.weight", "nothing")


def test_explain_command(cli: Cli, digits: Path) -> None:
    done = cli("explain", digits, STEM, SECOND)
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert (lines[0], lines[-2]) == (f"{STEM}:0", f"{SECOND}:0")
    assert any("Add node_add_40" in line for line in lines)
    found = json.loads(cli("explain", digits, STEM, SECOND, "--json").stdout)
    assert (found["coupled"], found["units"]) == (True, 32)
    assert [found["steps"][k]["tensor"] for k in (0, -1)] == [STEM, SECOND]


def test_explain_command_where_nothing_is_coupled(cli: Cli, digits: Path) -> None:
    done = cli("explain", digits, STEM, "classifier.bias")
    assert done.exit_code == 0
    assert "no axis" in done.stdout
    found = json.loads(cli("explain", digits, STEM, "classifier.bias", "--json").stdout)
    assert found == {"coupled": False, "units": 0, "steps": []}
    unknown = cli("explain", digits, STEM, "nothing")
    assert (unknown.exit_code, unknown.stdout) == (2, "")
    assert "'nothing'" in unknown.stderr


def test_quiet_explain(cli: Cli, digits: Path) -> None:
    assert cli("explain", digits, STEM, SECOND, "-q").stdout == ""
    assert cli("explain", digits, STEM, "classifier.bias", "-q").stdout == ""


# Analyze, ops


def test_analyze_command(cli: Cli, digits: Path) -> None:
    done = cli("analyze", digits)
    assert done.exit_code == 0
    for word in ("4 groups", "stem.0.weight:0", "32", "conv", "exact", "MACs", "locked", "logits"):
        assert word in done.stdout
    assert len(cli("analyze", digits, "-v").stdout) > len(done.stdout)
    assert cli("analyze", digits, "-q").stdout == ""


def test_analyze_json(cli: Cli, digits: Path) -> None:
    done = cli("analyze", digits, "--json")
    found = json.loads(done.stdout)
    assert done.stderr == ""
    assert [(g["name"], g["size"], g["exact"]) for g in found["groups"]] == [
        (f"{STEM}:0", 32, True), (f"{FIRST}:0", 32, True),
        ("stage2.first.0.weight:0", 64, True), ("stage2.second.0.weight:0", 64, True),
    ]  # fmt: skip
    for group in found["groups"]:
        assert 0 < group["macs"] < found["macs"]
        assert 0 < group["params"] < found["params"]
    members = {(m["tensor"], m["axis"]) for m in found["groups"][0]["members"]}
    assert {(STEM, 0), (FIRST, 1), (SECOND, 0), (f"{STEM}_bias", 0)} <= members
    locked = {(lock["tensor"], lock["axis"]): lock["why"] for lock in found["locked"]}
    assert "logits" in locked["classifier.weight", 0]
    assert found["unknown_operators"] == {}


def test_what_one_group_carries_is_what_a_cut_saves() -> None:
    groups = spa.analyze(DIGITS)
    found = spa.report.analysis_dict(groups)["groups"][1]
    plan = spa.plan.record(groups, {1: np.arange(31)})
    result = spa.prune(DIGITS, plan=plan, verify=False)
    before, after = result.figures.before, result.figures.after
    assert found["macs"] == before.macs - after.macs
    assert found["params"] == before.params - after.params


def test_analyze_a_model_without_groups(cli: Cli, write: Callable[..., Path]) -> None:
    net = Net("lone")
    path = write(net.model(net.conv(net.input("x", [1, 3, 8, 8]), 8)))
    done = cli("analyze", path)
    assert done.exit_code == 0
    assert "0 groups" in done.stdout
    assert json.loads(cli("analyze", path, "--json").stdout)["groups"] == []


def test_exact_leaves_out_what_is_not() -> None:
    model = HAZARDS["softmax_over_channels"][0]()
    assert [g.exact for g in spa.analyze(model)] == [False, True]
    assert [g.exact for g in spa.analyze(model, exact=True)] == [True]


def test_locks_say_why() -> None:
    groups = spa.analyze(HAZARDS["argmax_over_channels"][0]())
    (lock,) = [x for x in groups.locks() if (x.tensor, x.axis) == ("Conv_0.weight", 0)]
    assert (lock.locked, lock.size, lock.operator) == (8, 8, "ArgMax")
    assert "ArgMax" in lock.reason()


def test_custom_operator_is_locked_around(cli: Cli, write: Callable[..., Path]) -> None:
    path = write(HAZARDS["custom_operator"][0]())
    found = json.loads(cli("analyze", path, "--json").stdout)
    assert found["unknown_operators"] == {"Mystery": ["Mystery_0"]}
    assert [g["name"] for g in found["groups"]] == ["Conv_1.weight:0"]
    assert any(lock["operator"] == "Mystery" for lock in found["locked"])
    assert "Mystery" in cli("analyze", path).stdout
    done = cli("prune", path, "--target", "channels=0.5")
    assert done.exit_code == 0, done.stderr
    assert "Mystery" in done.stdout
    assert "not checked" in done.stdout
    after = onnx.load(path.with_name("m.pruned.onnx")).graph.initializer
    dims = {t.name: list(t.dims) for t in after}
    assert dims["Conv_0.weight"] == [8, 3, 3, 3]
    assert dims["Conv_1.weight"] == [3, 8, 3, 3]


@pytest.mark.parametrize("name", ["w[0]", "[b]w", "[/w]"])
def test_names_are_printed_as_they_are(cli: Cli, write: Callable[..., Path], name: str) -> None:
    net = Net("odd")
    w = net.weight(6, 8, fan=6, name=name)
    path = write(net.model(net.gemm(net.relu(net.matmul(net.input("x", [2, 6]), w)), 3)))
    for args in (("analyze", path), ("prune", path, "--dry-run", "--target", "channels=0.5")):
        done = cli(*args)
        assert done.exit_code == 0, done.stderr
        assert name in done.stdout


def test_ops_command(cli: Cli) -> None:
    shown, found = cli("ops"), json.loads(cli("ops", "--json").stdout)["rules"]
    assert shown.exit_code == 0
    rows = {r["operator"]: r for r in found if r["domain"] == "ai.onnx"}
    assert {"Conv", "MatMul", "Concat", "Reshape", "Softmax"} <= set(rows)
    for row in found:
        assert row["family"] and row["rule"], row
    assert "BatchNormalization" in shown.stdout
    assert cli("ops", "-q").stdout == ""
