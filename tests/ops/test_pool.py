"""Pooling and resampling: channels pass; what counts across channels locks them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto

from models.builder import Net, Tensor
from spa.rules import MICROSOFT
from tests.ops.cases import (
    CODE,
    SIGNAL,
    TOKENS,
    VOLUME,
    Body,
    Case,
    case,
    coded,
    contrib,
    dequantise,
    quantise,
    summed,
    turned,
)

POOLS = ("MaxPool", "AveragePool", "LpPool")
GLOBAL = ("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")


def _pool(op: str, **attrs: Any) -> Body:
    def body(net: Net, a: Tensor) -> Tensor:
        rank = len(a.shape) - 2
        return net.node(op, a, **{"kernel_shape": [2] * rank, "strides": [2] * rank} | attrs)

    return body


def _resize(*inputs: Any, **attrs: Any) -> Body:
    return lambda net, a: net.node("Resize", a, *inputs, **attrs)


def _max_unpool(net: Net, a: Tensor) -> Tensor:
    values, places = net.nodes("MaxPool", [a], 2, kernel_shape=[2, 2], strides=[2, 2])
    return net.node("MaxUnpool", values, places, kernel_shape=[2, 2], strides=[2, 2],
                    shape=[2, 8, 6, 6])  # fmt: skip


def _indices_unused(net: Net, a: Tensor) -> Tensor:
    return net.nodes("MaxPool", [a], 2, kernel_shape=[2, 2])[0]


def _indices_left_out(net: Net, a: Tensor) -> Tensor:
    made, _ = net.nodes("MaxPool", [a], 2, kernel_shape=[2, 2])
    made.inputs[0].outputs[1] = gs.Variable.empty()
    return made


_BOXES = np.array([[0, 0, 4, 4], [1, 1, 5, 5], [0, 2, 3, 5]], np.float32)


def _roi_align(net: Net, a: Tensor) -> Tensor:
    return net.node("RoiAlign", a, _BOXES, np.array([0, 1, 1]), output_height=2, output_width=2)


def _roi_pool(net: Net, a: Tensor) -> Tensor:
    boxes = np.concatenate([[[0], [1], [1]], _BOXES], 1).astype(np.float32)
    return net.node("MaxRoiPool", a, boxes, pooled_shape=[2, 2], shape=[3, 8, 2, 2])


def _grid_sample(net: Net, a: Tensor) -> Tensor:
    return net.node("GridSample", a, net.uniform(-1, 1, 2, 4, 4, 2))


def _sampled_at(net: Net, a: Tensor) -> Tensor:
    """The producer's channels are the places that are sampled; every one gives a pixel."""
    grid = net.reshape(net.slice(a, 0, 2, axis=2), [2, 8, 6, 2])
    sampled = net.node("GridSample", net.uniform(-1, 1, 2, 3, 5, 5), grid)
    return net.transpose(sampled, 0, 2, 1, 3)


def _affine_grid(net: Net, a: Tensor) -> Tensor:
    grid = net.node(
        "AffineGrid", net.uniform(-1, 1, 2, 2, 3), np.array([2, 8, 4, 4]), shape=[2, 4, 4, 2]
    )
    return net.node("GridSample", a, grid)


def _quantised(op: str, last: bool = False, pixels: int = 3, **attrs: Any) -> Body:
    """Of quantised numbers, with channels first or last; so many pixels each way are left."""

    def body(net: Net, a: Tensor) -> Tensor:
        shape = [*a.shape[:2], pixels, pixels]
        q = quantise(net, a)
        made = [shape[k] for k in (0, 2, 3, 1)] if last else shape
        q = net.transpose(q, 0, 2, 3, 1) if last else q
        y = coded(net, op, q, *CODE, *CODE, shape=made, channels_last=int(last) or None, **attrs)
        return dequantise(net, net.transpose(y, 0, 3, 1, 2) if last else y)

    return body


def _less_quantised_mean(net: Net, a: Tensor) -> Tensor:
    q = quantise(net, a)
    mean = coded(net, "QLinearGlobalAveragePool", q, *CODE, *CODE, shape=[2, 5, 1])
    return net.sub(a, dequantise(net, mean))


