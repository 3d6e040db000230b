"""Makes blocks between channels and space: unfolding, blocks of pixels, crops, samples."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.blocks.table import block
from models.builder import Net, Tensor

B = 2


@block("in 4, out 6")
def blocks_to_space(net: Net, x: Tensor) -> Any:
    """PixelShuffle as Reshape, Transpose, Reshape: a block of 4 channels is one after it."""
    y = net.reshape(net.conv(x, 16), [B, 4, 2, 2, 8, 8])
    y = net.reshape(net.transpose(y, 0, 1, 4, 2, 5, 3), [B, 4, 16, 16])
    return net.conv(y, 6)


@block("in 4, out 6")
def space_to_blocks(net: Net, x: Tensor) -> Any:
    """PixelUnshuffle as Reshape, Transpose, Reshape: one channel is a block of 4 after it."""
    y = net.reshape(net.conv(x, 4), [B, 4, 4, 2, 4, 2])
    y = net.reshape(net.transpose(y, 0, 1, 3, 5, 2, 4), [B, 16, 4, 4])
    return net.conv(y, 6)


@block("in 4, out 6")
def space_to_depth_first(net: Net, x: Tensor) -> Any:
    """TResNet's stem: the block's place becomes the outer factor of the channels."""
    y = net.reshape(net.conv(x, 4), [B, 4, 4, 2, 4, 2])
    y = net.reshape(net.transpose(y, 0, 3, 5, 1, 2, 4), [B, 16, 4, 4])
    return net.conv(y, 6)


@block("in 4, out 6")
def focus(net: Net, x: Tensor) -> Any:
    """YOLOv5: four strided slices of space are joined on the channels."""
    y = net.conv(x, 4)
    rows = [net.slice(y, i, 2**62, 2, step=2) for i in (0, 1)]
    return net.conv(net.concat(*(net.slice(r, j, 2**62, 3, 2) for j in (0, 1) for r in rows)), 6)


@block("in 4, middle 5, out 6")
def shuffled_twice(net: Net, x: Tensor) -> Any:
    """Super-resolution: two PixelShuffles, each with a convolution before it."""
    y = net.node("DepthToSpace", net.conv(x, 16), blocksize=2, mode="CRD")
    y = net.node("DepthToSpace", net.conv(net.relu(y), 20), blocksize=2, mode="CRD")
    return net.conv(net.relu(y), 6)


@block("in 8, out 6")
def blurred(net: Net, x: Tensor) -> Any:
    """BlurPool: one stored filter is expanded to as many channels as its input has."""
    y = net.node("Pad", net.conv(x, 8), [0, 0, 1, 1, 0, 0, 1, 1], mode="reflect")
    kernel = np.outer([1, 2, 1], [1, 2, 1]).astype(np.float32)[None, None] / 16
    weight = net.node("Expand", kernel, [8, 1, 3, 3])
    y = net.node("Conv", y, weight, kernel_shape=[3, 3], strides=[2, 2], group=8)
    return net.conv(y, 6)


@block("in 8, out 6")
def repeated_pixels(net: Net, x: Tensor) -> Any:
    """Upsampling by Unsqueeze, Expand and Reshape, as old Keras and FPN code has it."""
    y = net.node("Expand", net.unsqueeze(net.conv(x, 8), 3, 5), [B, 8, 8, 2, 8, 2])
    return net.conv(net.reshape(y, [B, 8, 16, 16]), 6)


def _unfold(net: Net, x: Tensor) -> Tensor:
    """F.unfold(x, 3, padding=1) as it is exported: [B, C, h, w] -> [B, C * 9, h * w]"""
    _, c, h, w = x.shape
    y = net.node("Pad", x, [0, 0, 1, 1, 0, 0, 1, 1])
    rows, columns = (np.arange(3)[:, None] + np.arange(n) for n in (h, w))
    y = net.gather(net.gather(y, rows, 2), columns, 4)
    return net.reshape(net.transpose(y, 0, 1, 2, 4, 3, 5), [B, c * 9, h * w])


@block("in 4, out 6")
def unfolded(net: Net, x: Tensor) -> Any:
    """A convolution as im2col: Unfold, then a product with a stored matrix."""
    y = _unfold(net, net.conv(x, 4))
    y = net.matmul(net.weight(6, 36), y)
    return net.reshape(y, [B, 6, 8, 8])


@block("in 4, kernels 5, out 6")
def reassembled(net: Net, x: Tensor) -> Any:
    """CARAFE, involution: every pixel has a kernel of its own, shared by all channels."""
    y = net.conv(x, 4)
    kernels = net.softmax(net.conv(net.relu(net.conv(x, 5, 1)), 9, 1), axis=1)
    kernels = net.reshape(kernels, [B, 1, 9, 64])
    y = net.mul(net.reshape(_unfold(net, y), [B, 4, 9, 64]), kernels)
    y = net.node("ReduceSum", y, [2], keepdims=0)
    return net.conv(net.reshape(y, [B, 4, 8, 8]), 6)


@block("in 6, groups 2, kernels 5, out 7")
def involution(net: Net, x: Tensor) -> Any:
    """Involution: kernels in 2 groups of channels; a channel goes from both, or a group."""
    y = net.conv(x, 12)
    kernels = net.conv(net.relu(net.conv_bn(x, 5, 1)), 2 * 9, 1)
    kernels = net.reshape(kernels, [B, 2, 1, 9, 64])
    y = net.mul(net.reshape(_unfold(net, y), [B, 2, 6, 9, 64]), kernels)
    y = net.node("ReduceSum", y, [3], keepdims=0)
    return net.conv(net.reshape(y, [B, 12, 8, 8]), 7)


@block("in 8, out 6", opset=19)
def deformed(net: Net, x: Tensor) -> Any:
    """Deformable convolution with a mask: one convolution makes offsets and mask, split 18, 9."""
    y = net.conv(x, 8)
    offset, mask = net.split(net.conv(y, 27), [18, 9])
    weight, bias = net.weight(6, 8, 3, 3), net.uniform(-1, 1, 6)
    return net.node("DeformConv", y, weight, offset, bias, net.sigmoid(mask), pads=[1] * 4)


@block("in 8, warped 5, out 6")
def warped(net: Net, x: Tensor) -> Any:
    """Optical flow: a map is sampled at places that another branch makes, joined and convolved."""
    flow = net.conv(net.relu(net.conv(x, 8)), 2)
    grid = net.add(net.transpose(net.node("Tanh", flow), 0, 2, 3, 1), 0.0)
    moved = net.node("GridSample", net.conv(x, 5), grid, align_corners=1)
    return net.conv(moved, 6)


@block("in 5, location 8, coordinates 3, out 6")
def transformed(net: Net, x: Tensor) -> Any:
    """Spatial transformer: an affine matrix from a small network, multiplied onto stored places."""
    theta = net.gemm(net.flatten(net.pool(net.relu(net.conv(x, 8)), 8)), 6)
    steps = np.linspace(-1, 1, 4, dtype=np.float32)
    places = np.stack([*np.meshgrid(steps, steps), np.ones((4, 4), np.float32)], -1)
    grid = net.matmul(places.reshape(16, 3), net.transpose(net.reshape(theta, [-1, 2, 3]), 0, 2, 1))
    moved = net.node("GridSample", net.conv(x, 5), net.reshape(grid, [B, 4, 4, 2]))
    return net.conv(moved, 6)


@block("in 8, hidden 7")
def regions(net: Net, x: Tensor) -> Any:
    """Faster R-CNN: RoiAlign, Flatten, Gemm; rows are regions, not images."""
    boxes = net.const(np.array([[0, 0, 5, 5], [1, 2, 7, 7], [2, 2, 6, 4]], np.float32))
    y = net.node("RoiAlign", net.conv(x, 8), boxes, np.array([0, 1, 1]), output_height=2,
                 output_width=2)  # fmt: skip
    return net.relu(net.gemm(net.flatten(y), 7))


@block("in 4~, out 6")
def correlated(net: Net, x: Tensor) -> Any:
    """FlowNet: one map against nine shifted copies of another, the mean over channels of each."""
    a, b = net.conv(x, 4), net.node("Pad", net.conv(x, 4), [0, 0, 1, 1, 0, 0, 1, 1])
    costs = [
        net.mean(net.mul(a, net.slice(net.slice(b, i, i + 8, 2), j, j + 8, 3)), 1)
        for i in range(3)
        for j in range(3)
    ]
    return net.conv(net.concat(*costs), 6)


@block("down 4, deep 6, up 5, out 7")
def cropped_skip(net: Net, x: Tensor) -> Any:
    """U-Net without padding: the skip is cropped by stored slices before it is joined."""
    down = net.relu(net.conv(x, 4))
    deep = net.relu(net.conv(net.pool(down), 6, pad=0))
    up = net.conv_transpose(deep, 5)
    down = net.slice(net.slice(down, 2, 6, 2), 2, 6, 3)
    return net.conv(net.concat(up, down), 7)


@block("down 4, deep 6, out 7")
def cropped_by_size(net: Net, x: Tensor) -> Any:
    """U-Net in Keras style: the upsampled map is padded to the skip's size, read at run time."""
    down = net.relu(net.conv(x, 4))
    deep = net.relu(net.conv(net.pool(down), 6))
    sizes = net.slice(net.node("Shape", down), 2, 4, axis=0)
    head = net.slice(net.node("Shape", deep), 0, 2, axis=0)
    up = net.node("Resize", deep, None, None, net.concat(head, sizes, axis=0), shape=[B, 6, 8, 8])
    return net.conv(net.concat(up, down), 7)
