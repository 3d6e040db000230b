"""Makes mixtures of experts as files have them: one operator apart, in stacks, or one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto

from models.builder import Net, Tensor

EXPERTS, WIDTH, INNER, PICKED = 4, 8, 5, 2
GROUPS, EACH = 4, 3

Mixture = Callable[[Net, Tensor, Tensor], Tensor]

# The expected groups, and whether removal of an expert obeys the law in value.
MIXTURES: dict[str, tuple[Callable[[], ModelProto], int, bool]] = {}

# What is read, the experts, and the width of each of them.
ONE_BY_ONE = 2 + EXPERTS
STACKED = 3


def mixture(groups: int, exact: bool = False, opset: int = 17) -> Callable[[Mixture], Mixture]:
    """A maker from (net, tokens, logits of the router), shapes (T, WIDTH) and (T, EXPERTS)."""

    def wrap(body: Mixture) -> Mixture:
        def make() -> ModelProto:
            net = Net(body.__name__, opset=opset)
            x = net.linear(net.input("x", ("t", 6)), WIDTH)
            return net.model(net.linear(net.add(x, body(net, x, net.linear(x, EXPERTS))), 3))

        MIXTURES[body.__name__] = make, groups, exact
        return body

    return wrap


def _expert(net: Net, x: Tensor) -> Tensor:
    return net.linear(net.silu(net.linear(x, INNER, bias=False)), WIDTH)


def _each(net: Net, x: Tensor, share: Callable[[int], Tensor], count: int = EXPERTS) -> Tensor:
    """The sum over all experts of share(e), shape (T, 1), times what the expert makes."""
    total: Tensor | None = None
    for e in range(count):
        part = net.mul(share(e), _expert(net, x))
        total = part if total is None else net.add(total, part)
    assert total is not None
    return total


def _picked(net: Net, logits: Tensor) -> tuple[Tensor, Tensor]:
    """The shares and the numbers of the experts that a token goes to, shape (T, PICKED)."""
    values, index = net.nodes("TopK", [net.softmax(logits), [PICKED]], 2, axis=-1)
    total = net.node("ReduceSum", values, [-1], keepdims=1)
    return net.div(values, total), index


def _spread(net: Net, logits: Tensor) -> Tensor:
    """The shares of all experts, zero for those that are not picked, by scattering."""
    values, index = _picked(net, logits)
    shape = net.node("Shape", logits)
    nothing = net.node("ConstantOfShape", shape, shape=["t", EXPERTS], dtype=np.float32)
    return net.node("ScatterElements", nothing, index, values, axis=1)


def _of_range(net: Net, logits: Tensor) -> Tensor:
    """The same by comparing with all numbers."""
    values, index = _picked(net, logits)
    same = net.node("Equal", net.unsqueeze(index, 2), net.const(np.arange(EXPERTS)))
    marks = net.mul(net.cast(same, TensorProto.FLOAT), net.unsqueeze(values, 2))
    return net.node("ReduceSum", marks, [1], keepdims=0)


def _of_classes(net: Net, logits: Tensor) -> Tensor:
    """The same by OneHot."""
    values, index = _picked(net, logits)
    marks = net.node("OneHot", index, np.int64(EXPERTS), np.asarray([0, 1], np.float32))
    return net.node("ReduceSum", net.mul(marks, net.unsqueeze(values, 2)), [1], keepdims=0)


def _shares(net: Net, p: Tensor) -> Callable[[int], Tensor]:
    """The share of one expert."""
    return lambda e: net.slice(p, e, e + 1)


# --- experts one by one


@mixture(ONE_BY_ONE)
def sliced(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    p = net.softmax(logits)
    return _each(net, x, _shares(net, p))


@mixture(ONE_BY_ONE)
def gathered(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    p = net.softmax(logits)
    return _each(net, x, lambda e: net.unsqueeze(net.gather(p, np.int64(e), axis=1), 1))


@mixture(ONE_BY_ONE)
def gathered_from_behind(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    p = net.softmax(logits)
    return _each(net, x, lambda e: net.gather(p, [e - EXPERTS], axis=1))


@mixture(ONE_BY_ONE)
def split_up(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    shares = net.split(net.softmax(logits), [1] * EXPERTS)
    return _each(net, x, lambda e: shares[e])


@mixture(ONE_BY_ONE, exact=True)
def sigmoids(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    """Nothing is shared out anew, so the law holds in value."""
    p = net.sigmoid(logits)
    return _each(net, x, _shares(net, p))


@mixture(ONE_BY_ONE)
def scattered(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    p = _spread(net, logits)
    return _each(net, x, _shares(net, p))


@mixture(ONE_BY_ONE)
def ranged(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    p = _of_range(net, logits)
    return _each(net, x, lambda e: net.unsqueeze(net.gather(p, np.int64(e), axis=1), 1))


@mixture(ONE_BY_ONE)
def classed(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    p = _of_classes(net, logits)
    return _each(net, x, _shares(net, p))


@mixture(ONE_BY_ONE)
def compared(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    values, index = _picked(net, logits)

    def share(e: int) -> Tensor:
        here = net.cast(net.node("Equal", index, np.int64(e)), TensorProto.FLOAT)
        return net.node("ReduceSum", net.mul(values, here), [1], keepdims=1)

    return _each(net, x, share)


@mixture(ONE_BY_ONE)
def in_pairs(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    """Two sums of two experts each, brought together: where both of a sum go, so does the sum."""
    p = net.softmax(logits)
    parts = [net.mul(net.slice(p, e, e + 1), _expert(net, x)) for e in range(EXPERTS)]
    return net.add(net.add(parts[0], parts[1]), net.add(parts[2], parts[3]))


@mixture(ONE_BY_ONE)
def summed_at_once(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    p = net.softmax(logits)
    return net.node("Sum", *(net.mul(net.slice(p, e, e + 1), made) for e, made in _all(net, x)))


@mixture(ONE_BY_ONE)
def summed_with_what_is_read(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    """The last two may go as well, as long as the sum keeps its shape."""
    p = net.softmax(logits)
    parts = [net.mul(net.slice(p, e, e + 1), made) for e, made in _all(net, x)]
    return net.node("Sum", parts[0], net.node("Sum", *parts[1:]), x)


# --- experts one by one, stacked


def _all(net: Net, x: Tensor) -> list[tuple[int, Tensor]]:
    return [(e, _expert(net, x)) for e in range(EXPERTS)]


def _joined(net: Net, x: Tensor, axis: int = 1) -> Tensor:
    """What all experts make, as torch.stack is exported."""
    return net.concat(*(net.unsqueeze(made, axis) for _, made in _all(net, x)), axis=axis)


@mixture(ONE_BY_ONE)
def joined(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    shares = net.unsqueeze(net.softmax(logits), 2)
    return net.node("ReduceSum", net.mul(_joined(net, x), shares), [1], keepdims=0)


@mixture(ONE_BY_ONE, exact=True)
def joined_sigmoids(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    shares = net.unsqueeze(net.sigmoid(logits), 2)
    return net.node("ReduceSum", net.mul(_joined(net, x), shares), [1], keepdims=0)


@mixture(ONE_BY_ONE)
def joined_on_the_last_axis(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    shares = net.unsqueeze(net.softmax(logits), 2)
    return net.squeeze(net.matmul(_joined(net, x, axis=2), shares), 2)


@mixture(ONE_BY_ONE)
def joined_for_two_gates(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    """MMoE: a router for every task reads the same experts."""
    stack, other = _joined(net, x), net.linear(x, EXPERTS)
    shares = (net.unsqueeze(net.softmax(router), 1) for router in (logits, other))
    return net.add(*(net.squeeze(net.matmul(s, stack), 1) for s in shares))


@mixture(ONE_BY_ONE)
def joined_with_shares(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    """Every expert is weighed before all are stacked: its column is picked and goes with it."""
    p = net.softmax(logits)
    parts = [net.mul(net.slice(p, e, e + 1), made) for e, made in _all(net, x)]
    stack = net.concat(*(net.unsqueeze(part, 0) for part in parts), axis=0)
    return net.node("ReduceSum", stack, [0], keepdims=0)


@mixture(ONE_BY_ONE)
def side_by_side(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    """What all experts make beside each other, viewed as experts and channels."""
    shares = net.unsqueeze(net.softmax(logits), 2)
    stack = net.reshape(net.concat(*(made for _, made in _all(net, x))), [-1, EXPERTS, WIDTH])
    return net.node("ReduceSum", net.mul(stack, shares), [1], keepdims=0)


@mixture(ONE_BY_ONE)
def one_after_another(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    """The same along the tokens."""
    shares = net.unsqueeze(net.transpose(net.softmax(logits), 1, 0), 2)
    made = net.concat(*(made for _, made in _all(net, x)), axis=0)
    stack = net.node("Reshape", made, net.shape_vector(EXPERTS, -1, WIDTH))
    return net.node("ReduceSum", net.mul(stack, shares), [0], keepdims=0)


@mixture(ONE_BY_ONE)
def joined_and_looked_up(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    """Of what all experts make the best few are gathered."""
    values, index = _picked(net, logits)
    places = net.node("Expand", net.unsqueeze(index, 2), [1, 1, WIDTH])
    best = net.node("GatherElements", _joined(net, x), places, axis=1)
    return net.node("ReduceSum", net.mul(best, net.unsqueeze(values, 2)), [1], keepdims=0)


def _places(net: Net, x: Tensor, index: Tensor) -> Tensor:
    """The number of the token beside that of each of its experts, shape (T, PICKED, 2), as indexing
    of two axes at once is exported."""
    tokens = net.node("Range", np.int64(0), net.dim(x, 0), np.int64(1), shape=["t"], dtype=np.int64)
    size = net.node("Shape", index)
    tokens = net.node("Expand", net.unsqueeze(tokens, 1), size, shape=index.shape, dtype=np.int64)
    return net.concat(net.unsqueeze(tokens, 2), net.unsqueeze(index, 2), axis=2)


@mixture(ONE_BY_ONE)
def joined_and_indexed(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    """The same by stack[arange, index]."""
    values, index = _picked(net, logits)
    best = net.node("GatherND", _joined(net, x), _places(net, x, index))
    return net.node("ReduceSum", net.mul(best, net.unsqueeze(values, 2)), [1], keepdims=0)


def _laid_out(net: Net, x: Tensor, index: Tensor, count: Tensor) -> Tensor:
    """t * E + e, as older exporters write it."""
    tokens = net.node("Range", np.int64(0), net.dim(x, 0), np.int64(1), shape=["t"], dtype=np.int64)
    return net.add(index, net.mul(net.unsqueeze(tokens, 1), count))


@mixture(ONE_BY_ONE)
def joined_and_laid_out(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    values, index = _picked(net, logits)
    stack = _joined(net, x)
    at = _laid_out(net, x, index, net.dim(stack, 1))
    best = net.gather(net.node("Flatten", stack, axis=2), at)
    best = net.node("Reshape", best, net.concat(net.node("Shape", at), net.const([WIDTH]), axis=0))
    return net.node("ReduceSum", net.mul(best, net.unsqueeze(values, 2)), [1], keepdims=0)


@mixture(STACKED)
def shares_laid_out(net: Net, x: Tensor, logits: Tensor) -> Any:
    """What is picked by ranks that a bias moved, has its shares from elsewhere."""
    ranked = net.add(logits, net.uniform(-0.1, 0.1, EXPERTS))
    _, index = net.nodes("TopK", [ranked, [PICKED]], 2, axis=-1)
    at = _laid_out(net, x, index, net.const(EXPERTS))
    values = net.gather(net.reshape(net.sigmoid(logits), [-1]), at)
    return _looked_up(net, x, (values, index), net.gather)


@mixture(ONE_BY_ONE)
def marked(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    """The shares of all experts by zeros[arange, index] = values."""
    values, index = _picked(net, logits)
    none = net.node("Shape", logits)
    nothing = net.node("ConstantOfShape", none, shape=["t", EXPERTS], dtype=np.float32)
    p = net.node("ScatterND", nothing, _places(net, x, index), values)
    return _each(net, x, _shares(net, p))


# --- tokens sent to experts


@mixture(ONE_BY_ONE)
def looped(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    """Every expert reads only the tokens that go to it, as exported loops of Mixtral have it."""
    values, index = _picked(net, logits)
    marks = net.node("OneHot", index, np.int64(EXPERTS), np.asarray([0, 1], np.int64))
    marks = net.transpose(marks, 2, 1, 0)
    total = net.mul(x, 0.0)
    for e in range(EXPERTS):
        mine = net.gather(marks, np.int64(e), axis=0)
        places = net.transpose(net.node("NonZero", mine), 1, 0)
        rank, token = (net.squeeze(part, 1) for part in net.split(places, [1, 1]))
        pairs = net.concat(net.unsqueeze(token, 1), net.unsqueeze(rank, 1))
        share = net.unsqueeze(net.node("GatherND", values, pairs), 1)
        made = net.mul(_expert(net, net.gather(x, token)), share)
        total = net.node("ScatterND", total, net.unsqueeze(token, 1), made, reduction=b"add")
    return total


def sorted_by_expert(sizes: tuple[int, ...] = (4, 5, 4, 5)) -> ModelProto:
    """Rows of tokens in the order of their experts, and each expert its part of them, as exports of
    JetMoE have it: with the sizes of the parts that tracing met.

    Args:
        sizes: how many rows every expert gets.
    """
    net, rows = Net("sorted"), sum(sizes)
    x = net.linear(net.input("x", (rows // PICKED, 6)), WIDTH)
    values, index = _picked(net, net.linear(x, EXPERTS))
    listed = net.reshape(index, [-1])
    _, order = net.nodes("TopK", [listed, [rows]], 2, axis=0, largest=0)
    token = net.div(order, np.int64(PICKED))
    mine = net.split(net.gather(x, token), list(sizes), axis=0)
    inner = net.concat(*(net.linear(part, INNER, bias=False) for part in mine), axis=0)
    made = net.split(net.silu(inner), list(sizes), axis=0)
    outer = net.concat(*(net.linear(part, WIDTH, bias=False) for part in made), axis=0)
    shares = net.unsqueeze(net.gather(net.reshape(values, [-1]), order), 1)
    total = net.node(
        "ScatterND", net.mul(x, 0.0), net.unsqueeze(token, 1), net.mul(outer, shares),
        reduction=b"add",
    )  # fmt: skip
    return net.model(net.linear(net.add(x, total), 3))


# --- groups of experts, of which some are picked first


def by_two_best(net: Net, scores: Tensor) -> Tensor:
    """DeepSeek-V3: the sum of the two best of a group."""
    best, _ = net.nodes("TopK", [scores, [2]], 2, axis=-1)
    return net.node("ReduceSum", best, [-1], keepdims=0)


def by_best(net: Net, scores: Tensor) -> Tensor:
    """DeepSeek-V2."""
    return net.node("ReduceMax", scores, axes=[-1], keepdims=0)


def group_limited(judge: Callable[[Net, Tensor], Tensor], below: float = 0.0) -> ModelProto:
    """Each token goes to the best experts of its best groups.

    Args:
        judge: scores of experts, shape (T, GROUPS, EACH), to those of groups, (T, GROUPS).
        below: the score of the experts in all other groups.
    """
    net, count = Net("group_limited"), GROUPS * EACH
    x = net.linear(net.input("x", ("t", 6)), WIDTH)
    scores = net.sigmoid(net.linear(x, count))
    ranked = net.add(scores, net.uniform(-0.1, 0.1, count))
    groups = judge(net, net.reshape(ranked, [-1, GROUPS, EACH]))
    _, best = net.nodes("TopK", [groups, [2]], 2, axis=-1)
    one = net.node("ConstantOfShape", net.node("Shape", best), shape=best.shape, dtype=np.float32)
    nothing = net.node(
        "ConstantOfShape", net.node("Shape", groups), shape=groups.shape, dtype=np.float32
    )
    marks = net.node("ScatterElements", nothing, best, net.add(one, 1.0), axis=1)
    marks = net.node("Expand", net.unsqueeze(marks, 2), [1, GROUPS, EACH])
    others = net.node("Not", net.cast(net.reshape(marks, [-1, count]), TensorProto.BOOL))
    left = net.node("Where", others, np.float32(below), ranked)
    _, index = net.nodes("TopK", [left, [PICKED]], 2, axis=-1)
    values = net.node("GatherElements", scores, index, axis=1)
    values = net.div(values, net.node("ReduceSum", values, [-1], keepdims=1))
    none = net.node(
        "ConstantOfShape", net.node("Shape", scores), shape=scores.shape, dtype=np.float32
    )
    p = net.node("ScatterElements", none, index, values, axis=1)
    made = _each(net, x, _shares(net, p), count)
    return net.model(net.linear(net.add(x, made), 3))


# --- experts in stacks


def _stack(net: Net, *shape: int) -> Tensor:
    return net.weight(EXPERTS, *shape, fan=shape[0])


@mixture(STACKED)
def summed_products(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    inner = net.node("Einsum", x, _stack(net, WIDTH, INNER), equation="tc,eci->tei")
    made = net.node("Einsum", net.silu(inner), _stack(net, INNER, WIDTH), equation="tei,eic->tec")
    return net.node("Einsum", made, net.softmax(logits), equation="tec,te->tc")


@mixture(STACKED)
def batched(net: Net, x: Tensor, logits: Tensor) -> Tensor:
    inner = net.silu(net.matmul(net.unsqueeze(x, 0), _stack(net, WIDTH, INNER)))
    made = net.matmul(inner, _stack(net, INNER, WIDTH))
    shares = net.unsqueeze(net.transpose(_spread(net, logits), 1, 0), 2)
    return net.node("ReduceSum", net.mul(made, shares), [0], keepdims=0)


def _looked_up(
    net: Net, x: Tensor, picked: tuple[Tensor, Tensor], look: Callable[[Tensor, Any], Tensor]
) -> Any:
    """The matrices of the experts that a token goes to, as exports of transformers have them."""
    values, index = picked
    first = look(_stack(net, WIDTH, INNER), index)
    second = look(_stack(net, INNER, WIDTH), index)
    rows = net.unsqueeze(x, 1, 2)
    made = net.squeeze(net.matmul(net.silu(net.matmul(rows, first)), second), 2)
    return net.node("ReduceSum", net.mul(made, net.unsqueeze(values, 2)), [1], keepdims=0)


@mixture(STACKED)
def looked_up(net: Net, x: Tensor, logits: Tensor) -> Any:
    return _looked_up(net, x, _picked(net, logits), net.gather)


@mixture(STACKED)
def looked_up_by_two_best(net: Net, x: Tensor, logits: Tensor) -> Any:
    """Phi-MoE: the best, and the best of the others, each by an ArgMax of its own."""
    first = net.node("ArgMax", logits, axis=-1, keepdims=1)
    never = np.full((1, 1), -np.inf, np.float32)
    nothing = net.node("Expand", never, net.node("Shape", first), shape=first.shape)
    others = net.node("ScatterElements", logits, first, nothing, axis=1)
    second = net.node("ArgMax", others, axis=-1, keepdims=1)
    shares = net.softmax(logits)
    values = [net.node("GatherElements", shares, index, axis=1) for index in (first, second)]
    picked = net.concat(*values), net.concat(first, second)
    return _looked_up(net, x, picked, net.gather)


@mixture(STACKED)
def looked_up_by_lists(net: Net, x: Tensor, logits: Tensor) -> Any:
    return _looked_up(
        net,
        x,
        _picked(net, logits),
        lambda w, index: net.node("GatherND", w, net.unsqueeze(index, 2)),
    )
