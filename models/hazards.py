"""Makes one small graph per thing that a structured pruner is known to get wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import ModelProto, TensorProto

from models.builder import Dim, Net, Tensor
from models.vision import channel_shuffle

Body = Callable[[Net, Tensor], Any]
Maker = Callable[[], ModelProto]

HAZARDS: dict[str, tuple[Maker, int | None]] = {}  # expected groups; None: a matter of policy
UNRUNNABLE = {"custom_operator"}  # onnxruntime has no kernel

IMAGE = (2, 3, 8, 8)
ROWS = (2, 6)
TOKENS = (2, 4, 6)
IMAGES = ("n", 3, "h", "w")
SENTENCES = ("n", "s", 6)


def hazard(
    groups: int | None, shape: tuple[Dim, ...] = IMAGE, opset: int = 17, **options: Any
) -> Callable[[Body], Maker]:
    """A maker from a body (net, input) -> inner tensor, which gets a head, or tuple of outputs.

    The head is a linear layer on the features: all channels that reach it may be removed.
    """

    def wrap(body: Body) -> Maker:
        def make() -> ModelProto:
            net = Net(body.__name__, opset=opset)
            y = body(net, net.input("x", shape))
            if not isinstance(y, tuple):
                y = (net.linear(y, 5) if shape in (TOKENS, SENTENCES) else _head(net, y),)
            return net.model(*y, **options)

        make.__name__ = body.__name__
        HAZARDS[body.__name__] = make, groups
        return make

    return wrap


def _head(net: Net, x: Tensor) -> Tensor:
    if len(x.shape) > 2:
        x = net.flatten(net.global_avg_pool(x))
    return net.gemm(x, 5)


# --- chains, residuals, concatenations


@hazard(2)
def plain(net: Net, x: Tensor) -> Any:
    return net.conv(net.relu(net.conv(x, 8)), 6)


@hazard(2)
def batch_norm(net: Net, x: Tensor) -> Any:
    return net.relu(net.conv_bn(net.relu(net.conv_bn(x, 8)), 6))


@hazard(2, shape=(2, 3, 16))
def conv1d(net: Net, x: Tensor) -> Any:
    return net.conv(net.relu(net.conv(x, 8)), 6)


@hazard(2, shape=(2, 3, 6, 6, 6))
def conv3d(net: Net, x: Tensor) -> Any:
    return net.conv(net.relu(net.conv(x, 8)), 6)


@hazard(2)
def residual_add(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 8))
    return net.add(a, net.conv(net.relu(net.conv(a, 12)), 8))


@hazard(4)
def residual_chain(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 8))
    for _ in range(3):
        a = net.relu(net.add(a, net.conv(net.relu(net.conv(a, 12)), 8, gain=0.5)))
    return a


@hazard(2)
def concat(net: Net, x: Tensor) -> Any:
    return net.concat(net.conv(x, 4), net.conv(x, 6))


@hazard(3)
def concat_of_concats(net: Net, x: Tensor) -> Any:
    a = net.conv(x, 4)
    b = net.concat(a, net.conv(net.relu(a), 5))
    return net.concat(b, net.conv(net.relu(b), 6))


@hazard(1)
def mul_of_branches(net: Net, x: Tensor) -> Any:
    return net.mul(net.conv(x, 8), net.conv(x, 8))


@hazard(2)
def squeeze_excite(net: Net, x: Tensor) -> Any:
    return net.squeeze_excite(net.conv(x, 8), 4)


@hazard(None)
def dead_branch(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 8))
    net.conv(a, 4)
    return net.conv(a, 6)


@hazard(1)
def inner_tensor_is_output(net: Net, x: Tensor) -> Any:
    a = net.conv(x, 8)
    return _head(net, net.conv(net.relu(a), 6)), a


# --- splits, slices, gathers, pads


@hazard(3)
def split(net: Net, x: Tensor) -> Any:
    a, b = net.split(net.relu(net.conv(x, 12)), [4, 8])
    return net.add(net.conv(a, 6), net.conv(b, 6))


@hazard(3, opset=11)
def split_by_attribute(net: Net, x: Tensor) -> Any:
    a, b = net.nodes("Split", [net.relu(net.conv(x, 12))], 2, axis=1, split=[4, 8])
    return net.add(net.conv(a, 6), net.conv(b, 6))


@hazard(1)
def gated_halves(net: Net, x: Tensor) -> Any:
    a, b = net.nodes("Split", [net.conv(x, 16)], 2, axis=1)
    return net.mul(a, net.sigmoid(b))


@hazard(3)
def slice_channels(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 12))
    ends = net.slice(a, 0, 4), net.slice(a, -8, 2**62)
    return net.add(net.conv(ends[0], 6), net.conv(ends[1], 6))


@hazard(2)  # the step stays 2, so neighbours go in pairs, from both halves at once
def slice_with_step(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 12))
    halves = net.slice(a, 0, 12, step=2), net.slice(a, 1, 12, step=2)
    return net.add(net.conv(halves[0], 6), net.conv(halves[1], 6))


@hazard(2)
def gather_permutation(net: Net, x: Tensor) -> Any:
    return net.conv(net.gather(net.conv(x, 8), [3, 1, 0, 2, 5, 4, 7, 6], axis=1), 6)


@hazard(None)
def gather_repeats(net: Net, x: Tensor) -> Any:
    return net.conv(net.gather(net.conv(x, 4), [0, 0, 1, 2, 3, 3], axis=1), 6)


@hazard(None)  # the padded channels of the sum: removable, or locked as constants
def channel_pad_shortcut(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 8))
    return net.add(net.node("Pad", a, [0, 4, 0, 0, 0, 4, 0, 0]), net.conv(a, 16))


@hazard(2)
def pad_with_ones(net: Net, x: Tensor) -> Any:
    padded = net.node("Pad", net.conv(x, 8), [0, 0, 1, 1, 0, 0, 1, 1], 1.0)
    return net.conv(padded, 6, pad=0)


# --- convolutions


@hazard(3)
def grouped_conv(net: Net, x: Tensor) -> Any:
    return net.conv(net.relu(net.conv(x, 8)), 12, groups=2)


@hazard(2)
def depthwise(net: Net, x: Tensor) -> Any:
    return net.conv(net.conv(net.relu(net.conv(x, 8)), 8, groups=8), 6, 1)


@hazard(3)
def depthwise_multiplier(net: Net, x: Tensor) -> Any:
    return net.conv(net.conv(net.relu(net.conv(x, 8)), 16, groups=8), 6, 1)


@hazard(2)
def conv_transpose(net: Net, x: Tensor) -> Any:
    return net.conv_transpose(net.relu(net.conv(x, 8)), 6)


@hazard(3)
def grouped_conv_transpose(net: Net, x: Tensor) -> Any:
    return net.conv_transpose(net.relu(net.conv(x, 8)), 12, groups=2)


@hazard(3)
def shuffle(net: Net, x: Tensor) -> Any:
    return net.conv(channel_shuffle(net, net.relu(net.conv(x, 8)), 2), 6)


@hazard(None)
def shuffle_between_grouped(net: Net, x: Tensor) -> Any:
    a = net.conv(net.relu(net.conv(x, 8)), 12, groups=2)
    return net.conv(channel_shuffle(net, a, 2), 8, groups=2)


@hazard(4)  # the same index of every group for each of three, and whole groups of the first
def grouped_behind_concat(net: Net, x: Tensor) -> Any:
    """The second one's groups are the parts of the concatenation."""
    a = net.conv(net.relu(net.conv(x, 4)), 4, groups=2)
    return net.conv(net.concat(net.conv(x, 4), a), 6, groups=2)


