"""Residual branches: which are found, and the law for each, alone and with widths."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper

import spa
from models.builder import Net, Tensor
from models.sequence import bert_like, llama_like, vit
from models.vision import MAKERS
from spa import validate
from spa.cost import CostModel
from spa.depth import find
from spa.graph import Block
from spa.groups import Groups, Removed
from spa.rewrite import rewrite

LAW = 1e-5


def net(name: str = "branches") -> tuple[Net, Tensor]:
    made = Net(name)
    x = made.input("x", ("batch", 3, 8))
    return made, made.linear(x, 8)


def ffn(net: Net, x: Tensor) -> Tensor:
    return net.linear(net.relu(net.linear(x, 16)), 8)


def head(net: Net, x: Tensor) -> ModelProto:
    return net.model(net.linear(net.relu(x), 4))


def _plain() -> ModelProto:
    made, x = net()
    return head(made, made.add(x, ffn(made, x)))


def _subtracted() -> ModelProto:
    made, x = net()
    return head(made, made.sub(x, ffn(made, x)))


def _layer_scale() -> ModelProto:
    made, x = net()
    return head(made, made.add(made.mul(made.weight(8), ffn(made, x)), x))


def _dropped_paths() -> ModelProto:
    made, x = net()
    y = made.node("Dropout", made.mul(ffn(made, x), 0.5))
    return head(made, made.add(x, made.node("Identity", y)))


def _pre_activation() -> ModelProto:
    made = Net("pre_activation")
    x = made.conv(made.input("x", ("batch", 3, 8, 8)), 8)
    for _ in range(2):
        y = made.conv(made.relu(made.bn(x)), 8)
        x = made.add(x, made.conv(made.relu(made.bn(y)), 8))
    return made.model(made.gemm(made.flatten(made.global_avg_pool(x)), 4))


def _parallel() -> ModelProto:
    """x + (f(n) + g(n)) with one norm for both: each side, or both."""
    made, x = net()
    n = made.layer_norm(x)
    return head(made, made.add(x, made.add(ffn(made, n), ffn(made, n))))


def _in_a_row() -> ModelProto:
    made, x = net()
    n = made.layer_norm(x)
    return head(made, made.add(made.add(x, ffn(made, n)), ffn(made, n)))


def _nested() -> ModelProto:
    made, x = net()
    y = made.relu(made.linear(x, 16))
    y = made.add(y, made.linear(made.relu(made.linear(y, 8)), 16))
    return head(made, made.add(x, made.linear(y, 8)))


def _own_skip() -> ModelProto:
    """x + (n + f(n)): the branch as a whole closes at the norm as well."""
    made, x = net()
    n = made.layer_norm(x)
    return head(made, made.add(x, made.add(n, ffn(made, n))))


def _another_view() -> ModelProto:
    """The skip goes through a Transpose of its own."""
    made, x = net()
    y = made.transpose(ffn(made, x), 0, 2, 1)
    y = made.add(made.transpose(x, 0, 2, 1), y)
    return head(made, made.transpose(y, 0, 2, 1))


def _rolled() -> ModelProto:
    """Halves change places between the last weights and the sum."""
    made, x = net()
    y = ffn(made, x)
    y = made.concat(made.slice(y, 1, 3), made.slice(y, 0, 1))
    return head(made, made.add(x, y))


def _values_last() -> ModelProto:
    """Attention without a projection behind it closes at its values."""
    made, x = net()
    q, k, v = (made.linear(x, 8) for _ in "qkv")
    y = made.matmul(made.softmax(made.matmul(q, made.transpose(k, 0, 2, 1))), v)
    return head(made, made.add(x, y))


def _one_channel() -> ModelProto:
    """A rule says nothing of zeros on an axis of size 1, so this closes one layer earlier."""
    made, x = net()
    return head(made, made.add(x, made.linear(made.relu(made.linear(x, 8)), 1, bias=False)))


def _two_inputs() -> ModelProto:
    """Cross attention: a branch may read what the skip does not."""
    made, x = net()
    other = made.linear(made.input("other", ("batch", 5, 6)), 8)
    scores = made.matmul(made.linear(x, 8), made.transpose(other, 0, 2, 1))
    y = made.matmul(made.softmax(scores), made.linear(other, 8))
    return head(made, made.add(x, made.linear(y, 8)))


def _is_an_output() -> ModelProto:
    made, x = net()
    y = made.add(x, ffn(made, x))
    return made.model(y, made.linear(y, 4))


def _whole_network() -> ModelProto:
    """What is left hands its input on."""
    made = Net("denoiser")
    x = made.input("x", ("batch", 3, 8, 8))
    return made.model(made.sub(x, made.conv(made.relu(made.conv(x, 8)), 3)))


def _cached() -> ModelProto:
    """Keys are an output: they stay when the branch goes."""
    made, x = net()
    q, k, v = (made.linear(x, 8) for _ in "qkv")
    y = made.matmul(made.softmax(made.matmul(q, made.transpose(k, 0, 2, 1))), v)
    y = made.add(x, made.linear(y, 8))
    return made.model(made.linear(y, 4), k)


def _shared_weight() -> ModelProto:
    made, x = net()
    down = made.weight(16, 8)
    for _ in range(2):
        x = made.add(x, made.matmul(made.relu(made.linear(x, 16)), down))
    return head(made, x)


def _quantised() -> ModelProto:
    made = Net("quantised")
    x = made.conv(made.input("x", ("batch", 3, 8, 8)), 8)
    w = np.random.default_rng(0).integers(1, 255, (8, 8, 3, 3)).astype(np.uint8)
    scale, point = np.full(8, 0.01, np.float32), np.full(8, 128, np.uint8)
    kernel = made.node("DequantizeLinear", w, scale, point, axis=0, shape=list(w.shape))
    y = made.node("Conv", made.relu(x), kernel, pads=[1] * 4)
    x = made.add(x, y)
    return made.model(made.gemm(made.flatten(made.global_avg_pool(x)), 4))


def _read_in_a_body() -> ModelProto:
    made, x = net()
    y = made.add(x, ffn(made, x))
    model = made.model(made.relu(y), y)
    shown = helper.make_tensor_value_info("shown", 1, None)
    chosen = helper.make_tensor_value_info("chosen", 1, ["batch", 3, 8])
    one, other = (
        helper.make_graph([helper.make_node(op, [y.name], ["shown"])], op, [], [shown])
        for op in ("Neg", "Abs")
    )
    model.graph.initializer.append(helper.make_tensor("test", onnx.TensorProto.BOOL, [], [True]))
    model.graph.node.append(
        helper.make_node("If", ["test"], ["chosen"], then_branch=one, else_branch=other)
    )
    model.graph.output[1].CopyFrom(chosen)
    return model


FOUND: dict[str, tuple[Callable[[], ModelProto], int]] = {
    "plain": (_plain, 1),
    "subtracted": (_subtracted, 1),
    "layer scale": (_layer_scale, 1),
    "dropped paths": (_dropped_paths, 1),
    "pre-activation": (_pre_activation, 2),
    "parallel": (_parallel, 3),
    "in a row": (_in_a_row, 2),
    "nested": (_nested, 2),
    "with a skip of its own": (_own_skip, 2),
    "another view": (_another_view, 1),
    "rolled": (_rolled, 1),
    "values last": (_values_last, 1),
    "one channel": (_one_channel, 1),
    "two inputs": (_two_inputs, 1),
    "an output": (_is_an_output, 1),
    "whole network": (_whole_network, 1),
    "cached": (_cached, 1),
    "shared weight": (_shared_weight, 2),
    "quantised": (_quantised, 1),
    "read in a body": (_read_in_a_body, 1),
    "post-norm": (bert_like, 4),
    "norms written out": (lambda: bert_like(decomposed=True, legacy=True, batch="b", seq="s"), 4),
    "pre-norm": (lambda: vit(batch="b"), 4),
    "one weight for q, k, v": (lambda: vit(split=True, legacy=True), 4),
    "rms norms": (llama_like, 4),
    "resnet18": (lambda: MAKERS["resnet18"](width=0.125, image=32, classes=4), 5),
    "resnext50": (lambda: MAKERS["resnext50"](width=0.125, image=32, classes=4), 12),
    "mobilenet_v3": (lambda: MAKERS["mobilenet_v3"](width=0.25, image=32, classes=4), 10),
}


@pytest.mark.parametrize("name", FOUND)
def test_the_law_for_every_branch(name: str) -> None:
    make, count = FOUND[name]
    groups = spa.analyze(make())
    found = find(groups)
    assert [b.branch for b in found.blocks] == list(dict.fromkeys(b.branch for b in found.blocks))
    assert (len(found.blocks), found.held) == (count, {})
    halves = {g: np.arange(group.size // 2) for g, group in enumerate(groups)}
    for block in found.blocks[:4]:
        check(groups, [block], {})
    by_sum = {block.sum: block for block in found.blocks}  # both sides of a sum cannot go
    check(groups, list(by_sum.values()), {})
    check(groups, list(by_sum.values()), halves)


def check(groups: Groups, blocks: Sequence[Block], removed: Removed) -> None:
    shorter = replace(groups, graph=replace(groups.graph, blocks=tuple(blocks)))
    pruned = rewrite(shorter, removed)
    validate.check_file(groups.graph, pruned)
    found = validate.verify(shorter, pruned, removed)
    assert found.law is not None
    assert found.law <= LAW
    assert all(drift > 1e-4 for drift in found.drift.values() if drift) and any(
        found.drift.values()
    )
    made = {name for node in pruned.graph.node for name in node.output}
    gone = {name for k in shorter.graph.dead for name in groups.graph.nodes[k].outputs}
    assert made & gone <= {b.sum for b in blocks}
    kept = {n for n in (b.sum for b in blocks) if n in made}
    inside = {name for node in groups.graph.nodes if node.home for name in node.inputs}
    assert kept <= {*groups.graph.outputs, *inside}
    counts = np.asarray([len(removed.get(g, ())) for g in range(len(groups))], np.int64)
    assert CostModel(shorter)(counts) == CostModel(spa.analyze(pruned))()


def _no_weights() -> tuple[Net, Tensor]:
    made, x = net()
    return made, made.add(x, made.softmax(made.linear(x, 8)))


def _read_elsewhere() -> tuple[Net, Tensor]:
    made, x = net()
    y = made.linear(x, 8)
    return made, made.mul(made.add(x, made.add(y, ffn(made, x))), made.sigmoid(y))


@pytest.mark.parametrize(
    ("make", "why"),
    [(_no_weights, "no weights"), (_read_elsewhere, "read elsewhere")],
)
def test_held(make: Callable[[], tuple[Net, Tensor]], why: str) -> None:
    found = find(spa.analyze(head(*make())))
    assert [why in text for text in found.held.values()] == [True]


def _scores_with_a_mask() -> ModelProto:
    """Of two layers, with a mask of the shape of the scores."""
    made, x = net()
    mask = made.relu(made.input("mask", ("batch", 3, 3)))
    for _ in range(2):
        q, k, v = (made.linear(x, 8) for _ in "qkv")
        scores = made.add(made.matmul(q, made.transpose(k, 0, 2, 1)), mask)
        x = made.linear(made.matmul(made.softmax(scores), v), 8)
    return head(made, x)


def _gelu() -> ModelProto:
    """x + 0.04 x^3 has no weighted sum."""
    made, x = net()
    cube = made.mul(made.node("Pow", x, np.float32(3)), 0.044715)
    return head(made, made.mul(x, made.node("Tanh", made.mul(made.add(x, cube), 0.8))))


def _projected() -> ModelProto:
    made, x = net()
    return head(made, made.add(made.linear(x, 8), ffn(made, x)))


@pytest.mark.parametrize("make", [_scores_with_a_mask, _gelu, _projected])
def test_no_branches(make: Callable[[], ModelProto]) -> None:
    found = find(spa.analyze(make()))
    assert not found.blocks
    assert not found.held


def test_the_law_sees_what_does_not_close() -> None:
    """Without the bias at its end, what is left of the branch still adds something."""
    groups = spa.analyze(_plain())
    (block,) = find(groups).blocks
    assert len(block.closing) == 2
    for place in block.closing:
        open_ = replace(block, closing=block.closing - {place})
        with pytest.raises(spa.ValidationError, match="the law does not hold"):
            check(groups, [open_], {})
