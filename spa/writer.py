"""Write a file so that a kill or a full disk leaves the old one or the new one, never half."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO

from onnx import ModelProto, StringStringEntryProto, TensorProto

from spa.errors import UsageError
from spa.protos import copy_fields, copy_without, external, is_external, serialize

_INLINE = 1024  # bytes; smaller tensors stay in the model file


def check_writable(path: Path) -> None:
    """Find out before the work starts that its result cannot be written.

    Raises:
        UsageError: if the folder does not exist or does not take a new file, or if ``path`` is a
            folder itself.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror}") from None
    if path.is_dir():
        raise UsageError(f"cannot write {str(path)!r}: it is a folder")


def save_text(text: str, path: Path) -> None:
    with _replacing(path) as file:
        file.write(text.encode())


def save(
    model: ModelProto,
    path: str | Path,
    with_external_data: bool = False,
    data: bytes | None = None,
    keep: Collection[Path] = (),
) -> None:
    """Write a model; beyond 2 GB, or when asked to, with its weights in a file beside it.

    That file is named after what it holds, so it never takes the place of other weights.

    Args:
        data: the model, serialised, where it is at hand.
        keep: files not to be cleaned up with the model that stood at ``path`` before.

    Raises:
        UsageError: if the folder cannot be written to.
    """
    path = Path(path)
    apart = with_external_data and any(_is_large(t) for t in model.graph.initializer)
    whole = None if apart else data or serialize(model)
    if whole is not None:
        with _replacing(path) as file:
            file.write(whole)
        return
    before = _data_files(path)
    name = f"{path.name}.{_digest(model)}.data"
    was_there = (path.parent / name).exists()
    try:
        with _replacing(path.parent / name) as weights:
            shell = _externalise(model, name, weights)
        with _replacing(path) as file:
            file.write(shell.SerializeToString())
    except BaseException:
        if not was_there:
            (path.parent / name).unlink(missing_ok=True)
        raise
    # Until here the old model could find its old weights.
    kept = {name, *(p.name for p in keep if p.parent == path.parent.resolve())}
    for stale in before - kept:
        (path.parent / stale).unlink(missing_ok=True)


def _is_large(tensor: TensorProto) -> bool:
    return tensor.HasField("raw_data") and len(tensor.raw_data) >= _INLINE


def _digest(model: ModelProto) -> str:
    h = sha256()
    for tensor in model.graph.initializer:
        if _is_large(tensor):
            h.update(tensor.raw_data)
    return h.hexdigest()[:12]


def _externalise(model: ModelProto, name: str, data: IO[bytes]) -> ModelProto:
    """The model with its large initializers written to ``data`` and pointed to."""
    shell = copy_without(model, "initializer")
    at = 0
    for tensor in model.graph.initializer:
        if not _is_large(tensor):
            shell.graph.initializer.append(tensor)
            continue
        pointer = TensorProto()
        copy_fields(tensor, pointer, but=("raw_data",))
        pointer.data_location = TensorProto.EXTERNAL
        at += data.write(b"\0" * (-at % 4096))
        for key, value in (("location", name), ("offset", at), ("length", len(tensor.raw_data))):
            pointer.external_data.append(StringStringEntryProto(key=key, value=str(value)))
        at += data.write(tensor.raw_data)
        shell.graph.initializer.append(pointer)
    return shell


def _data_files(path: Path) -> set[str]:
    """Data files that the model now at ``path`` uses and that this module named."""
    if not path.exists():
        return set()
    from spa.reader import load

    try:
        tensors = load(path).model.graph.initializer
    except Exception:  # whatever stands there is not ours to clean up after
        return set()
    names = {external(t).get("location", "") for t in tensors if is_external(t)}
    ours = re.compile(re.escape(path.name) + r"\.([0-9a-f]{8,12}\.)?data")
    return {n for n in names if ours.fullmatch(n)}


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` once it is complete and on disk."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise UsageError(f"cannot write {str(path)!r}: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise UsageError(f"cannot write {str(path)!r}: {error.strerror}") from None
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