# --- reshapes and moves


@hazard(2)
def flatten(net: Net, x: Tensor) -> Any:
    return net.relu(net.gemm(net.flatten(net.pool(net.conv(x, 8))), 10))


@hazard(2)
def flatten_by_reshape(net: Net, x: Tensor) -> Any:
    return net.relu(net.gemm(net.reshape(net.pool(net.conv(x, 8)), [0, -1]), 10))


@hazard(2, shape=(1, 3, 8, 8))
def flatten_by_constant(net: Net, x: Tensor) -> Any:
    return net.relu(net.gemm(net.reshape(net.pool(net.conv(x, 8)), [1, 128]), 10))


@hazard(2)
def flatten_by_computed_shape(net: Net, x: Tensor) -> Any:
    a = net.pool(net.conv(x, 8))
    size = net.mul(net.dim(a, 1), net.mul(net.dim(a, 2), net.dim(a, 3)))
    rows = net.node("Reshape", a, net.shape_vector(net.dim(a, 0), size), shape=[2, 128])
    return net.relu(net.gemm(rows, 10))


@hazard(2)
def depth_to_space_dcr(net: Net, x: Tensor) -> Any:
    return net.conv(net.node("DepthToSpace", net.conv(x, 16), blocksize=2, mode="DCR"), 6)


@hazard(2)
def depth_to_space_crd(net: Net, x: Tensor) -> Any:
    return net.conv(net.node("DepthToSpace", net.conv(x, 16), blocksize=2, mode="CRD"), 6)


@hazard(2)
def space_to_depth(net: Net, x: Tensor) -> Any:
    return net.conv(net.node("SpaceToDepth", net.conv(x, 4), blocksize=2), 6)


@hazard(2)
def resize_to_sizes(net: Net, x: Tensor) -> Any:
    return net.conv(net.node("Resize", net.conv(x, 8), None, None, [2, 8, 16, 16]), 6)


@hazard(2)
def resize_to_computed_sizes(net: Net, x: Tensor) -> Any:
    a = net.conv(x, 8)
    sizes = net.concat(net.slice(net.node("Shape", a), 0, 2, axis=0), net.const([16, 16]), axis=0)
    return net.conv(net.node("Resize", a, None, None, sizes, shape=[2, 8, 16, 16]), 6)


@hazard(2, opset=9)
def upsample(net: Net, x: Tensor) -> Any:
    return net.conv(net.node("Upsample", net.conv(x, 8), [1.0, 1.0, 2.0, 2.0]), 6)


