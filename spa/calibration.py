"""The inputs that stand for the user's: from files, from arrays, or made up."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from spa import run as runs
from spa import synthetic
from spa.batches import Batches, Slot
from spa.errors import UsageError
from spa.graph import Graph
from spa.run import ORT_ERRORS, Feeds
from spa.sizes import Sizes, batch_sizes, dims, realistic

NOISE = "noise"


@dataclass(frozen=True)
class Calibration:
    """Feeds that the model was seen to run on.

    batches: feeds; samples lie along the batch axis of every input, where the model has one.
    source: what they are, for the plan: "noise", or the name of the file or folder.
    kind: "noise" or "data".
    note: what the user should know, such as that fewer samples are used than were asked for.
    """

    batches: Batches
    source: str
    kind: str
    note: str = ""

    @property
    def count(self) -> int:
        """Samples in all."""
        return self.batches.samples

    @cached_property
    def digest(self) -> str:
        """A sha256 of all values; loads or draws every batch."""
        h = hashlib.sha256()
        for feeds in self.batches:
            for name in sorted(feeds):
                value = feeds[name]
                for one in value if isinstance(value, list) else [value]:
                    h.update(f"{name}|{one.dtype}|{one.shape}\n".encode())
                    h.update(repr(one.tolist()).encode() if one.dtype == object else one.tobytes())
        return h.hexdigest()

    def record(self) -> dict[str, Any]:
        """What a plan says of it."""
        return {
            "source": self.source,
            "kind": self.kind,
            "samples": self.count,
            "digest": self.digest,
        }

    def split(self, share: float = 0.25) -> tuple[Calibration, Calibration]:
        """Two over different samples: one to fit on, and a smaller one to hold against it.

        What is held out of noise is noise of the other family.

        Raises:
            UsageError: if there are not two batches, and one cannot be divided.
        """
        rows, size = self.batches.rows, self.batches.size if self.batches.whole else 1
        held = round(share * len(rows) / size) * size
        held = min(max(held, size), len(rows) - size)
        if not 0 < held < len(rows):
            raise UsageError(
                f"{self.source} has {self.count} samples, and the model takes "
                f"{size * self.batches.weight} at a time: there is nothing to hold out; give more"
            )
        fit, out = rows[:-held], rows[-held:]
        if self.kind == NOISE:
            out = [(1, row) for _, row in out]
        return (
            Calibration(self.batches.but(fit), self.source, self.kind, self.note),
            Calibration(self.batches.but(out), self.source, self.kind, self.note),
        )


Data: TypeAlias = (
    str
    | Path
    | Mapping[str, NDArray[Any]]
    | NDArray[Any]
    | Callable[[], Iterable[Feeds | NDArray[Any]]]
    | Calibration
)


def calibrate(
    graph: Graph,
    data: Data = NOISE,
    *,
    count: int = 512,
    batch: int = 32,
    seed: int = 0,
    preprocess: str | None = None,
    memory: int = 4 << 30,
) -> Calibration:
    """Find inputs for a model, and run the first batch.

    Args:
        data: "noise"; a .npz, a .npy, a folder of images; arrays by input; or a function that
            gives batches.
        count: samples at most.
        batch: samples of a batch, where the model leaves that open.
        preprocess: how images become arrays, see `spa.images`.
        memory: bytes that all samples may take; fewer are used beyond it.

    Raises:
        UsageError: if the data cannot be read or do not fit the model.
        ModelError: if the model does not run on what is made up.
    """
    if isinstance(data, Calibration):
        return data
    if count < 1 or batch < 1:
        raise UsageError(f"{count} samples in batches of {batch}: both must be 1 or more")
    with runs.session(graph.path or graph.model, optimize=True) as running:
        return _noise(graph, running, _Limits(count, batch, memory), seed)


@dataclass(frozen=True)
class _Limits:
    count: int
    batch: int
    memory: int

    def fit(self, per_sample: int, fixed: int | None) -> tuple[int, int, str]:
        """Samples, samples of a batch, and a note if they are fewer than asked for.

        A batch takes 1/64 of the memory at most, for what the model makes of it is far larger.
        """
        most = max(self.memory // max(per_sample, 1), 1)
        count, note = self.count, ""
        if most < count:
            count = most
            note = f"{most} samples instead of {self.count}: more take over {self.memory} bytes"
        if fixed:
            return max(count - count % fixed, fixed), fixed, note
        return count, min(count, self.batch, max(most // 64, 1)), note


def batch_axes(graph: Graph) -> tuple[dict[str, int | None], int | None]:
    """For every input the axis along which samples lie; and the number of samples, if fixed."""
    infos = [i for i in graph.model.graph.input if i.name in graph.inputs]
    lead = batch_sizes(graph)
    shapes = {i.name: dims(graph, i) if i.type.HasField("tensor_type") else [] for i in infos}
    if lead:
        axes = {
            name: next((k for k, size in enumerate(shape) if size in lead), None)
            for name, shape in shapes.items()
        }
        return axes, None
    first = {shape[0] for shape in shapes.values() if shape}
    fixed = first.pop() if len(first) == 1 else None
    if not isinstance(fixed, int):
        return dict.fromkeys(shapes), None
    return {name: 0 if shape else None for name, shape in shapes.items()}, fixed


# Noise -------------------------------------------------------------------------------------------


def _noise(graph: Graph, running: ort.InferenceSession, limits: _Limits, seed: int) -> Calibration:
    """The likeliest inputs on which the model runs, the plainest last."""
    infos = [i for i in graph.model.graph.input if i.name in graph.inputs]
    if all(i.type.HasField("tensor_type") for i in infos):
        for sizes in _tries(graph, realistic(graph, limits.batch), realistic(graph, 1)):
            found = _structured(graph, running, sizes, limits, seed)
            if found:
                return found
    _, style, first = runs.find_first(graph, running, seed)
    if all(i.type.HasField("tensor_type") for i in infos):
        for sizes in _tries(graph, _larger(graph, first.sizes, limits.batch)):
            found = _structured(graph, running, sizes, limits, seed)
            if found:
                return found
    return _plain(graph, first.sizes, style, limits, seed)


def _tries(graph: Graph, *many: Iterable[Sizes]) -> Iterator[Sizes]:
    seen: list[Sizes] = []
    for sizes in (sizes for some in many for sizes in some):
        if sizes not in seen:
            seen.append(sizes)
            yield sizes


def _larger(graph: Graph, sizes: Sizes, batch: int) -> Iterator[Sizes]:
    """More samples and longer sequences than those on which the model ran, then these."""
    lead = batch_sizes(graph)
    for one in (batch, 1):
        for times in (4, 1):
            yield {n: one if n in lead else times * size for n, size in sizes.items()}
    yield sizes


def _structured(
    graph: Graph, running: ort.InferenceSession, sizes: Sizes, limits: _Limits, seed: int
) -> Calibration | None:
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
    one = fixed or (bound.pop() if bound else 1)
    count, batch, note = limits.fit(per_sample, fixed)
    batch = min(batch, one)
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
    return Calibration(batches, NOISE, NOISE, note)


def _width(kind: int) -> int:
    if kind == TensorProto.STRING:
        return 8
    return int(np.dtype(helper.tensor_dtype_to_np_dtype(kind)).itemsize)


def _plain(graph: Graph, sizes: Sizes, style: str, limits: _Limits, seed: int) -> Calibration:
    """Random values as for the law: for inputs of which nothing better is known."""
    _, fixed = batch_axes(graph)
    weight = fixed or next((sizes[name] for name in sorted(batch_sizes(graph))), 1)
    parts = [
        {
            name: Slot(synthetic.Plain(graph, sizes, style, name, start), None)
            for name in runs.make_feeds(graph, sizes, seed, style)
        }
        for start in (seed, seed + 2**20)
    ]
    rows = [(0, row) for row in range(max(limits.count // weight, 1))]
    return Calibration(Batches(parts, rows, 1, True, weight), NOISE, NOISE)
