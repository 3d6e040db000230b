"""Elementwise operators, with ONNX (numpy) broadcasting."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.rules import MICROSOFT, Axes, Op, Quantised, Resized, Sized, declare, follow, rule

# f(0) = 0: what is removed contributes nothing further on.
declare(
    "Abs Asin Asinh Atan Atanh BitwiseAnd Ceil Celu Elu Erf Floor Gelu HardSwish Identity IsInf"
    " IsNaN LeakyRelu Mish Neg Relu Round Selu Shrink Sign Sin Sinh Softsign Sqrt Swish Tan Tanh"
    " ThresholdedRelu",
    "... -> ...",
    zero="0",
)
declare("Cast", "... -> ...", zero="0")
declare(
    "Acos Acosh BitwiseNot Cos Cosh Exp HardSigmoid Log Not Reciprocal Sigmoid Softplus",
    "... -> ...",
)


@rule("CastLike", text="... -> ...   (the other input gives only its type)")
def cast_like(op: Op) -> list[Axes]:
    return [list(op.input(0))]


@rule("Clip", text="..., *, * -> ...")
def clip(op: Op) -> list[Axes]:
    # A range that leaves zero where it is keeps removed channels silent.
    low, high = (_scalar(op, k, a) for k, a in ((1, "min"), (2, "max")))
    return follow(op, "..., *, * -> ...", zero="0" if low <= 0 <= high else "")


def _scalar(op: Op, k: int, attr: str) -> float:
    """A bound, or one that no zero passes where it is not known."""
    outermost = -math.inf if attr == "min" else math.inf
    if attr in op.node.attrs:
        return float(op.attr(attr))
    if not op.has(k):
        return outermost
    value = op.fixed(k)
    return -outermost if value is None else float(value.item())


@rule("Pow", text="..., ... -> ...")
def power(op: Op) -> list[Axes]:
    exponent = op.fixed(1)
    silent = exponent is not None and (exponent > 0).all()
    return follow(op, "..., ... -> ...", zero="0" if silent else "")


@rule("Dropout", text="..., *, * -> ..., ...")
def dropout(op: Op) -> list[Axes]:
    outputs = follow(op, "..., *, * -> ..., ...", zero="0")
    mask = [axis._replace(zero=False) for axes in outputs[1:] for axis in axes]
    return [outputs[0], mask] if len(outputs) > 1 else outputs


declare("Add Sub Max Mean Min Sum", "..., ... -> ...", zero="+")
declare("And Mul SwiGLU", "..., ... -> ...", zero="0 1")
declare("Or Xor", "..., ... -> ...", zero="0 + 1")
declare("Div Mod", "..., ... -> ...", zero="0")
declare("PRelu", "..., ... -> ...", zero="0")
declare("Where", "..., ..., ... -> ...", zero="1 + 2")
declare("BitwiseOr BitwiseXor BitShift Greater GreaterOrEqual Less LessOrEqual", "..., ... -> ...")


def _asked(op: Op) -> tuple[int, NDArray[Any]] | None:
    """The input that holds positions on an axis, and what it is compared with: a stored list of all
    positions there are, or one alone."""
    for k in (0, 1):
        ids, stored = op.pointed(k), op.fixed(1 - k)
        if ids is not None and stored is not None:
            alone = stored.size == 1 and 0 <= stored.item() < len(ids)
            every = np.array_equal(stored.ravel(), range(len(ids)))
            if alone or (every and max(stored.shape) == len(ids)):
                return k, stored
    return None


def _resize_equal(node: Sized) -> Resized:
    asked = _asked(node.op)
    if asked is None:
        return Resized()
    k, stored = asked
    left = node.pointed[k]
    assert left is not None
    if stored.size == 1:  # where it goes, so does all that is made from it
        new = np.searchsorted(left, stored).astype(stored.dtype)
    else:
        shape = [len(left) if n == stored.size else 1 for n in stored.shape]
        new = np.arange(len(left), dtype=stored.dtype).reshape(shape)
    return Resized(inputs={1 - k: new})


@rule("Equal", resize=_resize_equal, text="..., ... -> ...  (positions on an axis tie it)")
def equal(op: Op) -> list[Axes]:
    asked = _asked(op)
    if asked is not None:
        k, stored = asked
        if stored.size == 1:
            op.asks_for(k, int(stored.item()))
        else:
            op.indexes(k, max(op.input(1 - k), key=lambda axis: len(axis.ids)))
    return follow(op, "..., ... -> ...")


# onnxruntime's own -----------------------------------------------------------------------------

declare("MemcpyFromHost MemcpyToHost Scale ScaledTanh", "... -> ...", zero="0")
declare("ParametricSoftplus", "... -> ...")
declare("Affine", "... -> ...", zero=lambda op: "" if op.attr("beta", 0.0) else "0")
declare("Gelu QuickGelu", "... -> ...", zero="0", domain=MICROSOFT)
declare("ScaledSiLU", "..., * -> ...", zero="0", domain=MICROSOFT)
declare("BiasAdd BiasGelu FastGelu", "..., ... -> ...", zero="+", domain=MICROSOFT)
declare(
    "BiasDropout",
    "..., ..., ..., *, * -> ..., ...",
    zero="0 + 1 + 2, ",
    domain=MICROSOFT,
)
declare("BiasSplitGelu", "... (2 N), (2 N) -> ... N", zero="0 + 1", domain=MICROSOFT)
declare("GatedAdd", "..., ..., ... -> ...", zero="0 + 1 2", domain=MICROSOFT)
declare("LinearAttentionGate", "..., ..., ..., ... -> ..., ...", zero="2, ", domain=MICROSOFT)


def _swiglu(op: Op) -> str:
    """..., ... -> ...   (... (2 N) -> ... N where one input holds both halves)"""
    return "..., ... -> ..." if op.has(1) else "... (2 N) -> ... N"


declare("SwiGLU", _swiglu, zero="0", domain=MICROSOFT)


# onnxruntime's own, on quantised numbers; zero is the zero point -------------------------------

_ONE = "..., *, *, *, * -> ..."
_TWO = "..., *, *, ..., *, *, *, * -> ..."
_FIRST = {0: Quantised((1,), 2)}
_BOTH = {0: Quantised((1,), 2), 3: Quantised((4,), 5)}

declare("QLinearLeakyRelu", _ONE, zero="0", quantised=_FIRST, domain=MICROSOFT)
declare("QLinearSigmoid", _ONE, quantised=_FIRST, domain=MICROSOFT)
declare("QLinearAdd", _TWO, zero="0 + 3", quantised=_BOTH, domain=MICROSOFT)
declare("QLinearMul", _TWO, zero="0 3", quantised=_BOTH, domain=MICROSOFT)
declare(
    "QLinearWhere",
    "..., ..., *, *, ..., *, *, *, * -> ...",
    zero="1 + 4",
    quantised={1: Quantised((2,), 3), 4: Quantised((5,), 6)},
    domain=MICROSOFT,
)
declare(
    "MulInteger",
    "..., *, ..., * -> ...",
    zero="0 2",
    quantised={0: Quantised(point=1), 2: Quantised(point=3)},
    domain=MICROSOFT,
)