@hazard(2)
def channels_last_and_back(net: Net, x: Tensor) -> Any:
    a = net.transpose(net.conv(x, 8), 0, 2, 3, 1)
    a = net.relu(net.add(a, net.uniform(-1, 1, 8)))
    return net.conv(net.transpose(a, 0, 3, 1, 2), 6)


@hazard(2)
def squeeze_and_unsqueeze(net: Net, x: Tensor) -> Any:
    a = net.squeeze(net.global_avg_pool(net.conv(x, 8)), 2, -1)
    return net.node("Squeeze", net.unsqueeze(net.gemm(net.relu(a), 6), 0), [0])


@hazard(2, opset=11)
def squeeze_by_attribute(net: Net, x: Tensor) -> Any:
    a = net.node("Squeeze", net.global_avg_pool(net.conv(x, 8)), axes=[3])
    return net.conv(net.node("Unsqueeze", net.relu(a), axes=[2]), 6, 1)


@hazard(1, shape=TOKENS)
def expanded_token(net: Net, x: Tensor) -> Any:
    token = net.node("Expand", net.uniform(-1, 1, 1, 1, 8), [2, 1, 8])
    return (net.linear(net.concat(token, net.linear(x, 8)), 5),)


@hazard(1, shape=TOKENS)
def tiled_token(net: Net, x: Tensor) -> Any:
    token = net.node("Tile", net.uniform(-1, 1, 1, 1, 8), [2, 1, 1])
    return (net.linear(net.concat(token, net.linear(x, 8)), 5),)


# --- constants


def _conv_with(net: Net, x: Tensor, *weights: Tensor) -> Tensor:
    return net.node("Conv", x, *weights, kernel_shape=[3, 3], pads=[1] * 4)


@hazard(2)
def siamese_weight(net: Net, x: Tensor) -> Any:
    w = net.weight(6, 8, 3, 3)
    return net.concat(*(net.relu(_conv_with(net, net.conv(x, 8), w)) for _ in range(2)))


@hazard(1)
def recurrent_weight(net: Net, x: Tensor) -> Any:
    w, y = net.weight(8, 8, 3, 3), net.conv(x, 8)
    return _conv_with(net, net.relu(_conv_with(net, y, w)), w)


@hazard(None)  # one group when the bias ties them, two when each gets its copy
def shared_bias(net: Net, x: Tensor) -> Any:
    b = net.uniform(-1, 1, 8)
    a = net.relu(_conv_with(net, x, net.weight(8, 3, 3, 3), b))
    return _conv_with(net, a, net.weight(8, 8, 3, 3), b)


@hazard(None)  # the second convolution is an output, so a tie through the bias locks the first
def bias_shared_with_output(net: Net, x: Tensor) -> Any:
    b = net.uniform(-1, 1, 8)
    a = net.relu(_conv_with(net, x, net.weight(8, 3, 3, 3), b))
    return (_conv_with(net, a, net.weight(8, 8, 3, 3), b),)


@hazard(2)
def identity_alias(net: Net, x: Tensor) -> Any:
    w = net.node("Identity", net.weight(8, 3, 3, 3))
    return net.conv(net.node("Identity", net.relu(_conv_with(net, x, w))), 6)


@hazard(2)
def constant_nodes(net: Net, x: Tensor) -> Any:
    for shape in ((8, 3, 3, 3), (6, 8, 3, 3)):
        w = net.node("Constant", value=net.weight(*shape).values)
        b = net.node("Constant", value=net.uniform(-1, 1, shape[0]).values)
        x = net.relu(_conv_with(net, x, w, b))
    return x


@hazard(2, opset=8, ir_version=3, initializers_as_inputs=True)
def initializers_as_inputs(net: Net, x: Tensor) -> Any:
    return net.conv(net.relu(net.conv(x, 8)), 6)


@hazard(1)
def prelu(net: Net, x: Tensor) -> Any:
    return net.node("PRelu", net.conv(x, 8), net.uniform(0, 0.5, 8, 1, 1))


@hazard(1)
def channel_parameter(net: Net, x: Tensor) -> Any:
    return net.relu(net.add(net.uniform(-1, 1, 8, 1, 1), net.conv(x, 8)))


@hazard(2)
def where_constant(net: Net, x: Tensor) -> Any:
    keep = net.const(np.arange(8).reshape(8, 1, 1) % 3 > 0)
    return net.conv(net.node("Where", keep, net.conv(x, 8), 0.0), 6)


# --- linear algebra


@hazard(3, shape=ROWS)
def gemm_variants(net: Net, x: Tensor) -> Any:
    a = net.node("Gemm", x, net.weight(6, 8, fan=6), net.uniform(-1, 1, 8), alpha=0.5, beta=2.0)
    a = net.transpose(net.relu(a), 1, 0)
    a = net.node("Gemm", a, net.weight(8, 10, fan=8), net.uniform(-1, 1, 1, 10), transA=1)
    a = net.transpose(net.relu(a), 1, 0)
    return net.relu(net.node("Gemm", a, net.weight(7, 10), np.float32(0.1), transA=1, transB=1))


@hazard(1, shape=ROWS)
def matmul_with_vector(net: Net, x: Tensor) -> Any:
    return (net.matmul(net.relu(net.linear(x, 8)), net.weight(8)),)


