"""Makes nets on graphs, points and sets, and poolings that multiply features with features."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.blocks.table import ROWS, block
from models.builder import Net, Tensor

B = 2
N = 5  # nodes of a graph, points of a cloud
NODES = (N, 6)
CLOUD = (B, 3, 16)
EDGES = np.array([[0, 1, 2, 3, 4, 0, 2], [1, 2, 3, 4, 0, 2, 4]])


def _adjacency(net: Net) -> Tensor:
    a = np.eye(N, dtype=np.float32)
    a[EDGES[0], EDGES[1]] = 0.5
    return net.const(a, "adjacency")


@block("first 7, nodes 5, second 8", NODES)
def stored_adjacency(net: Net, x: Tensor) -> Any:
    """GCN: a stored matrix over the nodes multiplies from the left; between two, nodes can go."""
    y = x
    for width in (7, 8):
        y = net.matmul(_adjacency(net), net.relu(net.linear(y, width)))
    return y


@block("width 7, heads 4", NODES)
def attention_of_sums(net: Net, x: Tensor) -> Any:
    """GAT: scores are sums of two products with learned vectors per head, masked, softmaxed."""
    y = net.transpose(net.reshape(net.linear(x, 4 * 7), [N, 4, 7]), 1, 0, 2)
    parts = [
        net.node("ReduceSum", net.mul(y, net.weight(4, 1, 7, fan=7)), [2], keepdims=1)
        for _ in range(2)
    ]
    a = net.node("LeakyRelu", net.add(parts[0], net.transpose(parts[1], 0, 2, 1)), alpha=0.2)
    there = net.node("Greater", _adjacency(net), 0.0)
    a = net.softmax(net.node("Where", there, a, np.float32(-1e9)))
    return net.reshape(net.transpose(net.matmul(a, y), 1, 0, 2), [N, 28])


@block("first 7, second 8", NODES)
def own_and_others(net: Net, x: Tensor) -> Any:
    """GraphSAGE: a node's features are joined with the mean of its neighbours'."""
    y = net.relu(net.linear(x, 7))
    others = net.matmul(_adjacency(net), y)
    return net.linear(net.concat(y, others), 8)


@block("messages 7, update 8", NODES)
def scattered_messages(net: Net, x: Tensor) -> Any:
    """Message passing: rows are gathered by edge, added up by ScatterElements."""
    y = net.relu(net.linear(x, 7))
    sent = net.gather(y, net.const(EDGES[0]), 0)
    index = net.node("Expand", EDGES[1][:, None], [7, 7])
    zeros = net.node("ConstantOfShape", [N, 7], value=np.zeros(1, np.float32))
    total = net.node("ScatterElements", zeros, index, sent, axis=0, reduction="add")
    return net.linear(net.concat(y, total), 8)


@block("messages 7, update 8", NODES)
def scattered_rows(net: Net, x: Tensor) -> Any:
    """Message passing: rows are added up by ScatterND."""
    y = net.relu(net.linear(x, 7))
    sent = net.gather(y, net.const(EDGES[0]), 0)
    zeros = net.const(np.zeros((N, 7), np.float32), "zeros")
    total = net.node("ScatterND", zeros, net.const(EDGES[1][:, None]), sent, reduction="add")
    return net.linear(net.concat(y, total), 8)


@block("first 6, edges 5", CLOUD)
def nearest_neighbours(net: Net, x: Tensor) -> Any:
    """DGCNN: differences to the nearest points, found by TopK, are joined with the own features."""
    y = net.relu(net.conv(x, 6, 1))
    rows = net.transpose(y, 0, 2, 1)
    near = net.matmul(rows, y)
    _, index = net.nodes("TopK", [near, [4]], 2, axis=2)
    index = net.add(index, net.const(np.arange(B, dtype=np.int64)[:, None, None] * 16))
    found = net.gather(net.reshape(rows, [B * 16, 6]), net.reshape(index, [-1]))
    found = net.reshape(found, [B, 16, 4, 6])
    own = net.node("Expand", net.reshape(rows, [B, 16, 1, 6]), [B, 16, 4, 6])
    pairs = net.transpose(net.concat(net.sub(found, own), own, axis=3), 0, 3, 1, 2)
    y = net.node("ReduceMax", net.relu(net.conv(pairs, 5, 1)), axes=[3], keepdims=0)
    return net.node("ReduceMax", y, axes=[2], keepdims=0)


@block("local 6, global 7, out 5", CLOUD)
def global_feature(net: Net, x: Tensor) -> Any:
    """PointNet: the maximum over the points is repeated for each and joined with its own."""
    local = net.relu(net.conv_bn(x, 6, 1))
    top = net.node("ReduceMax", net.relu(net.conv_bn(local, 7, 1)), axes=[2], keepdims=1)
    y = net.concat(local, net.node("Tile", top, [1, 1, 16]))
    return net.node("ReduceMax", net.relu(net.conv(y, 5, 1)), axes=[2], keepdims=0)


@block("inner 7, turned 3, out 5", CLOUD)
def predicted_matrix(net: Net, x: Tensor) -> Any:
    """PointNet's T-Net: a layer makes a 3x3 matrix, an identity is added, points are turned."""
    y = net.node("ReduceMax", net.relu(net.conv(x, 7, 1)), axes=[2], keepdims=0)
    y = net.add(net.gemm(y, 9), net.const(np.eye(3, dtype=np.float32).reshape(1, 9)))
    turned = net.matmul(net.transpose(x, 0, 2, 1), net.reshape(y, [-1, 3, 3]))
    y = net.relu(net.conv(net.transpose(turned, 0, 2, 1), 5, 1))
    return net.node("ReduceMax", y, axes=[2], keepdims=0)


