"""Read a model, from a file or from memory, and refuse what cannot be read safely."""

from __future__ import annotations

from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, inliner

from spa.errors import ModelError
from spa.graph import Graph, index
from spa.protos import external, is_external, stored_tensors


def load(model: str | Path | ModelProto | Graph) -> Graph:
    """Read and index a model; weights in external files are read when they are needed.

    Raises:
        ModelError: if it is not a readable ONNX model, has no nodes, or points to external data
            that is missing or lies outside the model's folder.
    """
    if isinstance(model, Graph):
        return model
    path = None if isinstance(model, ModelProto) else Path(model)
    proto = model if isinstance(model, ModelProto) else _read(Path(model))
    if not proto.graph.node:
        raise ModelError(f"{path or 'the model'}: the graph has no nodes")
    _check_external(proto, path)
    if proto.functions:
        return index(inliner.inline_local_functions(proto), path)
    return index(proto, path)


def _read(path: Path) -> ModelProto:
    try:
        model = onnx.load(path, load_external_data=False)
    except IsADirectoryError:
        raise ModelError(f"{path} is a folder; name the .onnx file in it") from None
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except (DecodeError, ValueError, UnicodeDecodeError):
        raise ModelError(f"{path} is not an ONNX file, or it is truncated") from None
    if not model.ir_version or not model.opset_import:
        raise ModelError(f"{path} is not an ONNX model: it states no IR version or no opset")
    return model


def _check_external(model: ModelProto, path: Path | None) -> None:
    for tensor in stored_tensors(model.graph):
        if not is_external(tensor):
            continue
        entry = external(tensor)
        where = entry.get("location", "")
        if path is None:
            raise ModelError(
                f"tensor {tensor.name!r} is stored in the file {where!r}: load external data into "
                "the model first (onnx.load does), or pass the path of the model"
            )
        folder = path.parent.resolve()
        target = (folder / where).resolve()
        if not where or not target.is_relative_to(folder) or Path(where).is_absolute():
            raise ModelError(
                f"{path}: tensor {tensor.name!r} points to {where!r}, outside the model's folder; "
                "refused"
            )
        if not target.is_file():
            raise ModelError(
                f"{path}: the external data file {where!r} of tensor {tensor.name!r} is missing"
            )
        end = int(entry.get("offset", 0)) + int(entry.get("length", 0))
        if end > target.stat().st_size:
            raise ModelError(f"{path}: the external data file {where!r} is truncated")
