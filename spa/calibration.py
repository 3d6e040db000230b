"""The inputs that stand for the user's: from files, from arrays, or made up."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from spa import arrays, images, noise
from spa import run as runs
from spa.batches import Batches, Limits, Part, Row, Slot, batch_axes
from spa.errors import PlanError, UsageError
from spa.graph import Graph
from spa.images import Preprocess
from spa.run import ORT_ERRORS, Feeds

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
    check(data, preprocess)
    limits, path = Limits(count, batch, memory), folder_or_file(data)
    found: Calibration | None = None
    if path is not None and path.is_dir():
        found = _of_images(graph, path, Preprocess.parse(preprocess), limits, seed)
    elif path is not None:
        found = _of_arrays(graph, [arrays.read(path)], path.name, limits, seed)
    elif callable(data):
        found = _of_arrays(graph, map(_copied, data()), "the data", limits, seed)
    elif not isinstance(data, str):
        found = _of_arrays(graph, [_named(data)], "the data", limits, seed)
    with runs.session(graph.path or graph.model, optimize=True) as running:
        if found is not None:
            return _seen_to_run(running, found)
        made, note = noise.find(graph, running, limits, seed)
        return Calibration(made, NOISE, NOISE, note)


# Data --------------------------------------------------------------------------------------------


def is_noise(data: Data) -> bool:
    """Whether inputs are to be made up."""
    return isinstance(data, str) and data == NOISE


def folder_or_file(data: Data) -> Path | None:
    """Where the data lie, if in files."""
    if isinstance(data, str):
        return None if is_noise(data) else Path(data)
    return data if isinstance(data, Path) else None


def check(data: Data, preprocess: str | None = None) -> None:
    """Find what cannot be meant before any work.

    Raises:
        UsageError: if there are no such data, or no way to read them.
    """
    Preprocess.parse(preprocess)
    path = folder_or_file(data)
    if preprocess is not None and (path is None or not path.is_dir()):
        raise UsageError("--preprocess is for a folder of images; other data are fed as they are")
    if path is None:
        return
    if not path.exists():
        raise UsageError(f"{path} does not exist; --data takes noise, .npz, .npy or a folder")
    if path.is_dir():
        if not images.files(path):
            raise UsageError(f"{path} holds no images ({', '.join(images.SUFFIXES)})")
        images.check_pillow()
    elif path.suffix.lower() not in (".npz", ".npy"):
        hint = ": name the folder it lies in" if path.suffix.lower() in images.SUFFIXES else ""
        raise UsageError(f"{path}: spa reads .npz, .npy and folders of images{hint}")


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_UNITS |= {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


def byte_count(size: int | str) -> int:
    """Read "4GB", "500 MB" or "2GiB"; a number stands for itself.

    Raises:
        UsageError: if it is no such size, or less than a byte.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) *([kmgt]?i?)b?", str(size).strip().lower())
    if found is None or found[2] not in _UNITS or float(found[1]) * _UNITS[found[2]] < 1:
        raise UsageError(f"memory {size!r} is not a size such as 500MB, 4GB or 2GiB")
    return int(float(found[1]) * _UNITS[found[2]])


def described(data: Data) -> dict[str, Any]:
    """What a plan says of data of which no inputs have been made yet."""
    if isinstance(data, Calibration):
        return data.record()
    path = folder_or_file(data)
    if is_noise(data):
        return {"source": NOISE, "kind": NOISE}
    if path is None:
        return {"source": "the data", "kind": "data"}
    return {"source": path.resolve().name, "kind": "data", "path": str(path.resolve())}


def recorded(said: Any) -> Data:
    """The data that a plan was made with, by what `described` said of them.

    Raises:
        PlanError: if they are not in a file that is there.
    """
    if not isinstance(said, dict) or said.get("kind", NOISE) == NOISE:
        return NOISE
    source, path = str(said.get("source", "the data")), said.get("path")
    if path is not None and Path(str(path)).exists():
        return Path(str(path))
    where = "no file" if path is None else f"{path}, which is not there any more"
    raise PlanError(
        f"the plan was made with inputs of {source!r} ({where}); give them again with --data"
    )


