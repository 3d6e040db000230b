"""Small models as onnxruntime's optimiser saves them: coupled and cut like the plain originals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto

import spa
from models.builder import Net, Tensor
from models.sequence import MAKERS as SEQUENCE
from models.vision import MAKERS as VISION
from spa.unblock import DOMAIN
from tests.conftest import PLAIN
from tests.ops.cases import contrib
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


HEADS, KEYS, SIZE, HIDDEN, INNER = 4, 2, 16, 32, 48


def _decoder(layers: int = 2) -> ModelProto:
    """A decoder as onnxruntime-genai writes it: grouped attention that keeps its own caches."""
    net = Net("decoder")
    batch, steps = "batch_size", "sequence_length"
    past, total = "past_sequence_length", "total_sequence_length"
    ids = net.input("input_ids", [batch, steps], np.int64)
    mask = net.input("attention_mask", [batch, total], np.int64)
    counts = net.cast(net.sub(net.node("ReduceSum", mask, [1], keepdims=0), np.int64(1)), 6)
    size = net.gather(net.node("Shape", mask), np.int64(1))
    longest = net.cast(size, 6)
    angles = np.outer(np.arange(64), 1e2 ** (-np.arange(0, SIZE, 2) / SIZE)).astype(np.float32)
    turns = [net.const(f(angles), f.__name__) for f in (np.cos, np.sin)]

    def gain() -> Tensor:
        return net.uniform(0.8, 1.2, HIDDEN)

    def flat(x: Tensor, out: int) -> Tensor:
        return net.matmul(x, net.weight(x.shape[-1], out, fan=x.shape[-1], gain=1.0))

    x = net.gather(net.weight(100, HIDDEN, fan=1), ids)
    y = net.node("SimplifiedLayerNormalization", x, gain(), axis=-1, shape=x.shape)
    outputs = []
    for layer in range(layers):
        caches = [net.input(f"past.{layer}.{kind}", [batch, KEYS, past, SIZE]) for kind in "kv"]
        q, k, v = (flat(y, n * SIZE) for n in (HEADS, KEYS, KEYS))
        present = [batch, KEYS, total, SIZE]
        z, *grown = contrib(
            net, "GroupQueryAttention", [q, k, v, *caches, counts, longest, *turns], q.shape,
            present, present, num_heads=HEADS, kv_num_heads=KEYS, do_rotary=1,
        )  # fmt: skip
        outputs += grown
        normed = ("SkipSimplifiedLayerNormalization", x.shape, [batch, steps, 1], [batch, steps, 1])
        y, _, _, x = contrib(net, normed[0], [x, flat(z, HIDDEN), gain()], *normed[1:], x.shape)
        gate, up = flat(y, INNER), flat(y, INNER)
        wide = net.mul(contrib(net, "QuickGelu", [gate], gate.shape, alpha=1.0)[0], up)
        y, _, _, x = contrib(net, normed[0], [x, flat(wide, HIDDEN), gain()], *normed[1:], x.shape)
    return net.model(flat(y, 100), *outputs)


@pytest.mark.parametrize("typed", [True, False], ids=["shapes-in-the-file", "shapes-by-a-run"])
def test_a_decoder_with_caches(typed: bool) -> None:
    """Caches are inputs and outputs of the file, which hold heads and their sizes: what is left are
    the queries of each head, the inner widths and the stream."""
    model = _decoder()
    if not typed:
        del model.graph.value_info[:]
    groups = check(model, 2 * 2 + 1, each=False)
    assert not groups.unknown and not groups.views[0].ties.refused
    assert sorted(g.kind for g in groups) == ["heads"] * 2 + ["hidden"] + ["linear"] * 2