CASES = [
    *(
        row
        for op, attrs in (
            ("QLinearAveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("QLinearGlobalAveragePool", {"pixels": 1}),
        )
        for last in (False, True)
        for body in (_quantised(op, last, **attrs),)
        for row in (
            case(f"{op}-last-{last}", 1, body, exact=True),
            case(f"{op}-last-{last}-summed", 1, lambda net, a, body=body: summed(net, body(net, a)),
                 exact=True),
            case(f"{op}-last-{last}-as-batch", 1, turned(body, 1, 0, 2, 3), exact=True),
            case(f"{op}-last-{last}-as-pixels", "Global" in op, lambda net, a, body=body:
                 body(net, net.transpose(a, 0, 2, 1, 3))),
        )
    ),
    case("QLinearGlobalAveragePool-over-channels", 1, _less_quantised_mean, shape=TOKENS,
         exact=False),
    *(case(op, 1, _pool(op), exact=True) for op in POOLS),
    *(case(f"{op}-1d", 1, _pool(op), shape=SIGNAL, exact=True) for op in POOLS),
    *(case(f"{op}-3d", 1, _pool(op), shape=VOLUME, exact=True) for op in POOLS),
    *(case(f"{op}-summed", 1, lambda net, a, op=op: summed(net, _pool(op)(net, a)), exact=True)
      for op in POOLS),
    *(case(op, 1, lambda net, a, op=op: net.node(op, a), exact=True) for op in GLOBAL),
    case("GlobalLpPool-summed", 1, lambda net, a: summed(net, net.node("GlobalLpPool", a)),
         exact=True),
    # Channels last: the pool is a mean over them, as in a layer normalisation of tf2onnx.
    *(case(f"{op}-over-channels", 1, lambda net, a, op=op: net.sub(a, net.node(op, a)),
           shape=TOKENS, exact=False) for op in GLOBAL),
    *(case(f"{op}-3d", 1, lambda net, a, op=op: net.node(op, a), shape=VOLUME, exact=True)
      for op in GLOBAL),
    *(case(f"{op}-opset-7", 1, _pool(op), opset=7, exact=True) for op in POOLS),
    *(case(f"AveragePool-dilated-opset-{opset}", 1, _pool("AveragePool", dilations=[2, 2]),
           opset=opset, exact=True) for opset in (19, 22)),
    *(case(f"LpPool-dilated-opset-{opset}", 1, _pool("LpPool", dilations=[2, 2], ceil_mode=1),
           opset=opset, exact=True) for opset in (18, 22)),
    case("AveragePool-ceil-opset-10", 1, _pool("AveragePool", ceil_mode=1), opset=10, exact=True),
    case("MaxPool-opset-8", 1, _pool("MaxPool", storage_order=1), opset=8, exact=True),
    case("RoiAlign-opset-10", 1, _roi_align, opset=10, exact=True),
    case("MaxPool-padded", 1, _pool("MaxPool", kernel_shape=[3, 3], pads=[1] * 4), exact=True),
    case("MaxPool-ceil", 1, _pool("MaxPool", kernel_shape=[4, 4], ceil_mode=1), exact=True),
    case("MaxPool-dilated", 1, _pool("MaxPool", dilations=[2, 2]), exact=True),
    case("MaxPool-auto-pad", 1, _pool("MaxPool", auto_pad="SAME_UPPER"), exact=True),
    case("AveragePool-padded", 1, _pool("AveragePool", pads=[1] * 4, count_include_pad=1)),
    case("LpPool-1", 1, _pool("LpPool", p=1), exact=True),
    # Indices count across channels: they and all they index are kept whole.
    case("MaxUnpool", 0, _max_unpool),
    case("MaxUnpool-typed", 0, _max_unpool, typed=True),
    case("MaxPool-indices-left-out", 1, _indices_left_out, exact=True),
    case("MaxPool-indices-declared", 0, _indices_unused),
    case("RoiAlign", 1, _roi_align, exact=True),
    case("MaxRoiPool", 1, _roi_pool, exact=True, typed=True),
    case("GridSample", 1, _grid_sample, exact=True),
    case("GridSample-at-channels", 1, _sampled_at, exact=True),
    case("AffineGrid", 1, _affine_grid, opset=20, exact=True, typed=True),
    case("Resize-scales", 1, _resize(None, [1.0, 1.0, 2.0, 2.0]), exact=True),
    case("Resize-sizes-of-input", 0, lambda net, a: net.node("Resize", a, None, None, net.input(
        "sizes", (4,), np.int64), shape=[2, 8, 6, 6]), runnable=False, typed=True, refused=True),
    case("Resize-scales-of-input", 0, lambda net, a: net.node("Resize", a, None, net.input(
        "scales", (4,), np.float32), shape=[2, 8, 6, 6]), runnable=False, typed=True, refused=True),
    case("Upsample-scales-of-input", 0, lambda net, a: net.node("Upsample", a, net.input(
        "scales", (4,), np.float32), shape=[2, 8, 6, 6]), runnable=False, typed=True, refused=True,
        opset=9),
    case("Resize-scales-linear", 1, _resize(None, [1.0, 1.0, 1.5, 1.5], mode="linear"), exact=True),
    case("Resize-sizes", 1, _resize(None, None, [2, 8, 12, 12]), exact=True),
    case("Resize-sizes-axes", 1, _resize(None, None, [9, 9], axes=[2, 3]), opset=18, exact=True),
    case("Resize-sizes-negative-axes", 1, _resize(None, None, [9, 9], axes=[-2, -1]), opset=18),
    case("Resize-sizes-all-axes", 1, _resize(None, None, [12, 8, 12, 2], axes=[3, 1, 2, 0]),
         opset=18),
    case("Resize-keep-aspect", 1, _resize(
        None, None, [9, 12], axes=[2, 3], keep_aspect_ratio_policy="not_larger"), opset=18),
    case("Resize-crop", 0, _resize(
        net_roi := np.array([0, 0, 0.2, 0.2, 1, 1, 0.8, 0.8], np.float32), None, [2, 8, 4, 4],
        coordinate_transformation_mode="tf_crop_and_resize")),
    case("Resize-channels", 0, _resize(None, [1.0, 2.0, 1.0, 1.0])),
    case("Resize-opset-10", 1, _resize([1.0, 1.0, 2.0, 2.0]), opset=10, exact=True),
    case("Resize-opset-11", 1, _resize(net_roi[:0], [1.0, 1.0, 2.0, 2.0]), opset=11, exact=True),
    case("Resize-opset-11-sizes", 1, _resize(
        net_roi[:0], np.zeros(0, np.float32), [2, 8, 12, 12]), opset=11, exact=True),
    case("Resize-1d", 1, _resize(None, [1.0, 1.0, 2.0]), shape=SIGNAL, exact=True),
    case("Upsample-opset-9", 1, lambda net, a: net.node("Upsample", a, [1.0, 1.0, 2.0, 2.0]),
         opset=9, exact=True),
    case("Upsample-opset-7", 1, lambda net, a: net.node("Upsample", a, scales=[1.0, 1.0, 2.0, 2.0]),
         opset=7, exact=True),
]  # fmt: skip


def _boxes(net: Net, a: Tensor, **attrs: Any) -> Tensor:
    boxes = net.uniform(0, 0.9, 3, 4)
    inputs = [a, boxes, net.const(np.asarray([0, 1, 1], np.int32)),
              net.const(np.asarray([4, 4], np.int32))]  # fmt: skip
    return contrib(net, "CropAndResize", inputs, (3, 8, 4, 4), **attrs)[0]


def _last_pool(net: Net, a: Tensor) -> Tensor:
    last = net.cast(net.transpose(net.mul(a, 50.0), 0, 2, 3, 1), TensorProto.INT8)
    y = net.nodes("NhwcMaxPool", [last], shapes=[(2, 5, 5, 8)], dtype=np.int8, domain=MICROSOFT,
                  kernel_shape=[2, 2])[0]  # fmt: skip
    return net.transpose(net.mul(net.cast(y, TensorProto.FLOAT), 0.02), 0, 3, 1, 2)


CONTRIB = [
    case("NhwcMaxPool", 1, _last_pool, exact=True),
    case("CropAndResize", 1, _boxes, exact=True),
    *(
        case(
            f"CropAndResize-{name}-summed",
            1,
            lambda net, a, attrs=attrs: summed(net, _boxes(net, a, **attrs)),
            exact=exact,
        )
        for name, attrs, exact in (
            ("plain", {}, True),
            ("empty", {"extrapolation_value": 0.0}, True),
            ("filled", {"extrapolation_value": 0.5}, False),
        )
    ),
    # Boxes are whole, whatever is made of what they cut out.
    *(
        case(
            f"{body.__name__[1:]}-of-all",
            1,
            lambda net, a, body=body: net.node("ReduceSum", body(net, a), [0]),
        )
        for body in (_boxes, _roi_align, _roi_pool)
    ),
    case("CropAndResize-filled", 1, lambda net, a: _boxes(net, a, extrapolation_value=0.5)),
    case(
        "ms-GridSample",
        1,
        lambda net, a: contrib(
            net, "GridSample", [a, net.uniform(-1, 1, 2, 4, 3, 2)], (2, 8, 4, 3)
        )[0],
        exact=True,
    ),
]


@pytest.mark.parametrize("case", [*CASES, *CONTRIB])
def test_pool(case: Case) -> None:
    case.check()
