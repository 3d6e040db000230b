"""If, Loop and Scan: bodies are cut with what is around them, branches and rounds alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest

import spa
from models.builder import Net, Tensor
from tests.ops.cases import TOKENS, Body, Case, case

HIDDEN = 6
Branch = Callable[[Net, Tensor], Tensor]


# --- If


def _flag(net: Net) -> Tensor:
    return net.input("flag", [], np.bool_)


def _bright(net: Net) -> Tensor:
    """A condition that depends on the data."""
    return net.node("Greater", net.node("ReduceMax", net.graph.inputs[0], keepdims=0), 3.0)


def _never(net: Net) -> Tensor:
    return net.const(np.array(False))


def _branches(net: Net, flag: Tensor, a: Tensor, *makers: Branch, shape: Any = None) -> Tensor:
    bodies = {}
    for name, make in zip(("then_branch", "else_branch"), makers, strict=True):
        with net.body() as body:
            body.outputs = [make(net, a)]
        bodies[name] = body
    shape = bodies["then_branch"].outputs[0].shape if shape is None else shape
    return net.node("If", flag, shape=shape, **bodies)


def _if(*makers: Branch, flag: str = "flag") -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        on = {"flag": _flag, "never": _never, "data": _bright}[flag](net)
        return _branches(net, on, a, *makers)

    return body


def _conv(out: int, k: int = 1) -> Branch:
    return lambda net, a: net.conv(a, out, k)


def _two(inner: int, out: int) -> Branch:
    return lambda net, a: net.conv(net.relu(net.conv(a, inner, 3)), out, 1)


def _neg(net: Net, a: Tensor) -> Tensor:
    return net.node("Neg", a)


def _map(net: Net, a: Tensor) -> Tensor:
    return net.const(np.zeros(a.shape, np.float32))


def _speaking_map(net: Net, a: Tensor) -> Tensor:
    return net.node("Identity", net.uniform(-1, 1, *a.shape))


def _nested(net: Net, a: Tensor) -> Tensor:
    bright = _bright(net)

    def outer(net: Net, a: Tensor) -> Tensor:
        return _branches(net, bright, net.conv(a, 5, 1), _two(7, 6), _conv(6, 3))

    return _branches(net, _flag(net), a, outer, _conv(6))


def _as_rows(net: Net, a: Tensor) -> Tensor:
    rows = net.relu(net.reshape(a, [2, 8, 36]))
    return net.reshape(net.conv(rows, 6, 1), [2, 6, 6, 6])


def _by_shape(net: Net, a: Tensor) -> Tensor:
    """A size that is read in the body, of a tensor outside of it."""
    flat = net.node("Reshape", a, net.shape_vector(2, net.dim(a, 1), 36), shape=[2, 8, 36])
    return net.conv(net.reshape(flat, [2, 8, 6, 6]), 6, 1)


def _outer_weight(net: Net, a: Tensor) -> Tensor:
    w = net.weight(6, 8, 1, 1)
    other = net.node("Conv", a, w)
    flag = _flag(net)
    made = _branches(
        net, flag, a,
        lambda net, a: net.node("Conv", a, w), lambda net, a: net.node("Identity", other),
    )  # fmt: skip
    return net.add(made, other)


def _outer_bias(net: Net, a: Tensor) -> Tensor:
    """Two layers in two bodies that an exporter gave one bias."""
    b = net.uniform(-1, 1, 6)

    def layer(net: Net, a: Tensor) -> Tensor:
        return net.node("Conv", a, net.weight(6, a.shape[1], 1, 1), b)

    def two(net: Net, a: Tensor) -> Tensor:
        return layer(net, net.relu(layer(net, a)))

    return _branches(net, _flag(net), a, two, layer)


def _other_rank_beside(net: Net, a: Tensor) -> Tensor:
    """Of two outputs one has another rank in the other branch; the other one is cut."""
    bodies = {}
    for name in ("then_branch", "else_branch"):
        with net.body() as body:
            y = net.conv(a, 4, 1)
            y = net.node("ReduceMean", y, axes=[2, 3], keepdims=0) if name[0] == "t" else y
            body.outputs = [net.conv(a, 6, 1), y]
        bodies[name] = body
    first, other = net.nodes("If", [_flag(net)], 2, shapes=[[2, 6, 6, 6], []], **bodies)
    return net.mul(first, net.cast(net.node("Size", other, shape=[]), 1))


def _list_beside(net: Net, a: Tensor, flag: Tensor, full: bool = False) -> Tensor:
    """Of two outputs one is a list as long as the data say; the other one is cut.

    full: it is always as long as the list of the other branch.
    """
    bodies = {}
    for name in ("then_branch", "else_branch"):
        with net.body() as body:
            found = net.node("Greater", net.node("Abs", a), -1.0 if full else 0.0)
            found = net.node("NonZero", found, shape=[4, None], dtype=np.int64)
            if full and name == "else_branch":
                found = net.const(np.zeros((4, 576), np.int64))
            body.outputs = [net.conv(a, 6, 1), found]
        bodies[name] = body
    made, lists = net.nodes("If", [flag], 2, shapes=[[2, 6, 6, 6], [4, None]], **bodies)
    lists.dtype = np.dtype(np.int64)
    return net.mul(made, net.cast(net.node("Size", lists, shape=[]), 1))


def _unlike(net: Net, a: Tensor) -> Tensor:
    """Channels in another number: the sum over them has one shape."""
    shape = [2, None, 6, 6]
    made = _branches(net, _flag(net), a, _two(4, 6), _conv(5), shape=shape)
    return net.node("ReduceSum", made, [1], keepdims=1, shape=[2, 1, 6, 6])


def _longer(net: Net, a: Tensor) -> Tensor:
    """As a decoder with a cache: one branch joins what the model is given to what it makes."""
    past = net.input("past", [2, 8, 3, 6])

    def joined(net: Net, a: Tensor) -> Tensor:
        return net.concat(net.conv(past, 4, 1), net.conv(a, 4, 1), axis=2)

    made = _branches(net, _flag(net), a, joined, _conv(4), shape=[2, 4, None, 6])
    made.shape = [2, 4, 9, 6]
    return made


def _never_fits(net: Net, a: Tensor) -> Tensor:
    """As tracing writes a squeeze: the branch that is never taken contradicts the shapes, which
    onnxruntime does not see beforehand."""
    shape = net.node("Neg", net.node("Neg", net.node("Shape", a)))
    a = net.node("Reshape", a, shape, shape=a.shape)
    one = net.node("Equal", net.dim(a, 1), np.int64(1))
    squeezed = [2, 6, 6]
    return _branches(
        net, one, a, lambda net, a: net.node("Squeeze", a, [1], shape=squeezed), _two(4, 6),
        shape=[2, 6, 6, 6],
    )  # fmt: skip


def _size_from_branch(net: Net, a: Tensor) -> Tensor:
    """A branch decides between two ways to compute one size."""
    flag = net.node("Equal", net.dim(a, 1), np.int64(8))
    bodies = {}
    for name in ("then_branch", "else_branch"):
        with net.body() as body:
            body.outputs = [net.shape_vector(2, net.dim(a, 1), -1)]
        bodies[name] = body
    size = net.node("If", flag, shape=[3], **bodies)
    size.dtype = np.dtype(np.int64)
    rows = net.node("Reshape", a, size, shape=[2, 8, 36])
    return net.reshape(net.conv(rows, 6, 1), [2, 6, 6, 6])


def _two_outputs(net: Net, a: Tensor) -> Tensor:
    bodies = {}
    for name in ("then_branch", "else_branch"):
        with net.body() as body:
            body.outputs = [net.conv(a, 6, 1), net.conv(a, 4, 1)]
        bodies[name] = body
    made = net.nodes("If", [_flag(net)], 2, shapes=[[2, 6, 6, 6], [2, 4, 6, 6]], **bodies)
    return net.concat(*made)


IF = [
    case("If-other-rank-beside", 2, _other_rank_beside),
    case("If-list-beside", 1, lambda net, a: _list_beside(net, a, _flag(net)), refused=True),
    case("If-full-list-beside", 1, lambda net, a: _list_beside(net, a, _flag(net), True),
         exact=True),
    case("If-captures", 1, _if(Net.relu, _neg), exact=True),
    case("If-data", 1, _if(Net.relu, _neg, flag="data"), exact=True),
    case("If-layers", 2, _if(_conv(6), _conv(6, 3)), exact=True),
    case("If-two-layers", 4, _if(_two(4, 6), _two(5, 6)), exact=True),
    case("If-one-layer", 1, _if(_conv(8), Net.relu), exact=True),
    case("If-constant-branch", 1, _if(Net.relu, _map), exact=True),
    case("If-speaking-branch", 1, _if(Net.relu, _speaking_map), exact=True),
    case("If-never", 3, _if(_two(4, 6), _conv(6), flag="never"), exact=True),
    case("If-never-data", 1, _if(_neg, Net.relu, flag="never"), exact=True),
    case("If-nested", 4, _nested, exact=True),
    case("If-reshapes", 2, _if(_as_rows, _as_rows), exact=True),
    case("If-reads-a-size", 2, _if(_by_shape, _as_rows), exact=True),
    case("If-outer-weight", 2, _outer_weight, exact=True),
    case("If-outer-bias", 3, _outer_bias, exact=True),
    case("If-unlike", 2, _unlike, exact=True),
    case("If-longer", 2, _longer, exact=True),
    case("If-never-fits", 3, _never_fits, exact=True),
    case("If-size-from-branch", 2, _size_from_branch, exact=True),
    case("If-two-outputs", 3, _two_outputs, exact=True),
    case("If-opset-11", 4, _if(_two(4, 6), _two(5, 6)), opset=11, exact=True),
]  # fmt: skip


# --- Loop


def _linear(net: Net, x: Tensor, out: int) -> Tensor:
    w = net.weight(x.shape[-1], out, fan=x.shape[-1], gain=1.0)
    return net.add(net.matmul(x, w), net.uniform(-0.1, 0.1, out))


def _rnn(net: Net, x: Tensor, h: Tensor, act: str = "Tanh") -> list[Tensor]:
    hidden = h.shape[-1]
    return [net.node(act, net.add(_linear(net, x, hidden), _linear(net, h, hidden)))]


def _gru(net: Net, x: Tensor, h: Tensor) -> list[Tensor]:
    hidden = h.shape[-1]
    one, two = (net.split(_linear(net, v, 3 * hidden), [hidden] * 3, axis=-1) for v in (x, h))
    r, z = (net.sigmoid(net.add(a, b)) for a, b in zip(one[:2], two[:2], strict=True))
    n = net.node("Tanh", net.add(one[2], net.mul(r, two[2])))
    return [net.add(net.mul(net.sub(1.0, z), n), net.mul(z, h))]


def _lstm(net: Net, x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
    hidden = h.shape[-1]
    gates = net.add(_linear(net, x, 4 * hidden), _linear(net, h, 4 * hidden))
    i, o, f, g = net.split(gates, [hidden] * 4, axis=-1)
    c = net.add(net.mul(net.sigmoid(f), c), net.mul(net.sigmoid(i), net.node("Tanh", g)))
    return [net.mul(net.sigmoid(o), net.node("Tanh", c)), c]


Cell = Callable[..., list[Tensor]]


def _state(net: Net, shape: list[int]) -> Tensor:
    return net.const(np.zeros(shape, np.float32), "start")


def _variable(net: Net, name: str, shape: Any, dtype: Any = np.float32) -> Tensor:
    net._counts[name] += 1
    return gs.Variable(f"{name}_{net._counts[name]}", np.dtype(dtype), shape)


def _loop(
    net: Net,
    a: Tensor,
    cell: Cell,
    starts: list[Tensor],
    rounds: Any = None,
    until: bool = False,
) -> list[Tensor]:
    """The cell over the tokens of a: last states, and the first state of every round."""
    inside = [_variable(net, "state", s.shape) for s in starts]
    stop = net.input("stop", [], np.int64) if until else None
    i, on = _variable(net, "round", [], np.int64), _variable(net, "on", [], np.bool_)
    with net.body(i, on, *inside) as body:
        left = cell(net, net.gather(a, i, axis=1), *inside)
        stays = net.node("Less", i, stop) if until else net.node("Identity", on)
        body.outputs = [stays, *left, net.node("Identity", left[0])]
    rounds = np.int64(a.shape[1]) if rounds is None else rounds
    first = [rounds, np.array(True), *starts]
    length = None if until else a.shape[1]
    shapes = [*(s.shape for s in starts), [length, *starts[0].shape]]
    return net.nodes("Loop", first, len(starts) + 1, shapes=shapes, body=body)


def _looped(cell: Cell, states: int = 1, **options: Any) -> Body:
    """All rounds."""

    def body(net: Net, a: Tensor) -> Tensor:
        *_, every = _loop(
            net, a, cell, [_state(net, [2, HIDDEN]) for _ in range(states)], **options
        )
        return net.transpose(every, 1, 0, 2)

    return body


def _last(cell: Cell, states: int = 1, **options: Any) -> Body:
    """The last states alone."""

    def body(net: Net, a: Tensor) -> Tensor:
        starts = [_state(net, [2, HIDDEN]) for _ in range(states)]
        *last, _ = _loop(net, a, cell, starts, **options)
        return net.unsqueeze(net.concat(*last), 1)

    return body


def _many(net: Net, a: Tensor) -> Tensor:
    """How often it runs is an input of the model."""
    count = net.input("count", [], np.int64)
    last, _ = _loop(net, a, _modular, [_state(net, [2, HIDDEN])], rounds=count)
    return net.unsqueeze(last, 1)


def _modular(net: Net, x: Tensor, h: Tensor) -> list[Tensor]:
    return _rnn(net, net.node("Neg", x), h)


def _given(net: Net, a: Tensor) -> Tensor:
    start = net.input("start", [2, HIDDEN])
    return net.transpose(_loop(net, a, _rnn, [start])[-1], 1, 0, 2)


def _from_size(net: Net, a: Tensor) -> Tensor:
    """The state starts at zero, in a shape that is computed."""
    size = net.shape_vector(net.dim(a, 0), HIDDEN)
    zeros = net.node("Expand", 0.0, size, shape=[2, HIDDEN])
    return net.transpose(_loop(net, a, _rnn, [zeros])[-1], 1, 0, 2)


def _outside(net: Net, a: Tensor) -> Tensor:
    """Weights that stand outside, which a layer before the loop reads as well."""
    w = net.weight(8, HIDDEN, fan=8)
    before = net.matmul(a, w)

    def cell(net: Net, x: Tensor, h: Tensor) -> list[Tensor]:
        return [net.node("Tanh", net.add(net.matmul(x, w), h))]

    every = _loop(net, a, cell, [_state(net, [2, HIDDEN])])[-1]
    return net.add(net.transpose(every, 1, 0, 2), before)


def _growing(net: Net, a: Tensor, start: int = 1) -> Tensor:
    """A list that every round adds to: its length is another every time."""

    def cell(net: Net, x: Tensor, h: Tensor, more: Tensor) -> list[Tensor]:
        (h,) = _rnn(net, x, h)
        return [h, net.node("Concat", more, net.unsqueeze(h, 1), axis=1, shape=[2, None, HIDDEN])]

    empty = net.const(np.zeros((2, start, HIDDEN), np.float32))
    _, grown, _ = _loop(net, a, cell, [_state(net, [2, HIDDEN]), empty])
    grown.shape = [2, start + 5, HIDDEN]
    return grown


def _growing_and_read(net: Net, a: Tensor) -> Tensor:
    """A list that every round looks at."""

    def cell(net: Net, x: Tensor, h: Tensor, more: Tensor) -> list[Tensor]:
        (h,) = _rnn(net, x, h)
        most = net.node("ReduceMax", more, axes=[1], keepdims=1, shape=[2, 1, HIDDEN])
        new = net.add(net.unsqueeze(h, 1), most)
        return [h, net.node("Concat", more, new, axis=1, shape=[2, None, HIDDEN])]

    first = net.const(np.zeros((2, 1, HIDDEN), np.float32))
    _, grown, _ = _loop(net, a, cell, [_state(net, [2, HIDDEN]), first])
    grown.shape = [2, 6, HIDDEN]
    return grown


def _turning(net: Net, a: Tensor) -> Tensor:
    """Two states that change places: they go together."""

    def cell(net: Net, x: Tensor, h: Tensor, g: Tensor) -> list[Tensor]:
        return [*_rnn(net, x, g), net.node("Identity", h)]

    starts = [_state(net, [2, HIDDEN]), _state(net, [2, HIDDEN])]
    return net.transpose(_loop(net, a, cell, starts)[-1], 1, 0, 2)


def _reshaping(net: Net, x: Tensor, h: Tensor) -> list[Tensor]:
    (h,) = _rnn(net, x, h)
    return [net.reshape(net.reshape(h, [2, 1, HIDDEN]), [-1, HIDDEN])]


def _deep(net: Net, a: Tensor) -> Tensor:
    """A layer inside that nothing else sees, in a branch."""
    bright = _bright(net)

    def cell(net: Net, x: Tensor, h: Tensor) -> list[Tensor]:
        wide = _branches(
            net, bright, x, lambda net, x: _linear(net, net.relu(_linear(net, x, 5)), 4),
            lambda net, x: _linear(net, x, 4),
        )  # fmt: skip
        return _rnn(net, wide, h)

    return _looped(cell)(net, a)  # type: ignore[return-value]


def _sum_of_the_last(net: Net, x: Tensor, h: Tensor) -> list[Tensor]:
    """Every round adds up what the last one left, and leaves something where a unit is removed."""
    total = net.node("ReduceSum", h, [1])
    return [net.sigmoid(net.add(_linear(net, x, HIDDEN), total))]


def _beside(
    net: Net, a: Tensor, make: Callable[[Net, Tensor, Tensor], list[Tensor]], *shapes: Any,
    until: bool = False, dtype: Any = np.float32,
) -> list[Tensor]:  # fmt: skip
    """The last state, and what every round makes beside it of a token and the round's number."""
    h = _variable(net, "state", [2, HIDDEN])
    stop = net.input("stop", [], np.int64) if until else None
    i, on = _variable(net, "round", [], np.int64), _variable(net, "on", [], np.bool_)
    with net.body(i, on, h) as body:
        x = net.gather(a, i, axis=1)
        more = make(net, x, i)
        stays = net.node("Less", i, stop) if until else net.node("Identity", on)
        body.outputs = [stays, *_rnn(net, x, h), *more]
    first = [np.int64(a.shape[1]), np.array(True), _state(net, [2, HIDDEN])]
    made = net.nodes("Loop", first, 1 + len(shapes), shapes=[[2, HIDDEN], *shapes], body=body)
    made[1].dtype = np.dtype(dtype)
    return made


