"""The shape of every tensor, and the value of the small ones that shapes are computed from.

Free sizes are bound to numbers for the analysis, see `spa.sizes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TypeProto, ValueInfoProto

from spa import borders, values
from spa.errors import ModelError
from spa.graph import Graph, Node
from spa.parts import in_rounds
from spa.protos import from_front
from spa.sizes import LIKELY, TRIES, Sizes, bindings, dims, variations

Shape = tuple[int, ...]

# Runs the model at these sizes and gives the types of the named tensors, as far as it can; None
# where it runs at none.
Observe = Callable[[Graph, "Sizes", list[str]], dict[str, TypeProto] | None]

# The types that a rule foretells for the outputs of a node.
Foretell = Callable[[Graph, "Shapes", Node], dict[str, TypeProto]]

_RUNS = 40  # that many sizes are tried to see shapes that inference is silent about
_FEW = 64  # elements of a float constant that a shape may depend on


@dataclass(frozen=True)
class Shapes:
    """What is known about every tensor when the free sizes are `sizes`.

    shapes: tensor -> shape, absent when it depends on the data.
    dtypes: tensor -> element type (TensorProto.DataType).
    values: tensor -> value, for sizes and what is computed from sizes alone.
    moving: tensors whose value is another when the free sizes are others.
    still: for these, which elements are the same all the while.
    """

    sizes: Sizes
    shapes: dict[str, Shape]
    dtypes: dict[str, int]
    values: dict[str, NDArray[Any]]
    moving: frozenset[str] = frozenset()
    still: dict[str, NDArray[np.bool_]] = field(default_factory=dict)


def infer(graph: Graph, observe: Observe | None = None, foretell: Foretell | None = None) -> Shapes:
    """Infer all shapes, with the free sizes bound to the first numbers that are consistent.

    Args:
        observe: asked for the types of tensors that inference is silent about, see
            `spa.run.observe`.
        foretell: asked about nodes of other domains where the model does not run, see
            `spa.propagate.foretell`.

    Raises:
        ModelError: when no binding gives consistent shapes.
    """
    ran: list[bool] = []

    def see(graph: Graph, sizes: Sizes, names: list[str]) -> dict[str, TypeProto] | None:
        got = observe(graph, sizes, names) if observe else None
        ran.append(bool(got))
        return got

    found = _first(graph, bindings(graph), see, foretell)
    if not found.sizes:
        return found
    if ran and not any(ran):  # then it will not at others
        observe = None
    others = [_first(graph, bindings(graph, 1), observe, foretell)]
    for name, size in found.sizes.items():
        if all(other.sizes[name] == size for other in others):
            with suppress(ModelError):  # then it is the only number that fits
                tries = islice(variations(found.sizes, name), TRIES)
                others.append(_first(graph, tries, observe, foretell))
    still = {
        name: _still(value, [other.values.get(name) for other in others])
        for name, value in found.values.items()
        if name not in graph.constants
    }
    still = {name: same for name, same in still.items() if not same.all() or not same.size}
    return replace(found, moving=frozenset(still), still=still)


def _still(value: NDArray[Any], others: list[NDArray[Any] | None]) -> NDArray[np.bool_]:
    """Which elements are the same in all; none where the shapes differ."""
    same = np.ones(value.shape, np.bool_)
    for other in others:
        same &= other == value if other is not None and other.shape == value.shape else False
    return same


def _first(
    graph: Graph, tries: Iterable[Sizes], observe: Observe | None, foretell: Foretell | None
) -> Shapes:
    """The shapes at the first of these sizes at which all is consistent, reshapes included; else
    at the first at which ONNX's inference finds no fault."""
    faults: list[Exception] = []
    faulty: list[Sizes] = []
    uneven: list[Sizes] = []
    unseen: Shapes | None = None
    runs = 0
    for bound in tries:
        try:
            found = _walk(graph, bound, {})
            seen = _complete(graph, found, observe, foretell)
            if seen is not None:
                return seen
            unseen, runs = unseen or found, runs + 1
        except _UnevenError as fault:
            uneven.append(bound)
            if fault.args == (_IN_BODY,) and len(uneven) == TRIES:
                break  # of branches for other sizes, one will not fit
        except _FAULTS as fault:
            faults.append(fault)
            faulty.append(bound)
        if runs >= _RUNS:
            break
    if unseen is not None:
        return _walk(graph, unseen.sizes, {}, strict=False, foretell=foretell)
    for bound in uneven[:LIKELY]:
        try:
            found = _walk(graph, bound, {}, strict=False)
            return _complete(graph, found, observe, foretell) or found
        except _FAULTS as fault:
            faults.append(fault)
    for bound in faulty[:_RUNS]:
        # Inference may err where the model runs.
        shown = observe(graph, bound, [n for _, n in _made(graph)]) if observe else None
        if shown is None:
            break
        if shown:
            return _walk(graph, bound, shown, strict=False, foretell=foretell)
    text = str(faults[0]).strip().splitlines()[-1] if faults else ""
    raise ModelError(f"the shapes of the model contradict each other: {text}")


