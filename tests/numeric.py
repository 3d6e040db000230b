"""What couples what, found by running single operators on numbers: the reference for the rules.

Nothing here knows an operator. A node runs alone in onnxruntime, again and again:

1. Change one slice of one input: the slices of the outputs that change *depend* on it. Change a
   slice of two inputs each: where the effect is not the sum of both effects, the two *meet*.
2. Where such a relation between two axes falls apart into blocks, the axes share an index. Blocks
   of one index each are ties. Larger blocks are an axis that is a product: one factor is tied, in
   a choice that is left open; all choices are given.
3. What is then tied must be interchangeable: with two units swapped in all inputs, the outputs
   must be the old ones with the two swapped. If they are not, the unit lacks a part, which is
   sought among the others (a softmax, whose outputs all depend on all inputs), or its axis depends
   on positions and is locked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations, pairwise, product
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper

from spa import rules
from spa.groups import Groups
from spa.protos import PACKED
from spa.rules import Op

RECURRENT = ("LSTM", "GRU", "RNN")
Array = NDArray[Any]
Slice = tuple[str, int, int]  # tensor, axis, index
AxisRef = tuple[str, int]
Block = tuple[tuple[int, ...], tuple[int, ...]]
LOCKED: Slice = ("", 0, 0)


class Partition:
    """Slices tied to each other; what is tied to `LOCKED` stays."""

    def __init__(self) -> None:
        self.parent: dict[Slice, Slice] = {LOCKED: LOCKED}

    def root(self, one: Slice) -> Slice:
        self.parent.setdefault(one, one)
        while self.parent[one] != one:
            self.parent[one] = self.parent[self.parent[one]]
            one = self.parent[one]
        return one

    def tie(self, one: Slice, other: Slice) -> None:
        a, b = sorted((self.root(one), self.root(other)))
        self.parent[b] = a  # LOCKED sorts first

    def lock(self, one: Slice) -> None:
        self.tie(one, LOCKED)

    def units(self) -> dict[Slice, list[Slice]]:
        found: dict[Slice, list[Slice]] = {}
        for one in sorted(self.parent):
            found.setdefault(self.root(one), []).append(one)
        return found

    def copy(self) -> Partition:
        made = Partition()
        made.parent = dict(self.parent)
        return made

    def lock_full(self, sizes: dict[AxisRef, int]) -> None:
        """Lock what cannot be removed without emptying an axis."""
        for unit in list(self.units().values()):
            count: dict[AxisRef, int] = {}
            for tensor, axis, _ in unit:
                count[tensor, axis] = count.get((tensor, axis), 0) + 1
            if any(ref in sizes and n == sizes[ref] for ref, n in count.items()):
                self.lock(unit[0])

    def blocks(self, wanted: set[Slice]) -> frozenset[frozenset[Slice]]:
        """The parts of the wanted slices; the locked part holds `LOCKED`."""
        parts: dict[Slice, set[Slice]] = {self.root(LOCKED): {LOCKED}}
        for one in wanted:
            parts.setdefault(self.root(one), set()).add(one)
        return frozenset(map(frozenset, parts.values()))

    def is_finer(self, other: Partition) -> bool:
        """Whether everything tied here is tied there."""
        return all(
            other.root(one) == other.root(root)
            for root, unit in self.units().items()
            for one in unit
        )


@dataclass(frozen=True)
class Lone:
    """One node on its own, with numbers to run it on.

    inputs: position -> tensor name, of the inputs that may change.
    fixed: position -> value, of the others.
    """

    op: Op
    inputs: dict[int, str]
    fixed: dict[int, Array]
    dtypes: dict[int, Any]
    outputs: dict[int, str]
    free_values: bool  # whether integers are data, not sizes or positions

    def shape(self, k: int) -> tuple[int, ...]:
        return self.op.shape(k)

    def sizes(self) -> dict[AxisRef, int]:
        """The axes that can take part: of more than one index."""
        found = {}
        for k, name in self.inputs.items():
            found.update({(name, a): n for a, n in enumerate(self.op.shape(k)) if n > 1})
        for k, name in self.outputs.items():
            found.update({(name, a): n for a, n in enumerate(self.op.out_shape(k)) if n > 1})
        return found


def alone(groups: Groups, op: Op) -> Lone | None:
    """A node as `Lone`, or None where it has shapes or values that are not known."""
    node, graph, shapes = op.node, groups.graph, groups.shapes
    inputs, fixed, dtypes = {}, {}, {}
    rule = rules.find(node.op_type, node.domain)
    data = rule is not None and rule.family in ("elementwise", "quantize")
    kept = not data and node.op_type != "GatherElements"  # whether integers stay as they are
    for k, name in enumerate(node.inputs):
        if not name:
            continue
        if name not in shapes.shapes or name not in shapes.dtypes:
            return None
        kind = helper.tensor_dtype_to_np_dtype(shapes.dtypes[name])
        value = shapes.values.get(name)
        stored = name in graph.constants and rule is not None and rule.family == "pool" and k > 0
        if name in graph.constants and (stored or (kind.kind in "iu" and kind.itemsize > 1)):
            value = graph.array(name)
        if value is not None and (stored or value.size == 1 or (kind.kind in "iub" and kept)):
            fixed[k] = value
        elif kind.kind in "fiub" and kind.isbuiltin == 1:  # others onnxruntime takes no arrays of
            inputs[k] = name
        else:
            return None
        dtypes[k] = kind
    outputs = {k: n for k, n in enumerate(node.outputs) if n}
    if any(n not in shapes.shapes or n in shapes.values for n in outputs.values()):
        return None
    if any(shapes.dtypes[n] in PACKED for n in outputs.values()):
        return None
    return Lone(op, inputs, fixed, dtypes, outputs, data) if inputs else None


def _states(lone: Lone) -> dict[int, Array]:
    """Initial states for a recurrence that has none, so that one step reads all weights: the same
    number everywhere, in which all units are alike."""
    op = lone.op
    if op.node.op_type not in RECURRENT:
        return {}
    steps, batch = (1, 0) if op.attr("layout", 0) else (0, 1)
    shape = [op.shape(1)[0], op.shape(0)[batch], op.shape(2)[2]]
    shape = shape if steps == 0 else [shape[1], shape[0], shape[2]]
    places = (5, 6) if op.node.op_type == "LSTM" else (5,)
    return {k: np.full(shape, 0.5, np.float32) for k in places if not op.has(k)}


class Runner:
    """Runs a lone node, perhaps with other attributes and sizes; inputs by position."""

    def __init__(
        self,
        lone: Lone,
        attrs: Mapping[str, Any] | None = None,
        sizes: Mapping[int, Array] | None = None,
        states: bool = False,
        shapes: Mapping[int, tuple[int, ...]] | None = None,
    ) -> None:
        node, groups_opset = lone.op.node, lone.op.opset
        proto = onnx.NodeProto()
        proto.CopyFrom(node.proto)
        del proto.input[:], proto.output[:]
        fixed = lone.fixed | (_states(lone) if states else {}) | dict(sizes or {})
        count = max([len(node.inputs), *(k + 1 for k in fixed)])
        given = {k for k, n in enumerate(node.inputs) if n} | set(fixed)
        proto.input.extend(f"i{k}" if k in given else "" for k in range(count))
        proto.output.extend(f"o{k}" if n else "" for k, n in enumerate(node.outputs))
        for name, value in (attrs or {}).items():
            kept = [a for a in proto.attribute if a.name != name]
            del proto.attribute[:]
            proto.attribute.extend(kept)
            if value is not None:
                proto.attribute.append(helper.make_attribute(name, value))
        # onnxruntime's own operators hold the shapes that are declared against attributes.
        dims: dict[int, Sequence[int | None]] = {
            k: [None] * len(lone.shape(k)) for k in lone.inputs
        }
        if node.domain:
            dims = {k: (shapes or {}).get(k, lone.shape(k)) for k in lone.inputs}
        infos = [
            helper.make_tensor_value_info(
                f"i{k}",
                helper.np_dtype_to_tensor_dtype(lone.dtypes[k]),
                dims[k],
            )
            for k in lone.inputs
        ]
        outs = [onnx.ValueInfoProto(name=f"o{k}") for k in lone.outputs]
        stored = [onnx.numpy_helper.from_array(v, f"i{k}") for k, v in fixed.items()]
        graph = helper.make_graph([proto], "lone", infos, outs, stored)
        domains = [helper.make_opsetid(node.domain, groups_opset)]
        model = helper.make_model(graph, opset_imports=domains)
        model.ir_version = 10
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self.session = ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.names = [f"o{k}" for k in lone.outputs]

    def __call__(self, feeds: dict[int, Array]) -> list[Array]:
        given = {f"i{k}": np.asarray(v) for k, v in feeds.items()}
        return [np.asarray(y) for y in self.session.run(self.names, given)]


def numbers(lone: Lone, random: np.random.Generator, low: float, high: float) -> dict[int, Array]:
    feeds: dict[int, Array] = {}
    for k in lone.inputs:
        shape, kind = lone.shape(k), lone.dtypes[k]
        if kind.kind == "f":
            value = random.uniform(low, high, shape)  # rounded, so that some are equal
            feeds[k] = (value.round(1) if lone.free_values else value).astype(kind)
        elif kind.kind == "b":
            feeds[k] = random.integers(0, 2, shape).astype(bool)
        elif is_quantised(lone, k):  # about the zero points of the rows
            feeds[k] = (random.integers(-60, 60, shape) + 120 * (kind.kind == "u")).astype(kind)
        else:
            feeds[k] = random.integers(0, 8 if lone.free_values else 2, shape).astype(kind)
    return feeds


def _changed(
    feeds: dict[int, Array], k: int, a: int, i: int, random: np.random.Generator, how: str = "+"
) -> dict[int, Array]:
    """The feeds with one slice of input k changed: a little, or to something else altogether."""
    value = feeds[k].copy()
    part = np.moveaxis(value, a, 0)
    if value.dtype.kind == "f":
        more = random.uniform(0.1, 0.2, part[i].shape)
        part[i] = {
            "+": part[i] + more, "-": -4 * part[i] - more, "?": np.nan, "0": 0.0, "!": np.inf,
        }[how]  # fmt: skip
    elif value.dtype.kind == "b":
        part[i] = ~part[i]
    elif value.max() > 8:
        part[i] ^= 0x25
    else:
        part[i] = 1 - part[i] if value.max() <= 1 else part[i] ^ 0x7
    return {**feeds, k: value}


def is_quantised(lone: Lone, k: int) -> bool:
    rule = rules.find(lone.op.node.op_type, lone.op.node.domain)
    eight = lone.dtypes[k].kind in "iu" and lone.dtypes[k].itemsize == 1
    return eight and lone.op.node.domain != "" and rule is not None and k in rule.quantised


RANGES = ((0.2, 0.7), (1.1, 1.8), (-0.4, 0.4))


class Finder:
    """The relations between the axes of one lone node."""

    def __init__(self, lone: Lone, seed: int = 0) -> None:
        self.lone, self.random = lone, np.random.default_rng(seed)
        self.run = Runner(lone, states=True)
        self.sizes = lone.sizes()
        self.out = list(lone.outputs.values())
        self.relations: dict[tuple[AxisRef, AxisRef, int], Array] = {}
        self.moves: set[Slice] = set()  # slices whose change is seen at all
        for how, (low, high) in product("+-?0!" if lone.free_values else "+-", RANGES[:2]):
            self._depend(low, high, how)
        self._meet(*RANGES[0])

    def axes_of(self, k: int) -> Iterator[tuple[int, int]]:
        for a, n in enumerate(self.lone.op.shape(k)):
            if n > 1:
                yield a, n

    def _relation(self, one: AxisRef, other: AxisRef, reader: int) -> Array:
        key = (one, other, reader)  # an input may be read twice
        if key not in self.relations:
            self.relations[key] = np.zeros((self.sizes[one], self.sizes[other]), bool)
        return self.relations[key]

    def _steps(self, feeds: dict[int, Array]) -> dict[int, Array]:
        """One step of a recurrence, whose later steps mix all units."""
        if self.lone.op.node.op_type not in RECURRENT:
            return feeds
        at = 1 if self.lone.op.attr("layout", 0) else 0
        return {**feeds, 0: feeds[0].take([0], axis=at)}

    def _depend(self, low: float, high: float, how: str) -> None:
        feeds = numbers(self.lone, self.random, low, high)
        before = self.run(self._steps(feeds))
        for k, name in self.lone.inputs.items():
            for a, n in self.axes_of(k):
                for i in range(n):
                    changed = _changed(feeds, k, a, i, self.random, how)
                    after = self.run(self._steps(changed))
                    for out, x, y in zip(self.out, before, after, strict=True):
                        differs = ~((x == y) | _both_nan(x, y))
                        if differs.any() or self._is_step(k, a):
                            self.moves.add((name, a, i))
                        for b in range(x.ndim):
                            if (out, b) not in self.sizes:
                                continue
                            relation = self._relation((name, a), (out, b), k)
                            if x.shape[b] != len(relation[i]) or self._is_step(k, a):
                                relation[:] = True  # a step depends on the others
                            else:
                                relation[i] |= differs.any(axis=_but(x.ndim, b))

    def _is_step(self, k: int, axis: int) -> bool:
        op = self.lone.op
        if op.node.op_type not in RECURRENT:
            return False
        return k == 0 and axis == (1 if op.attr("layout", 0) else 0)

    def _meet(self, low: float, high: float) -> None:
        """Which slices of two inputs meet; of those that meet one slice, only that they do so
        together, as blocks are all that is asked for."""
        feeds = self._steps(numbers(self.lone, self.random, low, high))
        floats = [k for k in self.lone.inputs if self.lone.dtypes[k].kind == "f"]
        pairs = [(k, m) for k, m in combinations(floats, 2) if self._are_two(k, m)]
        more = {k: self.random.uniform(0.1, 0.2, feeds[k].shape) for k in floats}
        before = self.run(feeds) if pairs else []
        for k in floats:
            for a, n in self.axes_of(k):
                others = [(m, b, size) for j, m in pairs if j == k for b, size in self.axes_of(m)]
                others = [(m, b, size) for m, b, size in others if feeds[m].shape[b] > 1]
                parts = {(m, b): [[j] for j in range(size)] for m, b, size in others}
                for i in range(n) if others and feeds[k].shape[a] > 1 else ():
                    mixes = self._mixing(feeds, before, more, k, a, i)
                    for (m, b), known in parts.items():
                        ref = (self.lone.inputs[k], a), (self.lone.inputs[m], b)
                        met = _found(known, partial(mixes, m, b))
                        self._relation(*ref, k)[i, [part[0] for part in met]] = True
                        if len(met) > 1:
                            known[:] = [p for p in known if p not in met] + [list(chain(*met))]

    def _mixing(
        self,
        feeds: dict[int, Array],
        before: list[Array],
        more: dict[int, Array],
        k: int,
        axis: int,
        index: int,
    ) -> Callable[[int, int, list[int]], bool]:
        """Whether the effect of one slice and that of some slices of an axis are not their sum."""
        one = {k: _raised(feeds[k], more[k], axis, [index])}
        first = self.run({**feeds, **one})

        def mixes(m: int, other: int, at: list[int]) -> bool:
            some = {m: _raised(feeds[m], more[m], other, at)}
            second, both = self.run({**feeds, **some}), self.run({**feeds, **one, **some})
            return any(map(_is_mixed, before, first, second, both))

        return mixes

    def _are_two(self, k: int, m: int) -> bool:
        return self.lone.inputs[k] != self.lone.inputs[m]

    # Step 2: blocks, ties, choices ---------------------------------------------------------------

    def alternatives(self) -> list[Partition]:
        """The partitions of the node's slices, one for each choice of live factors."""
        sure: list[tuple[AxisRef, AxisRef, list[Block]]] = []
        open_: list[tuple[AxisRef, AxisRef, list[Block]]] = []
        for (one, other, _), relation in sorted(self.relations.items(), key=lambda r: r[0]):
            blocks = _blocks(relation)
            if len(blocks) < 2:
                continue
            shapes = {(len(i), len(j)) for i, j in blocks}
            factored = len(shapes) == 1 and shapes != {(1, 1)}
            (open_ if factored else sure).append((one, other, blocks))
        found: list[Partition] = []
        for keep in product((True, False), repeat=min(len(open_), 7)):
            partition = Partition()
            for ref, n in self.sizes.items():
                for i in range(n):
                    partition.root((*ref, i))
            for one, other, blocks in sure:
                _tie_blocks(partition, one, other, blocks)
            for kept, (one, other, blocks) in zip(keep, open_, strict=False):
                (_tie_blocks if kept else _tie_places)(partition, one, other, blocks)
            partition.lock_full(self.sizes)
            self._require_symmetry(partition)
            partition.lock_full(self.sizes)
            found.append(partition)
        return [
            p
            for k, p in enumerate(found)
            if not any(
                q.is_finer(p) and not (p.is_finer(q) and j >= k)
                for j, q in enumerate(found)
                if j != k
            )
        ]

    # Step 3: what is tied must be interchangeable ------------------------------------------------

    def _require_symmetry(self, partition: Partition) -> None:
        classes: dict[Any, list[list[Slice]]] = {}
        for root, unit in partition.units().items():
            if root == LOCKED:
                continue
            signature = sorted((t, a, (t, a, i) in self.moves) for t, a, i in unit)
            classes.setdefault(tuple(signature), []).append(unit)
        units = [c for c in classes.values() if len(c) > 1]
        odd = [c for c in units if not self._symmetric([c])]
        joined: set[int] = set()
        for chosen in chain.from_iterable(combinations(range(len(odd)), n) for n in (2, 3, 4)):
            parts = [odd[k] for k in chosen]
            if joined & set(chosen) or len({len(part) for part in parts}) > 1:
                continue
            if self._symmetric(parts):
                joined |= set(chosen)
                for one in zip(*parts, strict=True):
                    for x, y in pairwise(one):
                        partition.tie(x[0], y[0])
        for k, units in enumerate(odd):
            if k not in joined:
                for unit in units:
                    partition.lock(unit[0])

    def _symmetric(self, classes: Sequence[list[list[Slice]]]) -> bool:
        for low, high in RANGES:
            feeds = numbers(self.lone, self.random, low, high)
            before = dict(zip(self.out, self.run(feeds), strict=True))
            for one, other in pairwise(range(len(classes[0]))):
                moved = {
                    k: _swapped(feeds[k], name, [(c[one], c[other]) for c in classes])
                    for k, name in self.lone.inputs.items()
                }
                after = dict(zip(self.out, self.run(moved), strict=True))
                for name, x in before.items():
                    want = _swapped(x, name, [(c[one], c[other]) for c in classes])
                    if not close(want, after[name]):
                        return False
        return True


