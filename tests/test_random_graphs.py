"""Random graphs: the law and all that goes with it, and the units themselves.

`SPA_FUZZ_EXAMPLES=5000 pytest tests/test_random_graphs.py` looks further.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from math import prod

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import ModelProto

import spa
from models.builder import Net, Tensor
from models.vision import channel_shuffle
from tests.oracle import check

EXAMPLES = int(os.environ.get("SPA_FUZZ_EXAMPLES", "150"))
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize="SPA_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)

CHANNELS = (4, 6, 8, 12)  # colliding with each other's halves and with the image
Draw = st.DrawFn
Block = Callable[["Drawing", Tensor], Tensor]
BLOCKS: dict[str, Block] = {}


def block(body: Block) -> Block:
    BLOCKS[body.__name__] = body
    return body


class Drawing:
    """A graph being drawn: the net, and the images [batch, channels, height, width] made so far."""

    def __init__(self, draw: Draw) -> None:
        self.draw, self.net = draw, Net("random", seed=self._draw(st.integers(0, 99), draw))
        self.batch = self.of(1, 2, 3)
        self.images: list[Tensor] = []
        self.inputs = 0

    @staticmethod
    def _draw(strategy: st.SearchStrategy[int], draw: Draw) -> int:
        return draw(strategy)

    def of(self, *choices: int) -> int:
        return self.draw(st.sampled_from(choices))

    def channels(self) -> int:
        return self.of(*CHANNELS)

    def input(self, channels: int, height: int, width: int) -> Tensor:
        self.inputs += 1
        return self.net.input(f"x{self.inputs}", [self.batch, channels, height, width])

    def like(self, x: Tensor) -> Tensor:
        """Another image of the same shape: one that is there, or one made for the purpose."""
        same = [y for y in self.images if list(y.shape) == list(x.shape) and y is not x]
        if same and self.of(0, 1):
            return self.draw(st.sampled_from(same))
        if self.of(0, 0, 0, 1):
            return self.input(*x.shape[1:])
        return self.net.conv(x, x.shape[1], self.of(1, 3))

    def beside(self, x: Tensor) -> Tensor:
        """Another image of the same height and width."""
        same = [y for y in self.images if list(y.shape[2:]) == list(x.shape[2:])]
        return self.draw(st.sampled_from(same)) if same else x

    def tokens(self, x: Tensor) -> Tensor:
        n, c, *image = x.shape
        return self.net.transpose(self.net.reshape(x, [n, c, prod(image)]), 0, 2, 1)

    def image(self, tokens: Tensor, x: Tensor) -> Tensor:
        y = self.net.transpose(tokens, 0, 2, 1)
        return self.net.reshape(y, [self.batch, -1, *x.shape[2:]])


# --- layers


@block
def conv(g: Drawing, x: Tensor) -> Tensor:
    return g.net.conv(x, g.channels(), g.of(1, 3), bias=bool(g.of(0, 1)))


@block
def grouped(g: Drawing, x: Tensor) -> Tensor:
    groups = g.of(*(d for d in (2, 3, 4) if x.shape[1] % d == 0), 1)
    return g.net.conv(x, groups * g.of(2, 3, 4), 3, groups=groups)


@block
def depthwise(g: Drawing, x: Tensor) -> Tensor:
    return g.net.conv(x, x.shape[1] * g.of(1, 2), 3, groups=x.shape[1])


@block
def transposed(g: Drawing, x: Tensor) -> Tensor:
    groups = g.of(*(d for d in (1, 2) if x.shape[1] % d == 0))
    return g.net.conv_transpose(x, groups * g.of(2, 3, 4), 1, 1, groups=groups)


@block
def shared_weight(g: Drawing, x: Tensor) -> Tensor:
    w = g.net.weight(x.shape[1], x.shape[1], 1, 1)
    return g.net.node("Conv", g.net.relu(g.net.node("Conv", x, w)), w)


@block
def siamese_weight(g: Drawing, x: Tensor) -> Tensor:
    w = g.net.weight(g.channels(), x.shape[1], 1, 1)
    y = g.like(x)
    return g.net.concat(g.net.node("Conv", x, w), g.net.relu(g.net.node("Conv", y, w)))


@block
def batch_norm(g: Drawing, x: Tensor) -> Tensor:
    return g.net.relu(g.net.bn(x))


@block
def linear(g: Drawing, x: Tensor) -> Tensor:
    return g.image(g.net.linear(g.tokens(x), g.channels(), bias=bool(g.of(0, 1))), x)


@block
def rows(g: Drawing, x: Tensor) -> Tensor:
    """Flattened, a Gemm, and an image again."""
    c, pixels = g.channels(), prod(x.shape[2:])
    flat = g.net.reshape(x, [g.batch, -1]) if g.of(0, 1) else g.net.flatten(x)
    y = g.net.relu(g.net.gemm(flat, c * pixels, bias=bool(g.of(0, 1))))
    return g.net.reshape(y, [g.batch, c, *x.shape[2:]])


# --- attention, normalisation


@block
def layer_norm(g: Drawing, x: Tensor) -> Tensor:
    return g.image(g.net.layer_norm(g.tokens(x), bool(g.of(0, 1))), x)


@block
def group_norm(g: Drawing, x: Tensor) -> Tensor:
    groups = g.of(*(d for d in (1, 2, 4) if x.shape[1] % d == 0))
    return g.net.group_norm(x, groups)


@block
def softmax(g: Drawing, x: Tensor) -> Tensor:
    return g.net.softmax(x, g.of(1, 2, 3, -1))


@block
def single_head(g: Drawing, x: Tensor) -> Tensor:
    d, tokens = g.channels(), g.tokens(x)
    q, k, v = g.net.split(g.net.linear(tokens, 3 * d), [d, d, d], axis=2)
    scores = g.net.softmax(g.net.div(g.net.matmul(q, g.net.transpose(k, 0, 2, 1)), 3.0))
    return g.image(g.net.matmul(scores, v), x)


@block
def multi_head(g: Drawing, x: Tensor) -> Tensor:
    heads, d, tokens = g.of(2, 3, 4), g.of(2, 3, 4), g.tokens(x)
    fused = bool(g.of(0, 1))
    if fused:
        y = g.net.reshape(g.net.linear(tokens, 3 * heads * d), [0, 0, 3, heads, d])
        y = g.net.transpose(y, 2, 0, 3, 1, 4)
        q, k, v = (g.net.gather(y, np.int64(i)) for i in range(3))
    else:
        q, k, v = (
            g.net.transpose(
                g.net.reshape(g.net.linear(tokens, heads * d), [0, 0, heads, d]), 0, 2, 1, 3
            )
            for _ in "qkv"
        )
    scores = g.net.softmax(g.net.div(g.net.matmul(q, g.net.transpose(k, 0, 1, 3, 2)), 3.0))
    y = g.net.transpose(g.net.matmul(scores, v), 0, 2, 1, 3)
    return g.image(g.net.reshape(y, [0, 0, heads * d]), x)


# --- single values and branches


@block
def activation(g: Drawing, x: Tensor) -> Tensor:
    op = g.draw(st.sampled_from(["Relu", "Sigmoid", "Tanh", "HardSwish", "Elu", "Softplus"]))
    return g.net.node(op, x)


@block
def channel_scale(g: Drawing, x: Tensor) -> Tensor:
    constant = g.net.uniform(-1, 1, x.shape[1], 1, 1)
    return g.net.node(g.draw(st.sampled_from(["Add", "Mul", "PRelu"])), x, constant)


@block
def scalar(g: Drawing, x: Tensor) -> Tensor:
    return g.net.node(g.draw(st.sampled_from(["Add", "Mul", "Sub"])), x, 0.5)


@block
def add(g: Drawing, x: Tensor) -> Tensor:
    return g.net.add(x, g.like(x))


@block
def mul(g: Drawing, x: Tensor) -> Tensor:
    return g.net.mul(g.net.node("Tanh", x), g.net.node("Tanh", g.like(x)))


@block
def squeeze_excite(g: Drawing, x: Tensor) -> Tensor:
    return g.net.squeeze_excite(x, g.of(2, 4))


@block
def gate(g: Drawing, x: Tensor) -> Tensor:
    return g.net.mul(x, g.net.sigmoid(g.net.mean(x, g.of(1, 2, 3))))


@block
def concat(g: Drawing, x: Tensor) -> Tensor:
    return g.net.concat(x, g.beside(x))


@block
def dense(g: Drawing, x: Tensor) -> Tensor:
    return g.net.concat(x, g.net.conv(g.net.relu(x), g.of(2, 4), 3))


# --- moves


@block
def split(g: Drawing, x: Tensor) -> Tensor:
    first = g.of(*range(1, x.shape[1]))
    a, b = g.net.split(x, [first, x.shape[1] - first])
    return g.net.concat(g.net.conv(a, g.channels(), 1), b)


@block
def gated_halves(g: Drawing, x: Tensor) -> Tensor:
    if x.shape[1] % 2:
        return x
    a, b = g.net.nodes("Split", [x], 2, axis=1)
    return g.net.mul(a, g.net.sigmoid(b))


@block
def slice_(g: Drawing, x: Tensor) -> Tensor:
    if x.shape[1] < 2:
        return x
    start = g.of(*range(x.shape[1] - 1))
    end = g.of(*range(start + 2, x.shape[1] + 1), 2**62)
    return g.net.slice(x, start - x.shape[1] * g.of(0, 1), end)


@block
def gather(g: Drawing, x: Tensor) -> Tensor:
    order = g.draw(st.permutations(range(x.shape[1])))
    return g.net.gather(x, order[: g.of(2, x.shape[1])], axis=1)


@block
def shuffle(g: Drawing, x: Tensor) -> Tensor:
    groups = g.of(*(d for d in (2, 3, 4) if x.shape[1] % d == 0), 1)
    return channel_shuffle(g.net, x, groups)


@block
def channels_last(g: Drawing, x: Tensor) -> Tensor:
    y = g.net.add(g.net.transpose(x, 0, 2, 3, 1), g.net.uniform(-1, 1, x.shape[1]))
    return g.net.transpose(g.net.relu(y), 0, 3, 1, 2)


@block
def pad_channels(g: Drawing, x: Tensor) -> Tensor:
    return g.net.node("Pad", x, [0, g.of(0, 2), 0, 0, 0, g.of(1, 2), 0, 0])


@block
def pool(g: Drawing, x: Tensor) -> Tensor:
    op = g.draw(st.sampled_from(["MaxPool", "AveragePool"]))
    return g.net.pool(x, 3, 1, 1, op)


@block
def resize(g: Drawing, x: Tensor) -> Tensor:
    if x.shape[2] > 8:
        return x
    if g.of(0, 1):
        return g.net.node("Resize", x, None, [1.0, 1.0, 2.0, 2.0])
    sizes = [*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3]]
    return g.net.node("Resize", x, None, None, sizes)


@block
def depth_to_space(g: Drawing, x: Tensor) -> Tensor:
    if x.shape[1] % 4 or x.shape[2] > 8:
        return x
    mode = g.draw(st.sampled_from(["DCR", "CRD"]))
    return g.net.node("DepthToSpace", x, blocksize=2, mode=mode)


@st.composite
def graphs(draw: Draw) -> ModelProto:
    g = Drawing(draw)
    x = g.net.conv(g.input(3, g.of(4, 6), g.of(4, 6, 8)), g.channels(), 1)
    g.images.append(x)
    for name in draw(st.lists(st.sampled_from(sorted(BLOCKS)), min_size=1, max_size=7)):
        x = BLOCKS[name](g, g.images[-1] if g.of(0, 0, 1) == 0 else draw(st.sampled_from(g.images)))
        g.images.append(x)
    outputs = [g.net.conv(x, 3, 1) if g.of(0, 1) else g.net.gemm(g.net.flatten(x), 3)]
    if g.of(0, 0, 0, 1):
        outputs.append(draw(st.sampled_from(g.images)))
    model = g.net.model(*outputs)
    if g.of(0, 1):
        del model.graph.value_info[:]
    return model


@fuzz
@given(graphs(), st.integers(0, 9))
def test_law(model: ModelProto, seed: int) -> None:
    check(model, seed=seed, each=False)


def test_two_views_beside_each_other_on_one_axis() -> None:
    """Found by `test_law`: a group free in the second view only, concatenated with another."""
    net = Net("two_views")
    rows = net.relu(net.gemm(net.input("x", (1, 6)), 6 * 16, bias=False))
    image = net.reshape(rows, [1, 6, 4, 4])  # in the first view the last factor is live, and locked
    both = net.concat(net.conv(net.input("y", (1, 3, 4, 4)), 12), image)
    check(net.model(net.conv(both, 3)))


# --- over-tying, which the law cannot see ---------------------------------------------------------


class Labelled:
    """Draws a graph of few operators and keeps, by itself, what each must tie.

    ties: union-find over channels; 0 is locked.
    """

    def __init__(self, draw: Draw) -> None:
        self.draw, self.net = draw, Net("labelled")
        self.parent = [0]
        self.weights: dict[str, list[int]] = {}  # of a convolution -> labels of its outputs

    def root(self, label: int) -> int:
        while self.parent[label] != label:
            label = self.parent[label]
        return label

    def tie(self, a: list[int], b: list[int]) -> None:
        for one, other in zip(a, b, strict=True):
            low, high = sorted((self.root(one), self.root(other)))
            self.parent[high] = low

    def fresh(self, count: int) -> list[int]:
        labels = list(range(len(self.parent), len(self.parent) + count))
        self.parent += labels
        return labels

    def conv(self, x: Tensor, out: int) -> tuple[Tensor, list[int]]:
        y = self.net.conv(x, out, 1)
        labels = self.fresh(out)
        self.weights[y.inputs[0].inputs[1].name] = labels
        return y, labels

    def step(self, x: Tensor, ids: list[int]) -> tuple[Tensor, list[int]]:
        net, draw = self.net, self.draw
        match draw(st.integers(0, 6)):
            case 0:
                return self.conv(net.relu(x), draw(st.integers(2, 4)))
            case 1 if len(ids) > 1:  # nothing is tied along an axis of one index: it is whole
                y, other = self.conv(x, len(ids))
                self.tie(ids, other)
                return net.add(x, y), ids
            case 2:
                y, other = self.conv(x, draw(st.integers(1, 4)))
                if len(other) == 1:  # broadcasts, and is whole
                    self.tie(other, [0])
                    return net.mul(x, y), ids
                return net.concat(y, x), [*other, *ids]
            case 3 if len(ids) > 1:
                cut = draw(st.integers(1, len(ids) - 1))
                a, b = net.split(x, [cut, len(ids) - cut])
                return net.concat(b, a), ids[cut:] + ids[:cut]
            case 4:
                order = draw(st.permutations(range(len(ids))))
                return net.gather(x, order, axis=1), [ids[k] for k in order]
            case 5 if len(ids) >= 4 and len(ids) % 2 == 0:
                a, b = net.nodes("Split", [x], 2, axis=1)
                half = len(ids) // 2
                self.tie(ids[:half], ids[half:])
                return net.mul(a, net.sigmoid(b)), ids[:half]
            case _:
                return net.bn(x), ids


@st.composite
def labelled(draw: Draw) -> tuple[ModelProto, dict[str, list[int]]]:
    g = Labelled(draw)
    x, ids = g.conv(g.net.input("x", [1, 3, 2, 2]), draw(st.integers(2, 4)))
    for _ in range(draw(st.integers(1, 4))):
        x, ids = g.step(x, ids)
    y, last = g.conv(x, 2)
    g.tie(last, [0, 0])
    return g.net.model(y), {w: [g.root(k) for k in labels] for w, labels in g.weights.items()}


@fuzz
@given(labelled())
def test_units_are_as_small_as_they_can_be(drawn: tuple[ModelProto, dict[str, list[int]]]) -> None:
    """The analysis ties what must be tied, no less and no more."""
    model, expected = drawn
    view = spa.analyze(model).views[0]
    found = {w: view.labels[view.ties.axes[w][0].ids].tolist() for w in expected}
    pairs = {
        (want, have)
        for w in expected
        if len(expected[w]) > 1  # an axis of one index is whole from the start
        for want, have in zip(expected[w], found[w], strict=True)
    }
    pairs.add((0, view.locked))
    assert len(pairs) == len({want for want, _ in pairs}) == len({have for _, have in pairs})
