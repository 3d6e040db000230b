"""Channels in onnxruntime's blocks, written back as plain ones: what is computed stays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto

import spa
from models.builder import Net, Tensor
from spa import run
from spa.graph import Graph
from spa.unblock import DOMAIN, block_size
from tests.models.test_optimised import optimised
from tests.oracle import check

Body = Callable[[Net, Tensor], Tensor]


def _model(body: Body, channels: int = 32, opset: int = 17) -> ModelProto:
    net = Net("blocks", opset=opset)
    x = net.conv(net.input("x", ("batch", 3, 12, 12)), channels)
    return net.model(net.conv(body(net, x), 5))


def _blocked(body: Body, folder: Path, **options: int) -> tuple[ModelProto, Graph]:
    model = optimised(_model(body, **options), "all", folder)
    assert any(node.domain == DOMAIN for node in model.graph.node), "no blocks were made"
    return model, spa.analyze(model).graph


def _outputs(model: ModelProto) -> np.ndarray:
    x = np.random.default_rng(0).standard_normal((2, 3, 12, 12)).astype(np.float32)
    with run.session(model) as running:
        return next(iter(run.run(running, {"x": x}).values()))


def _same(net: Net, x: Tensor) -> Tensor:
    return x


def _residual(net: Net, x: Tensor) -> Tensor:
    return net.relu(net.add(net.conv(net.relu(net.conv(x, 32)), 32), x))


def _upsampled(net: Net, x: Tensor) -> Tensor:
    scales = np.asarray([1, 1, 2, 2], np.float32)
    nearest = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric",
               "nearest_mode": "floor"}  # fmt: skip
    return net.node("Resize", x, None, scales, **nearest)


BODIES: dict[str, Body] = {
    "first": _same,
    "residual": _residual,
    "depthwise": lambda net, x: net.relu(net.conv(net.relu(x), 32, groups=32)),
    "grouped": lambda net, x: net.relu(net.conv(net.relu(x), 64, groups=2)),
    "pools": lambda net, x: net.pool(net.pool(x, op="AveragePool"), k=1, stride=1),
    "joined": lambda net, x: net.concat(net.conv(x, 16), net.conv(x, 32)),
    "upsampled": _upsampled,
    "gate": lambda net, x: net.squeeze_excite(x, 16),
    "batch-norm": lambda net, x: net.relu(net.bn(net.pool(x))),
    **{
        op: lambda net, x, op=op: net.node(op, net.conv(x, 32))
        for op in ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish")
    },
    "clipped": lambda net, x: net.relu6(net.conv(x, 32)),
}


@pytest.mark.parametrize("name", BODIES)
def test_the_plain_form_computes_the_same(name: str, tmp_path: Path) -> None:
    model, graph = _blocked(BODIES[name], tmp_path)
    assert not any(node.domain == DOMAIN for node in graph.nodes)
    assert graph.given is model
    assert np.allclose(_outputs(model), _outputs(graph.model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("channels", [12, 20, 28])
def test_zeros_that_fill_up_a_block_are_dropped(channels: int, tmp_path: Path) -> None:
    """Sizes are those of the plain model, whatever the size of a block."""
    plain = _model(_same, channels)
    model = optimised(plain, "all", tmp_path)
    shapes = [
        sorted(c.shape for c in spa.analyze(m).graph.constants.values()) for m in (model, plain)
    ]
    assert shapes[0] == shapes[1]


def test_an_activation_of_a_later_opset(tmp_path: Path) -> None:
    model, graph = _blocked(
        lambda net, x: net.mul(x, net.div(net.node("Clip", net.add(x, 3.0), 0.0, 6.0), 6.0)),
        tmp_path, opset=13,
    )  # fmt: skip
    assert np.allclose(_outputs(model), _outputs(graph.model), rtol=0, atol=1e-4)


def test_blocks_as_an_axis_of_their_own() -> None:
    """So onnxruntime writes sums of maps whose sides it does not know to be the same."""
    net, b = Net("axis"), block_size()
    x = net.conv(net.input("x", (2, 3, 12, 12)), 32)
    blocked = net.node("ReorderInput", x, shape=x.shape, domain=DOMAIN)
    shown = [net.reshape(y, [0, 32 // b, 12, 12, b]) for y in (blocked, net.relu(blocked))]
    back = net.reshape(net.mul(*shown), [0, 32, 12, 12])
    y = net.node("ReorderOutput", back, shape=x.shape, domain=DOMAIN, channels=32)
    model = net.model(net.conv(y, 5))
    graph = check(model, 1).graph
    assert not any(node.op_type == "Reshape" for node in graph.nodes)
    assert np.allclose(_outputs(model), _outputs(graph.model), rtol=0, atol=1e-4)


def test_groups_and_law(tmp_path: Path) -> None:
    model, _ = _blocked(_residual, tmp_path, channels=32)
    check(model, len(spa.analyze(_model(_residual))))


def _rounded(net: Net, x: Tensor) -> Tensor:
    """The mean of four numbers of a grid, on that grid: half of a step comes out all the time."""

    def on_grid(x: Tensor) -> Tensor:
        code = np.float32(0.05), np.uint8(0)
        return net.node("DequantizeLinear", net.node("QuantizeLinear", x, *code), *code)

    return on_grid(net.pool(net.node("Abs", on_grid(x)), op="AveragePool"))


def test_a_form_that_rounds_the_other_way_is_the_same(tmp_path: Path) -> None:
    model, graph = _blocked(_rounded, tmp_path)
    assert not any(node.domain == DOMAIN for node in graph.nodes)
    check(model, 1)


def test_the_size_of_a_block() -> None:
    assert block_size() in (4, 8, 16, 32)


def test_what_cannot_be_told_stays_locked(tmp_path: Path) -> None:
    """With an activation that nobody knows the file stays as it is, and all in it is whole."""
    model, _ = _blocked(_residual, tmp_path)
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type == "Conv":
            attribute = next((a for a in node.attribute if a.name == "activation"), None)
            if attribute is not None:
                attribute.s = b"Unheard"
    groups = spa.analyze(model)
    assert groups.graph.model is model
    assert len(groups) == 0 and groups.locks()
