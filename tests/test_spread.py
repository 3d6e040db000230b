"""What is expanded once for several readers that broadcast anyway ties nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, TensorProto

from models.builder import Net, Tensor
from tests.oracle import check

HEADS, WIDTH = 4, 3


def _attention(net: Net, x: Tensor, masked: Callable[[Tensor], Tensor]) -> Tensor:
    def heads(x: Tensor, *perm: int) -> Tensor:
        return net.transpose(net.reshape(x, [0, 0, HEADS, WIDTH]), *perm)

    size = HEADS * WIDTH
    q, k, v = (net.linear(x, size) for _ in range(3))
    scores = net.matmul(heads(q, 0, 2, 1, 3), heads(k, 0, 2, 3, 1))
    y = net.matmul(net.softmax(masked(scores)), heads(v, 0, 2, 1, 3))
    return net.linear(net.reshape(net.transpose(y, 0, 2, 1, 3), [0, 0, size]), 8)


def _added(net: Net, mask: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda scores: net.add(scores, mask)


def _filled(net: Net, mask: Tensor) -> Callable[[Tensor], Tensor]:
    hidden = net.cast(net.mul(mask, -1.0), TensorProto.BOOL)
    return lambda scores: net.node("Where", hidden, np.float32(-9), scores)


def _model(use: Callable[[Net, Tensor], Callable[[Tensor], Tensor]]) -> ModelProto:
    """Two layers of attention whose scores meet one mask, expanded to all heads."""
    net = Net("mask")
    x, mask = net.input("x", (2, 5, 8)), net.input("mask", (2, 1, 1, 5))
    masked = use(net, net.node("Expand", mask, [2, HEADS, 5, 5]))
    for _ in range(2):
        x = net.add(_attention(net, x, masked), x)
    return net.model(net.linear(x, 3))


@pytest.mark.parametrize("use", [_added, _filled])
def test_heads_of_layers_are_their_own(
    use: Callable[[Net, Tensor], Callable[[Tensor], Tensor]],
) -> None:
    groups = check(_model(use))
    heads = [group for group in groups if group.kind == "heads"]
    assert [group.size for group in heads] == [HEADS, HEADS]
    assert "Expand" not in {node.op_type for node in groups.graph.nodes}


def _biased(net: Net, mask: Tensor) -> Callable[[Tensor], Tensor]:
    """Every layer makes something of the mask that has its heads from the Expand alone."""
    return lambda scores: net.add(scores, net.add(mask, net.uniform(-1, 1, 5)))


def test_what_gives_others_their_heads_stays() -> None:
    groups = check(_model(_biased))
    assert groups.graph.given is None
    assert [group.size for group in groups if group.kind == "heads"] == [HEADS]
