"""Models that onnxruntime's quantiser made of others couple what those couple."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from models.hazards import HAZARDS
from models.sequence import bert_like, vit
from models.vision import MAKERS
from spa.analysis import analyze
from tests.oracle import check

MODELS: dict[str, Callable[[], ModelProto]] = {
    "resnet18": lambda: MAKERS["resnet18"](width=0.25, image=32, classes=10),
    "mobilenet_v2": lambda: MAKERS["mobilenet_v2"](width=0.25, image=32, classes=10),
    "vit": vit,
    "bert": bert_like,
}


class _Random(CalibrationDataReader):  # type: ignore[misc]
    """A few random inputs."""

    def __init__(self, model: ModelProto) -> None:
        random = np.random.default_rng(0)
        self.rows = [
            {i.name: _fed(random, i.type.tensor_type) for i in model.graph.input} for _ in range(4)
        ]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.rows.pop() if self.rows else None


def _fed(random: np.random.Generator, kind: onnx.TypeProto.Tensor) -> np.ndarray:
    shape = [d.dim_value or 3 for d in kind.shape.dim]
    if kind.elem_type == onnx.TensorProto.FLOAT:
        return random.standard_normal(shape).astype(np.float32)
    return random.integers(0, 2, shape)


def _dynamic(model: ModelProto, path: Path, kind: QuantType) -> ModelProto:
    # Seven bits: onnxruntime's kernels for older machines saturate sums of eight.
    quantize_dynamic(model, path, weight_type=kind, per_channel=kind == QuantType.QInt8,
                     reduce_range=True)  # fmt: skip
    return onnx.load(path)


def _static(model: ModelProto, path: Path, form: QuantFormat) -> ModelProto:
    quantize_static(model, path, _Random(model), quant_format=form, reduce_range=True,
                    per_channel=form == QuantFormat.QDQ)  # fmt: skip
    return onnx.load(path)


@pytest.mark.parametrize("kind", [QuantType.QInt8, QuantType.QUInt8], ids=str)
@pytest.mark.parametrize("name", ["resnet18", "vit", "bert"])
def test_dynamic(name: str, kind: QuantType, tmp_path: Path) -> None:
    quantised = _dynamic(MODELS[name](), tmp_path / "q.onnx", kind)
    check(quantised, len(analyze(MODELS[name]())), each=False)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "vit"])
def test_quantise_and_dequantise(name: str, tmp_path: Path) -> None:
    quantised = _static(MODELS[name](), tmp_path / "q.onnx", QuantFormat.QDQ)
    check(quantised, len(analyze(MODELS[name]())), each=False)


def test_quantised_operators(tmp_path: Path) -> None:
    """What stands between convolutions alone; the rest is onnxruntime's own and has no rule."""
    model = HAZARDS["plain"][0]()
    check(_static(model, tmp_path / "q.onnx", QuantFormat.QOperator), 1)
