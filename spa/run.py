"""Run models in onnxruntime: sessions, inputs that fit, outputs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, TypeProto, ValueInfoProto, helper

from spa.borders import counts
from spa.errors import ModelError
from spa.graph import Graph
from spa.parts import Parts, in_rounds, parts
from spa.sizes import LIKELY, TRIES, Sizes, bindings, dims, free_sizes, variations

Feeds = dict[str, Any]  # an array, or a list of arrays for a sequence
Outputs = dict[str, NDArray[Any]]
Styles = Mapping[str, str]  # input -> how its integers are made; where it says nothing, "random"

NEAR = 1e-3  # of the largest value of an output


@contextmanager
def session(
    model: ModelProto | Parts | Path, *, optimize: bool = False, threads: int = 0
) -> Iterator[ort.InferenceSession]:
    """An onnxruntime session on the CPU.

    optimize: with onnxruntime's graph optimisations, as a deployment has them; without, every
        node runs as written.

    Raises:
        CannotCheck: if onnxruntime lacks an operator, or a mode of one.
        ModelError: if it refuses the model for any other reason.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimize else level.ORT_DISABLE_ALL
    try:
        source: str | bytes
        if isinstance(model, Path):
            source = str(model)
        else:
            apart = parts(model) if isinstance(model, ModelProto) else model
            held = [ort.OrtValue.ortvalue_from_numpy(v) for v in apart.weights.values()]
            if held:  # these point to the arrays, which outlive the session
                options.add_external_initializers(list(apart.weights), held)
            source = apart.whole().SerializeToString()
        yield _open(source, options)
    except ORT_ERRORS as error:
        raise refusal(error) from None


def _open(source: str | bytes, options: ort.SessionOptions) -> ort.InferenceSession:
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        if "two nodes with same node name" not in str(error):
            raise
    # ONNX does not ask for names of their own, and they mean nothing to the result.
    model = onnx.load(source) if isinstance(source, str) else onnx.load_from_string(source)
    for node in model.graph.node:
        node.name = ""
    return ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


_FOUND = {"ArgMax", "ArgMin", "NonZero", "Shape", "Size", "TopK"}
_ROUNDS = 5  # of a loop, where an input says how many
STYLES = ("random", "bits", "ones", "zeros")  # of integers
_WHOLE = (TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING)

ORT_ERRORS = (
    ort.capi.onnxruntime_pybind11_state.Fail,
    ort.capi.onnxruntime_pybind11_state.InvalidArgument,
    ort.capi.onnxruntime_pybind11_state.InvalidGraph,
    ort.capi.onnxruntime_pybind11_state.InvalidProtobuf,
    ort.capi.onnxruntime_pybind11_state.NoSuchFile,
    ort.capi.onnxruntime_pybind11_state.NotImplemented,
    ort.capi.onnxruntime_pybind11_state.RuntimeException,
)


class CannotCheck(ModelError):
    """A model that cannot be run here and may be right all the same."""


_LACKS = (  # how onnxruntime says that it lacks an operator, a mode of one, or a new opset
    "is not a registered function/op",
    "No Op registered for",
    "is under development",
    "Unsupported model IR version",
    "not supported",
    "not implemented",
)


def refusal(error: Exception) -> ModelError:
    line = str(error).strip().splitlines()[0]
    lacks = isinstance(error, ort.capi.onnxruntime_pybind11_state.NotImplemented)
    kind = CannotCheck if lacks or any(text in line for text in _LACKS) else ModelError
    return kind(f"onnxruntime cannot run the model: {line[:300]}")


def run(running: ort.InferenceSession, feeds: Feeds) -> Outputs:
    """All tensor outputs; sequences and maps are left out.

    Raises:
        CannotCheck: if an input of the model has no value.
    """
    names = [o.name for o in running.get_outputs()]
    wanted = {i.name: i.type for i in running.get_inputs()}
    for name, kind in wanted.items():
        if name not in feeds and not kind.startswith("optional"):
            raise CannotCheck(f"spa cannot make up a value for the input {name!r} of type {kind}")
    got = running.run(names, {n: v for n, v in feeds.items() if n in wanted})
    return {n: v for n, v in zip(names, got, strict=True) if isinstance(v, np.ndarray)}


def agree(one: Outputs, other: Outputs) -> bool:
    """Whether two forms of a model put out the same, up to sums in another order."""
    return one.keys() == other.keys() and all(_is_near(one[name], other[name]) for name in one)


def _is_near(a: NDArray[Any], b: NDArray[Any]) -> bool:
    if a.shape != b.shape or a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    x, y = a.astype(np.float64), b.astype(np.float64)
    largest = float(np.abs(x).max(initial=0.0)) or 1.0
    return bool(np.allclose(x, y, rtol=0, atol=NEAR * largest, equal_nan=True))