@hazard(1, shape=(6,))
def vector_times_matrix(net: Net, x: Tensor) -> Any:
    a = net.relu(net.matmul(x, net.weight(6, 8, fan=6)))
    return (net.matmul(a, net.weight(8, 5, fan=8)),)


@hazard(1, shape=(4, 2, 6))
def batched_weight(net: Net, x: Tensor) -> Any:
    a = net.relu(net.matmul(x, net.weight(4, 6, 8, fan=6)))
    return (net.matmul(a, net.weight(4, 8, 5, fan=8)),)


@hazard(1, shape=TOKENS)
def einsum(net: Net, x: Tensor) -> Any:
    a = net.node("Einsum", x, net.weight(6, 8, fan=6), equation="bsd,dh->bsh")
    return (net.node("Einsum", net.relu(a), net.weight(5, 8), equation="bsh,oh->bso"),)


# --- what a removed channel leaves behind, and statistics over live axes


@hazard(2)
def scalar_add(net: Net, x: Tensor) -> Any:
    return net.conv(net.add(net.conv(x, 8), 0.5), 6)


@hazard(2)
def sigmoid(net: Net, x: Tensor) -> Any:
    return net.conv(net.sigmoid(net.conv(x, 8)), 6)


@hazard(2)
def softmax_over_channels(net: Net, x: Tensor) -> Any:
    return net.conv(net.softmax(net.conv(x, 8), axis=1), 6)


@hazard(1)
def mean_over_channels(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 8))
    return net.mul(a, net.sigmoid(net.mean(a, 1)))


@hazard(1, shape=TOKENS)
def layer_norm(net: Net, x: Tensor) -> Any:
    return net.layer_norm(net.linear(x, 8))


@hazard(1, shape=TOKENS)
def layer_norm_decomposed(net: Net, x: Tensor) -> Any:
    return net.layer_norm(net.linear(x, 8), decomposed=True)


@hazard(2)
def instance_norm(net: Net, x: Tensor) -> Any:
    scale, bias = net.uniform(0.5, 1, 8), net.uniform(-1, 1, 8)
    return net.conv(net.relu(net.node("InstanceNormalization", net.conv(x, 8), scale, bias)), 6)


@hazard(3)
def group_norm(net: Net, x: Tensor) -> Any:
    return net.conv(net.relu(net.group_norm(net.conv(x, 8), 2)), 6)


@hazard(2)
def lrn(net: Net, x: Tensor) -> Any:
    return net.conv(net.node("LRN", net.relu(net.conv(x, 8)), size=3, alpha=0.1), 6)


@hazard(1)
def argmax_over_channels(net: Net, x: Tensor) -> Any:
    a = net.conv(x, 8)
    return _head(net, net.conv(net.relu(a), 6)), net.node("ArgMax", a, axis=1)


@hazard(2)
def topk_over_channels(net: Net, x: Tensor) -> Any:
    """Their values alone are read, as a maximum over them would be."""
    a = net.conv(x, 8)
    values, _ = net.nodes("TopK", [a, [3]], 2, axis=1)
    return _head(net, net.conv(net.relu(a), 6)), values


@hazard(1)
def topk_of_channels(net: Net, x: Tensor) -> Any:
    """Which channels they are is an output."""
    a = net.conv(x, 8)
    _, index = net.nodes("TopK", [a, [3]], 2, axis=1)
    return _head(net, net.conv(net.relu(a), 6)), index


@hazard(1)
def topk_to_numbers(net: Net, x: Tensor) -> Any:
    """Which channels they are is a number to count with."""
    a = net.conv(x, 8)
    _, index = net.nodes("TopK", [a, [3]], 2, axis=1)
    return net.concat(net.conv(net.relu(a), 6), net.cast(index, TensorProto.FLOAT))


# --- pass-through, unknown, nested


@hazard(2)
def dropout(net: Net, x: Tensor) -> Any:
    return net.conv(net.node("Dropout", net.conv(x, 8)), 6)


@hazard(2)
def cast_to_half_and_back(net: Net, x: Tensor) -> Any:
    half = net.relu(net.cast(net.conv(x, 8), TensorProto.FLOAT16))
    return net.conv(net.cast(half, TensorProto.FLOAT), 6)


@hazard(1)
def custom_operator(net: Net, x: Tensor) -> Any:
    a = net.node("Mystery", net.conv(x, 8), domain="com.example", shape=[2, 8, 8, 8])
    return net.conv(a, 6)


@hazard(2)
def if_captures_outer(net: Net, x: Tensor) -> Any:
    a = net.conv(x, 8)
    bodies = {}
    for branch, op in (("then_branch", "Relu"), ("else_branch", "Neg")):
        y = gs.Variable(f"{branch}.out", np.float32, a.shape)
        bodies[branch] = gs.Graph([gs.Node(op, branch, inputs=[a], outputs=[y])], outputs=[y])
    positive = net.node("Greater", net.node("ReduceMax", x, keepdims=0), 9.0)
    return net.conv(net.node("If", positive, shape=a.shape, **bodies), 6)


# --- attention


