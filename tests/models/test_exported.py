"""Small files as other exporters write them: tests/data, made by models/zoo.

    python -m models.zoo tests/data NAME

for each name below, with the framework installed; the weights are random.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import spa
from spa.settings import ALL_KINDS
from tests.conftest import PLAIN
from tests.oracle import LAW, check

DATA = Path(__file__).parent.parent / "data"

# name -> groups by kind, as the topology has them
FILES = {
    # one layer: query and key, value, whole heads
    "jax-fused_attention@jax21d": {"head-dim": 2, "heads": 1},
    # CastLike gives the epsilon of a norm its type
    "jax-mlp_norm_tokens@jax23": {"hidden": 2},
    # two queries to a key, Keras's einsums as Transpose, Reshape and MatMul; a norm behind
    "keras-grouped_query@keras18": {"head-dim": 2, "heads": 2, "hidden": 1, "linear": 1},
    # stem, two blocks of a depthwise and a pointwise convolution with a gate
    "paddle-lcnet@paddle13": {"conv": 5},
    # two layers of LSTM on embedded words
    "paddle-lstm_words@paddle17": {"embedding": 1, "recurrent": 2},
    # the means of a layer normalisation as GlobalAveragePool over channels that stand last
    "tf-layer_norm@saved9d": {"hidden": 1, "linear": 1},
    # channels last: every convolution between two Transposes
    "tf-mobile_block@tf2onnx10d": {"conv": 2, "linear": 1},
}


def test_every_file_is_tested() -> None:
    assert {p.stem for p in DATA.glob("*.onnx")} == set(FILES)
    assert all(p.stat().st_size < 100_000 for p in DATA.glob("*.onnx"))


@pytest.mark.parametrize("name", FILES)
def test_exported(name: str) -> None:
    groups = check(spa.load(DATA / f"{name}.onnx").model, sum(FILES[name].values()))
    assert Counter(g.kind for g in groups) == FILES[name]
    assert not groups.unknown
    assert not groups.views[0].ties.refused


@pytest.mark.parametrize("name", [n for n in FILES if n != "jax-mlp_norm_tokens@jax23"])
def test_the_law_on_the_file(name: str) -> None:
    result = spa.prune(DATA / f"{name}.onnx", "channels=0.5", exact=True, kinds=ALL_KINDS, **PLAIN)
    assert result.verification is not None and result.verification.law is not None
    assert result.verification.law <= LAW
    assert result.figures.share("params") < 1
