"""What is picked from several parts put together is picked from the part that holds it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import numpy_helper

import spa
from models.builder import Net, Tensor
from tests.oracle import check

WIDTH = 6


def _layer(net: Net, x: Tensor, size: int, ways: int) -> list[Tensor]:
    weights = [
        net.uniform(-0.5, 0.5, ways, 3 * WIDTH, n, name="gru.weight") for n in (size, WIDTH)
    ]  # fmt: skip
    way = "bidirectional" if ways == 2 else "forward"
    return net.nodes("GRU", [x, *weights], 2, hidden_size=WIDTH, direction=way)


def _layers(net: Net, ways: int = 1) -> list[Tensor]:
    """The last states of three layers, in one tensor, as PyTorch returns them."""
    x, states = net.input("x", (5, "batch", 3)), []
    for _ in range(3):
        y, last = _layer(net, x, x.shape[-1], ways)
        x = net.reshape(net.transpose(y, 0, 2, 1, 3), [0, 0, ways * WIDTH])
        states.append(last)
    return states


@pytest.mark.parametrize("at", [2, -1])
def test_layers_of_which_the_last_is_read_have_widths_of_their_own(at: int) -> None:
    net = Net("layers")
    last = net.gather(net.concat(*_layers(net), axis=0), at)
    groups = check(net.model(net.linear(last, 2)), 3)
    assert "Concat" not in {node.op_type for node in groups.graph.nodes}


def test_both_ways_of_the_last_layer() -> None:
    net = Net("ways")
    states = net.concat(*_layers(net, 2), axis=0)
    y = net.concat(net.gather(states, -2), net.gather(states, -1))
    assert len(check(net.model(net.linear(y, 2)), 3)) == 3


def _gathered(net: Net, states: Tensor) -> Tensor:
    """Stored by a node of its own, as TorchScript writes all its numbers."""
    at = net.node("Constant", value=numpy_helper.from_array(np.int64(-1)))
    return net.gather(states, at)


def _sliced(net: Net, states: Tensor) -> Tensor:
    return net.squeeze(net.slice(states, -1, 2**63 - 1, axis=0), 0)


def _sliced_by_attributes(net: Net, states: Tensor) -> Tensor:
    last = net.node("Slice", states, axes=[0], starts=[-1], ends=[2**63 - 1])
    return net.node("Squeeze", last, axes=[0])


def _split(net: Net, states: Tensor) -> Tensor:
    return net.squeeze(net.split(states, [1, 1, 1], axis=0)[2], 0)


def _split_by_attribute(net: Net, states: Tensor) -> Tensor:
    last = net.nodes("Split", [states], 3, axis=0, split=[1, 1, 1])[2]
    return net.node("Squeeze", last, axes=[0])


@pytest.mark.parametrize(
    ("pick", "opset"),
    [
        (_gathered, 17),
        (_sliced, 13),
        (_split, 13),
        (_sliced_by_attributes, 9),
        (_split_by_attribute, 9),
    ],
)
def test_every_way_to_pick_the_last(pick: Callable[[Net, Tensor], Tensor], opset: int) -> None:
    net = Net("picked", opset=opset)
    last = pick(net, net.concat(*_layers(net), axis=0))
    groups = check(net.model(net.gemm(last, 2)), 3)
    assert "Concat" not in {node.op_type for node in groups.graph.nodes}


@pytest.mark.parametrize("ways", [1, 2])
def test_layers_and_ways_as_axes_of_their_own(ways: int) -> None:
    """As the documentation of PyTorch takes them apart."""
    net = Net("view")
    states = net.concat(*_layers(net, ways), axis=0)
    shape = net.shape_vector(3, ways, net.dim(states, 1), WIDTH)
    apart = net.node("Reshape", states, shape, shape=(3, ways, "batch", WIDTH))
    last = net.transpose(net.gather(apart, -1), 1, 0, 2)
    groups = check(net.model(net.linear(net.reshape(last, [0, ways * WIDTH]), 2)), 3)
    assert states.name not in groups.graph.makers


def _both(net: Net, states: Tensor) -> list[Tensor]:
    return [net.linear(net.gather(states, [0, 2]), 2)]


def _also_whole(net: Net, states: Tensor) -> list[Tensor]:
    return [net.linear(net.gather(states, 1), 2), net.linear(net.relu(states), 2)]


@pytest.mark.parametrize("use", [_both, _also_whole])
def test_what_is_read_together_has_one_width(use: Callable[[Net, Tensor], list[Tensor]]) -> None:
    net = Net("together")
    check(net.model(*use(net, net.concat(*_layers(net), axis=0))), 1)


def test_parts_of_unknown_size_stay_together() -> None:
    net = Net("free")
    parts = [net.linear(net.input(name, ("n", 3)), 4) for name in "xy"]
    y = net.gather(net.concat(*parts, axis=0), np.int64(1))
    groups = spa.analyze(net.model(net.linear(net.unsqueeze(y, 0), 2)))
    assert groups.graph.given is None and len(groups) == 1