def _complete(
    graph: Graph, found: Shapes, observe: Observe | None, foretell: Foretell | None
) -> Shapes | None:
    """With the shapes that inference is silent about; None where the model does not run at these
    sizes, and may at others."""
    silent, seen = _silent(graph, found), dict[str, TypeProto]()
    if silent:
        got = observe(graph, found.sizes, silent) if observe else None
        if not got and got is not None and found.sizes:
            return None
        seen = got or {}
        found = _walk(graph, found.sizes, seen, strict=False, foretell=foretell)
    inside = _silent_inside(graph, found)
    more = observe(graph, found.sizes, inside) if inside and observe else None
    if more:
        found = _walk(graph, found.sizes, seen | more, strict=False, foretell=foretell)
    return found


_FAULTS = (onnx.shape_inference.InferenceError, ValueError)


_IN_BODY = "in a body"
_WINDOWS = {"Conv", "MaxPool", "AveragePool", "LpPool"}


class _UnevenError(Exception):
    """A Reshape whose input and output differ in their number of elements, a window that does not
    fit once into what it runs over, an index that is not there, or a fault in a body, which may
    never run."""


def _silent(graph: Graph, found: Shapes) -> list[str]:
    """Tensors that are made and read, or come from a body, and have no shape."""
    return [
        name
        for node, name in _made(graph)
        if name not in found.shapes
        if node.bodies or name in graph.readers or name in graph.outputs
    ]


def _silent_inside(graph: Graph, found: Shapes) -> list[str]:
    """The same of what the rounds of loops make."""
    inside = (node for node in graph.nodes if node.home and not node.enters and not node.bodies)
    return [
        name
        for node in inside
        for name in node.outputs
        if name and name not in found.shapes and name not in graph.constants
        if name in graph.readers and in_rounds(graph, name)
    ]


def _made(graph: Graph) -> list[tuple[Node, str]]:
    """What the nodes outside of bodies make."""
    outside = (node for node in graph.nodes if not node.home and not node.enters)
    return [(node, name) for node in outside for name in node.outputs if name]


def _walk(
    graph: Graph,
    sizes: Sizes,
    observed: dict[str, TypeProto],
    strict: bool = True,
    rounds: borders.Rounds = borders.FIRST,
    foretell: Foretell | None = None,
) -> Shapes:
    """One pass over the nodes, and another one where a loop turns out to be other than it was
    taken for."""
    found = Shapes(sizes, {}, {}, {})
    types: dict[str, TypeProto] = {}

    def put(name: str, type_: TypeProto) -> None:
        types[name] = type_
        if type_.HasField("tensor_type"):
            found.dtypes[name] = type_.tensor_type.elem_type
        shape = borders.shape_of(type_)
        if shape is not None:
            found.shapes[name] = shape

    for info in graph.model.graph.input:
        if info.name in graph.inputs:
            put(info.name, _input_type(graph, info, sizes))
    for constant in graph.constants.values():
        tensor = constant.tensor
        put(
            constant.name,
            onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims)),
        )
        if values.is_value(tensor):
            found.values[constant.name] = graph.array(constant.name)

    imports = list(graph.model.opset_import)
    declared = {**_declared(graph, sizes), **observed}
    for node in graph.nodes:
        if node.outputs and node.outputs[0] in graph.constants:
            continue
        value = values.evaluate(graph, node, found.shapes, found.values)
        for name, array in zip(node.outputs, value or [], strict=False):
            if name and array is not None:
                found.values[name] = array
                dtype = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
                put(name, onnx.helper.make_tensor_type_proto(dtype, list(array.shape)))
        if value is not None and all(array is not None for array in value):
            continue
        try:
            got = {name: observed[name] for name in node.outputs if name in observed}
            if not got or any(name and name not in got for name in node.outputs):
                got = _infer_node(graph, node, types, found, imports, declared, rounds)
            if foretell is not None and not got:
                got = foretell(graph, found, node)
            if strict and (node.op_type in ("Reshape", "Gather") or node.op_type in _WINDOWS):
                _check_even(found, node, got)
        except (*_FAULTS, _UnevenError):
            if not node.home:
                raise
            if strict and not borders.is_dead(graph, node.home, found.values):
                raise _UnevenError(_IN_BODY) from None
            continue
        for name, type_ in got.items():
            if name not in found.values:
                put(name, type_)
        if node.bodies and not node.enters:
            learned = borders.learned(graph, node, types, rounds)
            if learned != rounds:
                return _walk(graph, sizes, observed, strict, learned, foretell)
    return found


def _declared(graph: Graph, sizes: Sizes) -> dict[str, TypeProto]:
    """What the file itself says of its tensors."""
    main = graph.model.graph
    declared = {i.name: _bound(i, sizes) for i in (*main.value_info, *main.output)}
    for body in graph.bodies[1:]:
        for info in (*body.proto.value_info, *body.proto.output):
            if info.name in body.names:
                declared[body.names[info.name]] = _bound(info, sizes)
    return declared


