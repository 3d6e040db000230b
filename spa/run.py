"""Run models in onnxruntime: sessions, inputs that fit, outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, TypeProto, helper

from spa import shapes
from spa.errors import ModelError
from spa.graph import Graph
from spa.protos import has_external_data, serialize
from spa.shapes import Sizes

Feeds = dict[str, NDArray[Any]]
Outputs = dict[str, NDArray[Any]]


@contextmanager
def session(
    model: ModelProto | Path | bytes, *, optimize: bool = False, threads: int = 0
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
    with ExitStack() as stack:
        try:
            source: str | bytes
            if isinstance(model, Path):
                source = str(model)
            elif isinstance(model, bytes):
                source = model
            elif (data := serialize(model)) is not None:
                source = data
            else:  # too large for one message
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="spa-"))
                source = str(Path(folder) / "model.onnx")
                copy = ModelProto()
                copy.CopyFrom(model)
                onnx.save(copy, source, save_as_external_data=True, location="model.data")
            yield ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except ORT_ERRORS as error:
            raise _refusal(error) from None


_LIKELY = 6  # bindings of the free sizes that deserve more than one try
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


def _refusal(error: Exception) -> ModelError:
    line = str(error).strip().splitlines()[0]
    lacks = isinstance(error, ort.capi.onnxruntime_pybind11_state.NotImplemented)
    kind = CannotCheck if lacks or any(text in line for text in _LACKS) else ModelError
    return kind(f"onnxruntime cannot run the model: {line[:300]}")


def run(running: ort.InferenceSession, feeds: Feeds) -> Outputs:
    """All tensor outputs; sequences and maps are left out."""
    names = [o.name for o in running.get_outputs()]
    wanted = {i.name for i in running.get_inputs()}
    got = running.run(names, {n: v for n, v in feeds.items() if n in wanted})
    return {n: v for n, v in zip(names, got, strict=True) if isinstance(v, np.ndarray)}


def latencies(
    one: ort.InferenceSession, other: ort.InferenceSession, feeds: Feeds, repeats: int = 20
) -> tuple[float, float]:
    """Median seconds of one run of each, taken in turn so that a slow moment hits both."""
    times: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):
        for running, taken in zip((one, other), times, strict=True):
            start = perf_counter()
            run(running, feeds)
            if repeat:  # the first run warms up
                taken.append(perf_counter() - start)
    return float(np.median(times[0])), float(np.median(times[1]))


@dataclass(frozen=True)
class Inputs:
    """Feeds that the model was seen to run on."""

    sizes: Sizes
    feeds: Feeds


def find_inputs(
    graph: Graph, running: ort.InferenceSession, seed: int = 0, offset: int = 0
) -> Inputs:
    """Random inputs on which the model runs.

    Free sizes and integer ranges are tried from the likeliest to the plainest.

    Raises:
        CannotCheck, ModelError: if it runs on none of those tried; says why not on the likeliest.
    """
    first: Exception | None = None
    for k, sizes in enumerate(shapes.bindings(graph, offset)):
        for style in ("random", "ones", "zeros") if k < _LIKELY else ("ones",):
            feeds = make_feeds(graph, sizes, seed, style)
            try:
                run(running, feeds)
            except ORT_ERRORS as error:
                first = first or error
                continue
            return Inputs(sizes, feeds)
    assert first is not None
    whole = [i for i in graph.model.graph.input if i.type.tensor_type.elem_type in _WHOLE]
    if whole or shapes.free_sizes(graph):  # it may well run, on inputs that are not guessed here
        raise CannotCheck(f"no input that was tried runs: {_refusal(first)}")
    raise _refusal(first)


def make_feeds(graph: Graph, sizes: Sizes, seed: int, style: str = "random") -> Feeds:
    """One array per input: floats from a normal distribution, integers that index any table."""
    random = np.random.default_rng(seed)
    feeds: Feeds = {}
    top = _smallest_table(graph)
    for info in graph.model.graph.input:
        if info.name not in graph.inputs or not info.type.HasField("tensor_type"):
            continue
        tensor = info.type.tensor_type
        shape = [
            d.dim_value
            if d.HasField("dim_value") and d.dim_value > 0
            else sizes.get(d.dim_param or f"{info.name}.{k}", 1)
            for k, d in enumerate(tensor.shape.dim)
        ]
        if tensor.elem_type == TensorProto.STRING:
            feeds[info.name] = np.full(shape, "a", dtype=object)
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if kind.kind == "b":
            value = np.ones(shape, bool) if style != "zeros" else np.zeros(shape, bool)
        elif kind.kind in "iu":
            value = random.integers(0, top, shape) if style == "random" else np.ones(shape)
            value = np.zeros(shape) if style == "zeros" else value
        else:
            value = random.standard_normal(shape)
        feeds[info.name] = value.astype(kind)
    return feeds


def _smallest_table(graph: Graph) -> int:
    """Rows of the smallest table that integers index, at most 1000 and at least 2."""
    rows = [
        graph.constants[node.inputs[0]].shape[int(node.attrs.get("axis", 0))]
        for node in graph.nodes
        if node.op_type == "Gather"
        and node.inputs[0] in graph.constants
        and graph.constants[node.inputs[0]].shape
        and node.inputs[1] in graph.activations
    ]
    return max(2, min([1000, *rows]))


def observe(graph: Graph, sizes: Sizes, names: list[str]) -> dict[str, TypeProto]:
    """The types of inner tensors as one run of the model shows them; nothing if it does not run.

    A size that depends on the data is seen as it was on this run: the rules of the operators that
    make such sizes keep those axes whole.
    """
    more = ModelProto()
    more.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    data = serialize(graph.model)
    if data is None or has_external_data(graph.model):
        return {}
    try:
        with session(data + more.SerializeToString()) as running:
            for style in ("random", "ones", "zeros"):
                try:
                    got = run(running, make_feeds(graph, sizes, 0, style))
                except ORT_ERRORS:
                    continue
                types = {
                    n: (helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
                    for n, v in got.items()
                    if n in names and v.dtype != object
                }
                return {n: helper.make_tensor_type_proto(t, list(s)) for n, (t, s) in types.items()}
    except ModelError:
        pass
    return {}
