"""Break the rules of a family, or a module, on purpose, one small piece of its source at a time."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import sha1
from pathlib import Path

ROOT = Path(__file__).parent.parent
OPS = ROOT / "ops"

_LETTER = re.compile(r"(?<![A-Za-z])[A-Za-z][0-9]?(?![A-Za-z])|\d+|\.\.\.|\*")
_OPERATOR = re.compile(r"[A-Z][A-Za-z0-9]{2,}")
_OTHER = re.compile(r"(?:[\s(),]|->)*")
_COMPARE: dict[type[ast.cmpop], ast.cmpop] = {
    ast.Eq: ast.NotEq(), ast.NotEq: ast.Eq(), ast.Lt: ast.LtE(), ast.LtE: ast.Lt(),
    ast.Gt: ast.GtE(), ast.GtE: ast.Gt(), ast.In: ast.NotIn(), ast.NotIn: ast.In(),
    ast.Is: ast.IsNot(), ast.IsNot: ast.Is(),
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], ast.operator] = {
    ast.Add: ast.Sub(), ast.Sub: ast.Add(), ast.Mult: ast.FloorDiv(), ast.FloorDiv: ast.Mult(),
    ast.Mod: ast.FloorDiv(), ast.BitOr: ast.BitAnd(), ast.BitAnd: ast.BitOr(),
}  # fmt: skip
_CLAUSES = ("zero", "inexact", "sizes", "kinds", "resize", "macs")


Change = Callable[[ast.AST], object]  # changes a node of a fresh copy in place


@dataclass(frozen=True)
class Mutant:
    """A family's source with one piece broken, or that of a module, such as spa.ahead.

    lines: where the piece stands. ops: the operators of the declarations it has a part in, if any.
    name: the function or operators it stands in, and what became of the piece.
    at, change: the number of the piece among all nodes, and what breaks it.
    source: a digest of the statement of the module that it stands in, unbroken.
    """

    family: str
    lines: tuple[int, int]
    ops: tuple[str, ...]
    name: str
    at: int
    change: Change
    source: str

    def tree(self) -> ast.Module:
        tree = ast.parse(_text(self.family))
        self.change(list(ast.walk(tree))[self.at])
        return ast.fix_missing_locations(tree)


@cache
def _text(family: str) -> str:
    """The source of a family; the same for the whole run, whoever edits it meanwhile."""
    folder, _, name = family.rpartition(".")
    return (ROOT / (folder or OPS.name) / f"{name}.py").read_text()


def mutants(family: str) -> Iterator[Mutant]:
    """Every mutant of `ops/<family>.py`, or of a module by its name."""
    tree = ast.parse(_text(family))
    nodes = list(ast.walk(tree))
    parents = {child: node for node in nodes for child in ast.iter_child_nodes(node)}
    seen: set[str] = set()
    for at, node in enumerate(nodes):
        if _is_prose(node, parents):
            continue
        owner, ops = _owner(node, parents)
        for what, change in _changes(node, parents):
            name = f"{owner}: {what}"
            while name in seen:
                name += "'"
            piece = copy.deepcopy(node)
            change(piece)
            if ast.dump(piece) != ast.dump(node):
                seen.add(name)
                lines = _lines(node, parents)
                whole = _statement(node, parents)
                source = sha1(ast.dump(whole).encode()).hexdigest()[:12]
                yield Mutant(family, lines, ops, name, at, change, source)


def _lines(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> tuple[int, int]:
    """First and last; those of a decorator run to the end of what it decorates."""
    first = getattr(node, "lineno", 0)
    last = getattr(node, "end_lineno", first)
    while node in parents:
        at = parents[node]
        if isinstance(at, ast.FunctionDef) and node in at.decorator_list:
            return first, at.end_lineno or last
        node = at
    return first, last


def _owner(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> tuple[str, tuple[str, ...]]:
    """What a node is part of: the function, or the operators of the declaration."""
    at: ast.AST | None = node
    while at is not None:
        if isinstance(at, ast.FunctionDef):
            return at.name, ()
        if isinstance(at, ast.Call) and _callee(at) in ("rule", "declare"):
            first = at.args[0]
            if isinstance(first, ast.Constant):
                ops = tuple(str(first.value).split())
                return (ops[0] if len(ops) == 1 else f"{ops[0]} ..."), ops
            if _callee(at) == "declare":
                return "declare", _named(_statement(at, parents))
        at = parents.get(at)
    return "module", _served(_statement(node, parents), parents)


def _statement(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> ast.AST:
    """The statement of the module that a node stands in; a node of the module's is its own."""
    while node in parents and not isinstance(parents[node], ast.Module):
        node = parents[node]
    return node