def _but(rank: int, axis: int) -> tuple[int, ...]:
    return tuple(k for k in range(rank) if k != axis)


def _raised(value: Array, more: Array, axis: int, at: list[int]) -> Array:
    made = value.copy()
    np.moveaxis(made, axis, 0)[at] += np.moveaxis(more, axis, 0)[at].astype(made.dtype)
    return made


def _is_mixed(x: Array, y: Array, z: Array, both: Array) -> bool:
    """Whether going from x to both is more than going to y and going to z."""
    differ = (x != y) | (z != both)  # elsewhere the first change does nothing: most of it
    x, y, z, both = (v[differ].astype(float) for v in (x, y, z, both))
    size = np.abs(x) + np.abs(y) + np.abs(z)
    return bool((np.abs(x - y - z + both) > 1e-5 * size + 1e-7).any())


def _found(parts: list[list[int]], holds: Callable[[list[int]], bool]) -> list[list[int]]:
    """The parts for which something holds that holds for a whole where it does for a part."""
    if not parts or not holds(list(chain(*parts))):
        return []
    half = len(parts) // 2
    return [*_found(parts[:half], holds), *_found(parts[half:], holds)] if half else parts


def _both_nan(x: Array, y: Array) -> Array:
    return np.isnan(x) & np.isnan(y) if x.dtype.kind == "f" else np.zeros(x.shape, bool)


