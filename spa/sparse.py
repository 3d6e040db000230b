"""Write sparse tensors out in full, so that all else meets only dense ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from onnx import (
    AttributeProto,
    ModelProto,
    NodeProto,
    SparseTensorProto,
    TensorProto,
    helper,
    numpy_helper,
)

from spa.errors import ModelError

_MOST = 2**33  # bytes; what stays sparse in memory too is not ours to write out


def dense(model: ModelProto, path: Path | None) -> ModelProto:
    """The model itself where nothing in it is sparse, else a copy with dense tensors.

    Raises:
        ModelError: if a sparse tensor contradicts itself.
    """
    constants = [k for k, n in enumerate(model.graph.node) if _attribute(n) is not None]
    if not constants and not model.graph.sparse_initializer:
        return model
    folder = str(path.parent if path else Path())
    copy = ModelProto()
    copy.CopyFrom(model)
    for sparse in model.graph.sparse_initializer:
        copy.graph.initializer.append(_dense(sparse, sparse.values.name, folder))
    del copy.graph.sparse_initializer[:]
    for k in constants:
        node = copy.graph.node[k]
        attribute = _attribute(node)
        assert attribute is not None
        value = helper.make_attribute("value", _dense(attribute.sparse_tensor, "", folder))
        attribute.CopyFrom(value)
    return copy


def _attribute(node: NodeProto) -> AttributeProto | None:
    constant = node.op_type == "Constant" and node.domain in ("", "ai.onnx")
    return next((a for a in node.attribute if constant and a.name == "sparse_value"), None)


def _dense(sparse: SparseTensorProto, name: str, folder: str) -> TensorProto:
    shape = tuple(sparse.dims)
    try:
        values = numpy_helper.to_array(sparse.values, folder)
        where = numpy_helper.to_array(sparse.indices, folder)
        if np.prod(shape, dtype=float) * values.itemsize > _MOST:
            raise ModelError(f"sparse tensor {name!r} of shape {list(shape)} is too large in full")
        array = np.zeros(shape, values.dtype)
        if where.ndim == 2:  # one row of coordinates per value, else positions in row-major order
            where = np.ravel_multi_index(tuple(where.T), shape)
        array.reshape(-1)[where] = values
    except (ValueError, IndexError, TypeError) as error:
        raise ModelError(f"sparse tensor {name!r} contradicts itself: {error}") from None
    return numpy_helper.from_array(array, name)
