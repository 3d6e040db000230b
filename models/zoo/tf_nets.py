"""TensorFlow functions written with tf.nn, channels last throughout."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from models.zoo.tf_export import Sample, net


class Weights(tf.Module):
    """Random variables, made in the order in which they are asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.random, self.made = np.random.default_rng(0), []

    def __call__(self, *shape: int, low: float = 0.0, high: float = 0.0) -> tf.Variable:
        fan = float(np.prod(shape[:-1])) or 1.0
        values = self.random.normal(0, fan**-0.5, shape)
        if len(shape) == 1:
            values = self.random.uniform(low or -0.2, high or 0.2, shape)
        self.made.append(tf.Variable(values.astype(np.float32)))
        return self.made[-1]

    def own(self, call: Any) -> Any:
        """Say which variables a function reads: a SavedModel stores them."""
        call.weights = self.made
        return call

    def norm(self, width: int) -> tuple[tf.Variable, ...]:
        """mean, variance, offset, scale"""
        return (
            self(width),
            self(width, low=0.6, high=1.4),
            self(width),
            self(width, low=0.6, high=1.4),
        )


def _conv(x: Any, w: Any, stride: int = 1, padding: str = "SAME") -> Any:
    return tf.nn.conv2d(x, w, stride, padding)


@net()
def perceptron() -> Sample:
    w = Weights()
    a, b, c, d = w(10, 32), w(32), w(32, 5), w(5)
    return Sample(w.own(lambda x: tf.nn.relu(x @ a + b) @ c + d), ((3, 10),))


@net("tf2onnx9", "tf2onnx12d", "tf2onnx18d", "saved15")
def resnet() -> Sample:
    w = Weights()
    stem, blocks = w(3, 3, 3, 16), []
    for i, o, stride in ((16, 16, 1), (16, 24, 2), (24, 24, 1)):
        short = w(1, 1, i, o) if i != o else None
        blocks.append((w(3, 3, i, o), w.norm(o), w(3, 3, o, o), w.norm(o), short, stride))
    head = w(24, 10)

    def norm(x: Any, p: Any) -> Any:
        return tf.nn.batch_normalization(x, *p, 1e-3)

    def call(x: Any) -> Any:
        x = tf.nn.relu(_conv(x, stem))
        for one, n1, two, n2, short, stride in blocks:
            y = norm(_conv(tf.nn.relu(norm(_conv(x, one, stride), n1)), two), n2)
            x = tf.nn.relu(y + (x if short is None else _conv(x, short, stride)))
        return tf.reduce_mean(x, [1, 2]) @ head

    return Sample(w.own(call), ((2, 16, 16, 3),))


@net()
def fused_norm() -> Sample:
    """FusedBatchNorm in inference, as TF1 graphs have it, with explicit padding."""
    w = Weights()
    a, b, head = w(3, 3, 3, 16), w(3, 3, 16, 24), w(24, 10)
    mean, var, offset, scale = w.norm(16)

    def call(x: Any) -> Any:
        x = _conv(tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), a, 2, "VALID")
        x, *_ = tf.compat.v1.nn.fused_batch_norm(x, scale, offset, mean, var, is_training=False)
        x = tf.nn.max_pool2d(tf.nn.relu6(x), 2, 2, "SAME")
        return tf.squeeze(tf.nn.avg_pool2d(tf.nn.relu(_conv(x, b)), 4, 4, "VALID"), [1, 2]) @ head

    return Sample(w.own(call), ((2, 16, 16, 3),))


@net("tf2onnx10d", "saved14d")
def mobile_block() -> Sample:
    w = Weights()
    stem, up, deep, down = w(3, 3, 3, 16), w(1, 1, 16, 48), w(3, 3, 48, 1), w(1, 1, 48, 16)
    squeeze, excite, head = w(48, 8), w(8, 48), w(16, 10)

    def call(x: Any) -> Any:
        x = tf.nn.relu6(_conv(x, stem, 2))
        y = tf.nn.relu6(_conv(x, up))
        y = tf.nn.depthwise_conv2d(y, deep, [1, 1, 1, 1], "SAME")
        y = y * tf.nn.relu6(y + 3.0) / 6.0
        gate = tf.nn.sigmoid(tf.nn.relu(tf.reduce_mean(y, [1, 2]) @ squeeze) @ excite)
        x = x + _conv(y * gate[:, None, None, :], down)
        return tf.reduce_mean(x, [1, 2]) @ head

    return Sample(w.own(call), ((2, 16, 16, 3),))


