"""LSTM, GRU and RNN: hidden sizes through directions, states, stacks and layouts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import spa
from models.builder import Net, Tensor
from spa.rewrite import rewrite
from tests.isolation import Alone
from tests.numeric import alone
from tests.ops.cases import TOKENS, Body, Case, case, codes

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
HIDDEN = 6
WIDE = 8  # onnxruntime's kernels round the cells of a last half vector in another way


def _cell(
    op: str, net: Net, x: Tensor, ways: int = 1, states: int = 0, n_outputs: int = 1
) -> list[Tensor]:
    """The cell on x of shape (steps, batch, features)."""
    gates, features = GATES[op], x.shape[2]
    batch = x.shape[1]
    inputs = [
        x,
        net.weight(ways, gates * HIDDEN, features, fan=features),
        net.weight(ways, gates * HIDDEN, HIDDEN, fan=HIDDEN),
        net.uniform(-0.5, 0.5, ways, 2 * gates * HIDDEN),
        None,
        *(net.uniform(-1, 1, ways, batch, HIDDEN) for _ in range(states)),
    ]
    direction = {1: "forward", 2: "bidirectional"}[ways]
    return net.nodes(op, inputs, n_outputs, hidden_size=HIDDEN, direction=direction)


def _sequence(op: str, ways: int = 1, states: int = 0) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        (y,) = _cell(op, net, a, ways, states)
        return net.reshape(net.transpose(y, 0, 2, 1, 3), [0, 0, -1])

    return body


def _active(op: str, *names: str) -> Body:
    """With activations of its own, and summed over the hidden units."""

    def body(net: Net, a: Tensor) -> Tensor:
        ways = len(names) // {"LSTM": 3, "GRU": 2, "RNN": 1}[op]
        w, r = net.weight(ways, GATES[op] * 6, a.shape[2]), net.weight(ways, GATES[op] * 6, 6)
        way = {1: "forward", 2: "bidirectional"}[ways]
        y = net.nodes(op, [a, w, r], 1, hidden_size=6, activations=list(names), direction=way)[0]
        return net.node("ReduceSum", net.node("ReduceSum", y, [1], keepdims=0), [2])

    return body


def _last(op: str, which: int) -> Body:
    """The last hidden (1) or cell (2) state of both directions, side by side."""

    def body(net: Net, a: Tensor) -> Tensor:
        outputs = _cell(op, net, a, 2, n_outputs=which + 1)
        return net.transpose(outputs[which], 1, 0, 2)

    return body


def _stacked(op: str, opset: int = 17) -> Body:
    def squeeze(net: Net, y: Tensor) -> Tensor:
        return net.node("Squeeze", y, axes=[1]) if opset < 13 else net.node("Squeeze", y, [1])

    def body(net: Net, a: Tensor) -> Tensor:
        (y,) = _cell(op, net, a)
        (y,) = _cell(op, net, squeeze(net, y))
        return squeeze(net, y)

    return body


def _batch_first(net: Net, a: Tensor) -> Tensor:
    y = net.nodes(
        "LSTM",
        [
            a,
            net.weight(1, 4 * HIDDEN, a.shape[2], fan=8),
            net.weight(1, 4 * HIDDEN, HIDDEN, fan=HIDDEN),
        ],
        1,
        hidden_size=HIDDEN,
        layout=1,
    )[0]
    return net.node("Squeeze", y, [2])


def _peepholes(net: Net, a: Tensor) -> Tensor:
    inputs = [
        a,
        net.weight(1, 4 * HIDDEN, a.shape[2], fan=8),
        net.weight(1, 4 * HIDDEN, HIDDEN, fan=HIDDEN),
        *[None] * 4,
        net.uniform(-1, 1, 1, 3 * HIDDEN),
    ]
    return net.node("Squeeze", net.nodes("LSTM", inputs, 1, hidden_size=HIDDEN)[0], [1])


def _mixed_steps(op: str) -> Body:
    """What mixes tokens makes steps of its own, but a cell takes steps in a row."""

    def body(net: Net, a: Tensor) -> Tensor:
        steps = net.relu(net.matmul(net.weight(4, a.shape[1]), a))
        (y,) = _cell(op, net, net.transpose(steps, 1, 0, 2))
        y = net.transpose(net.node("Squeeze", y, [1]), 1, 0, 2)
        return net.matmul(net.weight(3, 4), y)

    return body


def _dynamic(
    ways: int = 1, *, channels: bool = False, states: int = 0, speaks: str = "", **attrs: Any
) -> Body:
    """An LSTM as onnxruntime quantises it, with its matrices the other way round.

    speaks: which of x and r hold something where an index is removed; R where one of the gates is,
        but not where one of the states is.
    """

    def body(net: Net, a: Tensor) -> Tensor:
        a = net.sigmoid(a) if "x" in speaks else a
        (steps, batch, features), gates = a.shape, 4 * HIDDEN
        shape = (ways, gates) if channels else (ways,)
        scale = np.linspace(0.004, 0.006, int(np.prod(shape)), dtype=np.float32).reshape(shape)
        point = np.full(shape, 121, np.uint8)  # onnxruntime wants one for all
        w, r = (codes(net, ways, n, gates, low=70, high=180) for n in (features, HIDDEN))
        if "r" in speaks:
            r = net.cast(net.add(net.uniform(-40, 40, ways, HIDDEN, gates), 120.0), 2)
        if "R" in speaks:
            of_gates = net.mul(
                net.add(net.uniform(-1, 1, gates), 2.0), net.uniform(-9, 9, HIDDEN, 1)
            )
            r = net.node("QuantizeLinear", net.unsqueeze(of_gates, 0), np.float32(0.2), point[0])
        more = [net.uniform(-1, 1, ways, batch, HIDDEN) for _ in range(states)]
        inputs = [a, w, r, net.uniform(-0.5, 0.5, ways, 2 * gates), None]
        inputs += [*more, *[None] * (2 - states), None, scale, point, scale, point]
        y = net.nodes(
            "DynamicQuantizeLSTM", inputs, 1, shapes=[[steps, ways, batch, HIDDEN]],
            hidden_size=HIDDEN, direction={1: "forward", 2: "bidirectional"}[ways],
            domain="com.microsoft", **attrs,
        )[0]  # fmt: skip
        return net.reshape(net.transpose(y, 0, 2, 1, 3), [0, 0, -1])

    return body


def _full(
    op: str,
    ways: int = 1,
    start: str = "",
    lens: bool = False,
    peepholes: bool = False,
    **attrs: Any,
) -> Body:
    """All outputs are read, and all inputs may be there.

    start: the states that are inputs of the model, h and c.
    """

    def body(net: Net, a: Tensor) -> Tensor:
        gates, (steps, batch, features) = GATES[op], a.shape
        states = {"LSTM": "hc"}.get(op, "h")
        inputs = [
            a,
            net.weight(ways, gates * WIDE, features, fan=features),
            net.weight(ways, gates * WIDE, WIDE, fan=WIDE),
            net.uniform(-0.5, 0.5, ways, 2 * gates * WIDE),
            net.const(np.asarray([steps - 1, 1, steps, 2, steps][:batch], np.int32))
            if lens
            else None,
            *(net.input(s, [ways, batch, WIDE]) if s in start else None for s in states),
            *([net.uniform(-1, 1, ways, 3 * WIDE)] if peepholes else []),
        ]
        direction = attrs.get("direction", {1: "forward", 2: "bidirectional"}[ways])
        made = net.nodes(
            op, inputs, 1 + len(states), hidden_size=WIDE, **{**attrs, "direction": direction}
        )
        every = net.reshape(net.transpose(made[0], 0, 2, 1, 3), [0, 0, -1])
        last = [net.reshape(net.transpose(s, 1, 0, 2), [1, batch, -1]) for s in made[1:]]
        return net.concat(every, *last, axis=0)

    return body


def _deep(op: str) -> Body:
    """Two layers, both of them both ways."""

    def body(net: Net, a: Tensor) -> Tensor:
        for _ in range(2):
            (y,) = _cell(op, net, a, 2)
            a = net.reshape(net.transpose(y, 0, 2, 1, 3), [0, 0, 2 * HIDDEN])
        return a

    return body


# Two groups: what the producer makes, and the hidden size.
RECURRENT = [
    case("DynamicQuantizeLSTM", 2, _dynamic(), shape=TOKENS, exact=True),
    case("DynamicQuantizeLSTM-both-ways", 2, _dynamic(2), shape=TOKENS, exact=True),
    case("DynamicQuantizeLSTM-per-channel", 2, _dynamic(2, channels=True), shape=TOKENS,
         exact=True),
    case("DynamicQuantizeLSTM-states", 2, _dynamic(1, states=2), shape=TOKENS, exact=True),
    case("DynamicQuantizeLSTM-of-what-speaks", 2, _dynamic(speaks="x"), shape=TOKENS, inexact=1),
    case("DynamicQuantizeLSTM-what-speaks-again", 2, _dynamic(speaks="r"), shape=TOKENS, inexact=1),
    case("DynamicQuantizeLSTM-what-gates-speak", 2, _dynamic(speaks="R"), shape=TOKENS, exact=True),
    *(case(f"{op}-forward", 2, _sequence(op), shape=TOKENS, exact=True) for op in GATES),
    *(case(f"{op}-both-ways", 2, _sequence(op, 2), shape=TOKENS, exact=True) for op in GATES),
    *(case(f"{op}-initial-state", 2, _sequence(op, 1, 1), shape=TOKENS) for op in GATES),
    *(case(f"{op}-last-hidden", 2, _last(op, 1), shape=TOKENS) for op in GATES),
    *(case(f"{op}-stacked", 3, _stacked(op), shape=TOKENS, exact=True) for op in GATES),
    *(case(f"{op}-opset-7", 3, _stacked(op, 7), shape=TOKENS, opset=7, exact=True) for op in GATES),
    case("RNN-sigmoid", 2, _active("RNN", "Sigmoid"), shape=TOKENS),
    case("RNN-relu", 2, _active("RNN", "Relu"), shape=TOKENS, exact=True),
    case("LSTM-activations", 2, _active("LSTM", "Sigmoid", "Sigmoid", "Tanh"), shape=TOKENS),
    case("LSTM-usual-activations", 2, _active("LSTM", "HardSigmoid", "Tanh", "Softsign"),
         shape=TOKENS, exact=True),
    case("GRU-usual-activations", 2, _active("GRU", "Sigmoid", "Relu"), shape=TOKENS, exact=True),
    *(case(f"{op}-mixed-steps", 2, _mixed_steps(op), shape=TOKENS, exact=True) for op in GATES),
    case("LSTM-initial-cell", 2, _sequence("LSTM", 2, 2), shape=TOKENS, exact=True),
    case("LSTM-last-cell", 2, _last("LSTM", 2), shape=TOKENS, exact=True),
    case("LSTM-peepholes", 2, _peepholes, shape=TOKENS, exact=True),
    *(case(f"{op}-all-outputs", 2, _full(op), shape=TOKENS, exact=True) for op in GATES),
    *(case(f"{op}-all-both-ways", 2, _full(op, 2), shape=TOKENS, exact=True) for op in GATES),
    *(case(f"{op}-lens", 2, _full(op, 2, lens=True), shape=TOKENS, exact=True) for op in GATES),
    *(case(f"{op}-reverse", 2, _full(op, direction="reverse"), shape=TOKENS, exact=True)
      for op in GATES),
    *(case(f"{op}-given-state", 1, _full(op, 2, start="h"), shape=TOKENS, exact=True)
      for op in GATES),
    case("LSTM-given-cell", 1, _full("LSTM", start="c"), shape=TOKENS, exact=True),
    *(case(f"{op}-deep", 3, _deep(op), shape=TOKENS, exact=True) for op in GATES),
    case("LSTM-peepholes-both-ways", 2, _full("LSTM", 2, peepholes=True), shape=TOKENS, exact=True),
    case("LSTM-input-forget", 2, _full("LSTM", input_forget=1), shape=TOKENS, exact=True),
    case("LSTM-clip", 2, _full("LSTM", clip=0.5), shape=TOKENS, exact=True),
    case("GRU-linear-before-reset", 2, _full("GRU", 2, linear_before_reset=1), shape=TOKENS,
         exact=True),
]  # fmt: skip


@pytest.mark.parametrize("row", RECURRENT)
def test_recurrent(row: Case) -> None:
    row.check()


@pytest.mark.parametrize(
    ("op", "names", "exact"),
    [
        ("RNN", ("Sigmoid",), False), ("RNN", ("Relu", "Sigmoid"), False),
        *(("RNN", (name,), True)
          for name in ("Relu", "LeakyRelu", "ScaledTanh", "Elu", "Softsign")),
        ("LSTM", ("Sigmoid", "Sigmoid", "Tanh"), False), ("GRU", ("Sigmoid", "Sigmoid"), False),
        ("LSTM", ("Sigmoid", "Tanh", "Sigmoid"), False),
        ("LSTM", ("Sigmoid", "Tanh", "Tanh"), True), ("GRU", ("Sigmoid", "Tanh"), True),
        ("LSTM", ("Sigmoid", "Tanh", "Tanh") * 2, True), ("GRU", ("Sigmoid", "Tanh") * 2, True),
        ("LSTM", ("Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Sigmoid"), False),
        ("GRU", ("Sigmoid", "Tanh", "Tanh", "Sigmoid"), False),
        ("LSTM", ("Sigmoid", "Tanh", "Tanh", "Sigmoid", "Sigmoid", "Tanh"), False),
    ],
)  # fmt: skip
def test_activations_may_speak(op: str, names: tuple[str, ...], exact: bool) -> None:
    model = Case("active", 2, _active(op, *names), TOKENS).model()
    (hidden,) = [g for g in spa.analyze(model) if g.kind == "recurrent"]
    assert hidden.exact == exact


@pytest.mark.parametrize(
    ("names", "exact"),
    [
        (("Sigmoid", "Sigmoid", "Tanh"), False), (("Sigmoid", "Tanh", "Sigmoid"), False),
        (("Sigmoid", "Tanh", "Tanh"), True), (("Sigmoid", "Tanh", "Tanh") * 2, True),
        (("Sigmoid", "Tanh", "Tanh", "Sigmoid", "Tanh", "Sigmoid"), False),
        (("Sigmoid", "Tanh", "Tanh", "Sigmoid", "Sigmoid", "Tanh"), False),
    ],
)  # fmt: skip
def test_activations_of_eight_bits_may_speak(names: tuple[str, ...], exact: bool) -> None:
    def body(net: Net, a: Tensor) -> Tensor:
        made = _dynamic(len(names) // 3, activations=list(names))(net, a)
        assert isinstance(made, Tensor)
        return net.node("ReduceSum", made, [2])

    groups = spa.analyze(Case("active", 2, body, TOKENS).model())
    (hidden,) = [g for g in groups if g.kind == "recurrent"]
    assert hidden.exact == exact


@pytest.mark.parametrize("each", [False, True])
def test_every_axis_of_eight_bits(each: bool) -> None:
    """Of all inputs and outputs: what is read, the batch, and the hidden units in every gate."""
    net, ways, steps, batch, features = Net("all"), 2, 5, 3, 7
    x = net.weight(steps, batch, features)
    gates = (ways, 4 * HIDDEN) if each else (ways,)
    scale = net.const(np.full(gates, 0.01, np.float32))
    point = net.const(np.full(gates, 120, np.uint8))
    inputs = [
        x, codes(net, ways, features, 4 * HIDDEN), codes(net, ways, HIDDEN, 4 * HIDDEN),
        net.weight(ways, 8 * HIDDEN), net.const(np.full(batch, steps, np.int32), "lengths"),
        net.weight(ways, batch, HIDDEN), net.weight(ways, batch, HIDDEN),
        net.weight(ways, 3 * HIDDEN), scale, point, scale, point,
    ]  # fmt: skip
    made = net.nodes(
        "DynamicQuantizeLSTM", inputs, 3, hidden_size=HIDDEN, direction="bidirectional",
        shapes=[[steps, ways, batch, HIDDEN], *[[ways, batch, HIDDEN]] * 2],
        domain="com.microsoft",
    )  # fmt: skip
    outputs = []
    for y in made:
        weighted = net.mul(y, net.uniform(1, 2, batch, 1))
        outputs.append(net.linear(net.node("ReduceSum", weighted, [*range(len(y.shape) - 1)]), 5))
    groups = spa.analyze(net.model(*outputs))
    laid = ["sBI", "dIH", "dHH", "dH", "B", "dBH", "dBH", "dH", *["dH" if each else "d"] * 4]
    (node,) = [n for n in groups.graph.nodes if n.op_type == "DynamicQuantizeLSTM"]
    found = [
        {
            (k, m.axis)
            for m in group.members
            for k, name in enumerate(node.inputs)
            if name == m.tensor
        }
        for group in groups
    ]
    wanted = [
        {(k, at) for k, axes in enumerate(laid) for at, a in enumerate(axes) if a == letter}
        for letter in "BIH"
    ]
    assert sorted(map(sorted, found)) == sorted(map(sorted, wanted))
    (hidden,) = [g for g, axes in zip(groups, found, strict=True) if (2, 1) in axes]
    assert len({m.tensor for m in hidden.members} & {f"MatMul_{k}.weight" for k in range(3)}) == 3
    (images,) = [g for g, axes in zip(groups, found, strict=True) if (4, 0) in axes]
    assert len([m for m in images.members if m.tensor not in node.inputs]) == len(made)
    for m in hidden.members:
        assert m.index[0].tolist() == [k * HIDDEN for k in range(m.index.shape[1])]


@pytest.mark.parametrize("op", GATES)
def test_layouts_couple_alike(op: str) -> None:
    """All inputs and outputs, with the axes where layout 1 has them."""
    found = []
    for layout in (0, 1):
        net = Net("layout")

        def state(*shape: int, net: Net = net, layout: int = layout) -> Tensor:
            return net.weight(*((shape[1], shape[0], shape[2]) if layout else shape))

        gates, states = GATES[op], 2 if op == "LSTM" else 1
        x = net.input("x", [3, 5, 6] if layout else [5, 3, 6])
        inputs = [
            x, net.weight(2, gates * 4, 6), net.weight(2, gates * 4, 4),
            net.weight(2, 2 * gates * 4), None, *(state(2, 3, 4) for _ in range(states)),
            *([net.weight(2, 3 * 4)] if op == "LSTM" else []),
        ]  # fmt: skip
        outputs = net.nodes(
            op, inputs, 1 + states, hidden_size=4, layout=layout, direction="bidirectional"
        )
        groups = spa.analyze(net.model(*outputs))
        lone = alone(groups, groups.views[0].ties.ops[0])
        assert lone is not None
        place = {name: f"i{k}" for k, name in lone.inputs.items()}
        place |= {name: f"o{k}" for k, name in lone.outputs.items()}
        moved = {"i0": (1, 0, 2), "o0": (2, 0, 1, 3)}
        moved |= dict.fromkeys(("i5", "i6", "o1", "o2"), (1, 0, 2))
        one = Alone(lone, 0)
        slices = {}
        for name, axis, ids in one.slices():
            here = place[name]
            where = moved[here][axis] if layout and here in moved else axis
            slices.update({(name, axis, i): (here, where, i) for i in range(len(ids))})
        blocks = one.partition.blocks(set(slices))
        found.append(frozenset(frozenset(slices.get(s, s) for s in b) for b in blocks))
    assert found[0] == found[1]
    assert len(found[0]) > 4  # the hidden units, the features, the batch


def test_batch_first_couples_alike() -> None:
    """onnxruntime does not run layout 1, so only the coupling and the cut shapes are looked at."""
    model = Case("batch-first", 2, _batch_first, TOKENS).model()
    groups = spa.analyze(model)
    assert sorted(group.size for group in groups) == [HIDDEN, 8]
    pruned = rewrite(groups, {g: np.arange(2) for g in range(2)})
    (lstm,) = [n for n in pruned.graph.node if n.op_type == "LSTM"]
    shapes = {t.name: list(t.dims) for t in pruned.graph.initializer}
    assert [shapes[name] for name in lstm.input[1:3]] == [[1, 16, 6], [1, 16, 4]]
