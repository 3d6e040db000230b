"""Builds a graph whose weights are zeros in one sparse file: they take no memory and no disk."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto
from onnx_graphsurgeon.ir.tensor import LazyValues, Tensor

from models.builder import Net

WEIGHTS = "weights.data"


class Hollow(Net):
    """A net whose large weights say where in the file they would lie."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.bytes = 0

    def weight(self, *shape: int, name: str = "weight", **_: Any) -> Tensor:
        tensor = TensorProto(data_type=TensorProto.FLOAT, dims=shape)
        tensor.data_location = TensorProto.EXTERNAL
        size = 4 * prod(shape)
        for key, value in (("location", WEIGHTS), ("offset", self.bytes), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        self.bytes += size
        return gs.Constant(self._name(name), LazyValues(tensor))

    def save(self, model: onnx.ModelProto, folder: Path) -> Path:
        """Write the model and, beside it, the file of zeros."""
        with (folder / WEIGHTS).open("wb") as file:
            file.truncate(self.bytes)
        path = folder / f"{model.graph.name}.onnx"
        path.write_bytes(model.SerializeToString())
        return path
