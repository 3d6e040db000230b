"""Normalisations. Where the statistics run over a live axis, removal is inexact."""

import numpy as np

from spa.rules import MICROSOFT, Axes, Op, Quantised, Resized, Sized, declare, follow, rule, whole


def _statistics(op: Op) -> str:
    """In inference every axis but C is elementwise; in training mode statistics run over them.

    Before opset 14 the mode was told by whether the outputs behind the first are there.
    """
    return "N ..." if op.attr("training_mode", 0) or any(op.node.outputs[1:]) else ""


@rule(
    "BatchNormalization", text="N C ..., C, C, C, C -> N C ..., C, C, C, C   (or ..., ... -> ...)"
)
def batch_norm(op: Op) -> list[Axes]:
    x, each = ("N C ...", "C") if op.attr("spatial", 1) else ("N ...", "...")
    parts = ", ".join([x, *[each] * 4])
    made = follow(op, f"{parts} -> {parts}", zero="1 0 + 1 3 + 2", inexact=_statistics(op))
    # What is behind the first are statistics, which are never told to be zero.
    return [made[0], *([axis._replace(zero=False) for axis in axes] for axes in made[1:])]


declare("InstanceNormalization", "N C ..., C, C -> N C ...", zero="1 0 + 2", inexact="...")
declare("LRN", "N C ... -> N C ...", zero="0", inexact="C")


@rule(
    "LayerNormalization RMSNormalization SimplifiedLayerNormalization",
    text="..., ..., ... -> ...  (inexact from axis on)",
)
def layer_norm(op: Op) -> list[Axes]:
    outputs = follow(op, "..., ..., ... -> ..., *, *", zero="1 0 + 2")
    at = op.axis(-1)
    for axis in outputs[0][at:]:
        op.inexact(axis)
        op.kind(axis, "hidden")
    beside = [axis._replace(zero=False) for axis in outputs[0][:at]]
    statistics = [beside + [whole(1)] * (len(op.shape()) - at) for _ in outputs[1:]]
    return [outputs[0], *statistics]


@rule("MeanVarianceNormalization", text="... -> ...  (inexact)")
def mean_variance(op: Op) -> list[Axes]:
    outputs = follow(op, "... -> ...")
    for axis in outputs[0]:  # even beside the axes: zeros have no deviation to divide by
        op.inexact(axis)
    return outputs


@rule("LpNormalization Softmax LogSoftmax Hardmax", text="... -> ...  (inexact on axis)")
def along_axis(op: Op) -> list[Axes]:
    norm = op.node.op_type == "LpNormalization"
    outputs = follow(op, "... -> ...", zero="0" if norm else "")
    # Before opset 13, Softmax and its kin flattened all axes from `axis` on.
    flat = op.opset < 13 and not norm
    first = op.axis(1 if flat else -1)
    for axis in outputs[0][first:] if flat else [outputs[0][first]]:
        if not axis.zero:  # zeros add nothing to a norm, but something to a softmax
            op.inexact(axis)
    return outputs


@rule(
    "QLinearSoftmax",
    text="..., *, *, *, * -> ...  (inexact on axis)",
    quantised={0: Quantised((1,), 2)},
    domain=MICROSOFT,
)
def qlinear_softmax(op: Op) -> list[Axes]:
    outputs = follow(op, "..., *, *, *, * -> ...")
    flat = int(op.attr("opset", 13)) < 13
    first = op.axis(1 if flat else -1)
    for axis in outputs[0][first:] if flat else [outputs[0][first]]:
        op.inexact(axis)
    return outputs


declare(
    "QEmbedLayerNormalization",
    "B s, B s, v C, p C, t C, C, C, *, *, *, *, *, *, *, *, *, *, * -> B s C, B",
    inexact="C",
    kinds=lambda op: {"C": "hidden"},
    quantised={k: Quantised((k + 6,), k + 11) for k in range(2, 7)},
    domain=MICROSOFT,
)


