"""Walk the graph once, forward, and collect every tie and every lock that its operators make.

The result is the transitive input of `spa.solve`: one connected-components call over the ties
gives what the SPA paper (Wang et al. 2024, "mask propagation") finds one mask at a time.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, TypeProto
from onnx.helper import make_tensor_type_proto

from spa import borders, rules
from spa.axes import Axes, Ids, Join, Pick, Promise, Recorder, Released, is_whole, whole
from spa.errors import SpaError
from spa.graph import Graph, Node
from spa.joins import every_end, standing
from spa.patterns import MisfitError, PatternError
from spa.picks import Finder
from spa.rules import Op
from spa.shapes import Shapes

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

# What leaves positions on an axis what they are.
_MOVES = {"Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_RESULT = "the result is an index into this axis"
_INDEX = "reads positions on this axis, for another use than to look up what stands there"


@dataclass(frozen=True)
class Ties:
    """Everything that one walk found, before it is solved.

    axes: tensor -> its axes; a tensor of unknown shape is absent.
    recorder: ties, grids, locks, inexact ids and kinds, in node order.
    ops: node index -> what its rule was given; without nodes that never run and contradict
        themselves.
    unknown: indices of nodes without a rule.
    refused: node index -> why its rule could not be applied, so that it locks instead.
    misfit: whether one of those reasons is that the model contradicts itself there.
    released: the axes of inputs and outputs of the file that may lose indices.
    picks: the indices that go with all that is made from them. joins: those that go with all that
        makes them. finder: finds that; None without any, see `spa.picks`.
    """

    axes: dict[str, Axes]
    recorder: Recorder
    ops: dict[int, Op]
    unknown: tuple[int, ...]
    refused: dict[int, str]
    misfit: bool
    released: Released = frozenset()
    picks: tuple[Pick, ...] = ()
    joins: tuple[Join, ...] = ()
    finder: Finder | None = None


@lru_cache(maxsize=1)
def load_rules() -> None:
    """Import every family in `ops/`.

    Raises:
        SpaError: if another package called ``ops`` stands before ours on the import path.
    """
    import ops

    if not getattr(ops, "SPA_RULES", False):
        raise SpaError(
            f"the package 'ops' found at {ops.__file__} is not the one that came with spa; "
            "remove that package (PyPI's 'ops' is a Juju library) or use a fresh environment"
        )
    folder = Path(str(ops.__file__)).parent
    for module in sorted(m.name for m in pkgutil.iter_modules([str(folder)])):
        importlib.import_module(f"ops.{module}")


def propagate(graph: Graph, shapes: Shapes, released: Released = frozenset()) -> Ties:
    """Run every node's rule on ids; once more where a loop turns out to leave something else in a
    state than what it was taken for, or where branches turn out to go with an index.

    Args:
        released: the axes of inputs and outputs that are not locked, see `spa.states`.
    """
    load_rules()
    spoken: frozenset[Promise] = frozenset()
    apart: frozenset[int] = frozenset()
    ends = every_end(graph, shapes)
    alone = joined = standing(graph, ends)
    tried: set[tuple[frozenset[int], frozenset[tuple[object, object]]]] = set()
    while True:
        ties = _walk(graph, shapes, Recorder(spoken, apart, joined), released)
        if ties.recorder.broken - spoken:
            spoken |= ties.recorder.broken
            continue
        picks, joins = ties.recorder.picks, tuple(ties.recorder.joins)
        finder = Finder(graph, shapes, ties.ops, {*ties.unknown, *ties.refused}, ends)
        found = finder.apart(picks)
        left = apart & found if tried else found
        picks = [p for p in picks if p.node in left]
        links = {**alone, **finder.joined(picks)}
        if left == apart and links == joined:
            ties.recorder.inexact += finder.hidden(picks)
            ties.recorder.locks += finder.bound(picks)
            some = finder if picks or joins else None
            return replace(ties, picks=tuple(picks), joins=joins, finder=some)
        state = (left, frozenset(links.items()))
        apart, joined = (frozenset(), alone) if state in tried else (left, links)
        tried.add(state)


def _walk(graph: Graph, shapes: Shapes, recorder: Recorder, released: Released) -> Ties:
    static = {n: v for n, v in shapes.values.items() if n not in shapes.moving}
    homes = range(1, len(graph.bodies))
    dead = {home for home in homes if borders.is_dead(graph, home, static)}
    axes: dict[str, Axes] = {}
    for name in graph.inputs:
        if name in shapes.shapes:
            axes[name] = [
                recorder.fresh(n, zero=False) if (name, k) in released else whole(n)
                for k, n in enumerate(shapes.shapes[name])
            ]
    ops: dict[int, Op] = {}
    unknown: list[int] = []
    refused: dict[int, str] = {}
    misfit = False

    def axes_of(name: str) -> Axes | None:
        if not name or name not in shapes.shapes:
            return None
        if name not in axes:  # a constant, met for the first time
            axes[name] = [recorder.fresh(n) for n in shapes.shapes[name]]
        return axes[name]

    for node in graph.nodes:
        if node.outputs and node.outputs[0] in graph.constants:
            continue
        op = _op(graph, shapes, node, [axes_of(name) for name in node.inputs], recorder)
        ops[node.index] = op
        rule = rules.find(node.op_type, node.domain)
        if rule is None:
            unknown.append(node.index)
            outputs = _lock_all(op, f"operator {node.op_type} has no rule")
        else:
            try:
                if not rule.partial:
                    _check_known(op)
                outputs = rule.enter(op) if node.enters and rule.enter else rule.run(op)
                _check(op, outputs)
            except (PatternError, IndexError, ValueError, TypeError, KeyError) as error:
                if node.home in dead:  # it never runs, and may well contradict itself
                    outputs = op.whole_outputs()
                    del ops[node.index]
                else:
                    refused[node.index] = str(error)
                    misfit |= isinstance(error, MisfitError)
                    outputs = _lock_all(op, f"{node.op_type}: {error}")
        for name in node.captured:
            for axis in axes_of(name) or []:
                op.lock(axis, f"read inside the body of {node.op_type}")
        if node.index in refused or not _is_asked_for_its_shape(graph, node):
            _follow_indices(op, node.index in refused)
        for name, made in zip(node.outputs, outputs, strict=False):
            if name and name in shapes.shapes:
                axes[name] = made
    for name in graph.outputs:
        for ids in _held(recorder, name):
            recorder.locks.append((ids, graph.makers[name], _RESULT))
        for k, axis in enumerate(axes_of(name) or []):
            if not is_whole(axis) and (name, k) not in released:
                recorder.locks.append((axis.ids, -1, f"graph output {name!r}"))
    return Ties(axes, recorder, ops, tuple(unknown), refused, misfit, released)


def _follow_indices(op: Op, refused: bool) -> None:
    """Positions on an axis that are moved about stay what they are; what is put to a use that its
    rule does not understand locks the axis."""
    node, known, columns = op.node, op.recorder.indices, op.recorder.columns
    plain = node.is_standard and not refused
    if plain and node.op_type in ("Shape", "Size"):  # whatever stands in it
        return
    if plain and node.op_type == "Concat" and (listed := _columns(op)):
        columns[node.outputs[0]] = listed
        return
    held = [known[name] for name in node.inputs if name in known]
    if plain and node.op_type == "Concat" and _are_alike(node, known):
        for ids in held[1:]:
            op.tie(ids, held[0])
        known[node.outputs[0]] = held[0]
        return
    moved = plain and node.op_type in _MOVES
    for k, name in enumerate(node.inputs):
        if (node.index, k) in op.recorder.understood and not refused:
            continue
        if moved and k == 0 and name in known:
            known.update(dict.fromkeys(filter(None, node.outputs), known[name]))
        elif moved and k == 0 and name in columns and _keeps_rows(op):
            columns[node.outputs[0]] = columns[name]
        else:
            op.recorder.locks += [(ids, node.index, _INDEX) for ids in _held(op.recorder, name)]
    for name in node.captured:
        op.recorder.locks += [(ids, node.index, _INDEX) for ids in _held(op.recorder, name)]


def _keeps_rows(op: Op) -> bool:
    """Whether what moves about leaves the last axis as it was."""
    before, after = op.shapes[0], op.out_shapes[0]
    if before is None or after is None or op.node.op_type == "Transpose":
        return False
    return before[-1:] == after[-1:]


def _is_asked_for_its_shape(graph: Graph, node: Node) -> bool:
    """Whether nothing reads a node's output but what asks for its shape."""
    name = node.outputs[0]
    readers = [graph.nodes[k] for k in graph.readers.get(name, ())]
    shapes = all(n.op_type == "Shape" and n.is_standard for n in readers)
    return bool(readers) and shapes and len(node.outputs) == 1 and name not in graph.outputs