def _of_unknown_size(net: Net, a: Tensor) -> tuple[Tensor, ...]:
    """What every round leaves beside its state has a size that the data decide."""

    def make(net: Net, x: Tensor, i: Tensor) -> list[Tensor]:
        far = net.unsqueeze(net.add(i, np.int64(1)), 0)
        return [net.node("NonZero", far, shape=[1, None], dtype=np.int64)]

    last, lists = _beside(net, a, make, [5, 1, None], dtype=np.int64)
    return net.linear(last, 5), net.node("Size", lists, shape=[], dtype=np.int64)


def _until_inside(net: Net, a: Tensor) -> tuple[Tensor, ...]:
    """How many rounds there are is not known, and no run shows it; the state is cut."""

    def make(net: Net, x: Tensor, i: Tensor) -> list[Tensor]:
        return [_linear(net, net.relu(_linear(net, x, 5)), 4)]

    bodies = {}
    for name in ("then_branch", "else_branch"):
        with net.body() as body:
            if name == "then_branch":
                last, every = _beside(net, a, make, [None, 2, 4], until=True)
            else:
                last, every = _linear(net, net.gather(a, np.int64(0), axis=1), HIDDEN), a
            body.outputs = [last, net.node("Size", every, shape=[], dtype=np.int64)]
        bodies[name] = body
    last, size = net.nodes("If", [_flag(net)], 2, shapes=[[2, HIDDEN], []], **bodies)
    size.dtype = np.dtype(np.int64)
    return net.linear(last, 5), size


