"""Quantisation of single tensors, per tensor, per axis or in blocks."""

from spa.rules import MICROSOFT, Axes, Op, Quantised, declare, follow, rule


def _pattern(op: Op) -> str:
    """L0 L1 ..., scale, zero point -> L0 L1 ...   (scale: none, one axis, or blocks of one axis;
    an axis with a block that is not full is whole)"""
    rank = len(op.shape())
    letters = [f"L{k}" for k in range(rank)]
    text = " ".join(letters)
    if op.attr("block_size", 0):
        at = op.axis(1)
        fits = op.shape()[at] % int(op.attr("block_size")) == 0
        blocked = [*letters[:at], "(P b)" if fits else "l", *letters[at + 1 :]]
        letters[at] = "P" if fits else "p"
        data, per = " ".join(blocked), " ".join(letters)
        return f"{data}, {per}, {per} -> {data}"
    if len(op.shape(1)) == 1 and op.shape(1)[0] > 1:  # one number in a list is a scale for all
        per = letters[op.axis(1)]
        return f"{text}, {per}, {per} -> {text}"
    return f"{text}, *, * -> {text}"


def _block(op: Op) -> dict[str, int]:
    size = int(op.attr("block_size", 0))
    return {"b": size} if size else {}


for _domain in ("", MICROSOFT):
    declare(
        "DequantizeLinear",
        _pattern,
        zero="0 1",
        sizes=_block,
        quantised={0: Quantised((1,), 2, lambda node: (int(node.attrs.get("axis", 1)),))},
        domain=_domain,
    )
    declare("QuantizeLinear", _pattern, zero="0", sizes=_block, domain=_domain)


def _whole_range(op: Op) -> None:
    """The range that a scale is made of at run time always holds zero, and nothing removed but
    zeros leaves it as it is."""
    for axis in op.input():
        if not axis.zero:
            op.inexact(axis)


@rule("DynamicQuantizeLinear", text="... -> ..., ,   (inexact where a removed index is not zero)")
def dynamic(op: Op) -> list[Axes]:
    _whole_range(op)
    return follow(op, "... -> ..., , ", zero="0")
