"""Narrow vision networks: the groups that their topology gives, and the law at half the MACs."""

from __future__ import annotations

import pytest

import spa
from models.vision import MAKERS
from tests.conftest import PLAIN
from tests.oracle import LAW, check

# Blocks have inner groups; what residual additions join is one trunk per stage.
GROUPS = {
    "resnet18": 8 + 4,  # an inner one per block, 4 trunks, the first with the stem
    "resnet50": 16 * 2 + 4 + 1,  # two inner ones per block, 4 trunks, the stem
    # Of a grouped convolution: whole groups, and the same index in every group on each side of it.
    "resnext50": 16 * 3 + 4 + 1,
    "mobilenet_v2": 16 + 7 + 1 + 1,  # expanded, trunks, the stem with its depthwise, the last one
    # 14 expanded, 8 squeezed, 6 trunks (the first with the stem), the last two layers
    "mobilenet_v3": 14 + 8 + 6 + 2,
    "efficientnet_b0": 15 + 16 + 7 + 1 + 1,  # expanded, squeezed, trunks, stem, the last one
    "densenet121": 58 * 2 + 3 + 1,  # two per layer, transitions, the stem
    # An inner one per block, the stem, the last one. A shuffle of two halves ties them, the split
    # behind it parts what stays left from what goes right: half, a quarter, an eighth ... of the
    # units for each block of the stage, until one unit is left.
    "shufflenet_v2": 16 + 1 + 1 + 4 + 3 + 4,
    "unet": 5 * 2 + 4 * 3,  # two on each level down, three up (the transposed convolution's too)
    # Norms of 32 channels and more have several groups, of 16 channels: these go whole, too.
    "unet_groupnorm": 4 * 2 + 3 * 3 + 2 + 2 + 2,
    "vgg11_bn": 8 + 2,
}
# Channels of all convolutions but those behind a Resize; whole groups are exact.
INEXACT = {"unet_groupnorm": 4 * 2 + 3 * 2}


@pytest.mark.parametrize("name", MAKERS)
def test_groups_and_law(name: str) -> None:
    model = MAKERS[name](width=0.25, image=32, classes=10)
    groups = check(model, GROUPS[name], each=False)
    assert not groups.unknown
    assert sum(not g.exact for g in groups) == INEXACT.get(name, 0)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("bn", [True, False], ids=["bn", "folded"])
def test_half_the_macs(name: str, bn: bool) -> None:
    model = MAKERS[name](width=0.25, image=32, classes=10, batch="batch", bn=bn)
    result = spa.prune(model, "macs=0.5", **PLAIN)
    assert abs(result.figures.share("macs") - 0.5) <= 0.02
    assert result.verification is not None
    assert result.verification.law is None or result.verification.law <= LAW
    assert len(result.verification.sizes) == 2, "it must run at two batch sizes"