def _unlike_beside(net: Net, a: Tensor) -> Tensor:
    """A run shows the shape of what all rounds leave, but not that of what one leaves."""
    flag = _flag(net)

    def make(net: Net, x: Tensor, i: Tensor) -> list[Tensor]:
        made = _branches(
            net, flag, x, lambda net, x: _linear(net, x, 4), lambda net, x: _linear(net, x, 3),
            shape=[2, None],
        )  # fmt: skip
        return [made, _linear(net, x, HIDDEN)]

    last, unlike, every = _beside(net, a, make, [5, 2, None], [5, 2, HIDDEN])
    total = net.node("ReduceSum", unlike, keepdims=0)
    return net.add(net.transpose(every, 1, 0, 2), net.unsqueeze(net.add(last, total), 1))


LOOP = [
    case("Loop-until-inside", 3, _until_inside, shape=TOKENS, refused=True),
    case("Loop-unlike-beside", 2, _unlike_beside, shape=TOKENS),
    case("Loop-of-unknown-size", 2, _of_unknown_size, shape=TOKENS),
    case("Loop-sum-of-the-last", 2, _last(_sum_of_the_last), shape=TOKENS, inexact=1),
    case("Loop-rnn", 2, _looped(_rnn), shape=TOKENS, exact=True),
    case("Loop-gru", 2, _looped(_gru), shape=TOKENS, exact=True),
    case("Loop-lstm", 2, _looped(_lstm, 2), shape=TOKENS, exact=True),
    case("Loop-last-states", 2, _last(_lstm, 2), shape=TOKENS, exact=True),
    case("Loop-sigmoid", 2, _last(lambda net, x, h: _rnn(net, x, h, "Sigmoid")), shape=TOKENS),
    case("Loop-count-is-input", 2, _many, shape=TOKENS, exact=True),
    case("Loop-until", 2, _last(_rnn, until=True), shape=TOKENS, exact=True),
    case("Loop-all-until", 2, _looped(_rnn, until=True), shape=TOKENS, exact=True),
    case("Loop-given-state", 1, _given, shape=TOKENS, exact=True),
    case("Loop-computed-start", 2, _from_size, shape=TOKENS, exact=True),
    case("Loop-outer-weight", 2, _outside, shape=TOKENS, exact=True),
    case("Loop-growing", 2, _growing, shape=TOKENS, exact=True),
    case("Loop-growing-from-nothing", 2, lambda net, a: _growing(net, a, 0), shape=TOKENS,
         exact=True),
    case("Loop-growing-and-read", 1, _growing_and_read, shape=TOKENS, refused=True),
    case("Loop-turning", 2, _turning, shape=TOKENS, exact=True),
    case("Loop-reshapes", 2, _looped(_reshaping), shape=TOKENS, exact=True),
    case("Loop-of-if", 4, _deep, shape=TOKENS, exact=True),
    case("Loop-opset-13", 2, _looped(_lstm, 2), shape=TOKENS, opset=13, exact=True),
]  # fmt: skip


