"""Read a model, from a file or from memory, and refuse what cannot be read safely."""

from __future__ import annotations

import math
from collections.abc import Collection
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto, OperatorSetIdProto, TensorProto, inliner

from spa.errors import ModelError
from spa.graph import FLOATS, Graph, free_names
from spa.index import index
from spa.protos import bodies, external, is_external, stored_tensors
from spa.sparse import dense


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
        proto = inliner.inline_local_functions(_of_one_opset(proto))
    return index(_in_order(dense(proto, path)), path)


def _of_one_opset(model: ModelProto) -> ModelProto:
    """The model, with functions that import other opsets brought to the model's own.

    Only where every operator in them is the same in both: what is left is not inlined.
    """
    copy = ModelProto()
    copy.CopyFrom(model)
    wanted = {o.domain: o.version for o in model.opset_import}
    for function in copy.functions:
        for opset in function.opset_import:
            version = wanted.get(opset.domain, opset.version)
            nodes = [n.op_type for n in function.node if n.domain == opset.domain]
            if all(_since(n, opset) == _since(n, opset, version) for n in nodes):
                opset.version = version
    return copy


def _since(op_type: str, opset: OperatorSetIdProto, version: int | None = None) -> int | None:
    version = opset.version if version is None else version
    if not onnx.defs.has(op_type, version, opset.domain):
        return None
    return int(onnx.defs.get_schema(op_type, version, opset.domain).since_version)


def _in_order(model: ModelProto) -> ModelProto:
    """The model with every node behind what it reads; converters to float16 put some in front."""
    nodes = model.graph.node
    makers = {name: k for k, node in enumerate(nodes) for name in node.output if name}
    reads = [{*n.input, *(i for b in bodies(n) for i in free_names(b))} for n in nodes]
    needs = {k: {makers[i] for i in names if i in makers} for k, names in enumerate(reads)}
    if all(k > max(before, default=-1) for k, before in needs.items()):
        return model
    try:
        order = [nodes[k] for k in TopologicalSorter(needs).static_order()]
    except CycleError:
        return model  # which `index` refuses
    ordered = ModelProto()
    ordered.CopyFrom(model)
    del ordered.graph.node[:]
    ordered.graph.node.extend(order)
    return ordered


def _read(path: Path) -> ModelProto:
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
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
        _check_extent(f"{path}: tensor {tensor.name!r} in {where!r}", tensor, target)


def _check_extent(which: str, tensor: TensorProto, file: Path) -> None:
    """Offset and length must be numbers that fit the tensor and the file."""
    entry, size = external(tensor), file.stat().st_size
    try:
        offset = int(entry.get("offset", 0))
        length = int(entry.get("length", size - offset))
        needed = _data_bytes(tensor)
    except (ValueError, KeyError, TypeError):
        raise ModelError(f"{which}: offset, length or element type is not valid") from None
    if offset < 0 or ("length" in entry and length < 0):
        raise ModelError(f"{which}: offset {offset} or length {length} is below 0")
    if offset + needed > size:
        raise ModelError(f"{which}: the external data file is truncated")
    if length != needed:
        raise ModelError(
            f"{which}: {length} bytes are stated where a tensor of shape {list(tensor.dims)} has "
            f"{needed}"
        )


def _data_bytes(tensor: TensorProto) -> int:
    kind = TensorProto.DataType.Name(tensor.data_type)
    elements: int = math.prod(tensor.dims)
    for bits in (2, 4):
        if kind.endswith(f"INT{bits}") or kind.startswith(f"FLOAT{bits}"):
            return -(-elements * bits // 8)
    return elements * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)


def data_files(graph: Graph) -> frozenset[Path]:
    """The files beside the model that hold its weights."""
    if graph.path is None:
        return frozenset()
    tensors = [t for t in stored_tensors(graph.model.graph) if is_external(t)]
    return frozenset((graph.path.parent / external(t)["location"]).resolve() for t in tensors)


def check_finite(graph: Graph, pruned: Collection[str] = ()) -> None:
    """Refuse weights that are broken.

    Args:
        pruned: constants that have to be finite; the others may hold infinities, as the causal
            masks of transformers do, but no NaN.

    Raises:
        ModelError: naming the first tensor that holds what it must not.
    """
    cut = {graph.constants[name].source for name in pruned}
    for name, constant in graph.constants.items():
        if name != constant.source or constant.tensor.data_type not in FLOATS:
            continue
        w = graph.array(name)
        w = w if w.dtype in (np.float32, np.float64) else w.astype(np.float32)
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(w.sum()):  # one pass without a temporary array
                continue
        if np.isnan(w).any() or (name in cut and np.isinf(w).any()):
            raise ModelError(
                f"tensor {name!r} holds values that are not finite (NaN or infinity); repair or "
                "retrain the model first"
            )
