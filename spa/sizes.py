"""The free sizes of a model (batch, sequence, height ...), and numbers to try for them.

Distinct primes come first, so that no product of sizes can be taken for another; then what models
are known to ask for: sides that halve evenly, sizes that are the same, sizes that are sums of
others (past + present), and every length that may have been written into the graph by tracing.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import combinations, count, cycle, repeat

from onnx import TensorProto, ValueInfoProto

from spa.graph import Graph, Node

Sizes = dict[str, int]  # free size -> number; an unnamed one is called "input.axis"
Place = tuple[str, int, int]  # input, axis, rank
Free = dict[str, list[Place]]

LIKELY = 6  # that many of the first bindings deserve more than one try
TRIES = 40  # variations of one free size
_WORDS = 4096  # of an input of integers
_WHOLE = (TensorProto.INT32, TensorProto.INT64)
_MOST = 7  # free sizes, to look for sums among all of them


def dims(graph: Graph, info: ValueInfoProto) -> list[int | str]:
    """The sizes of an input: numbers where they are fixed, names where they are free."""
    tensor = info.type.tensor_type
    if not tensor.HasField("shape"):
        read = _first_read(graph, info.name)
        return [f"{info.name}.{k}" for k in range(_rank(graph, *read) if read else 1)]
    return [
        d.dim_value
        if d.HasField("dim_value") and d.dim_value > 0
        else d.dim_param or f"{info.name}.{k}"
        for k, d in enumerate(tensor.shape.dim)
    ]


def free_sizes(graph: Graph) -> Free:
    """Free size -> the (input, axis, rank) where it stands."""
    found: Free = {}
    for info in graph.model.graph.input:
        if info.name in graph.inputs and info.type.HasField("tensor_type"):
            sizes = dims(graph, info)
            for axis, size in enumerate(sizes):
                if isinstance(size, str):
                    found.setdefault(size, []).append((info.name, axis, len(sizes)))
    return found


def bindings(graph: Graph, offset: int = 0) -> Iterator[Sizes]:
    """Numbers to try for the free sizes, likeliest first; another offset gives other numbers."""
    yield from _bound(graph, lambda plain: _numbers(plain, offset))


def _bound(graph: Graph, choose: Callable[[Free], Iterator[Sizes]]) -> Iterator[Sizes]:
    """Numbers chosen for some sizes, with what weights ask for and what others add up to."""
    free = free_sizes(graph)
    derived = {n: tree for n in free if (tree := _expression(n, free)) is not None}
    known = wanted_sizes(graph)
    plain = {n: places for n, places in free.items() if n not in derived}
    words, tried = _of_words(graph, plain), list[Sizes]()
    for numbers in choose(plain):
        if any(numbers.get(n, 0) > _WORDS for n in words):
            continue
        bound = {n: known.get(n, numbers.get(n, 0)) for n in free}
        bound.update({n: _value(tree, bound) for n, tree in derived.items()})
        if bound not in tried and all(n > 0 for n in bound.values()):
            tried.append(bound)
            yield bound


def _of_words(graph: Graph, free: Free) -> list[str]:
    """The free sizes of integer inputs: so many of these as there are samples of sound are no text
    that a model reads, and what it makes of them may fill the memory."""
    types = {i.name: i.type.tensor_type.elem_type for i in graph.model.graph.input}
    return [n for n, places in free.items() if all(types[name] in _WHOLE for name, *_ in places)]


def _numbers(free: Free, offset: int) -> Iterator[Sizes]:
    first = any(places[0][1] == 0 for places in free.values())
    states = _of_states(free, free) if first else set()
    if states:
        yield from _tried(free, offset, states)
    yield from _tried(free, offset, set())


def _tried(free: Free, offset: int, samples: Collection[str]) -> Iterator[Sizes]:
    """Numbers to try where these sizes and all first ones count samples."""
    batch, sequence = (3, 2)[offset % 2], (7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    spatial = (67, 71, 73, 79, 83, 89)

    def bind(lengths: Iterator[int], sides: Iterator[int], one: int = batch) -> Sizes:
        bound: Sizes = {}
        for name, places in free.items():
            _, axis, rank = places[0]
            counts = axis == 0 or name in samples
            bound[name] = one if counts else next(sides if rank >= 4 else lengths)
        return bound

    yield bind(cycle(sequence[offset:]), cycle(spatial[offset:]))
    if not free:
        return
    for unit in (64, 32):  # nets that halve the sides again and again, and join the halves
        yield bind(cycle(sequence[offset:]), count(unit * (offset + 2), unit))
        yield bind(cycle(sequence[offset:]), repeat(unit * (offset + 2)))
    yield bind(repeat(sequence[offset]), repeat(spatial[offset]))  # several names for one size
    yield bind(repeat(4 + 2 * offset), repeat(4 + 2 * offset), 4 + 2 * offset)
    for one in (batch, 1):  # some caches grow by several steps only for a batch of one
        yield from _sums(free, one, sequence[offset:])
    for length in (512, 16000):  # frames and seconds of sound
        yield bind(repeat(length * (offset + 1)), repeat(224 * (offset + 1)), 1)
    # A size that was written into the graph when it was traced is the only one that works.
    for length, side in zip((*range(2, 130), 1), cycle((224, 256, 299, 320, 384, 416, 512, 640))):
        for one in (1, 2):
            yield bind(repeat(length), repeat(side), one)


def _sums(free: Free, batch: int, lengths: Sequence[int]) -> Iterator[Sizes]:
    """One size the sum of two others, or one more than another.

    Sizes are first taken to be the same where they stand on the same axis of inputs of one rank.
    """
    names = [n for n, places in free.items() if places[0][1] > 0]
    kinds = dict(zip(dict.fromkeys(free[n][0][1:] for n in names), cycle(lengths)))
    alike = {n: kinds[free[n][0][1:]] for n in names}
    each = dict(zip(names, cycle(lengths)))
    for numbers in (alike, each) if len(names) <= _MOST else (alike,):
        first = {n: numbers.get(n, batch) for n in free}
        for total in names:
            others = dict.fromkeys(first[n] for n in names if n != total)
            sums = [a + b for a, b in combinations(others, 2)]
            for number in (*sums, *(n + 1 for n in others)):
                yield {**first, total: number}


def variations(sizes: Sizes, name: str) -> Iterator[Sizes]:
    """Another number for one size, alone or with others that may have to move along."""
    old = sizes[name]
    for new in (old + 1, 2 * old, old + 2, old - 1, old // 2, 3 * old):
        if new in (0, old):
            continue
        moved = {**sizes, name: new}
        yield moved
        alike = {n: new for n, size in sizes.items() if size == old}
        if len(alike) > 2:
            yield {**sizes, **alike}
        for other in sizes:
            if other != name and sizes[other] + new - old > 0:
                yield {**moved, other: sizes[other] + new - old}
        if new == 2 * old:
            yield {n: 2 * size for n, size in sizes.items()}


# Sizes as they are in use ------------------------------------------------------------------------


def batch_sizes(graph: Graph) -> frozenset[str]:
    """The free sizes that count samples: of every input the one named for it, else the first."""
    found: set[str] = set()
    free = free_sizes(graph)
    plain = {n for n in free if _expression(n, free) is None}
    for info in graph.model.graph.input:
        if info.name in graph.inputs and info.type.HasField("tensor_type"):
            mine = [d for d in dims(graph, info) if isinstance(d, str) and d in plain]
            named = [d for d in mine if "batch" in d.lower()]
            found.update(named[:1] or [d for d in mine[:1] if dims(graph, info)[0] == d])
    return frozenset(found | _of_states(free, plain - found)) if found else frozenset()


def _of_states(free: Free, names: Iterable[str]) -> set[str]:
    """Those of these sizes that stand as the states of a recurrent net have it: layers, samples,
    units."""
    others = [(n, *free[n][0]) for n in names]
    return {
        n
        for n, name, _, rank in others
        if n == f"{name}.1" and rank == 3 and not {f"{name}.0", f"{name}.2"} & free.keys()
    }


def channel_axis(shape: Sequence[int | None]) -> int | None:
    """Where one sample has its channels, if it looks like a picture. None: a free size."""
    for axis in (0, 2) if len(shape) == 3 else ():
        channels, others = shape[axis], [*shape[:axis], *shape[axis + 1 :]]
        if channels in (1, 3, 4) and all(n is None or n > channels for n in others):
            return axis
    return None


def realistic(graph: Graph, batch: int) -> Iterator[Sizes]:
    """Numbers as they are in use, likeliest first: sides of pictures, lengths of sequences."""
    lead = batch_sizes(graph)
    known = wanted_sizes(graph)
    sides: set[str] = set()
    for info in graph.model.graph.input:
        shape = dims(graph, info) if info.type.HasField("tensor_type") else []
        inner = [known.get(d) if isinstance(d, str) else d for d in shape[1:]]
        if channel_axis(inner) is not None:
            sides.update(d for d in shape[1:] if isinstance(d, str) and d not in known)

    def choose(plain: Free) -> Iterator[Sizes]:
        for side, length in zip(_SIDES, _LENGTHS, strict=True):
            yield {
                n: batch
                if n in lead
                else side
                if n in sides
                else side // 4  # of a volume
                if places[0][2] == 5
                else length
                for n, places in plain.items()
            }

    yield from _bound(graph, choose)


_SIDES = (224, 160, 128, 96, 64, 192, 256)
_LENGTHS = (64, 32, 16, 128, 512, 4096, 16000)


# Sizes that are written as an expression of others ---------------------------------------------

_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.floordiv,
}


def _expression(text: str, free: Free) -> ast.expr | None:
    """A name such as "past + sequence", where those are free sizes of the model, as a tree."""
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError):
        return None
    if isinstance(tree, ast.Name) or not _is_sum(tree):
        return None
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}
    return tree if names and names <= free.keys() else None


def _is_sum(tree: ast.expr) -> bool:
    if isinstance(tree, ast.BinOp):
        return type(tree.op) in _OPERATORS and _is_sum(tree.left) and _is_sum(tree.right)
    return isinstance(tree, ast.Name) or (
        isinstance(tree, ast.Constant) and isinstance(tree.value, int)
    )


def _value(tree: ast.expr, sizes: Sizes) -> int:
    if isinstance(tree, ast.BinOp):
        left, right = _value(tree.left, sizes), _value(tree.right, sizes)
        if right == 0 and isinstance(tree.op, ast.Div | ast.FloorDiv):
            return 0
        return _OPERATORS[type(tree.op)](left, right)
    if isinstance(tree, ast.Name):
        return sizes[tree.id]
    assert isinstance(tree, ast.Constant) and isinstance(tree.value, int)
    return tree.value


# Sizes that the weights of the first layer ask for ---------------------------------------------


def wanted_sizes(graph: Graph) -> Sizes:
    """The free sizes that have to be some number, for a weight to fit."""
    free = free_sizes(graph)
    return {n: size for n, places in free.items() if (size := _wanted(graph, places))}


def _first_read(graph: Graph, name: str) -> tuple[Node, list[int] | None] | None:
    """The first node that meets the input with a weight, and how its axes were permuted before."""
    order: list[int] | None = None
    while True:
        readers = graph.readers.get(name, [])
        node = next((graph.nodes[k] for k in readers if _asks(graph, graph.nodes[k])), None)
        if node is not None and node.inputs[0] == name:
            return node, order
        step = next((graph.nodes[k] for k in readers if graph.nodes[k].op_type in _PASSES), None)
        if step is None or name not in step.inputs:
            return None
        if step.op_type == "Transpose":
            if order is not None or "perm" not in step.attrs:
                return None
            order = list(step.attrs["perm"])
        name = step.outputs[0]


_PASSES = {"Identity", "Cast", "Add", "Sub", "Mul", "Div", "Transpose", "Relu"}
_WEIGHT = {"Conv": 1, "MatMul": 1, "Gemm": 1, "LSTM": 1, "GRU": 1, "RNN": 1}


def _asks(graph: Graph, node: Node) -> bool:
    k = _WEIGHT.get(node.op_type.removeprefix("Fused"))
    turned = node.op_type == "FusedMatMul" and any(n.startswith("trans") for n in node.attrs)
    return (
        k is not None
        and not turned
        and len(node.inputs) > k
        and node.inputs[k] in graph.constants
        and len(graph.constants[node.inputs[k]].shape) > 1
    )


def _rank(graph: Graph, node: Node, order: list[int] | None) -> int:
    weight = graph.constants[node.inputs[1]].shape
    return len(order) if order else 3 if node.op_type in ("LSTM", "GRU", "RNN") else len(weight)


def _wanted(graph: Graph, places: list[Place]) -> int | None:
    """The size that a weight asks for at one of these places."""
    for name, axis, rank in places:
        found = feature_axis(graph, name, rank)
        if found is not None and found[0] == axis:
            return found[1]
    return None


def feature_axis(graph: Graph, name: str, rank: int) -> tuple[int, int] | None:
    """The axis of an input that the first weight runs along, and the size that it asks for."""
    read = _first_read(graph, name)
    if read is None:
        return None
    node, order = read
    shape = graph.constants[node.inputs[1]].shape
    op_type = node.op_type.removeprefix("Fused")
    if op_type == "Conv":
        at, size = 1, shape[1] * int(node.attrs.get("group", 1))
    elif op_type == "MatMul":
        at, size = rank - 1, shape[-2]
    elif op_type == "Gemm":
        at = 0 if node.attrs.get("transA") else 1
        size = shape[1] if node.attrs.get("transB") else shape[0]
    else:
        at, size = 2, shape[2]
    return (order[at] if order and at < len(order) else at), size