@block("inner 7, features 6, turned 6, out 5", CLOUD)
def predicted_feature_matrix(net: Net, x: Tensor) -> Any:
    """PointNet's second T-Net: both factors of the matrix (C C) may go, each for itself."""
    x = net.relu(net.conv(x, 6, 1))
    y = net.node("ReduceMax", net.relu(net.conv(x, 7, 1)), axes=[2], keepdims=0)
    matrix = net.reshape(net.gemm(y, 36), [-1, 6, 6])
    turned = net.matmul(net.transpose(x, 0, 2, 1), matrix)
    y = net.relu(net.conv(net.transpose(turned, 0, 2, 1), 5, 1))
    return net.node("ReduceMax", y, axes=[2], keepdims=0)


@block("element 7, out 8", (B, 4, 6))
def sum_of_elements(net: Net, x: Tensor) -> Any:
    """Deep Sets: a sum over the elements, then another net."""
    y = net.node("ReduceSum", net.relu(net.linear(x, 7)), [1], keepdims=0)
    return net.relu(net.gemm(y, 8))


@block("width 7, gate 5", (B, 4, 6))
def gated_bag(net: Net, x: Tensor) -> Any:
    """Attention pooling of a bag: tanh times sigmoid scores each instance."""
    x = net.relu(net.linear(x, 7))
    gate = net.mul(net.node("Tanh", net.linear(x, 5)), net.sigmoid(net.linear(x, 5)))
    a = net.softmax(net.transpose(net.linear(gate, 1), 0, 2, 1))
    return net.squeeze(net.matmul(a, x), 1)


# --- features times features


@block("left 6, right 5")
def bilinear_of_two(net: Net, x: Tensor) -> Any:
    """Bilinear pooling: the product of two maps is flattened to (C1 C2)."""
    a, b = (net.reshape(net.relu(net.conv(x, c)), [B, c, 64]) for c in (6, 5))
    return net.reshape(net.matmul(a, net.transpose(b, 0, 2, 1)), [B, 30])


@block("in 6", today=0, why="a channel is an index of both factors of the merged axis (C C)")
def bilinear_of_one(net: Net, x: Tensor) -> Any:
    """Bilinear pooling of a map with itself: a channel is a row and a column of (C C)."""
    a = net.reshape(net.relu(net.conv(x, 6)), [B, 6, 64])
    return net.reshape(net.matmul(a, net.transpose(a, 0, 2, 1)), [B, 36])


@block("left 6, right 5, joined 7", ROWS)
def outer_product(net: Net, x: Tensor) -> Any:
    """Fusion of two modalities: an outer product by broadcasting, flattened, then a layer."""
    a, b = net.relu(net.gemm(x, 6)), net.relu(net.gemm(net.input("other", (B, 4)), 5))
    y = net.mul(net.unsqueeze(a, 2), net.unsqueeze(b, 1))
    return net.relu(net.gemm(net.reshape(y, [B, 30]), 7))


@block("rank 6", ROWS)
def low_rank_product(net: Net, x: Tensor) -> Any:
    """MLB, MUTAN: both sides are projected to a rank and multiplied."""
    a, b = net.gemm(x, 6), net.gemm(net.input("other", (B, 4)), 6)
    return net.mul(net.node("Tanh", a), net.node("Tanh", b))


@block("left 6, right 5", ROWS)
def bilinear_layer(net: Net, x: Tensor) -> Any:
    """nn.Bilinear: a weight (O, I1, I2) in an Einsum of three."""
    a, b = net.relu(net.gemm(x, 6)), net.relu(net.gemm(net.input("other", (B, 4)), 5))
    w = net.weight(7, 6, 5, fan=30)
    y = net.node("Einsum", a, w, b, equation="bn,anm,bm->ba")
    return (y,)


@block("features 6, clusters 4~, out 5")
def soft_clusters(net: Net, x: Tensor) -> Any:
    """NetVLAD: softmax over clusters, sums of residuals to stored centres, flattened (K C)."""
    x = net.relu(net.conv(x, 6))
    a = net.softmax(net.reshape(net.conv(x, 4, 1), [B, 4, 64]), axis=1)
    y = net.matmul(a, net.transpose(net.reshape(x, [B, 6, 64]), 0, 2, 1))
    total = net.node("ReduceSum", a, [2], keepdims=1)
    y = net.sub(y, net.mul(total, net.weight(1, 4, 6, fan=1, name="centroids")))
    norm = net.node("Clip", net.node("ReduceL2", y, axes=[2], keepdims=1), 1e-12)
    return net.gemm(net.reshape(net.div(y, norm), [B, 24]), 5)


@block("in 6")
def mean_of_powers(net: Net, x: Tensor) -> Any:
    """GeM: a bound from below and a learned power, so a removed channel is not zero on the way."""
    y = net.node("Pow", net.node("Clip", net.conv(x, 6), 1e-6), net.const(np.float32([3.0])))
    y = net.node("Pow", net.global_avg_pool(y), net.const(np.float32([1 / 3])))
    return net.flatten(y)


@block("in 4, hidden 7")
def pyramid_of_pools(net: Net, x: Tensor) -> Any:
    """SPP: pools of several sizes are flattened (C h w) and joined."""
    x = net.relu(net.conv(x, 4))
    parts = [net.flatten(net.pool(x, k, k)) for k in (8, 4, 2)]
    return net.relu(net.gemm(net.concat(*parts), 7))