@hazard(2, shape=TOKENS)
def single_head(net: Net, x: Tensor) -> Any:
    q, k, v = net.split(net.linear(x, 24), [8, 8, 8], axis=2)
    scores = net.softmax(net.matmul(q, net.transpose(k, 0, 2, 1)))
    return net.matmul(scores, v)


@hazard(None, shape=TOKENS)  # whole heads: one; the same index in every head: two
def multi_head(net: Net, x: Tensor) -> Any:
    q, k, v = (
        net.transpose(net.reshape(net.linear(x, 8), [0, 0, 2, 4]), 0, 2, 1, 3) for _ in "qkv"
    )
    scores = net.softmax(net.div(net.matmul(q, net.transpose(k, 0, 1, 3, 2)), 2.0))
    return net.reshape(net.transpose(net.matmul(scores, v), 0, 2, 1, 3), [0, 0, 8])


# --- free sizes, and shapes computed at run time


def _view(net: Net, x: Tensor, *sizes: Any, shape: list[Any]) -> Tensor:
    """A Reshape to sizes of which some are computed."""
    return net.node("Reshape", x, net.shape_vector(*sizes), shape=shape)


def _int(value: int) -> np.int64:
    return np.int64(value)


@hazard(1, shape=IMAGES)
def view_rest_by_channels(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 8))
    rows = net.transpose(a, 0, 2, 3, 1)
    return (net.linear(_view(net, rows, net.dim(a, 0), -1, 8, shape=["n", None, 8]), 5),)


@hazard(2, shape=("n", 3, 8, 8))
def view_rest_by_product(net: Net, x: Tensor) -> Any:
    return net.relu(net.gemm(net.reshape(net.pool(net.conv(x, 8)), [-1, 8 * 4 * 4]), 10))


@hazard(2, shape=("n", 3, 8, 8))
def flatten_by_product_of_shape(net: Net, x: Tensor) -> Any:
    a = net.pool(net.conv(x, 8))
    rest = net.slice(net.node("Shape", a), 1, 2**62, axis=0)
    sizes = net.concat(net.unsqueeze(net.dim(a, 0), 0), net.node("ReduceProd", rest), axis=0)
    return net.relu(net.gemm(net.node("Reshape", a, sizes, shape=["n", 128]), 10))


@hazard(2, shape=("n", 3, 8, 8))
def flatten_by_size(net: Net, x: Tensor) -> Any:
    a = net.pool(net.conv(x, 8))
    rows = net.dim(a, 0)
    each = net.div(net.node("Size", a), rows)
    return net.relu(net.gemm(_view(net, a, rows, each, shape=["n", 128]), 10))


@hazard(2, shape=("n", 8, 6))
def sequence_as_long_as_wide(net: Net, x: Tensor) -> Any:
    a = net.relu(net.linear(x, 8))
    a = net.relu(_view(net, a, net.dim(a, 0), 8, 8, shape=["n", 8, 8]))
    return net.relu(net.gemm(net.reshape(a, [-1, 64]), 10))


@hazard(1, shape=(8, 3, "h", "w"))
def batch_as_large_as_wide(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 8))
    a = net.node("Reshape", a, [8, 8, -1], shape=[8, 8, None])
    return (net.linear(net.transpose(a, 0, 2, 1), 5),)


@hazard(1, shape=(8, 8, 6))
def all_sizes_alike(net: Net, x: Tensor) -> Any:
    a = net.relu(net.linear(x, 8))
    a = net.node("Reshape", a, [8, 8, 8])
    a = net.transpose(net.node("Reshape", net.transpose(a, 1, 2, 0), [8, 8, 8]), 2, 0, 1)
    return (net.linear(a, 5),)


def _expand_sizes(net: Net, sizes: Tensor) -> Tensor:
    """As PyTorch's older exporter writes `expand`: a -1 stands for 1, which keeps a size."""
    ones = net.node(
        "ConstantOfShape", net.node("Shape", sizes), value=np.ones(1, np.int64), dtype=np.int64
    )
    return net.node("Where", net.node("Equal", sizes, net.mul(ones, _int(-1))), ones, sizes)


@hazard(1, shape=SENTENCES)
def expand_where_minus_one(net: Net, x: Tensor) -> Any:
    sizes = _expand_sizes(net, net.shape_vector(net.dim(x, 0), -1, -1))
    token = net.node("Expand", net.uniform(-1, 1, 1, 1, 8), sizes, shape=["n", 1, 8])
    return (net.linear(net.concat(token, net.linear(x, 8)), 5),)


@hazard(1, shape=SENTENCES)
def expand_where_size(net: Net, x: Tensor) -> Any:
    sizes = _expand_sizes(net, net.shape_vector(net.dim(x, 0), 1, 8))
    token = net.node("Expand", net.uniform(-1, 1, 1, 1, 8), sizes, shape=["n", 1, 8])
    return (net.linear(net.concat(token, net.linear(x, 8)), 5),)


@hazard(1, shape=SENTENCES)
def tile_by_batch(net: Net, x: Tensor) -> Any:
    repeats = net.shape_vector(net.dim(x, 0), 1, 1)
    token = net.node("Tile", net.uniform(-1, 1, 1, 1, 8), repeats, shape=["n", 1, 8])
    return (net.linear(net.concat(token, net.linear(x, 8)), 5),)


