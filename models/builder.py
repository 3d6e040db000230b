"""Layers and operators by name, on top of the graph builder."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np

from models.graph import HE, Dim, Graph, Tensor

__all__ = ["Dim", "Net", "Tensor"]


class Net(Graph):
    """Every method adds nodes and returns their output.

    `norm=False` writes `conv_bn` in the folded form, a convolution with a bias.
    """

    def __init__(self, name: str, seed: int = 0, opset: int = 17, norm: bool = True) -> None:
        super().__init__(name, seed, opset)
        self.norm = norm

    def conv(
        self,
        x: Tensor,
        out: int,
        k: int = 3,
        stride: int = 1,
        pad: int | None = None,
        groups: int = 1,
        bias: bool = True,
        gain: float = HE,
        dilation: int = 1,
    ) -> Tensor:
        """A convolution over all spatial axes of x; `pad=None` keeps the size at stride 1."""
        rank = len(x.shape) - 2
        pad = dilation * (k - 1) // 2 if pad is None else pad
        name = self._next("Conv")
        w = self.weight(out, x.shape[1] // groups, *[k] * rank, gain=gain, name=f"{name}.weight")
        b = [self.uniform(-0.1, 0.1, out, name=f"{name}.bias")] if bias else []
        return self.node(
            "Conv",
            x,
            w,
            *b,
            kernel_shape=[k] * rank,
            strides=[stride] * rank,
            pads=[pad] * 2 * rank,
            group=groups,
            dilations=[dilation] * rank,
        )

    def conv_transpose(
        self, x: Tensor, out: int, k: int = 2, stride: int = 2, pad: int = 0, groups: int = 1
    ) -> Tensor:
        rank, fan = len(x.shape) - 2, x.shape[1] // groups * max(1, (k // stride) ** 2)
        name = self._next("ConvTranspose")
        w = self.weight(x.shape[1], out // groups, *[k] * rank, fan=fan, name=f"{name}.weight")
        b = self.uniform(-0.1, 0.1, out, name=f"{name}.bias")
        return self.node(
            "ConvTranspose",
            x,
            w,
            b,
            kernel_shape=[k] * rank,
            strides=[stride] * rank,
            pads=[pad] * 2 * rank,
            group=groups,
        )

    def bn(self, x: Tensor, gain: float = 1.0) -> Tensor:
        c = x.shape[1]
        name = self._next("BatchNormalization")
        scale = self.uniform(0.8 * gain, 1.2 * gain, c, name=f"{name}.scale")
        bias = self.uniform(-0.2, 0.2, c, name=f"{name}.bias")
        mean = self.uniform(-0.2, 0.2, c, name=f"{name}.mean")
        var = self.uniform(0.8, 1.2, c, name=f"{name}.var")
        return self.node("BatchNormalization", x, scale, bias, mean, var, epsilon=1e-5)

    def conv_bn(
        self,
        x: Tensor,
        out: int,
        k: int = 3,
        stride: int = 1,
        groups: int = 1,
        gain: float = HE,
        pad: int | None = None,
    ) -> Tensor:
        x = self.conv(x, out, k, stride, pad, groups, bias=not self.norm, gain=gain)
        return self.bn(x) if self.norm else x

    def gemm(self, x: Tensor, out: int, bias: bool = True, gain: float = 1.0) -> Tensor:
        name = self._next("Gemm")
        w = self.weight(out, x.shape[1], gain=gain, name=f"{name}.weight")
        b = [self.uniform(-0.1, 0.1, out, name=f"{name}.bias")] if bias else []
        return self.node("Gemm", x, w, *b, transB=1)

    def linear(self, x: Tensor, out: int, bias: bool = True, gain: float = 1.0) -> Tensor:
        """MatMul and Add, as exporters write a linear layer on more than two axes."""
        fan = x.shape[-1]
        name = self._next("MatMul")
        w = self.weight(fan, out, fan=fan, gain=gain, name=f"{name}.weight")
        y = self.matmul(x, w)
        return self.add(y, self.uniform(-0.1, 0.1, out, name=f"{name}.bias")) if bias else y

    def layer_norm(self, x: Tensor, decomposed: bool = False) -> Tensor:
        c = x.shape[-1]
        name = self._next("LayerNormalization")
        scale = self.uniform(0.8, 1.2, c, name=f"{name}.scale")
        bias = self.uniform(-0.2, 0.2, c, name=f"{name}.bias")
        if not decomposed:
            return self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=1e-5)
        centred = self.sub(x, self.mean(x))
        std = self.node("Sqrt", self.add(self.mean(self.node("Pow", centred, 2.0)), 1e-5))
        return self.add(self.mul(self.div(centred, std), scale), bias)

    def rms_norm(self, x: Tensor) -> Tensor:
        name = self._next("RMSNorm")
        scale = self.uniform(0.8, 1.2, x.shape[-1], name=f"{name}.weight")
        mean = self.mean(self.node("Pow", x, 2.0))
        inverse = self.node("Reciprocal", self.node("Sqrt", self.add(mean, 1e-5)))
        return self.mul(scale, self.mul(x, inverse))

    def group_norm(self, x: Tensor, groups: int) -> Tensor:
        """As PyTorch's exporter writes it: InstanceNormalization of the reshaped groups."""
        c = x.shape[1]
        y = self.reshape(x, [0, groups, -1])
        y = self.node(
            "InstanceNormalization",
            y,
            self.const(np.ones(groups, np.float32)),
            self.const(np.zeros(groups, np.float32)),
            epsilon=1e-5,
        )
        y = self.node("Reshape", y, self.node("Shape", x), shape=x.shape)
        name = self._next("GroupNorm")
        scale = self.uniform(0.8, 1.2, c, 1, 1, name=f"{name}.weight")
        bias = self.uniform(-0.2, 0.2, c, 1, 1, name=f"{name}.bias")
        return self.add(self.mul(y, scale), bias)

    def squeeze_excite(
        self, x: Tensor, squeezed: int, inner: str = "Relu", gate: str = "Sigmoid"
    ) -> Tensor:
        y = self.conv(self.global_avg_pool(x), squeezed, 1)
        y = self.silu(y) if inner == "SiLU" else self.node(inner, y)
        y = self.conv(y, x.shape[1], 1)
        attrs: dict[str, Any] = {"alpha": 1 / 6, "beta": 0.5} if gate == "HardSigmoid" else {}
        return self.mul(x, self.node(gate, y, **attrs))

    # --- single operators

    def relu(self, x: Tensor) -> Tensor:
        return self.node("Relu", x)

    def relu6(self, x: Tensor) -> Tensor:
        return self.node("Clip", x, 0.0, 6.0)

    def sigmoid(self, x: Tensor) -> Tensor:
        return self.node("Sigmoid", x)

    def silu(self, x: Tensor) -> Tensor:
        return self.mul(x, self.sigmoid(x))

    def hard_swish(self, x: Tensor) -> Tensor:
        return self.node("HardSwish", x)

    def gelu(self, x: Tensor) -> Tensor:
        erf = self.node("Erf", self.div(x, sqrt(2)))
        return self.mul(self.mul(x, self.add(erf, 1.0)), 0.5)

    def softmax(self, x: Tensor, axis: int = -1) -> Tensor:
        return self.node("Softmax", x, axis=axis)

    def add(self, a: Any, b: Any) -> Tensor:
        return self.node("Add", a, b)

    def sub(self, a: Any, b: Any) -> Tensor:
        return self.node("Sub", a, b)

    def mul(self, a: Any, b: Any) -> Tensor:
        return self.node("Mul", a, b)

    def div(self, a: Any, b: Any) -> Tensor:
        return self.node("Div", a, b)

    def matmul(self, a: Tensor, b: Any) -> Tensor:
        return self.node("MatMul", a, b)

    def mean(self, x: Tensor, axis: int = -1) -> Tensor:
        if self.graph.opset < 18:
            return self.node("ReduceMean", x, axes=[axis], keepdims=1)
        return self.node("ReduceMean", x, [axis], keepdims=1)

    def concat(self, *xs: Tensor, axis: int = 1) -> Tensor:
        return self.node("Concat", *xs, axis=axis)

    def split(self, x: Tensor, sizes: Sequence[int], axis: int = 1) -> list[Tensor]:
        return self.nodes("Split", [x, list(sizes)], len(sizes), axis=axis)

    def slice(self, x: Tensor, start: int, end: int, axis: int = 1, step: int = 1) -> Tensor:
        return self.node("Slice", x, [start], [end], [axis], [step])

    def gather(self, x: Tensor, index: Any, axis: int = 0) -> Tensor:
        return self.node("Gather", x, index, axis=axis)

    def pool(
        self, x: Tensor, k: int = 2, stride: int = 2, pad: int = 0, op: str = "MaxPool"
    ) -> Tensor:
        rank = len(x.shape) - 2
        return self.node(
            op, x, kernel_shape=[k] * rank, strides=[stride] * rank, pads=[pad] * 2 * rank
        )

    def global_avg_pool(self, x: Tensor) -> Tensor:
        return self.node("GlobalAveragePool", x)

    def flatten(self, x: Tensor) -> Tensor:
        return self.node("Flatten", x, axis=1)

    def transpose(self, x: Tensor, *perm: int) -> Tensor:
        return self.node("Transpose", x, perm=list(perm))

    def unsqueeze(self, x: Tensor, *axes: int) -> Tensor:
        return self.node("Unsqueeze", x, list(axes))

    def squeeze(self, x: Tensor, *axes: int) -> Tensor:
        return self.node("Squeeze", x, list(axes))

    def cast(self, x: Tensor, to: int) -> Tensor:
        return self.node("Cast", x, to=to)

    def reshape(self, x: Tensor, dims: Sequence[int]) -> Tensor:
        return self.node("Reshape", x, list(dims))

    # --- shapes computed at run time

    def dim(self, x: Tensor, axis: int) -> Tensor:
        """The size of an axis, read at run time."""
        return self.gather(self.node("Shape", x), np.int64(axis))

    def shape_vector(self, *dims: Any) -> Tensor:
        """Scalars and numbers as one shape: Unsqueeze each, then Concat."""
        parts = [self.unsqueeze(d, 0) if isinstance(d, Tensor) else self.const([d]) for d in dims]
        return self.concat(*parts, axis=0)