def close(x: Array, y: Array) -> bool:
    """Equal but for the order of sums."""
    if x.shape != y.shape:
        return False
    if x.dtype.kind != "f":
        return bool((x == y).all())
    size = np.abs(x[np.isfinite(x)]).max(initial=1e-3)
    half = x.dtype.itemsize < 4
    return np.allclose(x, y, 0, (1e-2 if half else 2e-5) * size, equal_nan=True)


def _swapped(value: Array, name: str, pairs: list[tuple[list[Slice], list[Slice]]]) -> Array:
    for one, other in pairs:
        for axis in range(value.ndim):
            a = sorted(i for t, k, i in one if (t, k) == (name, axis))
            b = sorted(i for t, k, i in other if (t, k) == (name, axis))
            if a:
                order = np.arange(value.shape[axis])
                order[a], order[b] = order[b], order[a].copy()
                value = value.take(order, axis=axis)
    return value


def _blocks(relation: Array) -> list[Block]:
    """The connected parts that have indices on both sides."""
    left, found = set(range(len(relation))), []
    while left:
        rows, columns = {left.pop()}, set[int]()
        while True:
            more = set(np.flatnonzero(relation[sorted(rows)].any(axis=0)).tolist())
            back = set(np.flatnonzero(relation[:, sorted(more)].any(axis=1)).tolist()) | rows
            if more == columns and back == rows:
                break
            rows, columns = back, more
        left -= rows
        if columns:
            found.append((tuple(sorted(rows)), tuple(sorted(columns))))
    return sorted(found)


def _tie_blocks(p: Partition, one: AxisRef, other: AxisRef, blocks: list[Block]) -> None:
    for rows, columns in blocks:
        slices = [*((*one, i) for i in rows), *((*other, j) for j in columns)]
        for a, b in pairwise(slices):
            p.tie(a, b)


def _tie_places(p: Partition, one: AxisRef, other: AxisRef, blocks: list[Block]) -> None:
    """The other factor: equal places in all blocks go together."""
    for ref, side in ((one, 0), (other, 1)):
        lines = list(zip(*(block[side] for block in blocks), strict=True))
        for line in lines:
            if len(lines) == 1:
                for i in line:
                    p.lock((*ref, i))
            for i, j in pairwise(line):
                p.tie((*ref, i), (*ref, j))