@hazard(3, shape=IMAGES)
def shuffle_by_quotient(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 8))
    n, c, h, w = (net.dim(a, k) for k in range(4))
    b = _view(net, a, n, 2, net.div(c, _int(2)), h, w, shape=["n", 2, 4, None, None])
    b = _view(net, net.transpose(b, 0, 2, 1, 3, 4), n, -1, h, w, shape=["n", 8, None, None])
    return net.conv(b, 6)


def _unshuffle(net: Net, x: Tensor, computed: bool) -> Tensor:
    a = net.relu(net.conv(x, 8))
    n, h, w = (net.dim(a, k) for k in (0, 2, 3))
    c = net.dim(a, 1) if computed else 8
    h, w = net.div(h, _int(2)), net.div(w, _int(2))
    b = _view(net, a, n, c, h, 2, w, 2, shape=["n", 8, None, 2, None, 2])
    wide = net.mul(c, _int(4)) if computed else 32
    b = net.transpose(b, 0, 1, 3, 5, 2, 4)
    return net.conv(_view(net, b, n, wide, h, w, shape=["n", 32, None, None]), 6)


@hazard(2, shape=IMAGES)
def unshuffle_by_constants(net: Net, x: Tensor) -> Any:
    return _unshuffle(net, x, computed=False)


@hazard(2, shape=IMAGES)
def unshuffle_by_shape(net: Net, x: Tensor) -> Any:
    return _unshuffle(net, x, computed=True)


def _doubled(net: Net, a: Tensor, channels: Any) -> Tensor:
    sides = [net.mul(net.dim(a, k), _int(2)) for k in (2, 3)]
    sizes = net.shape_vector(net.dim(a, 0), channels, *sides)
    shape = ["n", a.shape[1], None, None]
    return net.conv(net.node("Resize", a, None, None, sizes, shape=shape), 6)


@hazard(2, shape=IMAGES)
def resize_with_constant_channels(net: Net, x: Tensor) -> Any:
    return _doubled(net, net.relu(net.conv(x, 8)), 8)


@hazard(2, shape=IMAGES)
def resize_with_channels_of_shape(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 8))
    return _doubled(net, a, net.dim(a, 1))


@hazard(2, shape=IMAGES)
def resize_by_floor(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 8))
    shape = net.node("Shape", a)
    sides = net.mul(net.cast(net.slice(shape, 2, 4, axis=0), TensorProto.FLOAT), 1.5)
    sides = net.cast(net.node("Floor", sides), TensorProto.INT64)
    sizes = net.concat(net.slice(shape, 0, 2, axis=0), sides, axis=0)
    return net.conv(net.node("Resize", a, None, None, sizes, shape=["n", 8, None, None]), 6)


@hazard(2, shape=IMAGES)  # the halves: channels that are multiplied go together
def halves_by_quotient(net: Net, x: Tensor) -> Any:
    a = net.conv(x, 16)
    half, full = net.unsqueeze(net.div(net.dim(a, 1), _int(2)), 0), net.unsqueeze(net.dim(a, 1), 0)
    shape = ["n", 8, None, None]
    b = net.node("Slice", a, [0], half, [1], shape=shape)
    c = net.node("Slice", a, half, full, [1], shape=shape)
    return net.conv(net.mul(b, net.sigmoid(c)), 6)


@hazard(1, shape=SENTENCES)
def positions_by_length(net: Net, x: Tensor) -> Any:
    table = net.uniform(-1, 1, 1, 64, 8)
    end = net.unsqueeze(net.dim(x, 1), 0)
    return net.add(net.linear(x, 8), net.node("Slice", table, [0], end, [1], shape=[1, "s", 8]))


@hazard(1, shape=("n", "h", "w", 6))
def windows(net: Net, x: Tensor) -> Any:
    a = net.relu(net.linear(x, 8))
    n, h, w = (net.dim(a, k) for k in range(3))
    h, w = net.div(h, _int(8)), net.div(w, _int(8))
    b = _view(net, a, n, h, 8, w, 8, 8, shape=["n", None, 8, None, 8, 8])
    b = _view(net, net.transpose(b, 0, 1, 3, 2, 4, 5), -1, 64, 8, shape=[None, 64, 8])
    b = net.relu(net.mul(b, net.uniform(0.5, 1, 64, 1)))
    b = _view(net, b, n, h, w, 8, 8, 8, shape=["n", None, None, 8, 8, 8])
    tall, wide = net.mul(h, _int(8)), net.mul(w, _int(8))
    b = net.transpose(b, 0, 1, 3, 2, 4, 5)
    return (net.linear(_view(net, b, n, tall, wide, 8, shape=["n", None, None, 8]), 5),)


@hazard(2, shape=IMAGES)
def pad_to_multiple(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 8))
    missing = []
    for k in (2, 3):
        rest = net.node("Mod", net.dim(a, k), _int(4))
        missing.append(net.node("Mod", net.sub(_int(4), rest), _int(4)))
    pads = net.shape_vector(0, 0, 0, 0, 0, 0, *missing)
    return net.conv(net.node("Pad", a, pads, shape=["n", 8, None, None]), 6)


