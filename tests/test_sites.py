"""Sites against onnxruntime: the rows and weights of a site make the output of its node."""

from collections.abc import Callable

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, numpy_helper

from models.builder import Net, Tensor
from spa.analysis import analyze
from spa.index import index
from spa.parts import parts
from spa.sites import Site, sites
from spa.stream import Stream
from tests.ops.cases import CODE, coded, contrib, dequantise, quantise


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


@pytest.mark.parametrize("shape", [(7, 4), (1, 7, 4), (3, 7, 4), (2, 1, 7, 4), (2, 3, 7, 4)])
def test_rows_of_a_stack_of_matrices(shape: tuple[int, ...]) -> None:
    net = Net("stack")
    model = net.model(net.matmul(net.input("x", shape), net.weight(3, 4, 5)))
    (site,) = sites(index(model))
    assert (site.groups, site.in_axis, site.out_axis) == (3, 1, 2) and site.bias is None
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    want = np.moveaxis(run(model, x, site.y), -3, -2).reshape(-1, 15)
    assert np.allclose(made(model, site, x), want, atol=1e-5)
    few = site.rows(x, 5, np.random.default_rng(0))
    assert few.shape == (5, 3, 4, 1)
    w = index(model).array(site.weight)
    assert np.array_equal(site.backward(site.forward(w), w.shape), w)


@pytest.mark.parametrize("shape", [(1, 4, 5), (2, 1 << 16, 1)])
def test_a_stack_of_one_or_too_large_is_no_site(shape: tuple[int, ...]) -> None:
    net = Net("stack")
    x = net.input("x", (2, 1, shape[1]))
    assert not sites(index(net.model(net.matmul(x, np.ones(shape, np.float32)))))


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


@pytest.mark.parametrize("directions", [1, 2])
def test_what_recurrent_layers_make_of_their_input(directions: int) -> None:
    """Without a recurrence a plain one is the tangent of it."""
    net, random = Net("rnn"), np.random.default_rng(0)
    w = random.standard_normal((directions, 4, 5)).astype(np.float32)
    b = random.standard_normal((directions, 8)).astype(np.float32)
    x = net.input("x", (6, 2, 5))
    kind = "bidirectional" if directions == 2 else "forward"
    r = np.zeros((directions, 4, 4), np.float32)
    y = net.node("RNN", x, w, r, b, shape=None, hidden_size=4, direction=kind)
    model = net.model(y)
    (site,) = sites(index(model))
    given = random.standard_normal((6, 2, 5)).astype(np.float32)
    want = np.moveaxis(run(model, given, model.graph.output[0].name), 1, 2)  # steps, batch, d, h
    shift = b[:, :4].ravel() + b[:, 4:].ravel()
    got = np.tanh(made(model, site, given) + shift)
    assert np.allclose(got, want.reshape(12, -1), atol=1e-5)
    stored = index(model).array(site.weight)
    assert np.array_equal(site.backward(site.forward(stored), stored.shape), stored)
    assert site.bias is not None
    change = np.arange(4.0 * directions)
    moved = site.bias.moved(b, change)
    assert np.allclose((moved[:, :4] + moved[:, 4:]).ravel(), shift + change)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3)])
def test_gates_are_the_outputs_of_a_recurrent_layer(kind: str, gates: int) -> None:
    net = Net(kind)
    x = net.input("x", (6, 2, 5))
    weights = [np.ones((2, gates * 3, n), np.float32) for n in (5, 3)]
    y, *_ = net.nodes(kind, [x, *weights], 2, hidden_size=3, direction="bidirectional")
    (site,) = sites(index(net.model(y)))
    assert site.forward(weights[0]).shape == (1, 2 * gates * 3, 5, 1) and site.bias is None


# Quantised weights -------------------------------------------------------------------------------

IN, OUT = 32, 6


def _stored(net: Net, *shape: int, name: str = "w") -> Tensor:
    return net.const(net.rng.integers(60, 190, shape).astype(np.uint8), name)


def _scales(n: int = OUT) -> np.ndarray:
    return np.linspace(0.004, 0.006, n, dtype=np.float32)


POINTS = (120 + np.arange(OUT) % 3).astype(np.uint8)


