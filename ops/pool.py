"""Pooling and resampling over the axes behind N and C."""

import numpy as np

from spa.rules import MICROSOFT, Axes, Op, Quantised, Resized, Sized, declare, rule, whole

declare("AveragePool LpPool", "N C * -> N C *", zero="0")


def _quantised(op: Op) -> str:
    """N C *, *, *, *, * -> N C *   (N * C where channels stand last)"""
    x = "N * C" if op.attr("channels_last", 0) else "N C *"
    return f"{x}, *, *, *, * -> {x}"


declare(
    "QLinearAveragePool", _quantised, zero="0", quantised={0: Quantised((1,), 2)}, domain=MICROSOFT
)


# Reductions over all axes but N and C, and written so for the mean of a layer normalisation.
def _mean(op: Op) -> dict[str, str]:
    return {"...": "hidden"} if len(op.shape()) == 3 else {}


def _quantised_mean(op: Op) -> str:
    """N C ..., *, *, *, * -> N C *   (N ... C where channels stand last)"""
    last = op.attr("channels_last", 0)
    return f"{'N ... C' if last else 'N C ...'}, *, *, *, * -> {'N * C' if last else 'N C *'}"


declare(
    "GlobalAveragePool GlobalMaxPool GlobalLpPool",
    "N C ... -> N C *",
    zero="0",
    inexact="...",
    kinds=_mean,
)
declare(
    "QLinearGlobalAveragePool",
    _quantised_mean,
    zero="0",
    inexact="...",
    kinds=_mean,
    quantised={0: Quantised((1,), 2)},
    domain=MICROSOFT,
)


def _max_pool(op: Op) -> str:
    """N C * -> N C *   (whole where Indices is used: it counts across channels)"""
    counted = len(op.out_shapes) > 1 and op.out_shapes[1] is not None
    return "* -> *, *" if counted else "N C * -> N C *"


declare("MaxPool", _max_pool, zero="0")
declare("NhwcMaxPool", "N * C -> N * C", zero="0", domain=MICROSOFT)
declare(
    "CropAndResize",
    "n C *, r *, r, * -> r C *",
    zero=lambda op: "" if op.attr("extrapolation_value", 0.0) else "0",
    domain=MICROSOFT,
)
declare("MaxUnpool", "*, *, * -> *")
declare("MaxRoiPool", "n C *, r * -> r C *", zero="0")
declare("RoiAlign", "n C *, r *, r -> r C *", zero="0")


def _grid_sample(op: Op) -> str:
    """N C *, N ... p -> N C ...   (behind C, the axes of the grid)"""
    places = " ".join(f"X{k}" for k in range(len(op.shape(1)) - 2))
    return f"N C *, N {places} p -> N C {places}"


declare("GridSample", _grid_sample, zero="0")
declare("GridSample", _grid_sample, zero="0", domain=MICROSOFT)
declare("AffineGrid", "*, * -> *")


def _resize_sizes(node: Sized) -> Resized:
    """The wanted `sizes`: what the output has after pruning, on the axes that `axes` names."""
    position = 3
    if not node.op.has(position):
        return Resized()
    new = node.new_out[0]
    assert new is not None
    axes = node.op.attr("axes", range(len(new)))
    return Resized(inputs={position: np.asarray([new[k] for k in axes], np.int64)})


@rule("Resize Upsample", resize=_resize_sizes, text="passes the axes that keep their size")
def resize(op: Op) -> list[Axes]:
    op.need(1, 2, 3)
    crops = op.attr("coordinate_transformation_mode", b"") == b"tf_crop_and_resize"
    for k in range(1, len(op.axes)):
        op.lock_input(k, "lists sizes")
    out = []
    for axis, n in zip(op.input(), op.out_shape(), strict=True):
        if crops or len(axis.ids) != n:
            op.lock(axis, "resampled")
            axis = whole(n)
        out.append(axis)
    return [out]
