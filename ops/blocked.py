"""Weights in few bits, in blocks that share a scale: along their axis a unit is a whole block.

A byte holds several numbers. P counts units, r the blocks of a unit (as many as share a byte of
zero points), b the numbers of a block, c its bytes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.rules import Axes, Op, Product, Quantised, Resized, Sized, declare, follow, rule

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
    return (stored.astype(np.uint8)[..., None] >> shifts) & np.uint8((1 << bits) - 1)


# A matrix in blocks of its rows ------------------------------------------------------------------


def _blocks(op: Op) -> dict[str, int]:
    size, bits = int(op.attr("block_size")), int(op.attr("bits", 4))
    blocks = -(-int(op.attr("K")) // size)
    count = int(np.prod(op.shape(3))) if op.has(3) else 0
    shared = 8 // bits if op.has(3) and count < int(op.attr("N")) * blocks else 1
    return {"N": int(op.attr("N")), "r": shared, "b": size, "p": blocks, "z": -(-blocks // shared)}


def _n_bits(op: Op) -> str:
    """... (P r b), N (P r) c, N (P r), N P, groups, N -> ... N   (K whole where blocks do not fit)"""
    if op.attr("weight_prepacked", 0):
        return "*, *, *, *, *, * -> *"
    size = _blocks(op)
    unit = size["r"] * size["b"]
    fits = not op.has(4) and int(op.attr("K")) % unit == 0
    x, w, s, z = ("(P r b)", "(P r)", "P r", "P") if fits else ("k", "p", "p", "z")
    scales = f"N ({s})" if len(op.shape(2)) > 1 else f"(N {s})"
    points = f"N {z}" if op.has(3) and len(op.shape(3)) > 1 else f"(N {z})"
    return f"... {x}, N {w} c, {scales}, {points}, *, N -> ... N"


def _n_bits_numbers(node: Any, position: int, stored: Value) -> Value:
    rows, bits = int(node.attrs["N"]), int(node.attrs.get("bits", 4))
    blocks = -(-int(node.attrs["K"]) // int(node.attrs["block_size"]))
    if position == 1:
        codes = _unpacked(stored, bits).reshape(*stored.shape[:2], -1)
        given = len(node.inputs) > 3 and node.inputs[3]
        return codes if given else codes.astype(np.int16) - (1 << (bits - 1))
    if stored.dtype == np.uint8:
        stored = _unpacked(stored, bits)
    return stored.reshape(rows, -1)[:, :blocks]


declare(
    "MatMulNBits",
    _n_bits,
    zero="0 2 + 5",
    sizes=_blocks,
    kinds=_kinds,
    resize=_resize,
    macs=_macs,
    quantised={1: Quantised(2, 3, (0, 1), unpack=_n_bits_numbers)},
    domain="com.microsoft",
)

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
    return {"N": int(op.attr("N")), "b": size, "c": size // 2}


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
    quantised={1: Quantised(2, axes=(0,), unpack=_bnb4_numbers)},
    domain="com.microsoft",
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
    quantised={0: Quantised(2, 3, tuple(range(8)), unpack=_table_numbers)},
    domain="com.microsoft",
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
    fits = size > 0 and made % (size * shared) == 0 and op.shape(2)[at] * size == made

    def spell(block: str, place: str) -> str:
        axes = [f"X{k}" for k in range(rank)]
        axes[at], axes[picked] = block, place
        return " ".join(axes)

    where = " ".join(f"i{k}" for k in range(picks))
    kinds = {"P": "embedding", **{f"X{k}": "embedding" for k in range(rank)}}
    if not fits:
        terms = spell("d", "v"), spell("s", "v"), spell("z", "v"), spell("k", where)
    else:
        terms = spell("(P r c)", "v"), spell("(P r)", "v"), spell("P", "v"), spell("(P r b)", where)
    data, scales, points, out = terms
    sizes = {"r": shared, "b": size, "c": size * op.shape()[at] // made}
    return follow(op, f"{data}, {where}, {scales}, {points} -> {out}", "2", "", sizes, kinds)