def difference(a: NDArray[np.generic], b: NDArray[np.generic], least: float = 0.0) -> float:
    """Largest difference relative to the largest value, or to ``least`` if that is more; infinite
    where shapes or NaNs differ."""
    if a.shape != b.shape:
        return float("inf")
    if a.dtype.kind != "f":
        return float((a != b).mean()) if a.size else 0.0
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x) & np.isfinite(y)
    same = (x == y) | (np.isnan(x) & np.isnan(y))
    if not (finite | same).all():
        return float("inf")
    if not finite.any():
        return 0.0
    scale = max(float(np.abs(x[finite]).max()), least) or 1.0
    return float(np.abs(x - y)[finite].max()) / scale


def latencies(
    one: ort.InferenceSession,
    other: ort.InferenceSession,
    feeds: Feeds,
    repeats: int = 20,
    others: Feeds | None = None,
) -> tuple[float, float]:
    """Median seconds of one run of each, taken in turn so that a slow moment hits both.

    Args:
        others: what the other reads, where that is something else.
    """
    times: tuple[list[float], list[float]] = ([], [])
    read = feeds, feeds if others is None else others
    for repeat in range(repeats + 1):
        for running, given, taken in zip((one, other), read, times, strict=True):
            start = perf_counter()
            run(running, given)
            if repeat:  # the first run warms up
                taken.append(perf_counter() - start)
    return float(np.median(times[0])), float(np.median(times[1]))


@dataclass(frozen=True)
class Inputs:
    """Feeds that the model was seen to run on, and what it made of them."""

    sizes: Sizes
    feeds: Feeds
    outputs: Outputs


def find_inputs(graph: Graph, running: ort.InferenceSession, seed: int = 0) -> list[Inputs]:
    """Random inputs on which the model runs, with two numbers or more for every free size.

    Free sizes and integer ranges are tried from the likeliest to the plainest. A size that has no
    second number is one for which none was found.

    Raises:
        CannotCheck, ModelError: if it runs on none of those tried; says why not on the likeliest.
    """
    k, styles, first = find_first(graph, running, seed)
    found = [first]
    other = next(islice(bindings(graph, 1), k, None), first.sizes)
    if other != first.sizes:
        found += _runs_at(graph, running, [other], seed + 1, styles)
    for name in first.sizes:
        if name in same_sizes([i.sizes for i in found]):
            tries = islice(variations(first.sizes, name), TRIES)
            found += _runs_at(graph, running, tries, seed + len(found), styles)
    return found


def same_sizes(seen: Sequence[Sizes]) -> list[str]:
    """The free sizes that have the same number everywhere."""
    return [name for name in seen[0] if len({sizes[name] for sizes in seen}) == 1] if seen else []


def find_first(
    graph: Graph, running: ort.InferenceSession, seed: int
) -> tuple[int, Styles, Inputs]:
    """Which binding ran first, and with integers of which styles: one that gives finite outputs,
    where there is one, as a mask of other numbers than 0 and 1 may not. Inputs that need not be of
    one plain number for it, as lengths may, are random.

    Raises:
        CannotCheck, ModelError: if none did.
    """
    error: Exception | None = None
    spare: tuple[int, Styles, Inputs] | None = None
    for k, sizes in enumerate(bindings(graph)):
        for style in STYLES if k < LIKELY else ("ones",):
            styles = dict.fromkeys(graph.inputs, style)
            feeds = make_feeds(graph, sizes, seed, styles)
            try:
                found = Inputs(sizes, feeds, run(running, feeds))
            except ORT_ERRORS as refused:
                error = error or refused
                continue
            ran = (k, *_livelier(graph, running, found, seed, styles))
            if are_finite(ran[2].outputs):
                return ran
            spare = spare or ran
        if spare is not None:
            return spare
    assert error is not None
    whole = [i for i in graph.model.graph.input if i.type.tensor_type.elem_type in _WHOLE]
    if whole or free_sizes(graph):  # it may well run, on inputs that are not guessed here
        raise CannotCheck(f"no input that was tried runs: {refusal(error)}")
    raise refusal(error)


def _livelier(
    graph: Graph, running: ort.InferenceSession, found: Inputs, seed: int, styles: Styles
) -> tuple[Styles, Inputs]:
    """The same with random integers in every input that may have them: what is the same everywhere
    shows little of what a model does."""
    for info in graph.model.graph.input:
        if styles.get(info.name) != "random" and _is_number(info):
            more = {**styles, info.name: "random"}
            tried = _runs_at(graph, running, [found.sizes], seed, more)
            if tried and are_finite(tried[0].outputs):
                styles, found = more, tried[0]
    return styles, found


def _is_number(info: ValueInfoProto) -> bool:
    return info.type.tensor_type.elem_type in (TensorProto.INT32, TensorProto.INT64)


def are_finite(outputs: Outputs) -> bool:
    """Whether all floats are."""
    return all(np.isfinite(v).all() for v in outputs.values() if v.dtype.kind == "f")


def _runs_at(
    graph: Graph, running: ort.InferenceSession, tries: Iterable[Sizes], seed: int, styles: Styles
) -> list[Inputs]:
    """The first of these sizes that it runs at, if any."""
    for sizes in tries:
        feeds = make_feeds(graph, sizes, seed, styles)
        with suppress(*ORT_ERRORS):
            return [Inputs(sizes, feeds, run(running, feeds))]
    return []