def _held(recorder: Recorder, name: str) -> list[Ids]:
    """The axes on which a tensor holds positions."""
    alone = [recorder.indices[name]] if name in recorder.indices else []
    return [*alone, *recorder.columns.get(name, {}).values()]


def _columns(op: Op) -> dict[int, Ids]:
    """The columns that hold positions on an axis, of what is put together on the last axis with
    some that hold none."""
    names, held, found, at = op.node.inputs, op.recorder, dict[int, Ids](), 0
    if op.axis(1) != len(op.shape()) - 1 or all(name in held.indices for name in names):
        return {}
    for k, name in enumerate(names):
        if name in held.indices and op.shape(k)[-1] != 1:
            return {}
        listed = {0: held.indices[name]} if name in held.indices else held.columns.get(name, {})
        found |= {at + c: ids for c, ids in listed.items()}
        at += op.shape(k)[-1]
    return found


def _are_alike(node: Node, known: Mapping[str, Ids]) -> bool:
    """Whether all inputs hold positions on axes of one size."""
    sizes = {len(known[name]) if name in known else -1 for name in node.inputs}
    return len(sizes) == 1 and -1 not in sizes


def foretell(graph: Graph, shapes: Shapes, node: Node) -> dict[str, TypeProto]:
    """The types of a node's outputs as far as its rule tells them, for operators that ONNX does
    not know."""
    load_rules()
    rule = rules.find(node.op_type, node.domain)
    known = all(name in shapes.shapes for name in node.inputs if name)
    if rule is None or rule.shapes is None or not known:
        return {}
    axes = [[whole(n) for n in shapes.shapes[name]] if name else None for name in node.inputs]
    try:
        made = rule.shapes(_op(graph, shapes, node, axes, Recorder()))
    except (PatternError, IndexError, ValueError, TypeError, KeyError):
        return {}
    kinds = [shapes.dtypes[name] for name in node.inputs if name]
    kind = next((k for k in kinds if k in _FLOATS), kinds[0])
    return {
        name: make_tensor_type_proto(kind, list(shape))
        for name, shape in zip(node.outputs, made, strict=False)
        if name and shape is not None
    }