@hazard(2, shape=IMAGES)
def pads_by_reversed_pairs(net: Net, x: Tensor) -> Any:
    """As PyTorch's older exporter writes `pad`: pairs from the last axis on, zeros put behind."""
    given = net.const([1, 2, 0, 1])
    rank = np.int64(4)
    more = net.sub(net.mul(rank, _int(2)), _int(4))
    zeros = net.node("ConstantOfShape", net.unsqueeze(more, 0), value=np.zeros(1, np.int64),
                     dtype=np.int64, shape=[4])  # fmt: skip
    pairs = net.reshape(net.concat(given, zeros, axis=0), [-1, 2])
    pairs = net.node("Slice", pairs, [-1], [-(2**62)], [0], [-1])
    pads = net.reshape(net.transpose(pairs, 1, 0), [-1])
    a = net.relu(net.conv(x, 8))
    padded = net.node("Pad", a, pads, 0.0, shape=["n", 8, None, None])
    return net.conv(padded, 6)


def _unfold(net: Net, a: Tensor, wide: Any) -> Tensor:
    """Windows of 3 x 3 as rows, the way PyTorch's older exporter writes `unfold`."""
    out = a
    for at, axis in ((2, 2), (3, 4)):
        end = net.sub(net.dim(a, at), _int(2))
        starts = net.node("Range", _int(0), end, _int(1), shape=[None], dtype=np.int64)
        index = net.add(net.unsqueeze(starts, 0), net.const([[0], [1], [2]]))
        out = net.gather(out, index, axis=axis)
    out = net.transpose(out, 0, 1, 2, 4, 3, 5)
    rows = _view(net, out, net.dim(a, 0), wide, -1, shape=["n", 72, None])
    return net.linear(net.transpose(rows, 0, 2, 1), 5)


@hazard(1, shape=IMAGES)
def unfold_by_constants(net: Net, x: Tensor) -> Any:
    return (_unfold(net, net.relu(net.conv(x, 8)), 72),)


@hazard(1, shape=IMAGES)
def unfold_by_shape(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 8))
    return (_unfold(net, a, net.mul(net.dim(a, 1), _int(9))),)


@hazard(2, shape=IMAGES)
def pixel_shuffle_by_views(net: Net, x: Tensor) -> Any:
    a = net.relu(net.conv(x, 16))
    n, c, h, w = (net.dim(a, k) for k in range(4))
    c = net.div(c, _int(4))
    b = _view(net, a, n, c, 2, 2, h, w, shape=["n", 4, 2, 2, None, None])
    h, w = net.mul(h, _int(2)), net.mul(w, _int(2))
    b = net.transpose(b, 0, 1, 4, 2, 5, 3)
    return net.conv(_view(net, b, n, c, h, w, shape=["n", 4, None, None]), 6)


@hazard(3, shape=IMAGES)
def norm_of_computed_groups(net: Net, x: Tensor) -> Any:
    """Two groups of channels, their width computed; the view back copies the shape."""
    a = net.conv(x, 8)
    n, c, h, w = (net.dim(a, k) for k in range(4))
    b = _view(net, a, n, 2, net.mul(net.div(c, _int(2)), net.mul(h, w)), shape=["n", 2, None])
    scale, bias = net.const(np.ones(2, np.float32)), net.const(np.zeros(2, np.float32))
    b = net.node("InstanceNormalization", b, scale, bias)
    b = net.node("Reshape", b, net.node("Shape", a), shape=a.shape)
    return net.conv(net.relu(net.mul(b, net.uniform(0.5, 1, 8, 1, 1))), 6)


@hazard(2, shape=IMAGES)
def repeat_by_tile(net: Net, x: Tensor) -> Any:
    """One pooled vector put back on every pixel, by sizes that are read from elsewhere."""
    a = net.relu(net.conv(x, 8))
    pooled = net.node("ReduceMax", a, axes=[2, 3], keepdims=1)
    repeats = net.shape_vector(1, 1, net.dim(x, 2), net.dim(x, 3))
    spread = net.node("Tile", pooled, repeats, shape=["n", 8, "h", "w"])
    return net.conv(net.mul(a, spread), 6)


@hazard(None, shape=SENTENCES)
def scale_by_shape(net: Net, x: Tensor) -> Any:
    """The square root of the head size, read from the shape."""
    q, k, v = (net.linear(x, 8) for _ in "qkv")
    size = net.cast(net.dim(q, 2), TensorProto.FLOAT)
    scores = net.div(net.matmul(q, net.transpose(k, 0, 2, 1)), net.node("Sqrt", size))
    return net.matmul(net.softmax(scores), v)


@hazard(None, shape=IMAGES)
def mean_by_shape(net: Net, x: Tensor) -> Any:
    """A sum over channels, divided by their number as the shape has it."""
    a = net.relu(net.conv(x, 8))
    total = net.node("ReduceSum", a, [1], keepdims=1)
    mean = net.div(total, net.cast(net.dim(a, 1), TensorProto.FLOAT))
    return net.mul(a, net.sigmoid(mean))