def make_feeds(graph: Graph, sizes: Sizes, seed: int, styles: Styles | None = None) -> Feeds:
    """One value per input: floats from a normal distribution, integers that index any table; of a
    sequence two. Inputs of other types are left out."""
    random = np.random.default_rng(seed)
    feeds: Feeds = {}
    top, rounds = smallest_table(graph), counts(graph)
    for info in graph.model.graph.input:
        if info.name not in graph.inputs:
            continue
        style = (styles or {}).get(info.name, "random")
        if info.type.HasField("tensor_type"):
            shape = [d if isinstance(d, int) else sizes[d] for d in dims(graph, info)]
            most = min(top, _ROUNDS) if info.name in rounds else top
            feeds[info.name] = _array(info.type.tensor_type.elem_type, shape, random, most, style)
        elif info.type.sequence_type.elem_type.HasField("tensor_type"):
            tensor = info.type.sequence_type.elem_type.tensor_type
            shape = [d.dim_value or sizes.get(d.dim_param, 3) for d in tensor.shape.dim]
            feeds[info.name] = [_array(tensor.elem_type, shape, random, top, style)] * 2
    return feeds


def _array(
    kind: int, shape: Sequence[int], random: np.random.Generator, top: int, style: str
) -> NDArray[Any]:
    if kind == TensorProto.STRING:
        return np.full(shape, "a", dtype=object)
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    if dtype.kind not in "biu":
        return np.asarray(random.standard_normal(shape), dtype)
    if style == "zeros":
        return np.zeros(shape, dtype)
    if style == "ones" or dtype.kind == "b":
        return np.ones(shape, dtype)
    if style == "bits":
        return random.integers(0, 2, shape).astype(dtype)
    return random.integers(0, top, shape).astype(dtype)


def _from_outside(graph: Graph) -> set[str]:
    """What is computed from inputs, and not found as positions or sizes on the way."""
    found = {*graph.inputs}
    for node in graph.nodes:
        if node.op_type not in _FOUND and not found.isdisjoint((*node.inputs, *node.captured)):
            found.update(filter(None, node.outputs))
    return found


def smallest_table(graph: Graph) -> int:
    """Rows of the smallest table that integers from outside index, at most 1000 and at least 2."""
    outside = _from_outside(graph)
    rows = [
        graph.constants[node.inputs[0]].shape[int(node.attrs.get("axis", 0))]
        for node in graph.nodes
        if node.op_type == "Gather"
        and node.inputs[0] in graph.constants
        and node.inputs[1] in outside
        and graph.constants[node.inputs[0]].shape
        and node.inputs[1] in graph.activations
    ]
    rows += [
        graph.constants[name].shape[0]
        for node in graph.nodes
        if node.op_type == "EmbedLayerNormalization"
        for name in node.inputs[2:5]
        if name in graph.constants
    ]
    return max(2, min([1000, *rows]))


def observe(graph: Graph, sizes: Sizes, names: list[str]) -> dict[str, TypeProto] | None:
    """The types of inner tensors as one run of the model shows them: none of them if it does not
    run at these sizes, None if it does at no sizes.

    A size that depends on the data is seen as it was on this run: the rules of the operators that
    make such sizes keep those axes whole. What a loop makes is seen where it has one shape in all
    rounds.
    """
    rounds = {f"{n}.rounds": n for n in names if in_rounds(graph, n)}
    try:
        with session(parts(graph).showing(names)) as running:
            for style in STYLES:
                feeds = make_feeds(graph, sizes, 0, dict.fromkeys(graph.inputs, style))
                try:
                    got = run(running, feeds)
                except ORT_ERRORS:
                    continue
                except RuntimeError:  # of a type that numpy has none for
                    return _bound_types(running, feeds, names)
                got = {n: v for n, v in got.items() if n not in rounds or len(v)}
                types = {
                    rounds.get(n, n): (
                        helper.np_dtype_to_tensor_dtype(v.dtype),
                        v.shape[1:] if n in rounds else v.shape,
                    )
                    for n, v in got.items()
                    if (n in names or n in rounds) and v.dtype != object
                }
                return {n: helper.make_tensor_type_proto(t, list(s)) for n, (t, s) in types.items()}
    except (ModelError, RuntimeError):
        return None
    return {}


def _bound_types(
    running: ort.InferenceSession, feeds: Feeds, names: list[str]
) -> dict[str, TypeProto]:
    """The types of some outputs, whose values stay where they are."""
    binding = running.io_binding()
    for info in running.get_inputs():
        if info.name in feeds:
            binding.bind_cpu_input(info.name, np.ascontiguousarray(feeds[info.name]))
    for name in names:
        binding.bind_output(name)
    running.run_with_iobinding(binding)
    found = {}
    for name, value in zip(names, binding.get_outputs(), strict=True):
        if value.is_tensor():
            found[name] = helper.make_tensor_type_proto(value.element_type(), value.shape())
    return found
