"""Weights in few bits: packed, in blocks, with and without zero points, in whole units and not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from models.builder import Net, Tensor
from tests.ops.cases import TOKENS, Body, Case, case, coded

BLOCK = 16


def _n_bits(
    out: int = 6,
    columns: int = 64,
    *,
    bits: int = 4,
    points: str = "",
    flat: bool = False,
    bias: bool = True,
    **attrs: Any,
) -> Body:
    """A wide linear layer and what reads it in few bits."""

    def body(net: Net, a: Tensor) -> Tensor:
        a = net.relu(net.linear(a, columns)) if a.shape[2] != columns else a
        blocks = -(-columns // BLOCK)
        w = net.const(net.rng.integers(0, 256, (out, blocks, BLOCK * bits // 8)).astype(np.uint8))
        shape = (out * blocks,) if flat else (out, blocks)
        more: list[Any] = [None]
        if points == "packed":
            held = (out, -(-blocks * bits // 8))
            held = (held[0] * held[1],) if flat else held
            more = [net.const(net.rng.integers(0, 256, held).astype(np.uint8))]
        elif points == "floats":
            more = [net.uniform(6, 9, *shape)]
        return coded(
            net, "MatMulNBits", a, w, net.uniform(0.01, 0.02, *shape), *more, None,
            net.uniform(-1, 1, out) if bias else None, shape=[*a.shape[:-1], out],
            dtype=np.float32, N=out, K=columns, bits=bits, block_size=BLOCK, **attrs,
        )  # fmt: skip

    return body


def _chained(net: Net, a: Tensor) -> Tensor:
    """Two in a row: the columns of the first go by blocks of the second."""
    return _n_bits(6, 32)(net, net.relu(_n_bits(32)(net, a)))


def _bnb4(out: int = 6, columns: int = 64, **attrs: Any) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        a = net.relu(net.linear(a, columns))
        w = net.const(net.rng.integers(0, 256, out * columns // 2).astype(np.uint8))
        scale = net.uniform(0.1, 0.2, -(-out * columns // BLOCK))
        return coded(
            net, "MatMulBnb4", a, w, scale, shape=[*a.shape[:-1], out], dtype=np.float32, N=out,
            K=columns, block_size=BLOCK, **{"quant_type": 1} | attrs,
        )  # fmt: skip

    return body


def _table(
    bits: int = 4, *, points: bool = False, width: int = 64, packed: bool = True, **attrs: Any
) -> Body:
    """Rows of a table, picked at run time, times a weight."""

    def body(net: Net, a: Tensor) -> Tensor:
        rows, blocks = 10, width // BLOCK
        ids = net.cast(net.node("Greater", net.node("ReduceSum", a, [2], keepdims=0), 0.0), 7)
        stored = width * bits // 8 if packed else width
        data = net.rng.integers(0, 256 if packed else 1 << bits, (rows, stored)).astype(np.uint8)
        zeros = -(-blocks * bits // 8)
        more = [net.const(net.rng.integers(0, 256, (rows, zeros)).astype(np.uint8))]
        y = coded(
            net, "GatherBlockQuantized", net.const(data), ids, net.uniform(0.01, 0.02, rows,
            blocks), *(more if points else []), shape=[*a.shape[:2], width], dtype=np.float32,
            bits=bits, block_size=BLOCK, gather_axis=0, quantize_axis=1, **attrs,
        )  # fmt: skip
        return net.add(net.linear(y, 6), net.linear(a, 6))

    return body


def _experts(
    bits: int = 4, *, block: int = 0, points: bool = False, fusion: int = 0, experts: int = 4,
    width: int = 32, **attrs: Any,
) -> Body:  # fmt: skip
    """Experts in few bits between two layers; what is routed comes from the producer too."""

    def stored(net: Net, *shape: int) -> Tensor:
        return net.const(net.rng.integers(0, 256, shape).astype(np.uint8))

    def body(net: Net, a: Tensor) -> Tensor:
        x = net.relu(net.linear(a, width))
        routed = net.reshape(net.linear(a, experts), [-1, experts])
        inner = (2 if fusion else 1) * width
        inputs: list[Any] = [x, routed]
        for rows in (inner, width):
            scales = (experts, rows, width // block) if block else (experts, rows)
            inputs += [
                stored(net, experts, rows, width * bits // 8),
                net.uniform(0.01, 0.02, *scales),
                net.uniform(-0.1, 0.1, experts, rows),
            ]
        if points:
            inputs += [None] * 3
            for rows in (inner, width):
                held = (rows, -(-width // block * bits // 8)) if block else (rows * bits // 8,)
                inputs.append(stored(net, experts, *held))
        kind = "swiglu" if fusion else "relu"
        return coded(
            net, "QMoE", *inputs, shape=x.shape, dtype=np.float32, k=1, activation_type=kind,
            expert_weight_bits=bits, block_size=block or None, swiglu_fusion=fusion, **attrs,
        )  # fmt: skip

    return body


# The producer, the wide layer (its columns by blocks), the columns of what is in few bits.
BLOCKED = [
    case("four-bits", 3, _n_bits(), shape=TOKENS, exact=True),
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
    case("experts", 4, _experts(), shape=TOKENS),
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
    case("bnb4-fp4", 3, _bnb4(quant_type=0), shape=TOKENS, exact=True),
    case("bnb4-blocks-across-rows", 1, _bnb4(columns=40), shape=TOKENS, exact=True),
    case("table", 3, _table(), shape=TOKENS, exact=True),
    case("table-with-points", 3, _table(points=True), shape=TOKENS, exact=True),
    case("table-in-eight-bits", 3, _table(8), shape=TOKENS, exact=True),
    case("table-of-odd-blocks", 2, _table(points=True, width=48), shape=TOKENS, exact=True),
]  # fmt: skip


@pytest.mark.parametrize("row", BLOCKED)
def test_blocked(row: Case) -> None:
    row.check()
