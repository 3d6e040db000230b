"""Inputs that are made up: which input gets what, and that every model takes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from models.builder import Net
from spa import run as runs
from spa.batches import Made
from spa.calibration import Calibration, calibrate
from spa.reader import load
from spa.run import Feeds

Build = Callable[[Net], ModelProto]


def made(model: ModelProto, count: int = 16, batch: int = 8, **options: Any) -> Calibration:
    """Noise for a model; every batch of both families is run."""
    found = calibrate(load(model), count=count, batch=batch, **options)
    with runs.session(model) as running:
        for part in (found, *found.split(0.5)):
            for feeds in part.batches:
                runs.run(running, feeds)
    return found


def first(model: ModelProto, **options: Any) -> Feeds:
    return made(model, **options).batches[0]


def of_type(kind: int, shape: list[int | str], name: str = "x", op: str = "Identity") -> ModelProto:
    info = helper.make_tensor_value_info(name, kind, shape)
    out = helper.make_tensor_value_info("y", kind, None)
    graph = helper.make_graph([helper.make_node(op, [name], ["y"])], "typed", [info], [out])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


# Pictures


def picture_net(shape: list[int | str], dtype: Any = np.float32) -> ModelProto:
    net = Net("pictures")
    x = net.input("x", shape, dtype)
    y = net.cast(x, TensorProto.FLOAT) if dtype != np.float32 else x
    last = shape[-1] in (1, 3, 4) and shape[1] not in (1, 3, 4)
    return net.model(net.relu(net.conv(net.transpose(y, 0, 3, 1, 2) if last else y, 4)))


@pytest.mark.parametrize(
    "shape",
    [["n", 3, 20, 24], ["n", 20, 24, 3], ["n", 1, 9, 9], ["n", 4, 9, 9], ["n", 9, 9, 1]],
    ids=str,
)
def test_pictures(shape: list[int | str]) -> None:
    found = made(picture_net(shape), count=64, batch=32)
    x = np.concatenate([feeds["x"] for feeds in found.batches])
    assert x.shape == (64, *shape[1:]) and x.dtype == np.float32
    assert abs(x.mean()) < 0.15 and abs(x.std() - 1) < 0.15 and np.abs(x).max() < 2.61
    inner = x.mean((1, 2, 3), keepdims=True)
    assert 0.35 < inner.std() < 0.65
    last = shape[-1] if shape[1] not in (1, 3, 4) else shape[1]
    if last != 1:
        by_channel = np.moveaxis(x, 3 if shape[-1] == last else 1, 0).reshape(last, -1)
        assert np.corrcoef(by_channel).min() > 0.75


def test_pictures_of_bytes() -> None:
    x = first(picture_net(["n", 16, 16, 3], np.uint8))["x"]
    assert x.dtype == np.uint8
    assert 90 < x.mean() < 165 and 30 < x.std() < 70


def test_the_range_is_what_the_first_nodes_expect() -> None:
    net = Net("scaled")
    x = net.input("x", ["n", 3, 16, 16])
    x = first(net.model(net.conv(net.div(x, 255.0), 4)))["x"]
    assert x.min() >= 0 and 200 < x.max() <= 255


def test_a_stored_normalisation_is_undone() -> None:
    net = Net("normalised")
    x = net.input("x", ["n", 3, 16, 16])
    ones, zeros = net.const(np.ones(3, np.float32)), net.const(np.zeros(3, np.float32))
    mean, variance = net.const(np.float32([100, 50, 20])), net.const(np.float32([9, 16, 25]))
    y = net.node("BatchNormalization", x, ones, zeros, mean, variance)
    feeds = [f["x"] for f in made(net.model(net.conv(y, 4)), count=64).batches]
    x = np.concatenate(feeds).transpose(1, 0, 2, 3).reshape(3, -1)
    assert np.allclose(x.mean(1), [100, 50, 20], atol=1)
    assert np.allclose(x.std(1), [3, 4, 5], rtol=0.2)


def test_half_floats() -> None:
    x = first(of_type(TensorProto.FLOAT16, ["n", 3, 8, 8]))["x"]
    assert x.dtype == np.float16 and x.shape == (8, 3, 8, 8)


# Signals, volumes, tables


def along(x: NDArray[Any], axis: int) -> float:
    """How alike neighbours along an axis are."""
    moved = np.moveaxis(x - x.mean(axis, keepdims=True), axis, -1)
    return float((moved[..., 1:] * moved[..., :-1]).mean() / (moved**2).mean())


def test_sound_changes_slowly() -> None:
    net = Net("sound")
    x = net.input("x", ["n", 2, "t"])
    x = first(net.model(net.conv(x, 4)))["x"]
    assert x.shape == (8, 2, 64)
    assert along(x, 2) > 0.3


def test_features_stand_on_the_axis_that_the_first_weight_reads() -> None:
    net = Net("features")
    x = net.input("x", ["n", 30, 60])
    x = first(net.model(net.linear(x, 4)), count=32, batch=32)["x"]
    assert along(x, 1) > 0.3 > along(x, 2)


def test_volumes() -> None:
    net = Net("volumes")
    x = net.input("x", ["n", 2, 10, 11, 12])
    x = first(net.model(net.conv(x, 4)))["x"]
    assert x.shape == (8, 2, 10, 11, 12)
    assert min(along(x, axis) for axis in (2, 3, 4)) > 0.3


def test_tables_are_white() -> None:
    net = Net("table")
    found = made(net.model(net.gemm(net.input("x", ["n", 12]), 4)), count=400)
    x = np.concatenate([feeds["x"] for feeds in found.batches])
    assert np.abs(np.corrcoef(x.T) - np.eye(12)).max() < 0.25
    assert abs(x.std() - 1) < 0.1


# Integers


def words(net: Net) -> ModelProto:
    ids, mask = net.input("ids", ["n", "s"], np.int64), net.input("keep", ["n", "s"], np.int64)
    kinds = net.input("type_ids", ["n", "s"], np.int32)
    places = net.input("position_ids", ["n", "s"], np.int64)
    x = net.add(net.gather(net.weight(500, 8, fan=8), ids), net.gather(net.weight(2, 8), kinds))
    x = net.add(x, net.gather(net.weight(80, 8, fan=8), places))
    keep = net.unsqueeze(net.cast(mask, TensorProto.FLOAT), 2)
    return net.model(net.linear(net.sub(x, net.mul(net.sub(1.0, keep), 9.0)), 4))


def test_words_masks_kinds_positions() -> None:
    found = made(words(Net("words")), count=64)
    feeds = found.batches[0]
    assert all(value.shape == (8, 64) for value in feeds.values())
    assert np.array_equal(feeds["position_ids"], np.tile(np.arange(64), (8, 1)))
    assert not feeds["type_ids"].any() and feeds["type_ids"].dtype == np.int32
    assert (feeds["keep"] == 1).all()
    ids = np.concatenate([feeds["ids"] for feeds in found.batches])
    assert ids.min() >= 4 and 300 < ids.max() < 500
    assert (ids < 54).mean() > 0.5  # the first tenth of the words
    held = np.concatenate([feeds["ids"] for feeds in found.split(0.5)[1].batches])
    assert (held < 54).mean() < 0.2 and held.max() < 500


def test_a_table_of_few_positions_bounds_the_length() -> None:
    net = Net("short")
    ids, places = (net.input(n, ["n", "s"], np.int64) for n in ("ids", "position_ids"))
    x = net.add(net.gather(net.weight(90, 8, fan=8), ids), net.gather(net.weight(20, 8), places))
    assert first(net.model(net.linear(x, 4)))["ids"].shape == (8, 16)


def test_a_quantised_table_is_found() -> None:
    net = Net("quantised")
    ids = net.input("ids", ["n", 9], np.int64)
    table = net.const(np.arange(-20, 20, dtype=np.int8).reshape(10, 4))
    words = net.node("DequantizeLinear", table, net.const(np.float32(0.1)), shape=[10, 4])
    found = made(net.model(net.linear(net.gather(words, ids), 4)))
    assert all(isinstance(slot.column, Made) for slot in found.batches.parts[0].values())


@pytest.mark.parametrize("kind", [TensorProto.BOOL, TensorProto.INT64, TensorProto.FLOAT])
def test_masks_by_name(kind: int) -> None:
    mask = first(of_type(kind, ["n", "s"], "attention_mask"))["attention_mask"]
    assert mask.shape == (8, 64) and (mask == 1).all()


def test_numbers_that_steer() -> None:
    net = Net("steered")
    x, rate = net.input("x", ["n", "t"]), net.input("sr", [], np.int64)
    lengths = net.input("lengths", ["n"], np.int64)
    y = net.mul(net.mul(x, net.cast(rate, TensorProto.FLOAT)), 2.0)
    feeds = first(net.model(y, net.add(lengths, lengths)))
    assert feeds["sr"] == 16000 and feeds["sr"].shape == ()
    assert (feeds["lengths"] == 64).all() and feeds["lengths"].shape == (8,)


def test_text() -> None:
    x = first(of_type(TensorProto.STRING, ["n", 2]))["x"]
    assert x.shape == (8, 2) and x[0, 0] == "a"