# --- Scan


def _scan(
    net: Net,
    xs: list[Tensor],
    cell: Cell,
    starts: list[Tensor],
    axis: int = 1,
    **attrs: Any,
) -> list[Tensor]:
    """The cell over slices of xs along an axis: last states, and the first state of every round."""
    inside = [_variable(net, "state", s.shape) for s in starts]
    slices = [_variable(net, "slice", [n for k, n in enumerate(x.shape) if k != axis]) for x in xs]
    with net.body(*inside, *slices) as body:
        left = cell(net, *slices, *inside)
        body.outputs = [*left, net.node("Identity", left[0])]
    out = attrs.get("scan_output_axes", [0])[0]
    every = [*starts[0].shape]
    every.insert(out, xs[0].shape[axis])
    return net.nodes(
        "Scan", [*starts, *xs], len(starts) + 1, shapes=[*(s.shape for s in starts), every],
        body=body, num_scan_inputs=len(xs), scan_input_axes=[axis] * len(xs), **attrs,
    )  # fmt: skip


def _scanned(cell: Cell, states: int = 1, **attrs: Any) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        starts = [_state(net, [2, HIDDEN]) for _ in range(states)]
        return _scan(net, [a], cell, starts, scan_output_axes=[1], **attrs)[-1]

    return body