@net()
def shuffle() -> Sample:
    """Grouped convolution by split and concat, then a channel shuffle, channels last."""
    w = Weights()
    stem, parts, out, head = (
        w(3, 3, 3, 16),
        [w(1, 1, 8, 12) for _ in "ab"],
        w(1, 1, 24, 16),
        w(16, 10),
    )

    def call(x: Any) -> Any:
        x = tf.nn.relu(_conv(x, stem))
        x = tf.concat([_conv(t, p) for t, p in zip(tf.split(x, 2, -1), parts, strict=True)], -1)
        _, h, v, c = x.shape
        x = tf.transpose(tf.reshape(x, [-1, h, v, 2, c // 2]), [0, 1, 2, 4, 3])
        x = tf.reshape(x, [-1, h, v, c])
        return tf.reduce_mean(tf.nn.relu(_conv(x, out)), [1, 2]) @ head

    return Sample(w.own(call), ((2, 8, 8, 3),))


@net()
def depth_space() -> Sample:
    w = Weights()
    a, b, c = w(3, 3, 12, 16), w(3, 3, 16, 32), w(3, 3, 8, 3)

    def call(x: Any) -> Any:
        x = tf.nn.relu(_conv(tf.nn.space_to_depth(x, 2), a))
        return _conv(tf.nn.depth_to_space(tf.nn.relu(_conv(x, b)), 2), c)

    return Sample(w.own(call), ((2, 8, 8, 3),))


@net("tf2onnx11d", "saved14d")
def resized() -> Sample:
    w = Weights()
    a, b, c = w(3, 3, 3, 16), w(3, 3, 16, 24), w(1, 1, 24, 2)

    def call(x: Any) -> Any:
        y = tf.nn.relu(_conv(x, a, 2))
        y = tf.image.resize(y, [16, 16], "bilinear")
        y = tf.nn.relu(_conv(y, b))
        return _conv(tf.compat.v1.image.resize_nearest_neighbor(y, [32, 32]), c)

    return Sample(w.own(call), ((2, 16, 16, 3),))


@net()
def dilated() -> Sample:
    """Dilation by SpaceToBatch, as old DeepLab graphs have it, pooling and a joined pyramid."""
    w = Weights()
    a, branches = w(3, 3, 3, 16), [w(3, 3, 16, 8) for _ in range(3)]
    pooled, out = w(1, 1, 16, 8), w(1, 1, 32, 2)

    def call(x: Any) -> Any:
        x = tf.nn.relu(_conv(x, a))
        ys = [
            tf.nn.relu(tf.nn.atrous_conv2d(x, b, r, "SAME")) if r > 1 else _conv(x, b)
            for b, r in zip(branches, (1, 2, 4), strict=True)
        ]
        image = _conv(tf.reduce_mean(x, [1, 2], keepdims=True), pooled)
        ys.append(tf.tile(image, [1, x.shape[1], x.shape[2], 1]))
        return _conv(tf.concat(ys, -1), out)

    return Sample(w.own(call), ((2, 16, 16, 3),))


@net()
def transposed() -> Sample:
    w = Weights()
    a, b, c = w(3, 3, 3, 16), w(2, 2, 12, 16), w(3, 3, 12, 2)

    def call(x: Any) -> Any:
        x = tf.nn.relu(_conv(x, a, 2))
        x = tf.nn.conv2d_transpose(x, b, [2, 16, 16, 12], 2, "SAME")
        return _conv(tf.nn.leaky_relu(x), c)

    return Sample(w.own(call), ((2, 16, 16, 3),))


@net()
def layer_norm() -> Sample:
    """Moments by hand, channels last."""
    w = Weights()
    a, b, c = w(12, 24), w(24, 32), w(32, 5)
    gain, bias = w(24, low=0.6, high=1.4), w(24)

    def call(x: Any) -> Any:
        x = tf.tensordot(x, a, 1)
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        x = (x - mean) * tf.math.rsqrt(variance + 1e-5) * gain + bias
        return tf.tensordot(tf.nn.gelu(tf.tensordot(x, b, 1)), c, 1)

    return Sample(w.own(call), ((2, 7, 12),))


@net("tf2onnx11", "tf2onnx14d", "saved17d")
def bert() -> Sample:
    """A layer of Google's BERT: products on flattened tokens, heads by reshape and transpose."""
    w = Weights()
    words, places = w(40, 32), w(16, 32)
    sizes = [(32, 32)] * 4 + [(32, 64), (64, 32)]
    rows = [[(w(i, o), w(o)) for i, o in sizes] for _ in "ab"]
    norms = [(w(32), w(32, low=0.6, high=1.4)) for _ in range(4)]
    pool = w(32, 5)

    def norm(x: Any, p: Any) -> Any:
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return tf.nn.batch_normalization(x, mean, variance, *p, 1e-6)

    def dense(x: Any, p: Any) -> Any:
        return tf.matmul(x, p[0]) + p[1]

    def call(ids: Any) -> Any:
        b, s = tf.shape(ids)[0], 7
        x = tf.gather(words, ids) + places[None, :s]
        x = tf.reshape(x, [-1, 32])
        for k, (q, k_, v, o, up, down) in enumerate(rows):
            heads = [
                tf.transpose(tf.reshape(dense(x, p), [b, s, 4, 8]), [0, 2, 1, 3])
                for p in (q, k_, v)
            ]
            scores = tf.nn.softmax(tf.matmul(heads[0], heads[1], transpose_b=True) * 8**-0.5)
            y = tf.reshape(tf.transpose(tf.matmul(scores, heads[2]), [0, 2, 1, 3]), [-1, 32])
            x = norm(x + dense(y, o), norms[2 * k])
            x = norm(x + dense(tf.nn.gelu(dense(x, up)), down), norms[2 * k + 1])
        return tf.reshape(x, [b, s, 32])[:, 0] @ pool

    return Sample(w.own(call), ((2, 7),), True)


@net("tf2onnx13d", "saved14d")
def einsum_attention() -> Sample:
    w = Weights()
    q, k, v, o = w(24, 4, 6), w(24, 4, 6), w(24, 4, 6), w(4, 6, 24)
    head = w(24, 5)

    def call(x: Any) -> Any:
        a, b, c = (tf.einsum("bsd,dhe->bshe", x, p) for p in (q, k, v))
        scores = tf.nn.softmax(tf.einsum("bqhe,bkhe->bhqk", a, b))
        return tf.einsum("bqhe,hed->bqd", tf.einsum("bhqk,bkhe->bqhe", scores, c), o) @ head

    return Sample(w.own(call), ((2, 7, 24),))


@net()
def lstm_steps() -> Sample:
    """A basic LSTM cell, its steps written out."""
    w = Weights()
    kernel, bias, head = w(6 + 12, 48), w(48), w(12, 5)

    def call(x: Any) -> Any:
        c = h = tf.zeros([tf.shape(x)[0], 12])
        for y in tf.unstack(x, axis=1):
            i, j, f, o = tf.split(tf.concat([y, h], 1) @ kernel + bias, 4, 1)
            c = c * tf.sigmoid(f + 1.0) + tf.sigmoid(i) * tf.tanh(j)
            h = tf.tanh(c) * tf.sigmoid(o)
        return h @ head

    return Sample(w.own(call), ((2, 4, 6),))


@net("tf2onnx13d", "saved14d")
def while_loop() -> Sample:
    """A recurrent layer as a tf.while_loop, with dense layers before and behind."""
    w = Weights()
    into, hidden, out, head = w(6, 12), w(12, 12), w(12, 16), w(16, 5)

    def call(x: Any) -> Any:
        y = tf.transpose(tf.tensordot(x, into, 1), [1, 0, 2])
        h = tf.zeros([tf.shape(x)[0], 12])
        _, h = tf.while_loop(
            lambda t, h: t < 4, lambda t, h: (t + 1, tf.tanh(y[t] + h @ hidden)), (0, h)
        )
        return tf.nn.relu(h @ out) @ head

    return Sample(w.own(call), ((2, 4, 6),))


@net()
def conv1d_glu() -> Sample:
    w = Weights()
    a, b, c = w(3, 6, 32), w(3, 16, 24), w(24, 5)

    def call(x: Any) -> Any:
        value, gate = tf.split(tf.nn.conv1d(x, a, 1, "SAME"), 2, -1)
        x = tf.nn.conv1d(value * tf.sigmoid(gate), b, 2, "SAME")
        return tf.reduce_max(tf.nn.swish(x), 1) @ c

    return Sample(w.own(call), ((2, 12, 6),))


@net()
def strided() -> Sample:
    """Strided slices, stack, one-hot and cast: the odds and ends of TF graphs."""
    w = Weights()
    a, b, c = w(10, 24), w(12, 16), w(16, 5)

    def call(x: Any) -> Any:
        y = tf.nn.relu(x @ a)
        y = tf.stack([y[:, :12], y[:, 12:]], 1)
        y = tf.maximum(tf.squeeze(y[:, 0:1], 1), y[:, 1]) @ b
        return tf.nn.softmax(tf.nn.elu(y) @ c)

    return Sample(w.own(call), ((3, 10),))
