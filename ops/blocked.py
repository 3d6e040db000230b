"""Weights in few bits, in blocks that share a scale: along their axis a unit is a whole block.

A byte holds several numbers. P counts units, r the blocks of a unit (as many as share a byte of
zero points), b the numbers of a block, c its bytes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.rules import MICROSOFT, Axes, Op, Product, Quantised, Resized, Sized, declare, follow, rule

Value = NDArray[Any]


def _kinds(op: Op) -> dict[str, str]:
    return {"N": "linear", "P": "linear"}


def _macs(op: Op) -> list[Product]:
    return [[*((-1, k) for k in range(len(op.out_shape()))), (0, len(op.shape()) - 1)]]


def _resize(node: Sized) -> Resized:
    x, y = node.new_in[0], node.new_out[0]
    assert x is not None and y is not None
    return Resized(attrs={"K": x[-1], "N": y[-1]})


def _unpacked(stored: Value, bits: int) -> Value:
    """The numbers of every byte, the lowest bits first, on an axis of their own at the end."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    return np.asarray((stored.astype(np.uint8)[..., None] >> shifts) & np.uint8((1 << bits) - 1))


def _packed(codes: Value, bits: int) -> Value:
    """Bytes of as many numbers of the last axis as they hold, the lowest bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    many = codes.reshape(*codes.shape[:-1], -1, len(shifts))
    return np.asarray(np.bitwise_or.reduce(many << shifts, axis=-1))


# A matrix in blocks of its rows ------------------------------------------------------------------


def _blocks(op: Op) -> dict[str, int]:
    size, bits = int(op.attr("block_size")), int(op.attr("bits", 4))
    blocks = -(-int(op.attr("K")) // size)
    shared = 1
    if op.has(3) and np.prod(op.shape(3)) < int(op.attr("N")) * blocks:
        shared = 8 // bits
    return {"r": shared, "b": size, "p": blocks, "z": -(-blocks // shared)}


def _n_bits_numbers(node: Any, position: int, stored: Value) -> Value:
    bits = int(node.attrs.get("bits", 4))
    if position == 1:
        codes = _unpacked(stored, bits).reshape(*stored.shape[:2], -1)
        given = len(node.inputs) > 3 and node.inputs[3]
        return codes if given else codes.astype(np.int16) - (1 << (bits - 1))
    if stored.dtype == np.uint8:
        stored = _unpacked(stored, bits)
    return stored.reshape(int(node.attrs["N"]), -1)


def _n_bits_packed(node: Any, numbers: Value) -> Value:
    bits = int(node.attrs.get("bits", 4))
    given = len(node.inputs) > 3 and node.inputs[3]
    codes = np.rint(numbers if given else numbers + (1 << (bits - 1)))
    return _packed(np.clip(codes, 0, (1 << bits) - 1).astype(np.uint8), bits)


@rule(
    "MatMulNBits",
    text="... (P r b), N (P r) *, N (P r), N P, *, N -> ... N   (K whole where blocks do not fit)",
    resize=_resize,
    macs=_macs,
    quantised={
        1: Quantised((2,), 3, (0, 1), unpack=_n_bits_numbers, pack=_n_bits_packed),
    },
    domain=MICROSOFT,
)
def n_bits(op: Op) -> list[Axes]:
    if op.attr("weight_prepacked", 0):
        return follow(op, "*, *, *, *, *, * -> *")
    size = _blocks(op)
    rest, why = int(op.attr("K")) % (size["r"] * size["b"]), ""
    if rest or op.has(4):
        why = "goes by whole blocks, and the last is not full" if rest else "goes by g_idx"
    elif size["p"] == size["r"]:
        why = "goes by whole blocks, and there is but one"
    x, w, z = ("k", "p", "z") if why else ("(P r b)", "(P r)", "P")
    scales = f"N {w}" if len(op.shape(2)) > 1 else f"(N {w.strip('()')})"
    points = f"N {z}" if op.has(3) and len(op.shape(3)) > 1 else f"(N {z})"
    text = f"... {x}, N {'' if why else w} *, {scales}, {points}, *, N -> ... N"
    outputs = follow(op, text, "0 2 + 5", "", size, _kinds(op))
    if why:
        op.lock(op.input(0)[-1], why)
    return outputs


# The sixteen numbers of NF4 (Dettmers et al. 2023, QLoRA, appendix E) and of FP4.
_NF4 = (
    -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
    0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0,
)  # fmt: skip
_HALF = (0.0, 1 / 192, 2 / 3, 1.0, 1 / 3, 1 / 2, 1 / 6, 1 / 4)
_FP4 = (*_HALF, *(-x for x in _HALF))


def _bnb4(op: Op) -> str:
    """... (P b), (N P c), (N P) -> ... N   (K whole where a block spans rows, else all)"""
    columns, size = int(op.attr("K")), int(op.attr("block_size"))
    if columns % size or not op.attr("transB", 1) or len(op.shape(1)) > 1:
        return "*, *, * -> *"
    return "... (P b), (N P c), (N P) -> ... N"


def _bnb4_sizes(op: Op) -> dict[str, int]:
    size = int(op.attr("block_size"))
    return {"b": size, "c": size // 2}


def _bnb4_numbers(node: Any, position: int, stored: Value) -> Value:
    if position != 1:
        return stored
    table = np.asarray(_NF4 if node.attrs.get("quant_type", 1) else _FP4, np.float32)
    return np.asarray(table[_unpacked(stored, 4)])


declare(
    "MatMulBnb4",
    _bnb4,
    zero="0 2",
    sizes=_bnb4_sizes,
    kinds=_kinds,
    resize=_resize,
    macs=_macs,
    quantised={1: Quantised((2,), axes=(0,), unpack=_bnb4_numbers)},
    domain=MICROSOFT,
)

# A table in blocks -------------------------------------------------------------------------------


def _table_numbers(node: Any, position: int, stored: Value) -> Value:
    bits = int(node.attrs.get("bits", 4))
    if stored.dtype != np.uint8:
        return stored
    if position == 3:
        return _unpacked(stored, bits).reshape(*stored.shape[:-1], -1)
    codes = _unpacked(stored, bits)
    given = len(node.inputs) > 3 and node.inputs[3]
    return codes if given else codes.astype(np.int16) - (1 << (bits - 1))


@rule(
    "GatherBlockQuantized",
    text="as Gather; along the axis of the blocks a unit is a block",
    quantised={0: Quantised((2,), 3, tuple(range(8)), unpack=_table_numbers)},
    domain=MICROSOFT,
)
def gather(op: Op) -> list[Axes]:
    rank, picks = len(op.shape()), len(op.shape(1))
    picked, at = (int(op.attr(f"{k}_axis", n)) % rank for n, k in enumerate(("gather", "quantize")))
    if picked == at:
        return follow(op, "*, *, *, * -> *")
    size = int(op.attr("block_size", 128))
    made = op.out_shape()[at + (picks - 1 if at > picked else 0)]
    shared = 1
    if op.has(3) and op.shape(3)[at] != op.shape(2)[at]:
        shared = 8 // int(op.attr("bits", 4))
    fits = made % (size * shared) == 0

    def spell(block: str, place: str) -> str:
        axes = [f"X{k}" for k in range(rank)]
        axes[at], axes[picked] = block, place
        return " ".join(axes)

    op.lock(op.input()[picked], "indexed at run time")
    where = " ".join(f"i{k}" for k in range(picks))
    kinds = {"P": "embedding", **{f"X{k}": "embedding" for k in range(rank)}}
    if not fits:
        terms = spell("d", "v"), spell("s", "v"), spell("z", "v"), spell("k", where)
    else:
        terms = spell("(P r c)", "v"), spell("(P r)", "v"), spell("P", "v"), spell("(P r b)", where)
    data, scales, points, out = terms
    sizes = {"r": shared, "b": size, "c": size * op.shape()[at] // made}
    return follow(op, f"{data}, {where}, {scales}, {points} -> {out}", "2", "", sizes, kinds)


# Experts in blocks, or in bytes where a column has one scale -----------------------------------


def _expert_sizes(op: Op) -> dict[str, int]:
    """u: how many numbers make a unit, v: in how many bytes, r: in how many blocks."""
    bits, block = int(op.attr("expert_weight_bits", 4)), int(op.attr("block_size", 0))
    shared = 8 // bits if block and any(op.has(k) for k in (11, 12, 13)) else 1
    unit = shared * block or 8 // bits
    return {"u": unit, "v": unit * bits // 8, "w": unit * bits // 4, "r": shared}


def _experts(op: Op) -> str:
    """* (C u), r E, then for each matrix E (I u) (C v), its scales and its bias, E (I u) (C r) and
    E (I u); zero points -> * (C u)   (2 I or I 2 where two are fused)"""
    bits, size = int(op.attr("expert_weight_bits", 4)), _expert_sizes(op)
    others = [op.attr(f"fc{k}_expert_weight_bits", bits) for k in (1, 2, 3)]
    odd = op.attr("quant_type", b"int") != b"int" or others != [bits] * 3 or 8 % bits
    made = any(op.has(k) and op.activation[k] for k in range(2, min(14, len(op.axes))))
    inner = op.shape(5)[2] * 8 // bits
    if odd or made or inner % size["u"] or op.shape()[-1] % size["u"]:
        return ", ".join("*" for _ in op.axes) + " -> *"
    e = "e" if op.attr("use_sparse_mixer", 0) else "E"  # that takes two experts, always
    fusion = int(op.attr("swiglu_fusion", 0))
    first = {0: "(I u)", 1: "(I u 2)", 2: "(2 I u)"}[fusion]
    bytes_ = {0: "(I v)", 1: "(I w)", 2: "(2 I v)"}[fusion]
    blocked = bool(op.attr("block_size", 0))

    def matrix(rows: str, columns: str) -> str:
        scales = f"{e} {rows} ({columns} r)" if blocked else f"{e} {rows}"
        return f"{e} {rows} ({columns} v), {scales}, {e} {rows}"

    def points(rows: str, packed: str, columns: str) -> str:
        return f"{e} {rows} {columns}" if blocked else f"{e} {packed}"

    parts = (matrix(first, "C"), matrix("(C u)", "I"), matrix("(I u)", "C"))
    zeros = (
        points(first, bytes_, "C"),
        points("(C u)", "(C v)", "I"),
        points("(I u)", "(I v)", "C"),
    )
    rest = ", ".join("*" for _ in range(6))
    return f"* (C u), q {e}, {', '.join(parts)}, {', '.join(zeros)}, q {e}, {rest} -> * (C u)"


def _resize_experts(node: Sized) -> Resized:
    """No more experts are picked than are left."""
    router, picked = node.new_in[1], int(node.op.attr("k", 1))
    assert router is not None
    return Resized(attrs={"k": router[1]}) if picked > router[1] else Resized()


def _expert_macs(op: Op) -> list[Product]:
    """Every token meets all matrices of one expert; how many are picked is not counted."""
    tokens = [(-1, k) for k in range(len(op.out_shape()) - 1)]
    many = 8 // int(op.attr("expert_weight_bits", 4))  # numbers in a byte
    matrices = [[*tokens, (k, 1), (k, 2)] for k in (2, 5, 8) if op.has(k)]
    return matrices * many


def _expert_numbers(node: Any, position: int, stored: Value) -> Value:
    bits = int(node.attrs.get("expert_weight_bits", 4))
    if position >= 11:
        return _unpacked(stored, bits).reshape(*stored.shape[:-1], -1)
    if position not in (2, 5, 8):
        return stored
    codes = _unpacked(stored, bits)  # with an axis more, so that what may go stays where it is
    point = 11 + position // 3
    given = len(node.inputs) > point and node.inputs[point]
    return codes if given else codes.astype(np.int16) - (1 << (bits - 1))


def _expert_packed(node: Any, numbers: Value) -> Value:
    bits = int(node.attrs.get("expert_weight_bits", 4))
    given = any(len(node.inputs) > k and node.inputs[k] for k in (11, 12, 13))
    codes = np.rint(numbers if given else numbers + (1 << (bits - 1)))
    return _packed(np.clip(codes, 0, (1 << bits) - 1).astype(np.uint8), bits)[..., 0]


declare(
    "QMoE",
    _experts,
    zero="5 6 + 7",
    inexact="E",  # the others share what its probability was
    sizes=_expert_sizes,
    kinds=lambda op: dict.fromkeys("EI", "linear"),
    resize=_resize_experts,
    macs=_expert_macs,
    quantised={
        k: Quantised((k + 1,), 11 + k // 3, (0, 1, 2), unpack=_expert_numbers, pack=_expert_packed)
        for k in (2, 5, 8)
    },
    domain=MICROSOFT,
)