def _behind_dequantize(net: Net, x: Tensor) -> Tensor:
    w = net.node("DequantizeLinear", _stored(net, IN, OUT), _scales(), POINTS, axis=1)
    b = net.const(net.rng.integers(-99, 99, OUT).astype(np.int32), "b")
    return net.node("Gemm", x, w, net.node("DequantizeLinear", b, _scales(), axis=0))


def _as_it_comes(net: Net, x: Tensor) -> Tensor:
    q, scale, point = net.nodes("DynamicQuantizeLinear", [x], 3)
    y = net.node("MatMulInteger", q, _stored(net, IN, OUT), point, POINTS)
    return net.mul(net.cast(y, TensorProto.FLOAT), net.mul(scale, _scales()))


def _in_one(net: Net, x: Tensor) -> Tensor:
    return coded(
        net, "DynamicQuantizeMatMul", x, _stored(net, IN, OUT), _scales(), POINTS,
        net.uniform(-1, 1, OUT), shape=[8, OUT], dtype=np.float32,
    )  # fmt: skip


def _to_floats(net: Net, x: Tensor) -> Tensor:
    return coded(
        net, "QGemm", quantise(net, x), *CODE, _stored(net, OUT, IN), _scales(), POINTS,
        net.const(net.rng.integers(-99, 99, OUT).astype(np.int32), "b"), transB=1, shape=[8, OUT],
        dtype=np.float32,
    )  # fmt: skip


def _in_blocks(points: bool) -> Callable[[Net, Tensor], Tensor]:
    def body(net: Net, x: Tensor) -> Tensor:
        zeros = [net.const(net.rng.integers(0, 256, (OUT, 1)).astype(np.uint8))] if points else []
        w = net.const(net.rng.integers(0, 256, (OUT, 2, 8)).astype(np.uint8))
        return coded(
            net, "MatMulNBits", x, w,
            net.uniform(0.01, 0.02, OUT, 2), *zeros, shape=[8, OUT], dtype=np.float32, N=OUT, K=IN,
            bits=4, block_size=16,
        )  # fmt: skip

    return body


@pytest.mark.parametrize(
    "body",
    [_behind_dequantize, _as_it_comes, _in_one, _to_floats, _in_blocks(False), _in_blocks(True)],
)
def test_quantised_weights(body: Callable[[Net, Tensor], Tensor]) -> None:
    """What a site makes of its data is what its node makes; what is written back reads the same."""
    net = Net("quantised", opset=21)
    model = net.model(body(net, net.input("x", (8, IN))), ir_version=10)
    graph = analyze(model).graph
    (site,) = sites(graph)
    x = np.random.default_rng(1).standard_normal((8, IN)).astype(np.float32)
    want, data = run(model, x, site.y), x if site.x == "x" else run(model, x, site.x)
    if site.bias is not None:
        held = graph.array(graph.nodes[site.bias.place[0]].inputs[site.bias.place[1]])
        want = want - held * site.bias.step
    assert np.allclose(made(model, site, data), want, atol=0.02 * np.abs(want).max())
    w, stored = site.forward(graph.array(site.weight)), graph.array(site.weight)
    back = site.backward(w, stored.shape)
    assert site.rounds and back.dtype == stored.dtype and (back == stored).all()


@pytest.mark.parametrize("last", [False, True])
def test_a_quantised_convolution(last: bool) -> None:
    """Its data and its result are codes, and its channels may stand last."""
    net = Net("qlinear", opset=21)
    x = net.input("x", (2, 9, 8, 4) if last else (2, 4, 9, 8))
    bias = net.const(net.rng.integers(-99, 99, OUT).astype(np.int32), "b")
    y = coded(net, "QLinearConv", quantise(net, x), *CODE, _stored(net, OUT, 4, 3, 3), _scales(),
              POINTS, *CODE, bias, pads=[1] * 4, channels_last=int(last),
              shape=[2, 9, 8, OUT] if last else [2, OUT, 9, 8])  # fmt: skip
    model = net.model(dequantise(net, y), ir_version=10)
    graph = analyze(model).graph
    (site,) = sites(graph)
    assert site.bias is not None and site.bias.own
    feeds = np.random.default_rng(1).standard_normal(x.shape).astype(np.float32)
    got = made(model, site, run(model, feeds, site.x)) + graph.array("b") * site.bias.step
    want = (run(model, feeds, site.y).astype(np.float32) - CODE[1]) * CODE[0]
    assert np.abs(got - np.moveaxis(want, site.axis, -1).reshape(-1, OUT)).max() < CODE[0]