def _op(
    graph: Graph, shapes: Shapes, node: Node, axes: list[Axes | None], recorder: Recorder
) -> Op:
    def value(name: str) -> NDArray[Any] | None:
        if name in shapes.values:
            return shapes.values[name]
        constant = graph.constants.get(name)
        # Larger constants are read only where a rule asks for them, and only if not floats.
        if constant is not None and np.prod(constant.shape) <= 1 << 16:
            return graph.array(name) if constant.tensor.data_type in (6, 7, 9) else None
        return None

    return Op(
        node=node,
        opset=graph.opset(node.domain),
        shapes=[shapes.shapes.get(name) if name else None for name in node.inputs],
        out_shapes=[shapes.shapes.get(name) if name else None for name in node.outputs],
        axes=axes,
        values=[value(name) for name in node.inputs],
        static=[name not in shapes.moving for name in node.inputs],
        still=[shapes.still.get(name) for name in node.inputs],
        activation=[name in graph.activations for name in node.inputs],
        recorder=recorder,
        empty=frozenset(
            k
            for k, name in enumerate(node.inputs)
            if name in graph.empty and name not in shapes.shapes
        ),
    )


def _lock_all(op: Op, why: str) -> list[Axes]:
    for k in range(len(op.axes)):
        op.lock_input(k, why)
    return op.whole_outputs()


def _check_known(op: Op) -> None:
    """A rule needs the shape of every input and of the first output."""
    names = [*zip(op.node.inputs, op.shapes, strict=True)]
    names += list(zip(op.node.outputs, op.out_shapes, strict=True))[:1]
    for name, shape in names:
        if name and shape is None:
            raise PatternError(f"the shape of {name!r} depends on the data")


def _check(op: Op, outputs: list[Axes]) -> None:
    """A rule must give every output as many ids on every axis as the axis has indices."""
    for shape, made in zip(op.out_shapes, outputs, strict=False):
        if shape is not None and tuple(len(axis.ids) for axis in made) != shape:
            raise PatternError(
                f"the rule gives axes {[len(axis.ids) for axis in made]} for shape {list(shape)}"
            )