def _named(statement: ast.AST) -> tuple[str, ...]:
    """The operators that a loop over declarations names."""
    words = [n.value for n in ast.walk(statement) if isinstance(n, ast.Constant)]
    return tuple(w for w in words if isinstance(w, str) and _OPERATOR.fullmatch(w))


def _served(statement: ast.AST, parents: dict[ast.AST, ast.AST]) -> tuple[str, ...]:
    """The operators of the declarations that read what a statement of the module assigns."""
    if not isinstance(statement, ast.Assign):
        return _named(statement) if isinstance(statement, ast.For) else ()
    names = _names(statement)
    readers = {
        _statement(n, parents) for n in parents if isinstance(n, ast.Name) and n.id in names
    } - {statement}
    if any(isinstance(reader, ast.FunctionDef) for reader in readers):
        return ()  # whoever calls it
    found = [_named(reader) for reader in readers]
    return tuple(op for ops in found for op in ops) if all(found) else ()


def _is_prose(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> bool:
    """Docstrings, messages, texts and annotations say something and do nothing."""
    at, child = parents.get(node), node
    if isinstance(node, ast.Constant) and isinstance(at, ast.Expr):
        return True
    while at is not None:
        if isinstance(at, ast.Raise | ast.arguments):
            return True
        if isinstance(at, ast.keyword) and at.arg in ("text", "strict"):
            return True
        if isinstance(at, ast.FunctionDef) and child is at.returns:
            return True
        if isinstance(at, ast.AnnAssign) and child is at.annotation:
            return True
        if isinstance(at, ast.Assert):
            return True
        locks = isinstance(at, ast.Call) and _callee(at) in ("lock", "lock_input")
        if locks and at.args[1:2] == [child]:  # the reason
            return True
        if isinstance(at, ast.Assign) and _names(at) & {"_REASONS"}:
            return True
        at, child = parents.get(at), at
    return isinstance(node, ast.Assert | ast.Import | ast.ImportFrom)


def _callee(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def _names(node: ast.Assign) -> set[str]:
    return {t.id for t in node.targets if isinstance(t, ast.Name)}


def _short(node: ast.AST) -> str:
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 70 else text[:67] + "..."


def _changes(node: ast.AST, parents: dict[ast.AST, ast.AST]) -> Iterator[tuple[str, Change]]:
    parent = parents.get(node)
    if isinstance(node, ast.Call) and _callee(node) in ("declare", "rule"):
        yield from _declaration(node)
    elif isinstance(node, ast.Constant):
        yield from _constant(node, parent)
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = _COMPARE[type(node.ops[0])]
        yield f"`{_short(node)}` compared by {type(other).__name__}", _set("ops", [other])
    elif isinstance(node, ast.Compare):
        for k, op in enumerate(node.ops):
            other = _COMPARE[type(op)]
            ops = [*node.ops[:k], other, *node.ops[k + 1 :]]
            yield f"`{_short(node)}` compared by {type(other).__name__} at {k}", _set("ops", ops)
    elif isinstance(node, ast.BoolOp):
        other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield f"`{_short(node)}`: and for or", _set("op", other_op)
        for k, value in enumerate(node.values):
            rest = node.values[:k] + node.values[k + 1 :]
            rest = rest if len(rest) > 1 else rest * 2  # one alone is no expression
            yield f"`{_short(node)}` without `{_short(value)}`", _set("values", rest)
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"`{_short(node)}` without not", _set("op", ast.UAdd(), wrap=True)
    elif isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        operator = _ARITHMETIC[type(node.op)]
        yield f"`{_short(node)}` with {type(operator).__name__}", _set("op", operator)
    elif isinstance(node, ast.If | ast.IfExp | ast.While) and not isinstance(
        node.test, ast.Compare | ast.UnaryOp
    ):
        negated = ast.UnaryOp(ast.Not(), node.test)
        yield f"`{_short(node.test)}` negated", _set("test", negated)
    if isinstance(node, ast.FunctionDef | ast.If | ast.For | ast.While):
        yield from _without_a_statement(node)


def _set(field: str, value: object, wrap: bool = False) -> Change:
    def change(node: ast.AST) -> None:
        if wrap:  # `not x` becomes a plain truth value
            assert isinstance(node, ast.UnaryOp)
            node.op = ast.Not()
            node.operand = ast.UnaryOp(ast.Not(), node.operand)
            return
        setattr(node, field, value)

    return change


def _without_a_statement(
    node: ast.FunctionDef | ast.If | ast.For | ast.While,
) -> Iterator[tuple[str, Change]]:
    for field in ("body", "orelse"):
        for k, statement in enumerate(getattr(node, field, [])):
            named = isinstance(statement, ast.Assign) and isinstance(
                statement.targets[0], ast.Name | ast.Tuple
            )
            last = isinstance(node, ast.FunctionDef) and isinstance(statement, ast.Return)
            inner = isinstance(statement, ast.FunctionDef | ast.Assert | ast.AnnAssign | ast.Pass)
            text = isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
            if named or last or inner or text:
                continue  # without it nothing runs at all

            def drop(at: ast.AST, field: str = field, k: int = k) -> None:
                getattr(at, field)[k] = ast.Pass()

            yield f"without `{_short(statement)}`", drop


def _constant(node: ast.Constant, parent: ast.AST | None) -> Iterator[tuple[str, Change]]:
    value = node.value
    if isinstance(value, bool):
        yield f"{value} for {not value}", _set("value", not value)
    elif isinstance(value, int):
        if isinstance(parent, ast.UnaryOp):
            yield f"-{value} becomes -{value + 1}", _set("value", value + 1)
        else:
            yield (
                f"{value} becomes {value + 1} in `{_short(parent or node)}`",
                _set("value", value + 1),
            )
    elif isinstance(value, bytes):
        yield f"{value!r} becomes another", _set("value", b"?")
    elif isinstance(value, str) and _is_pattern(value):
        for what, text in broken_patterns(value):
            yield what, _set("value", text)


def _is_pattern(text: str) -> bool:
    """Whether a string is a pattern, or a piece that one is put together from."""
    tokens = _LETTER.findall(text)
    live = any(t[0].isupper() or t in ("...", "*") for t in tokens)
    return live and _OTHER.fullmatch(_LETTER.sub("", text)) is not None


def broken_patterns(text: str) -> Iterator[tuple[str, str]]:
    """A pattern, or a piece of one, with one letter made wrong."""
    tokens = list(_LETTER.finditer(text))
    for name in dict.fromkeys(m.group() for m in tokens):
        if name[0].isalpha():
            flipped = name.swapcase()
            word = re.compile(rf"(?<![A-Za-z]){name}(?![0-9])")
            yield f"{text!r}: {name} becomes {flipped}", word.sub(flipped, text)
        elif name.isdigit():
            yield (
                f"{text!r}: {name} becomes {int(name) + 1}",
                text.replace(name, str(int(name) + 1)),
            )
        else:
            other = "*" if name == "..." else "..."
            yield f"{text!r}: {name} becomes {other}", text.replace(name, other)
    for k, m in enumerate(tokens):
        count = sum(n.group() == m.group() for n in tokens)
        if m.group()[0].isupper() and count > 1:
            new = text[: m.start()] + "Z9" + text[m.end() :]
            yield f"{text!r}: {m.group()} number {k} becomes a letter of its own", new
        if k + 1 < len(tokens):
            n = tokens[k + 1]
            between = text[m.end() : n.start()]
            if n.group() != m.group() and "," not in between and "->" not in between:
                new = text[: m.start()] + n.group() + between + m.group() + text[n.end() :]
                yield f"{text!r}: {m.group()} and {n.group()} swapped at {k}", new


def _declaration(call: ast.Call) -> Iterator[tuple[str, Change]]:
    first = call.args[0]
    ops = str(first.value).split() if isinstance(first, ast.Constant) else []
    if _callee(call) == "rule":
        for op in ops:
            yield f"{op} dropped", _rename(" ".join(o for o in ops if o != op))
        yield from _clauses(call, ("resize", "macs"))
        return
    if len(ops) <= 1:
        yield from _clauses(call, _CLAUSES)
        if ops and not any(k.arg == "zero" for k in call.keywords):
            yield "silent at zero", _add("zero", "0")
        return
    for op in ops:
        rest = " ".join(o for o in ops if o != op)
        yield f"{op} dropped", _rename(rest)
        keyword = next((k for k in call.keywords if k.arg == "zero"), None)
        for zero in ([""] if keyword else []) + _other_zeros(keyword):
            yield f"{op} with zero={zero!r}", _single_out(op, rest, zero)


def _other_zeros(keyword: ast.keyword | None) -> list[str]:
    if keyword is None:
        return ["0"]
    if not isinstance(keyword.value, ast.Constant):
        return []
    text = str(keyword.value.value)
    if text == "+":
        return ["0"]
    terms = text.split(" + ")
    fewer = [" + ".join(terms[:k] + terms[k + 1 :]) for k in range(len(terms)) if len(terms) > 1]
    shorter = [
        " + ".join([*terms[:k], " ".join(f[:j] + f[j + 1 :]), *terms[k + 1 :]])
        for k, f in enumerate(t.split() for t in terms)
        for j in range(len(f))
        if len(f) > 1
    ]
    return fewer + shorter


def _clauses(call: ast.Call, names: tuple[str, ...]) -> Iterator[tuple[str, Change]]:
    for keyword in call.keywords:
        if keyword.arg not in names:
            continue
        yield f"without {keyword.arg}={_short(keyword.value)}", _drop(keyword.arg)
        if keyword.arg == "zero":
            for zero in _other_zeros(keyword):
                yield f"zero={zero!r}", _add("zero", zero)


def _drop(name: str | None) -> Change:
    def change(call: ast.AST) -> None:
        assert isinstance(call, ast.Call)
        call.keywords = [k for k in call.keywords if k.arg != name]

    return change


def _add(name: str, value: str) -> Change:
    def change(call: ast.AST) -> None:
        _drop(name)(call)
        assert isinstance(call, ast.Call)
        call.keywords.append(ast.keyword(name, ast.Constant(value)))

    return change


def _rename(ops: str) -> Change:
    def change(call: ast.AST) -> None:
        assert isinstance(call, ast.Call)
        call.args[0] = ast.Constant(ops)

    return change


def _single_out(op: str, rest: str, zero: str) -> Change:
    """One operator of a list in a declaration of its own, silent elsewhere."""

    def change(call: ast.AST) -> None:
        assert isinstance(call, ast.Call)
        alone = copy.deepcopy(call)
        _rename(op)(alone)
        _add("zero", zero)(alone)
        _rename(rest)(call)
        both = ast.Tuple([copy.deepcopy(call), alone], ast.Load())
        call.func, call.args, call.keywords = ast.Name("tuple", ast.Load()), [both], []

    return change