def _group_norm(op: Op) -> str:
    """N (G C) *, (G C), (G C) -> N (G C) *   (opset 18: scale and bias per group, G)"""
    scale = "G" if op.opset < 21 else "(G C)"
    return f"N (G C) *, {scale}, {scale} -> N (G C) *"


def _resize_group_norm(node: Sized) -> Resized:
    channels, kept = node.op.shape()[1], node.kept[0]
    assert kept is not None
    width = channels // int(node.op.attr("num_groups"))
    return Resized(attrs={"num_groups": len(np.unique(kept[1] // width))})


# Whole groups go, or the same channel of every group; the second changes the statistics.
declare(
    "GroupNormalization",
    _group_norm,
    zero="1 0 + 2",
    inexact="C",
    sizes=lambda op: {"G": int(op.attr("num_groups"))},
    resize=_resize_group_norm,
)


# onnxruntime's own -----------------------------------------------------------------------------


def _channels(op: Op) -> int:
    """The axis of the channels."""
    return len(op.shape()) - 1 if op.attr("channels_last", 1) else 1


def _image(op: Op) -> str:
    places = " ".join(f"x{k}" for k in range(len(op.shape()) - 2))
    return f"N (G C) {places}" if _channels(op) == 1 else f"N {places} (G C)"


def _resize_groups(node: Sized) -> Resized:
    at, kept = _channels(node.op), node.kept[0]
    assert kept is not None
    width = node.op.shape()[at] // int(node.op.attr("groups"))
    return Resized(attrs={"groups": len(np.unique(kept[at] // width))})


def _fused_group_norm(op: Op) -> str:
    """N * (G C), (G C), (G C) -> N * (G C)   (N (G C) * where channels_last is 0)"""
    return f"{_image(op)}, (G C), (G C) -> {_image(op)}"


def _skip_group_norm(op: Op) -> str:
    """N * (G C), (G C), (G C), N * (G C), (G C) -> N * (G C), N * (G C)"""
    skip = "N (G C)" if len(op.shape(3)) == 2 else _image(op)  # the places may be broadcast
    return f"{_image(op)}, (G C), (G C), {skip}, (G C) -> {_image(op)}, {_image(op)}"


for _op, _pattern, _zero in (
    ("GroupNorm", _fused_group_norm, "1 0 + 2"),
    ("SkipGroupNorm", _skip_group_norm, "1 0 + 1 3 + 1 4 + 2, 0 + 3 + 4"),
):
    declare(
        _op,
        _pattern,
        zero=_zero,
        inexact="C",
        sizes=lambda op: {"G": int(op.attr("groups"))},
        resize=_resize_groups,
        domain=MICROSOFT,
    )

# The third further output is the sum before the normalisation.
for _op, _text, _zero in (
    ("SkipLayerNormalization", "... C, ... C, C, C, C", "2 0 + 2 1 + 2 4 + 3, , , 0 + 1 + 4"),
    ("SkipSimplifiedLayerNormalization", "... C, ... C, C, C", "2 0 + 2 1 + 2 3, , , 0 + 1 + 3"),
):
    declare(
        _op,
        f"{_text} -> ... C, *, *, ... C",
        zero=_zero,
        inexact="C",
        kinds=lambda op: {"C": "hidden"},
        domain=MICROSOFT,
    )

declare(
    "EmbedLayerNormalization",
    "B s, B s, v C, p C, q C, C, C, B s, * -> B s C, B, B s C",
    inexact="C",
    kinds=lambda op: {"C": "hidden"},
    domain=MICROSOFT,
)
declare(
    "GatedRMSNorm",
    "... (H C), C, ... (H C) -> ... (H C)",
    zero=lambda op: "0 1" if op.attr("activation", b"silu") == b"sigmoid" else "0 1 2",
    inexact="C",
    domain=MICROSOFT,
)


@rule("BiasSoftmax", domain=MICROSOFT, text="..., ... -> ...  (inexact from axis on)")
def bias_softmax(op: Op) -> list[Axes]:
    outputs = follow(op, "..., ... -> ...")
    for axis in outputs[0][op.axis(1) :]:
        op.inexact(axis)
    return outputs
