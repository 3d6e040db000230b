"""Small transformers and mixers, with shapes written as numbers and computed at run time."""

from __future__ import annotations

from typing import Any

import pytest

import spa
from models.sequence import MAKERS
from spa.settings import ALL_KINDS
from tests.conftest import PLAIN
from tests.oracle import LAW, check

FREE = {"batch": "batch", "seq": "seq"}
BATCH = {"batch": "batch"}

# A layer of attention has heads, head dims of q and k, head dims of v, and an inner width.
BERT = 1 + 2 * 4 + 1  # hidden, layers, pooler
VIT = 1 + 2 * 4  # q, k and v are one weight (3 H D), which is taken apart
LLAMA = 1 + 2 * 3 + 1  # one table of rotations for both layers ties the head dims of all q and k
GROUPED = LLAMA + 2  # a layer has whole groups of queries, and the same query of every group
MIXER = 1 + 2 * 2  # hidden, and two inner widths per layer; the tokens are pixels, whole
CONV = 1 + 2 + 1  # trunk, inner ones, the last one

ROWS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "bert": ("bert_like", BERT, {}),
    "bert-free": ("bert_like", BERT, FREE),
    "bert-computed": ("bert_like", BERT, {**FREE, "legacy": True}),
    "bert-decomposed": ("bert_like", BERT, {**FREE, "decomposed": True}),
    "vit": ("vit", VIT, {}),
    "vit-free": ("vit", VIT, BATCH),
    "vit-computed": ("vit", VIT, {**BATCH, "legacy": True}),
    "vit-split": ("vit", VIT, {**BATCH, "split": True}),
    "llama": ("llama_like", GROUPED, {}),
    "llama-free": ("llama_like", GROUPED, FREE),
    "llama-computed": ("llama_like", GROUPED, {**FREE, "legacy": True}),
    # One key for all queries: a head is then one of the queries', and of the copies of the key.
    "llama-one-kv-head": ("llama_like", LLAMA, {**FREE, "kv_heads": 1}),
    "llama-all-kv-heads": ("llama_like", LLAMA, {**FREE, "kv_heads": 4}),
    "mixer": ("mlp_mixer", MIXER, {}),
    "mixer-free": ("mlp_mixer", MIXER, BATCH),
    "conv1d": ("conv1d_net", CONV, BATCH),
    "conv1d-folded": ("conv1d_net", CONV, {"bn": False}),
    "conv3d": ("conv3d_net", CONV, BATCH),
    "conv3d-folded": ("conv3d_net", CONV, {"bn": False}),
}


@pytest.mark.parametrize("row", ROWS)
def test_groups_and_law(row: str) -> None:
    name, expected, options = ROWS[row]
    groups = check(MAKERS[name](**options), expected)
    assert not groups.unknown
    hidden = [g for g in groups if g.kind == "hidden"]
    assert [g for g in groups if not g.exact] == hidden, "only what is normalised is inexact"


@pytest.mark.parametrize("row", ROWS)
def test_half_the_macs(row: str) -> None:
    name, _, options = ROWS[row]
    result = spa.prune(MAKERS[name](**options), "macs=0.5", kinds=ALL_KINDS, round_to=1, **PLAIN)
    assert abs(result.figures.share("macs") - 0.5) <= 0.02
    assert result.verification is not None
    assert result.verification.law is None or result.verification.law <= LAW
    assert len(result.verification.sizes) == (2 if "batch" in options else 1)


def test_every_maker_has_a_row() -> None:
    assert {name for name, _, _ in ROWS.values()} == set(MAKERS)
