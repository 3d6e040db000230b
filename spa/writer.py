"""Write a file so that a kill or a full disk leaves the old one or the new one, never half."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import IO

from onnx import ModelProto, StringStringEntryProto, TensorProto

from spa.errors import UsageError
from spa.protos import copy_fields, external, is_external, serialize

_INLINE = 1024  # bytes; smaller tensors stay in the model file


def check_writable(path: Path) -> None:
    """Find out before the work starts that its result cannot be written.

    Raises:
        UsageError: if the folder does not exist or does not take a new file.
    """
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}."):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to folder {str(path.parent)!r}: {error.strerror}") from None


def save_text(text: str, path: Path) -> None:
    with _replacing(path) as file:
        file.write(text.encode())


def save(
    model: ModelProto,
    path: str | Path,
    with_external_data: bool = False,
    data: bytes | None = None,
) -> None:
    """Write a model; beyond 2 GB, or when asked to, with its weights in a file beside it.

    Args:
        data: the model, serialised, where it is at hand.

    Raises:
        UsageError: if the folder cannot be written to.
    """
    path = Path(path)
    whole = None if with_external_data else data or serialize(model)
    if whole is not None:
        with _replacing(path) as file:
            file.write(whole)
        return
    before = _data_files(path)
    # The old model must find its old weights until the new model has taken its place.
    name = f"{path.name}.data"
    if (path.parent / name).exists():
        name = f"{path.name}.{sha256(os.urandom(16)).hexdigest()[:8]}.data"
    try:
        with _replacing(path.parent / name) as weights:
            shell = _externalise(model, name, weights)
        with _replacing(path) as file:
            file.write(shell.SerializeToString())
    except BaseException:
        (path.parent / name).unlink(missing_ok=True)
        raise
    for stale in before - {name}:
        (path.parent / stale).unlink(missing_ok=True)


def _externalise(model: ModelProto, name: str, data: IO[bytes]) -> ModelProto:
    """The model with its large initializers written to ``data`` and pointed to."""
    shell = ModelProto()
    copy_fields(model, shell, but=("graph",))
    copy_fields(model.graph, shell.graph, but=("initializer",))
    at = 0
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data) if tensor.HasField("raw_data") else 0
        if size < _INLINE:
            shell.graph.initializer.append(tensor)
            continue
        pointer = TensorProto()
        copy_fields(tensor, pointer, but=("raw_data",))
        pointer.data_location = TensorProto.EXTERNAL
        at += data.write(b"\0" * (-at % 4096))
        for key, value in (("location", name), ("offset", at), ("length", size)):
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
    return {n for n in names if n.startswith(f"{path.name}.") and n.endswith(".data")}


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` once it is complete and on disk."""
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as error:
        raise UsageError(f"cannot write to folder {str(path.parent)!r}: {error.strerror}") from None
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
