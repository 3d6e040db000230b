"""Products of activations: whose outputs they multiply, against what runs of the models show."""

from __future__ import annotations

from itertools import product as pairs

import numpy as np
import pytest
from onnx import ModelProto

import spa
from models.blocks.table import BLOCKS
from models.builder import Net
from spa.calibration import calibrate
from spa.graph import Graph
from spa.parts import parts
from spa.products import Product, products
from spa.stays import is_alone
from spa.stream import Stream

FOUND = (
    *("self_attention", "cross_attention", "merged_batch_and_heads", "grouped_by_expand"),
    *("grouped_by_broadcast", "one_key_broadcast", "windows", "fused_innermost", "fused_per_group"),
    *("legacy_layout", "channels_first_fused", "differential_attention", "mask_causal"),
)


def look(model: ModelProto) -> tuple[Graph, list[Product], dict[str, np.ndarray]]:
    """The products of a model, and its tensors on made-up inputs."""
    graph = spa.analyze(model).graph
    feeds = calibrate(graph, count=4, batch=2).batches[0]
    found = products(graph, feeds)
    names = [n for p in found for s in p.sides for n in (s.made, s.name)]
    with Stream(parts(graph), [feeds], set(names)) as run:
        return graph, found, run(list(dict.fromkeys(names)))[0]


@pytest.mark.parametrize("name", FOUND)
def test_sides_are_outputs_that_were_moved_about(name: str) -> None:
    _, found, values = look(BLOCKS[name][0]())
    assert len(found) == 1
    (product,) = found
    seen = [v(values[s.name]) for s, v in zip(product.sides, product.views, strict=True)]
    lead = np.broadcast_shapes(*(v.shape[:-2] for v in seen))
    for side, value in zip(product.sides, seen, strict=True):
        made, got = values[side.made], np.broadcast_to(value, (*lead, *value.shape[-2:]))
        columns = np.moveaxis(made, side.site.axis, -1).reshape(-1, made.shape[side.site.axis])
        heads = product.heads_at(got.shape[:-2])
        assert heads is not None
        for k, head in zip(np.ndindex(*got.shape[:-2]), heads, strict=True):
            for j in range(got.shape[-1]):
                wanted = set(np.float32(columns[:, side.channels[head, j]] * side.scale[head]))
                assert set(got[(*k, slice(None), j)].tolist()) <= wanted
    first = product.sides[0].channels
    assert len(np.unique(first)) == first.size


def test_scores_that_meet_a_softmax_are_centred() -> None:
    for name, centred in (("self_attention", True), ("mask_where", True), ("retention", False)):
        _, (found,), _ = look(BLOCKS[name][0]())
        assert found.centred == centred, name


def dot(net: Net, turn: str) -> ModelProto:
    """Products of queries of a sort with keys."""
    x = net.input("x", ("n", 5, 8))
    q, k = net.linear(x, 6), net.linear(x, 6)
    if turn == "relu":
        q = net.relu(q)
    if turn == "shift":
        q = net.add(q, net.const(np.arange(1.0, 6, dtype=np.float32).reshape(1, 5, 1), "shift"))
    if turn == "stretch":
        k = net.mul(k, net.const(np.arange(1.0, 7, dtype=np.float32).reshape(1, 1, 6), "times"))
    if turn == "norm":
        q = net.layer_norm(q)
    if turn == "positions":
        q = net.mul(q, net.const(np.arange(1.0, 6, dtype=np.float32).reshape(1, 5, 1), "at"))
    if turn == "same":
        return net.model(net.matmul(net.softmax(net.matmul(q, net.transpose(q, 0, 2, 1))), x))
    return net.model(net.matmul(net.softmax(net.matmul(q, net.transpose(k, 0, 2, 1))), x))


@pytest.mark.parametrize("turn", ["relu", "shift", "stretch", "norm", "positions"])
def test_what_does_more_than_move_is_none(turn: str) -> None:
    assert not look(dot(Net(turn), turn))[1]
    assert len(look(dot(Net("plain"), ""))[1]) == 1


def test_channels_that_are_read_elsewhere_are_not_alone() -> None:
    net = Net("twice")
    x = net.input("x", ("n", 5, 8))
    q, k = net.linear(x, 6), net.linear(x, 6)
    y = net.matmul(net.softmax(net.matmul(q, net.transpose(k, 0, 2, 1))), x)
    for model, alone in (
        (net.model(net.add(y, net.linear(q, 8))), False),
        (dot(Net("once"), ""), True),
    ):
        groups = spa.analyze(model)
        (found,) = products(groups.graph, {"x": np.zeros((2, 5, 8), np.float32)})
        at = {(found.sides[0].site.weight, 1)}
        gone = {
            g: np.asarray([1])
            for g, group in enumerate(groups)
            if at & {(m.tensor, m.axis) for m in group.members}
        }
        assert len(gone) == 1 and is_alone(groups, gone, found) == alone


def test_heads_of_other_batches() -> None:
    _, (found,), _ = look(BLOCKS["self_attention"][0]())
    for count in (1, 2, 7):
        heads = found.heads_at((count, found.count))
        assert heads is not None
        wanted = [h for _, h in pairs(range(count), range(found.count))]
        assert heads.tolist() == [found.heads[h] for h in wanted]
    assert found.heads_at((3,)) is None
