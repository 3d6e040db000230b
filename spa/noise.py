"""Find inputs on which a model runs where there are no data: made up, the likeliest first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

from spa import run as runs
from spa import synthetic
from spa.batches import Batches, Limits, Slot, batch_axes
from spa.graph import Graph
from spa.run import ORT_ERRORS, Styles
from spa.sizes import Sizes, batch_sizes, dims, realistic

Found = tuple[Batches, str]  # and a note, see `Calibration`


def find(graph: Graph, running: ort.InferenceSession, limits: Limits, seed: int) -> Found:
    """The likeliest inputs on which the model runs, the plainest last.

    Raises:
        CannotCheck, ModelError: if it runs on none of those tried.
    """
    infos = [i for i in graph.model.graph.input if i.name in graph.inputs]
    tensors = all(i.type.HasField("tensor_type") for i in infos)
    likely = [*realistic(graph, limits.batch), *realistic(graph, 1)] if tensors else []
    found = _first(graph, running, likely, limits, seed)
    if found is None:
        _, styles, first = runs.find_first(graph, running, seed)
        others = _larger(graph, first.sizes, limits.batch) if tensors else ()
        found = _first(graph, running, others, limits, seed)
        return found or _plain(graph, first.sizes, styles, limits, seed)
    return found


def _first(
    graph: Graph, running: ort.InferenceSession, tries: Iterable[Sizes], limits: Limits, seed: int
) -> Found | None:
    seen: list[Sizes] = []
    for sizes in tries:
        if sizes not in seen:
            seen.append(sizes)
            found = _structured(graph, running, sizes, limits, seed)
            if found is not None:
                return found
    return None


def _larger(graph: Graph, sizes: Sizes, batch: int) -> Iterator[Sizes]:
    """More samples and longer sequences than those on which the model ran, then these."""
    lead = batch_sizes(graph)
    for one in (batch, 1):
        for times in (4, 1):
            yield {n: one if n in lead else times * size for n, size in sizes.items()}
    yield sizes


def _structured(
    graph: Graph, running: ort.InferenceSession, sizes: Sizes, limits: Limits, seed: int
) -> Found | None:
    axes, fixed = batch_axes(graph)
    lead = batch_sizes(graph)
    per_sample, even = 0, fixed is not None
    for info in graph.model.graph.input:
        if info.name in axes:
            given, axis = dims(graph, info), axes[info.name]
            even = even or any(d in lead for k, d in enumerate(given) if k != axis)
            shape = [
                d if isinstance(d, int) else sizes[d] for k, d in enumerate(given) if k != axis
            ]
            per_sample += math.prod(shape) * _width(info.type.tensor_type.elem_type)
    bound = {sizes[name] for name in lead}
    if len(bound) > 1:
        return None
    count, note = limits.samples(per_sample) if axes else (1, "")
    batch = min(limits.size(per_sample, count), bound.pop() if bound else 1)
    if fixed:
        count, batch = max(count - count % fixed, fixed), fixed
    made = (
        synthetic.columns(graph, {**sizes, **dict.fromkeys(lead, batch)}, axes, count, f, seed)
        for f in synthetic.FAMILIES
    )
    parts = [{name: Slot(column, axes[name]) for name, column in some.items()} for some in made]
    rows = [(0, row) for row in range(count)]
    batches = Batches(parts, rows, batch, even)
    try:
        runs.run(running, batches[0])
    except ORT_ERRORS:
        return None
    return batches, note


def _width(kind: int) -> int:
    if kind == TensorProto.STRING:
        return 8
    return int(np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize)


def _plain(graph: Graph, sizes: Sizes, styles: Styles, limits: Limits, seed: int) -> Found:
    """Random values as for the law: for inputs of which nothing better is known."""
    _, fixed = batch_axes(graph)
    weight = fixed or next((sizes[name] for name in sorted(batch_sizes(graph))), 1)
    parts = [
        {
            name: Slot(synthetic.Plain(graph, sizes, styles, name, start), None)
            for name in runs.make_feeds(graph, sizes, seed, styles)
        }
        for start in (seed, seed + 2**20)
    ]
    rows = [(0, row) for row in range(max(limits.count // weight, 1))]
    return Batches(parts, rows, 1, True, weight), ""