def data_files(data: Data) -> list[Path]:
    """The files that data are read from."""
    path = folder_or_file(data)
    if path is None:
        return []
    return [path, *images.files(path)] if path.is_dir() else [path]


def _named(value: Any) -> arrays.Arrays:
    if isinstance(value, Mapping):
        return {str(name): np.asanyarray(array) for name, array in value.items()}
    if isinstance(value, (tuple, list)):
        raise UsageError(
            f"the data are a {type(value).__name__}: give an array, or a dict with an array for "
            "every input"
        )
    return {arrays.ONLY: np.asanyarray(value)}


def _copied(value: Any) -> arrays.Arrays:
    """What a function gives may be changed by it before the next."""
    return {name: np.array(array) for name, array in _named(value).items()}


def _of_arrays(
    graph: Graph, many: Iterable[arrays.Arrays], source: str, limits: Limits, seed: int
) -> Calibration:
    axes, fixed = batch_axes(graph)
    random = np.random.default_rng(seed)
    parts: list[Part] = []
    rows: list[Row] = []
    note, alone, per_sample, used = "", False, 1, 0
    for some in many:
        left = Limits(limits.count - len(rows), limits.batch, limits.memory - used)
        if left.count == 0 or (rows and left.memory < per_sample):
            if left.count:
                note = f"{len(rows)} samples: more take over {limits.memory} bytes"
            break
        fitted = arrays.fit(graph, some, axes, source)
        count, note = left.samples(fitted.per_sample, fitted.count)
        chosen = random.permutation(fitted.count)[:count]
        arrays.check_values(fitted.part, chosen, source)
        rows += [(len(parts), row) for row in chosen.tolist()]
        parts.append(fitted.part)
        alone = alone or fitted.alone
        per_sample = max(per_sample, fitted.per_sample)
        used += count * fitted.per_sample
    return _batched(parts, rows, source, limits, 1 if alone else fixed, per_sample, note)


def _of_images(
    graph: Graph, folder: Path, how: Preprocess, limits: Limits, seed: int
) -> Calibration:
    axes, fixed = batch_axes(graph)
    name = images.only_input(graph).name
    axis, into = axes[name], images.form(graph, axes[name], how)
    found = images.files(folder)
    per_sample = math.prod(into.shape) * into.dtype.itemsize
    count, note = limits.samples(per_sample, len(found))
    chosen = np.random.default_rng(seed).permutation(len(found))[:count]
    part = {name: Slot(images.column([found[k] for k in chosen], into, how), axis)}
    rows = [(0, row) for row in range(len(chosen))]
    fixed = 1 if axis is None else fixed
    return _batched([part], rows, folder.resolve().name, limits, fixed, per_sample, note)


def _batched(
    parts: list[Part],
    rows: list[Row],
    source: str,
    limits: Limits,
    fixed: int | None,
    per_sample: int,
    note: str,
) -> Calibration:
    size = fixed or max(limits.size(per_sample, len(rows)), 1)
    batches = Batches(parts, rows, size, fixed is not None)
    if not len(batches):
        what = f"{len(rows)}, and the model takes {size} at a time" if rows else "none"
        raise UsageError(f"{source} has too few samples: {what}")
    return Calibration(batches, source, "data", note)


def _seen_to_run(running: ort.InferenceSession, found: Calibration) -> Calibration:
    """Run the first batch; where it is refused, one sample of it."""
    refused: Exception | None = None
    sizes = [found.batches.size] if found.batches.whole else [found.batches.size, 1]
    for size in sizes:
        batches = Batches(found.batches.parts, found.batches.rows, size, found.batches.whole)
        try:
            runs.run(running, batches[0])
            return replace(found, batches=batches)
        except ORT_ERRORS as error:
            refused = refused or error
    line = str(refused).strip().splitlines()[0][:300]
    raise UsageError(f"the model does not run on {found.source}; onnxruntime says: {line}")
