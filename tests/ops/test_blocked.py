"""Weights in few bits: packed, in blocks, with and without zero points, in whole units and not."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto

import spa
from models.builder import Net, Tensor
from spa.cost import CostModel
from spa.rewrite import rewrite
from tests.ops.cases import TOKENS, Body, Case, case, check_axes, coded, summing

BLOCK = 16


def _n_bits(
    out: int = 6,
    columns: int = 64,
    *,
    bits: int | None = 4,
    points: str = "",
    flat: bool = False,
    bias: bool = True,
    order: bool = False,
    **attrs: Any,
) -> Body:
    """A wide linear layer and what reads it in few bits; order: its columns are in another one."""

    def body(net: Net, a: Tensor) -> Tensor:
        a = net.relu(net.linear(a, columns)) if a.shape[2] != columns else a
        blocks, size = -(-columns // BLOCK), bits or 4
        w = net.const(net.rng.integers(0, 256, (out, blocks, BLOCK * size // 8)).astype(np.uint8))
        shape = (out * blocks,) if flat else (out, blocks)
        more: list[Any] = [None]
        if points == "packed":
            held = (out, -(-blocks * size // 8))
            held = (held[0] * held[1],) if flat else held
            more = [net.const(net.rng.integers(0, 256, held).astype(np.uint8))]
        elif points == "floats":
            more = [net.uniform(6, 9, *shape)]
        return coded(
            net, "MatMulNBits", a, w, net.uniform(0.01, 0.02, *shape), *more,
            net.const(np.arange(columns, dtype=np.int32) // BLOCK) if order else None,
            net.uniform(-1, 1, out) if bias else None, shape=[*a.shape[:-1], out],
            dtype=np.float32, N=out, K=columns, bits=bits, block_size=BLOCK, **attrs,
        )  # fmt: skip

    return body


def _chained(net: Net, a: Tensor) -> Tensor:
    """Two in a row: the columns of the first go by blocks of the second."""
    return _n_bits(6, 32)(net, net.relu(_n_bits(32)(net, a)))


def _bnb4(
    out: int = 6, columns: int = 64, *, speaks: str = "", flat: bool = True, **attrs: Any
) -> Body:
    """speaks: whether x or the scale do where an index is removed."""

    def body(net: Net, a: Tensor) -> Tensor:
        a = net.relu(net.linear(a, columns))
        a = net.sigmoid(a) if speaks == "x" else a
        shape = (out * columns // 2,) if flat else (out * columns // 2, 1)
        w = net.const(net.rng.integers(0, 256, shape).astype(np.uint8))
        scale = net.uniform(0.1, 0.2, -(-out * columns // BLOCK))
        scale = net.sigmoid(scale) if speaks == "s" else scale
        return coded(
            net, "MatMulBnb4", a, w, scale, shape=[*a.shape[:-1], out], dtype=np.float32, N=out,
            K=columns, block_size=BLOCK, **{"quant_type": 1} | attrs,
        )  # fmt: skip

    return body


def _table(
    bits: int | None = 4,
    *,
    points: bool = False,
    width: int = 64,
    packed: bool = True,
    **attrs: Any,
) -> Body:
    """Rows of a table, picked at run time, times a weight."""

    def body(net: Net, a: Tensor) -> Tensor:
        rows, blocks, size = 10, width // BLOCK, bits or 4
        ids = net.cast(net.node("Greater", net.node("ReduceSum", a, [2], keepdims=0), 0.0), 7)
        stored = width * size // 8 if packed else width
        data = net.rng.integers(0, 256 if packed else 1 << size, (rows, stored)).astype(np.uint8)
        zeros = -(-blocks * size // 8)
        more = [net.const(net.rng.integers(0, 256, (rows, zeros)).astype(np.uint8))]
        y = coded(
            net, "GatherBlockQuantized", net.const(data), ids, net.uniform(0.01, 0.02, rows,
            blocks), *(more if points else []), shape=[*a.shape[:2], width], dtype=np.float32,
            bits=bits, block_size=BLOCK, gather_axis=0, quantize_axis=1, **attrs,
        )  # fmt: skip
        return net.add(net.linear(y, 6), net.linear(a, 6))

    return body


def _experts(
    bits: int | None = 4, *, block: int = 0, points: bool = False, fusion: int | None = 0,
    experts: int = 4, width: int = 32, inner: int = 0, gate: bool = False, speaks: int = 0,
    made: int = 0, shares: bool = False, **attrs: Any,
) -> Body:  # fmt: skip
    """Experts in few bits between two layers; what is routed comes from the producer too.

    inner: the width of an expert, if another. gate: a third matrix. speaks: the input that holds
    something where an index is removed. made: the weight that depends on what is read. shares: of
        the experts, apart from what picks them.
    """
    size, inner = bits or 4, inner or width

    def stored(net: Net, *shape: int) -> Tensor:
        return net.const(net.rng.integers(0, 256, shape).astype(np.uint8))

    def body(net: Net, a: Tensor) -> Tensor:
        x = net.relu(net.linear(a, width))
        routed = net.reshape(net.linear(a, experts), [-1, experts])
        first = (2 if fusion else 1) * inner
        matrices = ((first, width), (width, inner), (inner, width))[: 2 + gate]
        inputs: list[Any] = [x, routed]
        for rows, columns in matrices:
            scales = (experts, rows, columns // block) if block else (experts, rows)
            inputs += [
                stored(net, experts, rows, columns * size // 8),
                net.uniform(0.01, 0.02, *scales),
                net.uniform(-0.1, 0.1, experts, rows),
            ]
        if points:
            inputs += [None] * (11 - len(inputs))
            for rows, columns in matrices:
                held = (rows, -(-columns // block * size // 8)) if block else (rows * size // 8,)
                inputs.append(stored(net, experts, *held))
        if speaks == 5:
            inputs[5] = net.cast(net.add(net.cast(inputs[5], 1), 1.0), int(TensorProto.UINT8))
        elif speaks:
            inputs[speaks] = net.sigmoid(inputs[speaks])
        if made:
            whole = net.mul(net.cast(inputs[made], 1), net.cast(net.node("Size", a), 1))
            inputs[made] = net.cast(whole, int(TensorProto.UINT8))
        if shares:
            inputs += [None] * (14 - len(inputs))
            inputs.append(net.softmax(net.reshape(net.linear(a, experts), [-1, experts])))
        kind = "swiglu" if fusion else "relu"
        return coded(
            net, "QMoE", *inputs, shape=x.shape, dtype=np.float32, activation_type=kind,
            expert_weight_bits=bits, block_size=block or None, swiglu_fusion=fusion, **attrs,
        )  # fmt: skip

    return body


# The producer, the wide layer (its columns by blocks), the columns of what is in few bits.
BLOCKED = [
    case("four-bits", 3, _n_bits(), shape=TOKENS, exact=True),
    case("bits-by-default", 3, _n_bits(bits=None, points="packed"), shape=TOKENS, exact=True),
    case("two-bits", 3, _n_bits(bits=2), shape=TOKENS, exact=True),
    case("eight-bits", 3, _n_bits(bits=8), shape=TOKENS, exact=True),
    case("no-bias", 3, _n_bits(bias=False), shape=TOKENS, exact=True),
    case("flat", 3, _n_bits(flat=True), shape=TOKENS, exact=True),
    case("points-packed", 3, _n_bits(points="packed"), shape=TOKENS, exact=True),
    case("points-packed-flat", 3, _n_bits(points="packed", flat=True), shape=TOKENS, exact=True),
    case("points-in-eight-bits", 3, _n_bits(points="packed", bits=8), shape=TOKENS, exact=True),
    case("points-in-floats", 3, _n_bits(points="floats"), shape=TOKENS, exact=True),
    case("points-of-odd-blocks", 2, _n_bits(columns=48, points="packed"), shape=TOKENS,
         exact=True),
    case("blocks-that-do-not-fit", 2, _n_bits(columns=40), shape=TOKENS, exact=True),
    case("chained", 4, _chained, shape=TOKENS, exact=True),
    # The producer, what goes in and out of the experts, their units, the experts.
    case("experts", 4, _experts(), shape=TOKENS, inexact=1),
    case("experts-by-default", 4, _experts(None, fusion=None, inner=16), shape=TOKENS, inexact=1),
    case("experts-summed", 4, summing(_experts(), -1), shape=TOKENS, inexact=1),
    *(case(f"experts-where-{k}-speaks-summed", 4, summing(_experts(speaks=k), -1), shape=TOKENS,
           inexact=1 + (k != 6)) for k in (5, 6, 7)),
    case("experts-mixed", 3, _experts(k=2, use_sparse_mixer=1), shape=TOKENS, inexact=0),
    case("experts-in-eight-bits", 4, _experts(8), shape=TOKENS),
    case("experts-in-two-bits", 4, _experts(2), shape=TOKENS),
    case("experts-in-blocks", 4, _experts(block=16), shape=TOKENS),
    case("experts-with-points", 4, _experts(points=True), shape=TOKENS),
    case("experts-in-blocks-with-points", 4, _experts(block=16, points=True, width=64),
         shape=TOKENS),
    case("experts-fused", 4, _experts(fusion=1), shape=TOKENS),
    case("experts-of-sizes-that-do-not-fit", 1, _experts(block=16, points=True, width=48),
         shape=TOKENS),
    case("bnb4", 3, _bnb4(), shape=TOKENS, exact=True),
    *(case(f"bnb4-where-{k}-speaks", 3, _bnb4(speaks=k), shape=TOKENS, exact=True) for k in "xs"),
    case("bnb4-fp4", 3, _bnb4(quant_type=0), shape=TOKENS, exact=True),
    case("bnb4-blocks-across-rows", 1, _bnb4(columns=40), shape=TOKENS, exact=True),
    case("table", 3, _table(), shape=TOKENS, exact=True),
    case("table-with-points", 3, _table(points=True), shape=TOKENS, exact=True),
    case("table-of-bits-by-default", 3, _table(None, points=True), shape=TOKENS, exact=True),
    case("table-in-eight-bits", 3, _table(8), shape=TOKENS, exact=True),
    case("table-of-odd-blocks", 2, _table(points=True, width=48), shape=TOKENS, exact=True),
]  # fmt: skip


@pytest.mark.parametrize("row", BLOCKED)
def test_blocked(row: Case) -> None:
    row.check()


# Which axes of the inputs of QMoE the experts, their units and what they read and write are.
MATRICES = {2: "EIC", 4: "EI", 5: "ECI", 7: "EC", 8: "EIC", 10: "EI"}
PER_ROW = {3: "EI", 6: "EC", 9: "EI", 11: "EI", 12: "EC", 13: "EI"}
PER_BLOCK = {3: "EIC", 6: "ECI", 9: "EIC", 11: "EIC", 12: "ECI", 13: "EIC"}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("block", [0, 16])
@pytest.mark.parametrize("fusion", [0, 1, 2])
def test_every_axis_of_experts(bits: int, block: int, fusion: int) -> None:
    """Also of forms that no kernel takes: each unit is all of the axis that it is a part of."""
    body = _experts(bits, block=block, points=True, fusion=fusion, gate=True, width=128, inner=192)
    groups = spa.analyze(Case("", 0, body, TOKENS, typed=True).model())
    (node,) = [n for n in groups.graph.nodes if n.op_type == "QMoE"]
    found: dict[int, set[tuple[int, int]]] = {}
    for g, group in enumerate(groups):
        for member in group.members:
            size = groups.graph.constants[member.tensor].shape[member.axis]
            if member.tensor in node.inputs:
                found.setdefault(g, set()).add((node.inputs.index(member.tensor), member.axis))
                assert sorted(member.index.ravel().tolist()) == list(range(size))
    laid = {**MATRICES, **(PER_BLOCK if block else PER_ROW)}
    wanted = [{(k, at) for k, axes in laid.items() for at, a in enumerate(axes) if a == letter}
              for letter in "EIC"]  # fmt: skip
    assert sorted(map(sorted, found.values())) == sorted(map(sorted, wanted))
    for group in groups:
        for member in group.members:
            k = node.inputs.index(member.tensor) if member.tensor in node.inputs else 0
            if k > 1 and not (fusion and k in (2, 3, 4, 11) and member.axis == 1):
                assert member.index[0].tolist() == list(range(member.index.shape[1]))
    (units,) = [groups[g] for g, axes in found.items() if axes == wanted[1]]
    (first,) = [m for m in units.members if (m.tensor, m.axis) == (node.inputs[2], 1)]
    half = first.index.shape[1] // (2 if fusion else 1)
    rest = {0: 0, 1: half, 2: 192}[fusion]
    assert set(first.index[0].tolist()) == {*range(half), *range(rest, rest + half)}
    if not block:
        (zeros,) = [m for m in units.members if (m.tensor, m.axis) == (node.inputs[11], 1)]
        assert set(zeros.index[0].tolist()) == {0, (0, 1, 192 * bits // 8)[fusion]}


def _weighed(net: Net, a: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """The sum of all numbers, weighed by constants behind."""
    y = net.mul(y, net.const(net.rng.uniform(1, 2, y.shape).astype(np.float32), "behind"))
    return net.linear(a, 3), net.node("ReduceSum", y, [*range(len(y.shape))])


def test_every_axis_of_bnb4() -> None:
    def body(net: Net, a: Tensor) -> tuple[Tensor, ...]:
        w = net.const(net.rng.integers(0, 256, 192).astype(np.uint8))
        y = coded(
            net, "MatMulBnb4", net.weight(4, 3, 64), w, net.uniform(0.1, 0.2, 24), shape=(4, 3, 6),
            dtype=np.float32, N=6, K=64, block_size=BLOCK, quant_type=1,
        )  # fmt: skip
        return _weighed(net, a, y)

    check_axes(body, "MatMulBnb4", "ABPN", ["A B P16", "NP8", "NP"], ["A B N"])


def test_tokens_of_experts_stay_also_where_they_are_stored() -> None:
    def body(net: Net, a: Tensor) -> tuple[Tensor, ...]:
        inputs: list[Any] = [net.weight(12, 32), net.weight(12, 4)]
        for _ in range(2):
            codes = net.const(net.rng.integers(0, 256, (4, 32, 16)).astype(np.uint8))
            inputs += [codes, net.uniform(0.01, 0.02, 4, 32), None]
        y = coded(net, "QMoE", *inputs[:-1], shape=(12, 32), dtype=np.float32, k=2)
        return _weighed(net, a, y)

    terms = ["t C2", "t E", "E I2 C", "E I2", "", "E C2 I", "E C2"]
    check_axes(body, "QMoE", "EIC", terms, ["t C2"])


@pytest.mark.parametrize(
    ("body", "sizes"),
    [
        (_n_bits(), [8, 4, 6]), (_n_bits(points="packed"), [8, 2, 6]),
        (_n_bits(points="packed", bits=8), [8, 4, 6]), (_n_bits(order=True), [8, 6]),
        (_n_bits(weight_prepacked=1), [8]), (_bnb4(), [8, 4, 6]), (_bnb4(transB=0), [8]),
        (_bnb4(flat=False), [8]), (_table(), [8, 4, 6]), (_table(points=True), [8, 2, 6]),
        (_experts(), [8, 16, 4, 16]), (_experts(shares=True), [8, 16, 4, 16]),
        (_experts(block=16), [8, 2, 4, 2]), (_experts(points=True), [8, 16, 4, 16]),
        (_experts(quant_type="fp4"), [8]), (_experts(made=2), [8]), (_experts(made=5), [8]),
        *((_experts(**{f"fc{k}_expert_weight_bits": 8}), [8]) for k in (1, 2, 3)),
        (_experts(inner=24, block=16, points=True), [8]),
        (_experts(width=96, inner=48, block=16), [8, 6, 4, 3]),
        (_experts(width=48, inner=64, block=16, points=True), [8]),
    ],
)  # fmt: skip
def test_how_many_units_there_are(body: Body, sizes: list[int]) -> None:
    """Also of forms that no kernel takes; the columns of what is behind are a group too."""
    groups = spa.analyze(Case("", 0, body, TOKENS, typed=True).model())
    assert sorted(group.size for group in groups) == sorted(sizes)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (_n_bits(columns=40), "goes by whole blocks, and the last is not full"),
        (_n_bits(columns=16), "goes by whole blocks, and there is but one"),
        (_n_bits(columns=32, points="packed"), "goes by whole blocks, and there is but one"),
    ],
)
def test_why_columns_stay(body: Body, why: str) -> None:
    locks = spa.analyze(Case("", 0, body, TOKENS).model()).locks()
    assert why in {lock.why for lock in locks if lock.tensor == "MatMul_1.weight"}


def test_no_more_experts_are_picked_than_are_left() -> None:
    groups = spa.analyze(Case("", 4, _experts(k=3), TOKENS).model())
    (at,) = [g for g, group in enumerate(groups) if group.size == 4]
    pruned = rewrite(groups, {at: np.arange(2)})
    (node,) = [n for n in pruned.graph.node if n.op_type == "QMoE"]
    assert [a.i for a in node.attribute if a.name == "k"] == [2]


@pytest.mark.parametrize(
    ("body", "macs", "kinds"),
    [
        (_n_bits(columns=8), 10 * 8 * 6, {"linear"}), (_n_bits(), 10 * 64 * 6, {"linear"}),
        (_table(), 10 * (64 + 8) * 6, {"embedding", "linear"}),
        (_bnb4(), 10 * (8 + 6) * 64, {"linear"}),
        (_experts(), 10 * (8 * 32 + 8 * 4 + 2 * 32 * 32), {"linear"}),
        (_experts(8), 10 * (8 * 32 + 8 * 4 + 2 * 32 * 32), {"linear"}),
        (_experts(None, gate=True), 10 * (8 * 32 + 8 * 4 + 3 * 32 * 32), {"linear"}),
    ],
)  # fmt: skip
def test_costs(body: Body, macs: int, kinds: set[str]) -> None:
    net = Net("alone")
    width = 64 if macs == 10 * 64 * 6 else 8  # then its own columns have no other name
    made = body(net, net.mul(net.input("x", [2, 5, 1]), net.uniform(0.5, 1, width)))
    assert isinstance(made, Tensor)
    groups = spa.analyze(net.model(net.node("ReduceSum", made, [-1])))
    assert CostModel(groups)().macs == macs
    assert {group.kind for group in groups} == kinds


@pytest.mark.parametrize(
    ("shape", "picks", "axes", "letters", "term", "made"),
    [
        ((10, 6, 64), (3,), (0, 2), "XP", "v X P", "1 X P16"),
        ((10, 6, 64), (2, 3), (0, 2), "XP", "v X P", "1 1 X P16"),
        ((64, 10), (3,), (1, 0), "P", "P v", "P16 1"),
        ((64, 10), (2, 3), (1, 0), "P", "P v", "P16 1 1"),
        ((6, 10, 64), (3,), (1, 2), "XP", "X v P", "X 1 P16"),
        ((10, 64), (3,), (1, 1), "", "w v", "1 1"),
    ],
)  # fmt: skip
def test_every_axis_of_a_table(
    shape: tuple[int, ...], picks: tuple[int, ...], axes: tuple[int, int], letters: str, term: str,
    made: str,
) -> None:  # fmt: skip
    """Of four bits each, with zero points in as many; blocks along an axis of any place."""
    picked, at = axes
    out = (*shape[:picked], *picks, *shape[picked + 1 :])

    def body(net: Net, a: Tensor) -> tuple[Tensor, ...]:
        blocks = [n // BLOCK if k == at else n for k, n in enumerate(shape)]
        data, points = (
            net.const(net.rng.integers(0, 8, n).astype(ml_dtypes.uint4)) for n in (shape, blocks)
        )
        inputs = [data, net.input("at", picks, np.int64), net.uniform(0.1, 0.2, *blocks), points]
        y = coded(
            net, "GatherBlockQuantized", *inputs, shape=out, dtype=np.float32, block_size=BLOCK,
            gather_axis=picked, quantize_axis=at,
        )  # fmt: skip
        sizes = [1 if f == "1" else n for f, n in zip(made.split(), out, strict=True)]
        y = net.mul(y, net.const(net.rng.uniform(1, 2, sizes).astype(np.float32), "behind"))
        return net.linear(a, 3), net.node("ReduceSum", y, [*range(len(out))])

    spread = term.replace("P", "P16")
    found = check_axes(body, "GatherBlockQuantized", letters, [spread, "", term, term], [made])
    assert {group.kind for group in found} <= {"embedding"}


def test_blocks_are_of_128_by_default() -> None:
    def body(net: Net, a: Tensor) -> tuple[Tensor, ...]:
        data = net.const(net.rng.integers(0, 8, (10, 256)).astype(ml_dtypes.uint4))
        inputs = [data, net.input("at", (3,), np.int64), net.uniform(0.1, 0.2, 10, 2)]
        y = coded(net, "GatherBlockQuantized", *inputs, shape=(3, 256), dtype=np.float32,
                  gather_axis=0, quantize_axis=1)  # fmt: skip
        return net.linear(a, 3), net.linear(y, 3)

    groups = spa.analyze(Case("", 2, body, TOKENS, typed=True).model())
    assert sorted(group.size for group in groups) == [2, 8]
