"""Matrix products: MatMul, Gemm, Einsum."""

from math import prod

from spa.patterns import PatternError
from spa.rules import MICROSOFT, Axes, Op, Product, Quantised, declare, follow, is_silent, rule


def _operands(op: Op) -> tuple[int, int]:
    """The positions of the two matrices among the inputs."""
    return 0, 3 if op.node.op_type == "QLinearMatMul" else 1


def _terms(op: Op) -> tuple[str, str, str]:
    left, right = (len(op.shape(k)) for k in _operands(op))
    if left == 1 and right == 1:
        return "K", "K", ""
    if left == 1:
        return "K", "... K N", "... N"
    if right == 1:
        return "... M K", "K", "... M"
    return "... M K", "... K N", "... M N"


def _matmul(op: Op) -> str:
    """... M K, ... K N -> ... M N"""
    a, b, y = _terms(op)
    return f"{a}, {b} -> {y}"


def _matmul_kinds(op: Op) -> dict[str, str]:
    if all(op.activation[k] for k in _operands(op)):
        return {"...": "heads", "M": "head-dim", "K": "head-dim", "N": "head-dim"}
    return {"M": "linear", "K": "linear", "N": "linear"}


def _matmul_macs(op: Op) -> list[Product]:
    out = [(-1, k) for k in range(len(op.out_shape()))]
    return [[*out, (0, len(op.shape(0)) - 1)]]


declare("MatMul", _matmul, zero="0 1", kinds=_matmul_kinds, macs=_matmul_macs)


def _per(op: Op, k: int, vector: str, matrix: str) -> str:
    """The term of a scale or zero point: one for the tensor, for every row or for every column."""
    shape = op.shape(k) if op.has(k) else ()
    return "*" if prod(shape) == 1 else vector if len(shape) == 1 else matrix


def _columns(op: Op, *places: int) -> str:
    return ", ".join(_per(op, k, "N", "... 1 N") for k in places)


def _quantised(op: Op) -> str:
    """... M K, M, M, ... K N, N, N, *, * -> ... M N"""
    a, b, y = _terms(op)
    match op.node.op_type:
        case "MatMulInteger":
            return f"{a}, {b}, {_per(op, 2, 'M', '... M 1')}, {_columns(op, 3)} -> {y}"
        case "MatMulIntegerToFloat":
            row, point = (_per(op, k, "K", "... 1 K") for k in (2, 4))
            return f"{a}, {b}, {row}, {_columns(op, 3)}, {point}, {_columns(op, 5)}, N -> {y}"
    rows = ", ".join(_per(op, k, "M", "... M 1") for k in (1, 2))
    return f"{a}, {rows}, {b}, {_columns(op, 4, 5)}, *, * -> {y}"


_right = Quantised(point=3, axes=(-1,), behind=True)
for _op, _domain, _zero, _numbers in (
    ("MatMulInteger", "", "0 1", {0: Quantised(point=2, axes=(-2,)), 1: _right}),
    (
        "QLinearMatMul",
        "",
        "0 3",
        {0: Quantised((1,), 2, (-2,)), 3: Quantised((4,), 5, (-1,))},
    ),
    (
        "MatMulIntegerToFloat",
        MICROSOFT,
        "0 1 + 6",
        {0: Quantised((2,), 4, (-1,)), 1: Quantised((3,), 5, (-1,))},
    ),
):
    declare(
        _op,
        _quantised,
        zero=_zero,
        kinds=_matmul_kinds,
        macs=_matmul_macs,
        quantised=_numbers,
        domain=_domain,
    )

declare(
    "MatMulInteger16",
    _matmul,
    zero="0 1",
    kinds=_matmul_kinds,
    macs=_matmul_macs,
    quantised={0: Quantised(), 1: Quantised(behind=True, axes=(-1,))},
    domain=MICROSOFT,
)


@rule(
    "DynamicQuantizeMatMul",
    text="... M K, ... K N, N, N, N -> ... M N   (inexact where a removed index is not zero)",
    macs=_matmul_macs,
    quantised={1: Quantised((2,), 3, (-1,))},
    domain=MICROSOFT,
)
def dynamic(op: Op) -> list[Axes]:
    # The range that A's scale is made of always holds zero.
    for axis in op.input():
        if not axis.zero:
            op.inexact(axis)
    a, b, y = _terms(op)
    text = f"{a}, {b}, {_columns(op, 2, 3)}, N -> {y}"
    return follow(op, text, zero="0 1 + 4", kinds=_matmul_kinds(op))


def _gemm(op: Op) -> str:
    """M K, K N, ... -> M N   (each of the first two transposed where transA, transB say so)"""
    a = "K M" if op.attr("transA", 0) else "M K"
    b = "N K" if op.attr("transB", 0) else "K N"
    # The bias broadcasts one way, to (M, N).
    c = {0: "", 1: "N", 2: "M N"}[len(op.shape(2))] if op.has(2) else "*"
    return f"{a}, {b}, {c} -> M N"


def _gemm_macs(op: Op) -> list[Product]:
    return [[(-1, 0), (-1, 1), (0, 0 if op.attr("transA", 0) else 1)]]


