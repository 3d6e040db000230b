"""Files of the zoo as optimisers leave them: onnxsim, onnxslim, onnxruntime, converters.

The files come from the folder $SPA_ZOO (/tmp/spa-zoo if unset) and must be there first. A name is
that of the file and what was done to it: ``+onnxsim``, ``+onnxslim``, ``+ort``, ``+ort-extended``,
``+ort-all`` (onnxruntime's levels; the first is its basic one), ``+to21`` (onnx's version
converter), ``+half`` (float16 inside), ``+qdq`` (weights and activations quantised and dequantised,
calibrated on noise), ``+qdq+ort-all`` (and then onnxruntime's last level).
"""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxsim
import onnxslim
from numpy.typing import NDArray
from onnx import version_converter
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from models.zoo.registry import add

FOLDER = Path(os.environ.get("SPA_ZOO", "/tmp/spa-zoo"))
LEVELS = {
    "ort": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "ort-extended": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "ort-all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}


class Noise(CalibrationDataReader):  # type: ignore[misc]
    """Two random inputs; free sizes are 2, and 64 from the third axis on."""

    def __init__(self, path: Path) -> None:
        random = np.random.default_rng(0)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.rows = [{i.name: self._value(random, i) for i in session.get_inputs()} for _ in "ab"]

    def _value(self, random: np.random.Generator, info: Any) -> NDArray[Any]:
        shape = [n if isinstance(n, int) else 2 if k < 2 else 64 for k, n in enumerate(info.shape)]
        if "int" in info.type:
            return random.integers(0, 2, shape).astype("int32" if "32" in info.type else "int64")
        return random.normal(size=shape).astype(np.float32)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        return self.rows.pop() if self.rows else None


def _export(name: str, how: str, path: Path) -> None:
    source = FOLDER / f"{name}.onnx"
    if not source.exists():
        raise FileNotFoundError(f"{source}: export it first, or set SPA_ZOO")
    if how in LEVELS:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = LEVELS[how]
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 4
        onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        return
    if how == "qdq":
        quantize_static(
            source, path, Noise(source), quant_format=QuantFormat.QDQ, per_channel=True,
            weight_type=QuantType.QInt8,
        )  # fmt: skip
        return
    model = onnx.load(source)
    if how == "onnxsim":
        model = onnxsim.simplify(model)[0]
    elif how == "onnxslim":
        model = onnxslim.slim(model)
    elif how == "half":
        model = convert_float_to_float16(model, keep_io_types=True)
    else:
        model = version_converter.convert_version(model, int(how.removeprefix("to")))
    path.write_bytes(model.SerializeToString())


ALL = ("onnxsim", "onnxslim", "ort", "half", "to21")
NAMES = """
hf-bert-sdpa hf-beit hf-clip-text hf-convnextv2 hf-deberta-v2 hf-dinov2 hf-efficientformer
hf-gpt2 hf-gpt-neox hf-levit hf-llama hf-mobilebert hf-mobilevit hf-qwen2 hf-segformer hf-swin
hf-t5-encoder hf-vit hf-wav2vec2 hf-whisper timm-coatnet_pico_rw_224 timm-densenet121
timm-efficientnet_b0 timm-ghostnet_050 timm-hrnet_w18_small timm-mobilenetv3_small_050
timm-regnety_002 timm-resnest14d timm-swin_tiny_patch4_window7_224 timm-visformer_tiny
torch-conformer torch-crnn torch-gru_last torch-lstm_state torch-se_conv torch-shufflenet_v1
torch-super_resolution torch-unet_groupnorm torch-wavenet torch-yolo_v8 tf-bert tf-resnet
keras-vit keras-mobilenetv2 keras-lstm paddle-crnn paddle-svtr jax-llama jax-resnet
"""


def _sources(name: str) -> list[str]:
    """The files of a net that are there, by its exporters; the name alone if there is none."""
    found = sorted(p.stem for p in FOLDER.glob(f"{name}@*.onnx") if "+" not in p.name)
    return [s for s in found if not re.search(r"@dynamo(19|20|21)", s)] or found or [name]


for _k, _name in enumerate(NAMES.split()):
    for _i, _source in enumerate(_sources(_name)[:2]):
        for _how in (ALL[(_k + _i) % 3], *ALL[3 + _k % 2 :][: 1 - _i]):
            add(f"{_source}+{_how}", partial(_export, _source, _how))
    for _how in ("ort-extended", "ort-all"):
        add(f"{_sources(_name)[0]}+{_how}", partial(_export, _sources(_name)[0], _how))
    if _k % 3 == 0:
        _source = _sources(_name)[0]
        add(f"{_source}+qdq", partial(_export, _source, "qdq"))
        add(f"{_source}+qdq+ort-all", partial(_export, f"{_source}+qdq", "ort-all"))
