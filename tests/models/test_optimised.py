"""Small models as onnxruntime's optimiser saves them: coupled and cut like the plain originals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto

import spa
from models.sequence import MAKERS as SEQUENCE
from models.vision import MAKERS as VISION
from spa.unblock import DOMAIN
from tests.conftest import PLAIN
from tests.oracle import LAW, check

LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
IMAGE: dict[str, Any] = {"width": 0.25, "image": 32, "classes": 10, "batch": "batch"}
TEXT: dict[str, Any] = {"batch": "batch", "seq": "seq"}
MODELS: dict[str, Callable[[], ModelProto]] = {
    "resnet18": lambda: VISION["resnet18"](**IMAGE),
    "mobilenet_v2": lambda: VISION["mobilenet_v2"](**IMAGE),
    "mobilenet_v3": lambda: VISION["mobilenet_v3"](**IMAGE),
    "unet": lambda: VISION["unet"](**IMAGE),
    "unet_groupnorm": lambda: VISION["unet_groupnorm"](**IMAGE),
    "vit": lambda: SEQUENCE["vit"](batch="batch"),
    "bert": lambda: SEQUENCE["bert_like"](**TEXT),
    "bert-computed": lambda: SEQUENCE["bert_like"](**TEXT, legacy=True),
    "llama": lambda: SEQUENCE["llama_like"](**TEXT),
    "conv1d": lambda: SEQUENCE["conv1d_net"](batch="batch"),
}


def optimised(model: ModelProto, level: str, folder: Path) -> ModelProto:
    """The model as onnxruntime saves it after its optimiser."""
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.optimized_model_filepath = str(folder / f"{level}.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(options.optimized_model_filepath)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", MODELS)
def test_groups_and_law(name: str, level: str, tmp_path: Path) -> None:
    plain = MODELS[name]()
    model = optimised(plain, level, tmp_path)
    groups = check(model, len(spa.analyze(plain)), each=False)
    assert not groups.unknown
    assert not groups.views[0].ties.refused


def test_what_is_cut_from_blocks_runs_anywhere(tmp_path: Path) -> None:
    """No blocks are left, and the sizes of the pruned model are those of the plain one's."""
    plain = MODELS["mobilenet_v2"]()
    model = optimised(plain, "all", tmp_path)
    assert any(node.domain == DOMAIN for node in model.graph.node)
    result, wanted = (spa.prune(m, "macs=0.6", **PLAIN) for m in (model, plain))
    assert not any(node.domain == DOMAIN for node in result.model.graph.node)
    assert DOMAIN not in {o.domain for o in result.model.opset_import}
    assert result.verification is not None and result.verification.law is not None
    assert result.verification.law <= LAW
    assert result.figures.before.macs == wanted.figures.before.macs