def _check_even(found: Shapes, node: Node, got: dict[str, TypeProto]) -> None:
    before = found.shapes.get(node.inputs[0])
    after = borders.shape_of(got[node.outputs[0]]) if node.outputs[0] in got else None
    if before is None or after is None:
        return
    if node.op_type == "Gather":
        at, n = found.values.get(node.inputs[1]), before[int(node.attrs.get("axis", 0))]
        if at is not None and at.size and not -n <= at.min() <= at.max() < n:
            raise _UnevenError
    elif node.op_type in _WINDOWS:
        if min(before, default=1) > 0 >= min(after, default=1):
            raise _UnevenError
    elif prod(before) != prod(after):
        raise _UnevenError


def _input_type(graph: Graph, info: ValueInfoProto, sizes: Sizes) -> TypeProto:
    type_ = info.type
    if not type_.HasField("tensor_type"):
        return type_
    shape = [d if isinstance(d, int) else sizes[d] for d in dims(graph, info)]
    return onnx.helper.make_tensor_type_proto(type_.tensor_type.elem_type, shape)


def _bound(info: ValueInfoProto, sizes: Sizes) -> TypeProto:
    type_ = TypeProto()
    type_.CopyFrom(info.type)
    if type_.HasField("tensor_type") and type_.tensor_type.HasField("shape"):
        for axis, dim in enumerate(type_.tensor_type.shape.dim):
            number = sizes.get(dim.dim_param or f"{info.name}.{axis}")
            if number is not None and (not dim.HasField("dim_value") or dim.dim_value <= 0):
                dim.dim_value = number
    return type_


def _infer_node(
    graph: Graph,
    node: Node,
    types: dict[str, TypeProto],
    found: Shapes,
    imports: list[onnx.OperatorSetIdProto],
    declared: dict[str, TypeProto],
    rounds: borders.Rounds,
) -> dict[str, TypeProto]:
    """The types of a node's outputs: ONNX's inference, else what the file itself declares."""
    if node.bodies:
        return _at_border(graph, node, types, found, declared, rounds)
    got: dict[str, TypeProto] = {}
    version = graph.opset(node.domain)
    typed = all(i in types for i in node.inputs if i)
    if typed and onnx.defs.has(node.op_type, version, node.domain):
        schema = onnx.defs.get_schema(node.op_type, version, node.domain)
        pairs = list(zip(node.proto.input, node.inputs, strict=True))
        known = {n: types[i] for n, i in pairs if i in types}
        data = {}
        for n, i in pairs:
            if i in found.values and found.values[i].size <= values.SMALL:
                data[n] = onnx.numpy_helper.from_array(found.values[i], n)
            elif i in graph.constants and np.prod(graph.constants[i].shape) <= _FEW:
                data[n] = onnx.numpy_helper.from_array(graph.array(i), n)  # such as scales
        try:
            got = dict(
                onnx.shape_inference.infer_node_outputs(
                    schema, _readable(node, version, found), known, data, opset_imports=imports
                )
            )
        except onnx.checker.ValidationError:  # a deprecated operator: ONNX will not look at it
            got = {}
    if node.home:
        inside = dict(zip(node.proto.output, node.outputs, strict=True))
        got = {inside[name]: type_ for name, type_ in got.items()}
    if node.op_type == "SequenceInsert" and node.inputs[0] in graph.empty:
        element = types.get(node.inputs[1])
        if element is not None and node.inputs[0] not in found.shapes:
            got[node.outputs[0]] = onnx.helper.make_sequence_type_proto(element)
    for name in node.outputs:
        told, kind = declared.get(name), got[name].WhichOneof("value") if name in got else None
        # A run shows what is in an optional, which is a tensor.
        alike = told is not None and kind in (None, told.WhichOneof("value"))
        if told is not None and alike and not _is_full(got.get(name)) and _is_full(told):
            got[name] = told
    return {name: type_ for name, type_ in got.items() if name}


def _readable(node: Node, version: int, found: Shapes) -> NodeProto:
    """The node as inference takes it: older versions err at axes counted from the end."""
    shape = found.shapes.get(node.inputs[0]) if node.inputs else None
    if version >= 11 or not node.is_standard or shape is None:
        return node.proto
    added = len(node.attrs.get("axes", ())) if node.op_type == "Unsqueeze" else 0
    return from_front(node.proto, len(shape) + added)


def _at_border(
    graph: Graph,
    node: Node,
    types: dict[str, TypeProto],
    found: Shapes,
    declared: dict[str, TypeProto],
    rounds: borders.Rounds,
) -> dict[str, TypeProto]:
    """The types of what enters a body, or of what a node with bodies makes."""
    if node.enters:
        steady = {name: type_ for name, type_ in types.items() if name not in rounds.unsteady}
        got = borders.entered(graph, node, steady)
        starts = zip(node.inputs, node.outputs, strict=True)
        lists = {n for start, n in starts if start not in rounds.unsteady and n in rounds.lists}
        return got | {name: rounds.lists[name] for name in lists}
    got = borders.left(graph, node, types, found.shapes, found.values)
    for name in node.outputs:  # a run, or the file
        if name and name not in got and _is_full(declared.get(name)):
            got[name] = declared[name]
    return got


def _is_full(type_: TypeProto | None) -> bool:
    return type_ is not None and borders.shape_of(type_) is not None
