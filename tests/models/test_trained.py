"""The trained nets in models/trained: they load, prune by the law, and score what is stated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import spa
from models import fashion
from spa.cost import CostModel
from tests.oracle import LAW

TRAINED = Path(__file__).parents[2] / "models" / "trained"
LIMIT = 2_000_000
SAMPLE = 1_000

# name -> BatchNormalization nodes; the folded files keep those before an activation only
NORMS = {
    "densenet": 21,
    "densenet_bn": 39,
    "mobilenet": 0,
    "mobilenet_bn": 28,
    "resnet20": 0,
    "resnet20_bn": 21,
    "vgg": 0,
    "vgg_bn": 6,
    "vit": 0,
    "wide_mobilenet": 0,
    "wide_mobilenet_bn": 34,
}
# name -> groups by topology, the same with the norms folded
GROUPS = {
    "densenet": 39,  # two per layer, transitions, the stem
    "mobilenet": 14,
    "resnet20": 9 + 3,  # an inner one per block, 3 trunks, the first with the stem
    "vgg": 6,
    "vit": 5 * 4 + 1,  # query with key, value, heads and MLP of each layer; the trunk
    "wide_mobilenet": 17,
}


def table() -> dict[str, list[str]]:
    """The rows of the README's table by file name."""
    lines = (TRAINED / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].removesuffix(".onnx"): row[1:] for row in rows if row[0].endswith(".onnx")}


def test_every_file_is_tested_and_stated() -> None:
    assert {p.stem for p in TRAINED.glob("*.onnx")} == set(NORMS) == set(table())
    assert all(p.stat().st_size <= LIMIT for p in TRAINED.glob("*.onnx"))


@pytest.mark.parametrize("name", NORMS)
def test_norms(name: str) -> None:
    nodes = onnx.load(TRAINED / f"{name}.onnx").graph.node
    norms = [node for node in nodes if node.op_type == "BatchNormalization"]
    assert len(norms) == NORMS[name]
    for node in norms:  # in the form of inference
        assert len(node.output) == 1
        assert not any(a.name == "training_mode" and a.i for a in node.attribute)


@pytest.mark.parametrize("name", NORMS)
def test_groups_and_cost(name: str) -> None:
    groups = spa.analyze(TRAINED / f"{name}.onnx")
    assert len(groups) == GROUPS[name.removesuffix("_bn")]
    assert not groups.unknown
    cost = CostModel(groups)()
    images = groups.shapes.shapes["image"][0]  # the free batch axis was bound to this many
    assert [f"{cost.params:,}", f"{cost.macs // images:,}"] == table()[name][:2]


@pytest.mark.parametrize("name", NORMS)
def test_the_law(name: str) -> None:
    result = spa.prune(TRAINED / f"{name}.onnx", "macs=0.7", criterion="l1", samples=64)
    assert abs(result.figures.share("macs") - 0.7) <= 0.02
    assert result.verification is not None and result.verification.law is not None
    assert result.verification.law <= LAW


@pytest.mark.skipif(not fashion.present(), reason="needs Debian's dataset-fashion-mnist")
@pytest.mark.parametrize("name", NORMS)
def test_top1(name: str) -> None:
    images, labels = fashion.test()
    session = onnxruntime.InferenceSession(TRAINED / f"{name}.onnx")
    (source,) = session.get_inputs()
    sample = fashion.rgb(images[:SAMPLE]) if source.shape[1] == 3 else images[:SAMPLE]
    logits = np.concatenate(
        [session.run(None, {source.name: part})[0] for part in np.split(sample, 4)]
    )
    top1 = 100 * (logits.argmax(1) == labels[:SAMPLE]).mean()
    assert abs(top1 - float(table()[name][4])) <= 1