@hazard(None, shape=IMAGES)
def range_over_channels(net: Net, x: Tensor) -> Any:
    """The number of each channel as data."""
    a = net.relu(net.conv(x, 8))
    steps = net.node("Range", _int(0), net.dim(a, 1), _int(1), shape=[8], dtype=np.int64)
    steps = net.unsqueeze(net.cast(steps, TensorProto.FLOAT), 1, 2)
    return net.conv(net.mul(a, steps), 6)


def _heads(net: Net, x: Tensor, width: int, *sizes: Any) -> Tensor:
    """[n, s, width] -> [n, heads, s, width of a head], the sizes given."""
    n, s = net.dim(x, 0), net.dim(x, 1)
    split = _view(net, net.linear(x, width), n, s, *sizes, shape=["n", "s", 2, width // 2])
    return net.transpose(split, 0, 2, 1, 3)


def _joined(net: Net, x: Tensor, *sizes: Any) -> Tensor:
    back = net.transpose(x, 0, 2, 1, 3)
    n, s = net.dim(back, 0), net.dim(back, 1)
    return _view(net, back, n, s, *sizes, shape=["n", "s", 8])


@hazard(None, shape=SENTENCES)
def heads_by_shared_quotient(net: Net, x: Tensor) -> Any:
    """Three readers of one computed head size, which is a share of the width of the input."""
    x = net.relu(net.linear(x, 8))
    wide = net.dim(x, 2)
    size = net.div(wide, _int(2))
    q, k, v = (_heads(net, x, 8, 2, size) for _ in "qkv")
    scores = net.softmax(net.matmul(q, net.transpose(k, 0, 1, 3, 2)))
    return _joined(net, net.matmul(scores, v), wide)


@hazard(None, shape=SENTENCES)
def relative_positions(net: Net, x: Tensor) -> Any:
    """A table of biases, one column for each head, looked up by the distance of two positions."""
    q, k, v = (_heads(net, x, 8, 2, 4) for _ in "qkv")
    s = net.dim(x, 1)
    places = net.node("Range", _int(0), s, _int(1), shape=["s"], dtype=np.int64)
    far = net.sub(net.unsqueeze(places, 0), net.unsqueeze(places, 1))
    far = net.add(net.node("Min", net.node("Max", far, _int(-3)), _int(3)), _int(3))
    bias = net.transpose(net.gather(net.uniform(-1, 1, 7, 2), far), 2, 0, 1)
    scores = net.add(net.matmul(q, net.transpose(k, 0, 1, 3, 2)), bias)
    return _joined(net, net.matmul(net.softmax(scores), v), 8)


@hazard(None, shape=SENTENCES)
def causal_by_range(net: Net, x: Tensor) -> Any:
    """A mask from comparing positions; past and present lengths are one here."""
    q, k, v = (_heads(net, x, 8, 2, -1) for _ in "qkv")
    places = net.node("Range", _int(0), net.dim(x, 1), _int(1), shape=["s"], dtype=np.int64)
    seen = net.node("LessOrEqual", net.unsqueeze(places, 0), net.unsqueeze(places, 1))
    scores = net.matmul(q, net.transpose(k, 0, 1, 3, 2))
    scores = net.node("Where", seen, scores, -1e4)
    return _joined(net, net.matmul(net.softmax(scores), v), -1)


@hazard(None, shape=SENTENCES)
def heads_in_the_batch(net: Net, x: Tensor) -> Any:
    """Batch and heads as one axis, as BART and T5 have it: view(b * heads, -1, d)."""
    n, s = net.dim(x, 0), net.dim(x, 1)
    both = net.mul(n, _int(2))
    q, k, v = (
        _view(net, _heads(net, x, 8, 2, 4), both, -1, 4, shape=[None, None, 4]) for _ in "qkv"
    )
    scores = net.softmax(net.matmul(q, net.transpose(k, 0, 2, 1)))
    back = _view(net, net.matmul(scores, v), n, 2, s, 4, shape=["n", 2, "s", 4])
    return _joined(net, back, 8)


@hazard(6)
def mixed_kernels(net: Net, x: Tensor) -> Any:
    """Each image has kernels of its own, mixed of stored ones: the batch is the groups."""
    a = net.relu(net.conv(x, 8))
    for out in (6, 8):
        inner = a.shape[1]
        shares = net.softmax(net.gemm(net.flatten(net.global_avg_pool(a)), 4))
        kernels = net.matmul(shares, net.weight(4, out * inner * 9))
        rows = net.reshape(a, [1, 2 * inner, 8, 8])
        mixed = net.node(
            "Conv", rows, net.reshape(kernels, [2 * out, inner, 3, 3]), group=2, pads=[1] * 4
        )
        a = net.relu(net.reshape(mixed, [2, out, 8, 8]))
    return net.conv(a, 6)


@hazard(1, shape=("n", "t"))
def spectrum_of_a_window(net: Net, x: Tensor) -> Any:
    """ONNX's inference takes the frames of an STFT for longer than onnxruntime's are."""
    frames = net.node("STFT", net.unsqueeze(x, -1), _int(4), net.uniform(0, 1, 16))
    power = net.node("ReduceSumSquare", frames, axes=[-1], keepdims=0)
    power.shape = ["n", None, 9]
    return (net.linear(net.relu(net.linear(power, 12)), 5),)
