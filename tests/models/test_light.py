"""The nine `light_*` models of the onnx wheel, pruned to half their MACs."""

from __future__ import annotations

import os

import pytest

import spa
from models.light import NAMES, light
from spa import validate
from spa.api import draft
from spa.rewrite import rewrite
from spa.settings import Settings
from tests.conftest import PLAIN
from tests.oracle import LAW, check_names, check_sizes

# A layer a group, but the last; blocks as in tests/models/test_vision.py.
GROUPS = {
    "bvlc_alexnet": 5 + 2 + 2,  # the halves of the second convolution; of the last two
    "densenet121": 58 * 2 + 3 + 1,
    "inception_v1": 3 + 9 * 6,  # a block: 4 branches, two of them with an inner convolution
    "inception_v2": 3 + 8 * 7 + 2 * 5,  # one branch has two inner ones; 2 blocks pool, with 5
    "resnet50": 16 * 2 + 4 + 1,
    # 4 groups per convolution: see below.
    "shufflenet": 13,
    "squeezenet": 1 + 8 * 3,  # the last convolution makes the classes
    "vgg19": 16 + 2,
    "zfnet512": 5 + 2,
}
# Hundreds of MB: four copies of them in onnxruntime take half a minute and up to 8 GB each.
LARGE = {"bvlc_alexnet", "vgg19", "zfnet512"}
SLOW = bool(os.environ.get("SPA_SLOW"))


@pytest.mark.parametrize("name", NAMES)
def test_half_the_macs(name: str) -> None:
    drafted = draft(light(name), "macs=0.5", Settings(**PLAIN))
    groups, removed = drafted.groups, drafted.removed
    assert not groups.unknown
    assert not groups.views[0].ties.refused
    assert len(groups) == GROUPS[name]
    assert abs(drafted.figures.share("macs") - 0.5) <= 0.02
    pruned = rewrite(groups, removed)
    validate.check_file(groups.graph, pruned)
    check_names(groups, pruned, removed)
    check_sizes(groups, pruned, removed)
    if name in LARGE and not SLOW:
        return  # SPA_SLOW=1 checks the law of these too
    verification = validate.verify(groups, pruned, removed)
    assert verification.runs
    assert verification.law is not None
    assert verification.law <= LAW


def test_all_nine_are_here() -> None:
    assert set(NAMES) == set(GROUPS)


def test_prune_a_light_model_from_memory() -> None:
    result = spa.prune(
        light("squeezenet"),
        "macs=0.5",
        criterion="l2",
        scope="local",
        compensate="none",
        repair="none",
    )
    assert abs(result.figures.share("macs") - 0.5) <= 0.02
