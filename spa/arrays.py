"""Calibration data as arrays: read .npz and .npy files, hold arrays against a model's inputs."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper

from spa.batches import Part, Slot
from spa.errors import UsageError
from spa.graph import Graph
from spa.sizes import dims

Arrays = Mapping[str, NDArray[Any]]
ONLY = ""  # the name of an array that has none
_CHUNK = 32  # samples that are checked at a time


# Files -------------------------------------------------------------------------------------------


def read(path: Path) -> Arrays:
    """The arrays of a .npz or .npy file, mapped into memory where they are not compressed.

    Raises:
        UsageError: if it is not such a file, or holds Python objects.
    """
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return {ONLY: _map(path, file)}
        return _read_archive(path)
    except (OSError, ValueError, EOFError, KeyError, struct.error, zipfile.BadZipFile) as error:
        if "pickle" in str(error) or "object" in str(error).lower():
            raise UsageError(
                f"{path} holds pickled Python objects, which spa does not load; save plain arrays"
            ) from None
        raise UsageError(f"{path} is not a {path.suffix} file, or it is damaged: {error}") from None


def _read_archive(path: Path) -> Arrays:
    found = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for entry in archive.infolist():
            if not entry.filename.endswith(".npy"):
                continue
            name = entry.filename.removesuffix(".npy")
            if entry.compress_type == zipfile.ZIP_STORED:
                file.seek(entry.header_offset + 26)
                before = sum(struct.unpack("<HH", file.read(4)))
                file.seek(entry.header_offset + 30 + before)
                found[name] = _map(path, file)
            else:
                with archive.open(entry) as packed:
                    found[name] = npy.read_array(packed, allow_pickle=False)
    if not found:
        raise ValueError("there is no array in it")
    return found


def _map(path: Path, file: IO[bytes]) -> NDArray[Any]:
    """The array that begins here, as it lies in the file."""
    version = npy.read_magic(file)
    head = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, by_columns, dtype = head(file)
    if dtype.hasobject:
        raise ValueError("objects")
    if not np.prod(shape, dtype=np.int64):
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", file.tell(), shape, "F" if by_columns else "C")


# Against the inputs of a model -------------------------------------------------------------------


@dataclass(frozen=True)
class _Stored:
    """The samples of an array, as the type that the model takes."""

    array: NDArray[Any]
    dtype: np.dtype[Any]

    def __getitem__(self, rows: Any) -> NDArray[Any]:
        with np.errstate(over="ignore"):  # which the check for infinities finds
            return np.asarray(self.array[rows]).astype(self.dtype, copy=False)


@dataclass(frozen=True)
class Fitted:
    """Arrays that fit the inputs of a model.

    count: samples.
    alone: every sample has to be fed alone, for some input has no axis for samples.
    per_sample: bytes.
    """

    part: Part
    count: int
    alone: bool
    per_sample: int


def fit(graph: Graph, arrays: Arrays, axes: Mapping[str, int | None], source: str) -> Fitted:
    """Hold arrays against the inputs of a model.

    Args:
        axes: the axis of every input along which samples lie.

    Raises:
        UsageError: saying what does not fit.
    """
    infos = [i for i in graph.model.graph.input if i.name in graph.inputs]
    arrays = _named(arrays, [i.name for i in infos], source)
    part, counts, alone, per_sample = {}, {}, False, 0
    for info in infos:
        array, axis = np.asanyarray(arrays[info.name]), axes[info.name]
        where = f"{source}, array {info.name!r}"
        same = _same(graph, info, array, axis, where)
        stored = _Stored(array, _dtype(info, array, where))
        if same:
            _check_values(stored, np.arange(1), array[None], where)
            part[info.name] = Slot(array.astype(stored.dtype), None, same=True)
            continue
        if not len(array):
            raise UsageError(f"{where} has no samples")
        counts[info.name] = len(array)
        alone |= axis is None
        per_sample += array.nbytes // len(array) // array.itemsize * stored.dtype.itemsize
        part[info.name] = Slot(stored, axis)
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name!r} has {n}" for name, n in counts.items())
        raise UsageError(f"{source}: the arrays differ in their number of samples: {listed}")
    return Fitted(part, next(iter(counts.values()), 1), alone, per_sample)


def check_values(part: Part, rows: NDArray[np.intp], source: str) -> None:
    """Refuse samples with values that no input can have meant.

    Raises:
        UsageError: naming the array.
    """
    for name, slot in part.items():
        if isinstance(slot.column, _Stored):
            _check_values(slot.column, rows, slot.column.array, f"{source}, array {name!r}")


def _named(arrays: Arrays, names: Sequence[str], source: str) -> Arrays:
    if len(arrays) == len(names) == 1:
        return {names[0]: next(iter(arrays.values()))}
    if set(arrays) == set(names):
        return arrays
    has = ", ".join(repr(name) for name in arrays) if ONLY not in arrays else "one without a name"
    wants = ", ".join(map(repr, names))
    raise UsageError(
        f"{source} holds the arrays {has}; the inputs of the model are {wants}: give an array of "
        "that name for each"
    )


def _same(
    graph: Graph, info: ValueInfoProto, array: NDArray[Any], axis: int | None, where: str
) -> bool:
    """Whether an array is for all samples alike; refuses shapes that do not fit."""
    if not info.type.HasField("tensor_type"):
        raise UsageError(f"{where}: the input is no tensor, and spa takes no data for it")
    given = dims(graph, info)
    inner = [size for k, size in enumerate(given) if k != axis]
    for same in (False, True) if axis is None else (False,):
        shape = array.shape if same else array.shape[1:]
        if (
            (same or array.ndim)
            and len(shape) == len(inner)
            and all(
                not isinstance(want, int) or want == n for want, n in zip(inner, shape, strict=True)
            )
        ):
            return same
    raise UsageError(
        f"{where} has shape {list(array.shape)}; the input is {_text(given)}, so it has to be "
        f"{_text(['samples', *inner])}"
    )


def _text(shape: Sequence[int | str]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _dtype(info: ValueInfoProto, array: NDArray[Any], where: str) -> np.dtype[Any]:
    kind = info.type.tensor_type.elem_type
    if kind == TensorProto.STRING:
        wanted, fits = np.dtype(object), array.dtype.kind in "UO"
    else:
        wanted = np.dtype(helper.tensor_dtype_to_np_dtype(kind))
        fits = array.dtype.kind in {"b": "b", "i": "biu", "u": "biu", "c": "fc"}.get(
            wanted.kind, "f"
        )
    if fits or array.dtype == wanted:
        return wanted
    name = TensorProto.DataType.Name(kind).lower()
    hint = ""
    if array.dtype.kind in "iu" and wanted.kind not in "biuOc":
        hint = "; scale it as the model expects and save it as float32"
    raise UsageError(f"{where} holds {array.dtype}, and the input takes {name}{hint}")


def _check_values(stored: _Stored, rows: NDArray[np.intp], array: NDArray[Any], where: str) -> None:
    """Floats have to be finite, as the model's type too; integers have to fit it."""
    before, after = array.dtype, stored.dtype
    if after.kind in "biu":
        if before.kind not in "iu" or np.can_cast(before, after):
            return
        low, high = np.iinfo(after).min, np.iinfo(after).max
    elif before.kind not in "fc":
        return
    for k in range(0, len(rows), _CHUNK):
        values = np.asarray(array[rows[k : k + _CHUNK]])
        if not values.size:
            continue
        if after.kind in "iu":
            if values.min() < low or values.max() > high:
                raise UsageError(f"{where} holds values beyond {after}, which the input takes")
            continue
        with np.errstate(over="ignore"):
            as_fed = values.astype(after)
            wide = as_fed.astype(np.complex128 if after.kind == "c" else np.float64)
        if not np.isfinite(values).all():
            raise UsageError(f"{where} holds values that are not finite (NaN or infinity)")
        if not np.isfinite(wide).all():
            raise UsageError(f"{where} holds values beyond {after}, which the input takes")
