"""Models that onnxruntime's quantiser made of others couple what those couple, lose the same units
for the same reasons, and come as near to the pruned original as its quantised form does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import ModelProto
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import spa
from models.builder import Net
from models.sequence import bert_like, vit
from models.vision import MAKERS
from spa.groups import Groups, Member
from spa.rewrite import rewrite
from spa.score import score
from tests.oracle import check


def _lstm() -> ModelProto:
    net = Net("lstm")
    y = net.input("x", (5, 2, 6))
    for ways in (1, 2):
        w = net.weight(ways, 32, y.shape[2], fan=y.shape[2], name="W")
        r = net.weight(ways, 32, 8, fan=8, name="R")
        direction = {1: "forward", 2: "bidirectional"}[ways]
        bias = net.uniform(-0.5, 0.5, ways, 64, name="B")
        y = net.node("LSTM", y, w, r, bias, hidden_size=8, direction=direction)
        y = net.reshape(net.transpose(y, 0, 2, 1, 3), [0, 0, -1])
    return net.model(net.linear(y, 5))


MODELS: dict[str, Callable[[], ModelProto]] = {
    "resnet18": lambda: MAKERS["resnet18"](width=0.25, image=32, classes=10),
    "mobilenet_v2": lambda: MAKERS["mobilenet_v2"](width=0.25, image=32, classes=10),
    "vit": vit,
    "bert": bert_like,
    "lstm": _lstm,
}


class _Random(CalibrationDataReader):  # type: ignore[misc]
    """A few random inputs."""

    def __init__(self, model: ModelProto) -> None:
        self.rows = [_feeds(model, seed) for seed in range(4)]

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.rows.pop() if self.rows else None


def _feeds(model: ModelProto, seed: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)

    def fed(kind: onnx.TypeProto.Tensor) -> np.ndarray:
        shape = [d.dim_value or 3 for d in kind.shape.dim]
        if kind.elem_type == onnx.TensorProto.FLOAT:
            return random.standard_normal(shape).astype(np.float32)
        return random.integers(0, 2, shape)

    return {i.name: fed(i.type.tensor_type) for i in model.graph.input}


# Seven bits: onnxruntime's kernels for older machines saturate sums of eight.
def _dynamic(model: ModelProto, path: Path, kind: QuantType) -> ModelProto:
    quantize_dynamic(model, path, weight_type=kind, per_channel=kind == QuantType.QInt8,
                     reduce_range=True)  # fmt: skip
    return onnx.load(path)


def _static(model: ModelProto, path: Path, form: QuantFormat) -> ModelProto:
    quantize_static(model, path, _Random(model), quant_format=form, reduce_range=True,
                    per_channel=form == QuantFormat.QDQ)  # fmt: skip
    return onnx.load(path)


FORMS: dict[str, Callable[[ModelProto, Path], ModelProto]] = {
    "qdq": lambda model, path: _static(model, path, QuantFormat.QDQ),
    "qoperator": lambda model, path: _static(model, path, QuantFormat.QOperator),
    "dynamic-int8": lambda model, path: _dynamic(model, path, QuantType.QInt8),
    "dynamic-uint8": lambda model, path: _dynamic(model, path, QuantType.QUInt8),
}
PAIRS = [
    *((name, form) for name in ("resnet18", "bert", "lstm") for form in FORMS),
    ("mobilenet_v2", "qdq"),
    ("mobilenet_v2", "qoperator"),
    ("vit", "qdq"),
    ("vit", "dynamic-uint8"),
]


def _copy(model: ModelProto) -> ModelProto:
    """The quantiser changes what it is given."""
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_quantised(name: str, form: str, tmp_path: Path) -> None:
    model = MODELS[name]()
    quantised = FORMS[form](_copy(model), tmp_path / "q.onnx")
    floats, groups = spa.analyze(model), check(quantised, each=False)
    assert Counter((g.size, g.kind) for g in groups) == Counter((g.size, g.kind) for g in floats)
    twins = _twins(floats, groups)
    for criterion, off in (("l1", 0.02), ("l2", 0.04)):
        wanted, found = (score(g, criterion, normalize="none") for g in (floats, groups))
        for g, h in twins.items():
            assert np.abs(found[h] / wanted[g] - 1).max() < off, f"{floats[g].name}, {criterion}"

    # The same units out of both; what is left is as near as quantising what is left.
    removed = {
        g: np.sort(np.argsort(s)[: len(s) // 4])
        for g, s in enumerate(score(floats, "l1"))
        if floats[g].kind != "hidden"
    }
    pruned = rewrite(floats, removed)
    one = rewrite(groups, {twins[g]: units for g, units in removed.items()})
    other = FORMS[form](_copy(pruned), tmp_path / "p.onnx")
    feeds = _feeds(model, 9)
    wanted, cut, cut_first = (_run(m, feeds) for m in (pruned, one, other))
    before = _apart(_run(quantised, feeds), _run(model, feeds))
    assert _apart(cut, wanted) < 2 * (_apart(cut_first, wanted) + before)


@pytest.mark.parametrize("form", ["qoperator", "dynamic-int8"])
@pytest.mark.parametrize("name", ["resnet18", "bert"])
def test_what_onnxruntime_then_fuses(name: str, form: str, tmp_path: Path) -> None:
    """Its optimiser puts operators of its own in, with channels last or scales inside."""
    quantised = FORMS[form](MODELS[name](), tmp_path / "q.onnx")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "o.onnx")
    ort.InferenceSession(quantised.SerializeToString(), options, ["CPUExecutionProvider"])
    model = onnx.load(tmp_path / "o.onnx")
    assert any(node.domain == "com.microsoft" for node in model.graph.node)
    sizes = Counter((g.size, g.kind) for g in spa.analyze(MODELS[name]()))
    assert Counter((g.size, g.kind) for g in check(model, each=False)) == sizes


def _twins(floats: Groups, groups: Groups) -> dict[int, int]:
    """Group of the original -> group of the quantised model, by a weight that both have."""

    def key(member: Member) -> tuple[object, ...]:
        name = member.tensor.partition("@")[0].removesuffix("_quantized")
        return name, member.axis, member.index.tobytes()

    known = {(h.kind, key(m)): k for k, h in enumerate(groups) for m in h.members}
    found = {}
    for g, group in enumerate(floats):
        keys = [(group.kind, key(m)) for m in group.members]
        found[g] = next(known[k] for k in keys if k in known)
    assert len(set(found.values())) == len(floats)
    return found


def _run(model: ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, feeds)[0])


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


@pytest.mark.parametrize("form", FORMS)
def test_new_weights_can_be_stored(form: str, tmp_path: Path) -> None:
    """Sites are measured by what their weights stand for, and what is refitted is rounded before
    held-out inputs judge it."""
    quantised = FORMS[form](MODELS["bert"](), tmp_path / "q.onnx")
    result = spa.prune(quantised, "params=0.8", samples=32)
    done = result.compensation
    assert done is not None and not done.refused
    assert done.helped and all(after < before for before, after in done.helped.values())
    assert result.verification is not None and (result.verification.law or 0) < 1e-6
    kinds = {t.name: t.data_type for t in quantised.graph.initializer}
    for tensor in result.model.graph.initializer:
        assert tensor.data_type == kinds.get(tensor.name, tensor.data_type)