def _steps_first(net: Net, a: Tensor) -> Tensor:
    start = _state(net, [2, HIDDEN])
    every = _scan(net, [net.transpose(a, 1, 0, 2)], _rnn, [start], axis=0)[-1]
    return net.transpose(every, 1, 0, 2)


def _pairs(net: Net, a: Tensor) -> Tensor:
    """Two sequences at once, and the last state beside all of them."""

    def cell(net: Net, x: Tensor, y: Tensor, h: Tensor) -> list[Tensor]:
        return _rnn(net, net.add(_linear(net, x, 4), _linear(net, y, 4)), h)

    b = _linear(net, net.relu(a), 3)
    last, every = _scan(
        net, [a, b], cell, [_state(net, [2, HIDDEN])], scan_output_axes=[1],
        scan_input_directions=[0, 1], scan_output_directions=[1],
    )  # fmt: skip
    return net.add(every, net.unsqueeze(last, 1))


def _conv_lstm(net: Net, x: Tensor, h: Tensor, c: Tensor) -> list[Tensor]:
    hidden = h.shape[1]
    gates = net.conv(net.concat(x, h), 4 * hidden, 3)
    i, o, f, g = net.split(gates, [hidden] * 4)
    c = net.add(net.mul(net.sigmoid(f), c), net.mul(net.sigmoid(i), net.node("Tanh", g)))
    return [net.mul(net.sigmoid(o), net.node("Tanh", c)), c]


