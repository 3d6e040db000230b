"""Nets that both of PyTorch's exporters write on the spot, where PyTorch is installed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import spa
from tests.oracle import check

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from models.zoo import torch_nets
from models.zoo.registry import find

# file -> groups by kind, as the topology has them
FILES = {
    "channel_shuffle_module@dynamo19d": {"conv": 3},
    # one recurrent layer behind two convolutions
    "crnn@legacy17d": {"conv": 2, "recurrent": 1},
    # queries and keys, values, whole heads
    "einsum_attention@dynamo19d": {"head-dim": 2, "heads": 1},
    "res2net_chunk@legacy14": {"conv": 6},
    "se_conv@dynamo20d": {"conv": 2},
    # an outer factor before an inner one on the same path
    "shufflenet_v1@dynamo18d": {"conv": 2},
    "shufflenet_v1@legacy13": {"conv": 2},
    # two layers: attention, feed-forward, the width under normalisation
    "torch_transformer@dynamo18d": {"head-dim": 6, "heads": 3, "hidden": 1, "linear": 2},
    "unet_groupnorm@legacy13d": {"conv": 22},
    "weight_standardised@legacy17d": {"conv": 4},
    "yolo_v8@dynamo18d": {"conv": 29},
    "yolo_v8@legacy17d": {"conv": 29},
}


@pytest.mark.parametrize("name", FILES)
def test_exported_now(name: str, tmp_path: Path) -> None:
    assert torch_nets.on_image  # it fills the registry
    path = tmp_path / f"{name}.onnx"
    find(f"torch-{name}")(path)
    groups = check(spa.load(path).model, sum(FILES[name].values()), each=False)
    assert Counter(g.kind for g in groups) == FILES[name]
    assert not groups.unknown
    assert not groups.views[0].ties.refused
