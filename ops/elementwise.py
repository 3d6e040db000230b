"""Elementwise operators, with ONNX (numpy) broadcasting."""

from spa.rules import declare

# f(0) = 0: what is removed contributes nothing further on.
declare(
    "Abs Asin Asinh Atan Atanh BitwiseAnd Ceil Celu Elu Erf Floor Gelu HardSwish Identity IsInf"
    " IsNaN LeakyRelu Mish Neg Relu Round Selu Shrink Sign Sin Sinh Softsign Sqrt Swish Tan Tanh"
    " ThresholdedRelu",
    "... -> ...",
    zero="0",
)
declare("Cast", "... -> ...", zero="0")
declare("CastLike", "..., * -> ...", zero="0")
declare("Dropout", "..., *, * -> ..., ...", zero="0")
declare(
    "Acos Acosh BitwiseNot Cos Cosh Exp HardSigmoid Log LogSigmoid Not Reciprocal Sigmoid Softplus",
    "... -> ...",
)

# A range that leaves zero where it is keeps removed channels silent; bounds are scalars.
declare("Clip", "..., *, * -> ...", zero="0")

declare("Add Sub Max Min Sum", "..., ... -> ...", zero="0 + 1")
declare("Mean", "..., ... -> ...", zero="0 + 1")
declare("And Mul", "..., ... -> ...", zero="0 1")
declare("Or Xor", "..., ... -> ...", zero="0 + 1")
declare("Div Mod", "..., ... -> ...", zero="0")
declare("PRelu", "..., ... -> ...", zero="0")
declare("Pow", "..., ... -> ...", zero="0")
declare("Where", "..., ..., ... -> ...", zero="1 + 2")
declare(
    "BitwiseOr BitwiseXor BitShift Equal Greater GreaterOrEqual Less LessOrEqual", "..., ... -> ..."
)