declare(
    "Gemm",
    _gemm,
    zero="0 1 + 2",
    kinds=lambda op: {"K": "linear", "N": "linear"},
    macs=_gemm_macs,
)


def _qgemm(op: Op) -> str:
    """M K, *, *, K N, N, N, ... -> M N   (each matrix transposed where transA, transB say so)"""
    a = "K M" if op.attr("transA", 0) else "M K"
    b = "N K" if op.attr("transB", 0) else "K N"
    c = {0: "", 1: "N", 2: "M N"}[len(op.shape(6))] if op.has(6) else "*"
    return f"{a}, *, *, {b}, {_columns(op, 4, 5)}, {c}, *, * -> M N"


declare(
    "QGemm",
    _qgemm,
    zero="0 3 + 6",
    kinds=lambda op: {"K": "linear", "N": "linear"},
    macs=_gemm_macs,
    quantised={
        0: Quantised((1,), 2),
        3: Quantised((4,), 5, lambda node: (0 if node.attrs.get("transB", 0) else 1,)),
        6: Quantised((1, 4), axes=(-1,)),
    },
    domain=MICROSOFT,
)


declare(
    "FusedGemm",
    _gemm,
    zero=lambda op: "0 1 + 2" if is_silent(op) else "",
    summed="0 1 + 2",
    kinds=lambda op: {"K": "linear", "N": "linear"},
    macs=lambda op: [[(-1, 0), (-1, 1), (0, 0 if op.attr("transA", 0) else 1)]],
    domain=MICROSOFT,
)
declare(
    "GemmFastGelu",
    "... K, K N, N -> ... N",
    zero="0 1 + 2",
    kinds=lambda op: {"K": "linear", "N": "linear"},
    macs=_matmul_macs,
    domain=MICROSOFT,
)


def _fused(op: Op) -> str:
    """... M K, ... K N -> ... M N   (transposed as transA, transB say; transBatchA: M ... K)"""
    a, b, y = _terms(op)
    return f"{_turned(op, 'A', a)}, {_turned(op, 'B', b)} -> {y}"


def _turned(op: Op, which: str, term: str) -> str:
    letters = term.split()
    if op.attr(f"trans{which}", 0):
        letters[-2:] = letters[:-3:-1]
    if op.attr(f"transBatch{which}", 0):
        letters = [letters[-2], "...", letters[-1]]
    return " ".join(letters)


def _fused_macs(op: Op) -> list[Product]:
    rank = len(op.shape(0))
    turned, batch = op.attr("transA", 0), op.attr("transBatchA", 0)
    at = rank - 1 if not turned else 0 if batch else rank - 2
    return [[*((-1, k) for k in range(len(op.out_shape()))), (0, at)]]


declare(
    "FusedMatMul TransposeMatMul",
    _fused,
    zero="0 1",
    kinds=_matmul_kinds,
    macs=_fused_macs,
    domain=MICROSOFT,
)
declare("CDist", "M D, N D -> M N", zero="0 + 1", domain=MICROSOFT)


def _einsum_terms(op: Op) -> tuple[list[str], str]:
    equation = op.attr("equation").decode().replace(" ", "")
    inputs, _, output = equation.partition("->")
    terms = inputs.split(",")
    if "->" not in equation:
        letters = sorted({c for c in inputs if c.isalpha() and inputs.count(c) == 1})
        output = ("..." if "..." in inputs else "") + "".join(letters)
    for term in (*terms, output):
        if len(set(term.replace("...", ""))) != len(term.replace("...", "")):
            raise PatternError(f"equation {equation!r} takes a diagonal")
    return terms, output


def _einsum(op: Op) -> str:
    """the equation itself, every index live"""
    terms, output = _einsum_terms(op)

    def spell(term: str) -> str:
        # An index may be lower or upper case in an equation: tell a from A as Xa from Xaa.
        named = (f"X{c}" if c.islower() else f"Y{c.lower()}" for c in term.replace("...", ""))
        at = term.find("...")
        letters = list(named)
        return " ".join([*letters[:at], "...", *letters[at:]] if at >= 0 else letters)

    return ", ".join(spell(t) for t in terms) + " -> " + spell(output)


def _einsum_kinds(op: Op) -> dict[str, str]:
    terms, output = _einsum_terms(op)
    letters = {c for term in terms for c in term if c.isalpha()}
    named = {c: f"X{c}" if c.islower() else f"Y{c.lower()}" for c in letters}
    if not all(op.activation):
        return {named[c]: "linear" for c in letters}
    # As in MatMul: what every term and the output share counts heads.
    shared = {c for c in letters if all(c in t for t in (*terms, output))}
    return {named[c]: "heads" if c in shared else "head-dim" for c in letters}


def _einsum_macs(op: Op) -> list[Product]:
    terms, output = _einsum_terms(op)
    refs = [(-1, k) for k in range(len(op.out_shape()))]
    for k, term in enumerate(terms):
        if "..." not in term:
            refs += [
                (k, i)
                for i, c in enumerate(term)
                if c not in output and all(c not in t for t in terms[:k])
            ]
    return [refs]


declare(
    "Einsum",
    _einsum,
    zero=lambda op: " ".join(map(str, range(len(op.axes)))),
    kinds=_einsum_kinds,
    macs=_einsum_macs,
)