def _frames(net: Net, a: Tensor) -> Tensor:
    frames = net.concat(net.unsqueeze(a, 0), net.unsqueeze(net.relu(a), 0), axis=0)
    starts = [_state(net, [2, 4, 6, 6]) for _ in range(2)]
    return _scan(net, [frames], _conv_lstm, starts, axis=0)[0]


def _stacked(net: Net, a: Tensor) -> Tensor:
    for _ in range(2):
        a = _scan(net, [a], _gru, [_state(net, [2, HIDDEN])], scan_output_axes=[1])[-1]
    return a


def _oldest(net: Net, a: Tensor) -> Tensor:
    """Scan had a batch axis of its own at first."""
    state, x = _variable(net, "state", [8]), _variable(net, "slice", [8])
    with net.body(state, x) as body:
        added = net.add(state, x)
        body.outputs = [added, net.node("Identity", added)]
    start = net.const(np.zeros((2, 8), np.float32))
    _, every = net.nodes(
        "Scan", [None, start, a], 2, shapes=[[2, 8], [2, 5, 8]], body=body, num_scan_inputs=1
    )
    return every


SCAN = [
    case("Scan-rnn", 2, _scanned(_rnn), shape=TOKENS, exact=True),
    case("Scan-gru", 2, _scanned(_gru), shape=TOKENS, exact=True),
    case("Scan-lstm", 2, _scanned(_lstm, 2), shape=TOKENS, exact=True),
    case("Scan-backward", 2, _scanned(_lstm, 2, scan_input_directions=[1]), shape=TOKENS),
    case("Scan-steps-first", 2, _steps_first, shape=TOKENS, exact=True),
    case("Scan-pairs", 4, _pairs, shape=TOKENS, exact=True),
    case("Scan-conv-lstm", 2, _frames, exact=True),
    case("Scan-stacked", 3, _stacked, shape=TOKENS, exact=True),
    case("Scan-opset-8", 0, _oldest, shape=TOKENS, opset=8),
    case("Scan-opset-9", 2, _scanned(_rnn), shape=TOKENS, opset=9, exact=True),
]  # fmt: skip


@pytest.mark.parametrize("row", [*IF, *LOOP, *SCAN])
def test_control(row: Case) -> None:
    row.check()


@pytest.mark.parametrize("body", [_looped(_rnn), _scanned(_rnn)])
def test_what_goes_round_is_called_recurrent(body: Body) -> None:
    kinds = {group.kind for group in spa.analyze(Case("", 2, body, TOKENS).model())}
    assert kinds == {"linear", "recurrent"}
