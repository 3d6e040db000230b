"""Mixtures of experts: E is an expert, with its column of the router, I a unit of an expert."""

from spa.rules import MICROSOFT, Op, Product, Resized, Sized, declare


def _moe(op: Op) -> str:
    """* C, r E, E I C, E I, E C I, E C, E I C, E I -> * C   (2 I or I 2 where two are fused)"""
    e = "e" if op.attr("use_sparse_mixer", 0) else "E"  # that takes two experts, always
    unit = {0: "I", 1: "(I 2)", 2: "(2 I)"}[int(op.attr("swiglu_fusion", 0))]
    first = f"{e} {unit} C, {e} {unit}"
    return f"* C, r {e}, {first}, {e} C I, {e} C, {e} I C, {e} I -> * C"


def _inexact(op: Op) -> str:
    """The others share what the probability of an expert was; what is read has to meet zero."""
    return "E C" if op.speaks((0, 2), (0, 6)) else "E"


def _resize(node: Sized) -> Resized:
    """No more experts are picked than are left."""
    router = node.new_in[1]
    assert router is not None
    picked = int(node.op.attr("k", 1))
    return Resized(attrs={"k": router[1]}) if picked > router[1] else Resized()


def _macs(op: Op) -> list[Product]:
    """Every token meets all matrices of one expert; how many are picked is not counted."""
    tokens = [(-1, k) for k in range(len(op.out_shape()) - 1)]
    return [[*tokens, (k, 1), (k, 2)] for k in (2, 4, 6) if op.has(k)]


declare(
    "MoE",
    _moe,
    zero="4 + 5",
    inexact=_inexact,
    kinds=lambda op: dict.fromkeys("EI", "linear"),
    resize=_resize,
    macs=_macs,
    domain=MICROSOFT,
)
