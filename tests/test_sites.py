"""Sites against onnxruntime: the rows and weights of a site make the output of its node."""

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from models.builder import Net
from spa.graph import index
from spa.parts import parts
from spa.sites import Site, sites
from spa.stream import Stream
from tests.ops.cases import contrib


def conv_net(**attrs: object) -> ModelProto:
    net = Net("conv")
    groups = int(attrs.get("group", 1))  # type: ignore[call-overload]
    w = np.random.default_rng(0).standard_normal((6, 4 // groups, 3, 3)).astype(np.float32)
    x = net.input("x", (2, 4, 9, 8))
    y = net.node("Conv", x, w, np.arange(6, dtype=np.float32), shape=None, **attrs)
    return net.model(y)


def made(model: ModelProto, site: Site, x: np.ndarray) -> np.ndarray:
    """What the rows of a site give, shape (rows, outputs), without the bias."""
    graph = index(model)
    w = site.forward(graph.array(site.weight))
    rows = site.rows(x, 10**9, np.random.default_rng(0))
    return np.einsum("rgit,goit->rgo", rows, w).reshape(len(rows), -1)


def run(model: ModelProto, x: np.ndarray, name: str) -> np.ndarray:
    with Stream(parts(model), [{"x": x}], {name}) as stream:
        return np.asarray(stream([name])[0][name])


@pytest.mark.parametrize(
    "attrs",
    [
        {"kernel_shape": [3, 3]},
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
        {"kernel_shape": [3, 3], "pads": [0, 1, 2, 1], "strides": [2, 1]},
        {"kernel_shape": [3, 3], "dilations": [2, 2]},
        {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"kernel_shape": [3, 3], "auto_pad": "SAME_LOWER", "strides": [2, 2]},
        {"kernel_shape": [3, 3], "auto_pad": "VALID"},
        {"kernel_shape": [3, 3], "group": 2, "pads": [1, 1, 1, 1]},
    ],
)
def test_rows_of_a_convolution(attrs: dict[str, object]) -> None:
    model = conv_net(**attrs)
    (site,) = sites(index(model))
    x = np.random.default_rng(1).standard_normal((2, 4, 9, 8)).astype(np.float32)
    want = run(model, x, site.y) - np.arange(6, dtype=np.float32)[:, None, None]
    assert np.allclose(made(model, site, x), np.moveaxis(want, 1, -1).reshape(-1, 6), atol=1e-4)


def test_rows_are_chosen_alike_for_arrays_of_one_shape() -> None:
    (site,) = sites(index(conv_net(kernel_shape=[3, 3])))
    x = np.random.default_rng(1).standard_normal((2, 4, 9, 8)).astype(np.float32)
    one = site.rows(x, 10, np.random.default_rng(5))
    other = site.rows(2 * x, 10, np.random.default_rng(5))
    assert len(one) == 10 and np.array_equal(2 * one, other)


def test_weights_go_there_and_back() -> None:
    net = Net("all")
    x = net.relu(net.conv(net.input("x", (1, 3, 6, 6)), 8))
    x = net.node("ConvTranspose", x, np.ones((8, 5, 2, 2), np.float32), shape=(1, 5, 7, 7))
    x = net.gemm(net.flatten(net.pool(x)), 4)
    graph = index(net.model(net.matmul(x, np.ones((4, 3), np.float32))))
    found = sites(graph)
    assert [graph.nodes[s.node].op_type for s in found] == [
        "Conv", "ConvTranspose", "Gemm", "MatMul"
    ]  # fmt: skip
    for site in found:
        w = graph.array(site.weight)
        assert np.array_equal(site.backward(site.forward(w), w.shape), w)
    assert [s.bias is not None for s in found] == [True, False, True, False]


def test_a_bias_in_the_normalisation_behind_and_in_the_sum_behind() -> None:
    net = Net("biases")
    x = net.bn(net.conv(net.input("x", (1, 3, 4, 4)), 8, bias=False))
    x = net.linear(net.flatten(net.pool(x)), 5)
    graph = index(net.model(x))
    conv, last = sites(graph)
    assert conv.bias is not None and conv.bias.scale == -1 and not conv.bias.own
    assert graph.nodes[conv.bias.place[0]].op_type == "BatchNormalization"
    assert last.bias is not None and last.bias.scale == 1


def test_fused_nodes_are_sites_of_their_sums() -> None:
    """A bias in the node counts; what follows is behind the activation."""
    net = Net("fused")
    w, b = net.weight(8, 3, 3, 3), net.uniform(-1, 1, 8)
    x = net.input("x", (1, 3, 6, 6))
    x = contrib(net, "FusedConv", [x, w, b], (1, 8, 4, 4), activation="Relu")[0]
    x = contrib(net, "FusedConv", [x, net.weight(8, 8, 1, 1)], (1, 8, 4, 4), activation="Relu")[0]
    x = net.flatten(net.bn(x))
    x = contrib(net, "FusedGemm", [x, net.weight(5, 128)], (1, 5), transB=1, activation="Tanh")[0]
    x = contrib(net, "FusedMatMul", [x, net.weight(4, 5)], (1, 4), transB=1)[0]
    graph = index(net.model(net.add(x, net.uniform(-1, 1, 4))))
    found = sites(graph)
    assert [s.bias is not None for s in found] == [True, False, False, True]
    assert [s.bias.own for s in found if s.bias] == [True, False]
    for site in found:
        w = graph.array(site.weight)
        assert np.array_equal(site.backward(site.forward(w), w.shape), w)


def test_shared_weights_are_no_site() -> None:
    net = Net("shared")
    x = net.matmul(net.input("x", (2, 4)), np.ones((4, 4), np.float32))
    model = net.model(net.matmul(x, np.ones((4, 4), np.float32)))
    assert len(sites(index(model))) == 2
    model.graph.node[1].input[1] = model.graph.node[0].input[1]
    assert sites(index(model)) == []


def test_a_weight_behind_an_identity() -> None:
    model = conv_net(kernel_shape=[3, 3])
    node = model.graph.node[0]
    name = node.input[1]
    identity = model.graph.node.add(op_type="Identity", input=[name], output=["w2"])
    model.graph.node.remove(identity)
    model.graph.node.insert(0, identity)
    model.graph.node[1].input[1] = "w2"
    (site,) = sites(index(model))
    assert site.place == (0, 0)
    assert numpy_helper.to_array(model.graph.initializer[0]).dtype == np.float32
    assert model.graph.initializer[0].data_type == TensorProto.FLOAT
