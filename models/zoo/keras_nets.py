"""Keras applications and layers with random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import keras
from keras import Sequential, applications, layers

from models.zoo.tf_export import Sample, net

SIDE = 64


def _application(make: Callable[[], keras.Model], side: int) -> Sample:
    return Sample(make(), ((2, side, side, 3),))


def application(name: str, side: int = SIDE, *variants: str, **settings: Any) -> None:
    make = partial(
        getattr(applications, name), weights=None, input_shape=(side, side, 3), classes=10,
        **settings,
    )  # fmt: skip
    net(*variants, name=name.lower(), source="keras")(partial(_application, make, side))


application("MobileNet", alpha=0.25)
application("MobileNetV2", alpha=0.35)
application("MobileNetV3Small", alpha=0.75, minimalistic=False)
application("MobileNetV3Large", alpha=0.75, minimalistic=True)
application("DenseNet121")
application("NASNetMobile", 64)
application("EfficientNetB0")
application("EfficientNetV2B0")


def _resnet(stack: str, preact: bool) -> Sample:
    """Keras's own blocks, in two stages of few channels."""
    from keras.src.applications import resnet as code

    def stages(x: Any) -> Any:
        x = getattr(code, stack)(x, 16, 2, stride1=1, name="a")
        return getattr(code, stack)(x, 24, 2, name="b")

    model = code.ResNet(stages, preact, True, weights=None, input_shape=(SIDE, SIDE, 3), classes=10)
    return Sample(model, ((2, SIDE, SIDE, 3),))


net(name="resnet", source="keras")(partial(_resnet, "stack_residual_blocks_v1", False))
net(name="resnetv2", source="keras")(partial(_resnet, "stack_residual_blocks_v2", True))


@net(source="keras")
def convnext() -> Sample:
    from keras.src.applications import convnext as code

    model = code.ConvNeXt(
        depths=[1, 1, 2, 1], projection_dims=[16, 24, 32, 48], weights=None,
        input_shape=(SIDE, SIDE, 3), classes=10,
    )  # fmt: skip
    return Sample(model, ((2, SIDE, SIDE, 3),))


def _start(model: Any, *shape: int) -> Sample:
    """A model of these layers or of a functional body."""
    if isinstance(model, list):
        model = Sequential([keras.Input(shape[1:]), *model])
    return Sample(model, (shape,))


def _functional(body: Callable[[Any], Any], *shape: int, integer: bool = False) -> Sample:
    x = keras.Input(shape[1:], dtype="int32" if integer else "float32")
    return Sample(keras.Model(x, body(x)), (shape,), integer)


def layer(*variants: str) -> Any:
    return net(*variants, source="keras")


# Xception and Inception in small: their blocks, not their depth.


@layer()
def xception() -> Sample:
    def block(x: Any, width: int) -> Any:
        short = layers.BatchNormalization()(layers.Conv2D(width, 1, 2, "same", use_bias=False)(x))
        for _ in range(2):
            x = layers.ReLU()(x)
            x = layers.SeparableConv2D(width, 3, padding="same", use_bias=False)(x)
            x = layers.BatchNormalization()(x)
        return layers.add([layers.MaxPooling2D(3, 2, "same")(x), short])

    def body(x: Any) -> Any:
        x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(16, 3, 2)(x)))
        x = block(block(x, 24), 32)
        return layers.Dense(10, "softmax")(layers.GlobalAveragePooling2D()(x))

    return _functional(body, 2, 32, 32, 3)


@layer()
def inception() -> Sample:
    def conv(x: Any, width: int, rows: int, columns: int) -> Any:
        x = layers.Conv2D(width, (rows, columns), padding="same", use_bias=False)(x)
        return layers.Activation("relu")(layers.BatchNormalization(scale=False)(x))

    def block(x: Any) -> Any:
        a = conv(x, 16, 1, 1)
        b = conv(conv(x, 12, 1, 1), 16, 5, 5)
        c = conv(conv(conv(x, 12, 1, 1), 16, 1, 7), 16, 7, 1)
        d = conv(layers.AveragePooling2D(3, 1, "same")(x), 8, 1, 1)
        return layers.concatenate([a, b, c, d])

    def body(x: Any) -> Any:
        x = block(block(conv(x, 16, 3, 3)))
        return layers.Dense(10, "softmax")(layers.GlobalAveragePooling2D()(x))

    return _functional(body, 2, 16, 16, 3)


# Layers.


@layer("keras15", "tf2onnx11", "tf2onnx9d", "tf2onnx18")
def cnn() -> Sample:
    return _start([layers.Conv2D(16, 3, activation="relu"), layers.MaxPooling2D(),
                   layers.Conv2D(24, 3, padding="same", activation="relu"), layers.Dropout(0.2),
                   layers.Flatten(), layers.Dense(32, "relu"), layers.Dense(10, "softmax")],
                  2, 12, 12, 3)  # fmt: skip


@layer()
def mlp() -> Sample:
    return _start([layers.Dense(32, "elu"), layers.BatchNormalization(), layers.Dense(24, "gelu"),
                   layers.Dense(5)], 3, 10)  # fmt: skip


@layer()
def activations() -> Sample:
    names = (
        "relu relu6 leaky_relu elu selu gelu silu hard_silu hard_sigmoid softplus softsign tanh"
        " sigmoid mish exponential log_sigmoid squareplus hard_tanh"
    )
    rows = [layers.Dense(12, name) for name in names.split()]
    return _start([*rows, layers.PReLU(), layers.Dense(5)], 3, 10)


@layer()
def conv1d() -> Sample:
    return _start([layers.Conv1D(16, 5, activation="relu"), layers.MaxPooling1D(),
                   layers.Conv1D(24, 3, dilation_rate=2, padding="causal"),
                   layers.GlobalMaxPooling1D(), layers.Dense(5)], 2, 20, 6)  # fmt: skip


@layer()
def conv3d() -> Sample:
    return _start([layers.Conv3D(8, 3, activation="relu"), layers.BatchNormalization(),
                   layers.MaxPooling3D(), layers.Conv3D(12, 2), layers.GlobalAveragePooling3D(),
                   layers.Dense(5)], 2, 8, 8, 8, 2)  # fmt: skip


@layer()
def transposed() -> Sample:
    return _start([layers.Conv2D(16, 3, 2, "same", activation="relu"),
                   layers.Conv2D(24, 3, 2, "same", activation="relu"),
                   layers.Conv2DTranspose(16, 3, 2, "same", activation="relu"),
                   layers.Conv2DTranspose(3, 2, 2, "same")], 2, 16, 16, 3)  # fmt: skip


@layer()
def separable() -> Sample:
    return _start([layers.SeparableConv2D(16, 3, padding="same"), layers.BatchNormalization(),
                   layers.ReLU(), layers.DepthwiseConv2D(3, depth_multiplier=2), layers.ReLU(6.0),
                   layers.Conv2D(24, 1), layers.SeparableConv2D(16, 3, depth_multiplier=2),
                   layers.GlobalAveragePooling2D(), layers.Dense(10)], 2, 12, 12, 3)  # fmt: skip


@layer()
def separable1d() -> Sample:
    return _start([layers.SeparableConv1D(16, 3), layers.LayerNormalization(),
                   layers.DepthwiseConv1D(3), layers.UpSampling1D(2), layers.Conv1D(12, 3),
                   layers.GlobalAveragePooling1D(), layers.Dense(10)], 2, 12, 6)  # fmt: skip


@layer()
def grouped() -> Sample:
    return _start([layers.Conv2D(16, 3), layers.ReLU(), layers.Conv2D(24, 3, groups=4),
                   layers.ReLU(), layers.GlobalAveragePooling2D(), layers.Dense(10)],
                  2, 12, 12, 3)  # fmt: skip


@layer()
def group_norm() -> Sample:
    return _start([layers.Conv2D(16, 3), layers.GroupNormalization(4), layers.ReLU(),
                   layers.Conv2D(24, 3), layers.GroupNormalization(-1), layers.ReLU(),
                   layers.GlobalAveragePooling2D(), layers.Dense(10)], 2, 12, 12, 3)  # fmt: skip


@layer()
def upsampling() -> Sample:
    return _start([layers.ZeroPadding2D(2), layers.Conv2D(16, 3, 2), layers.ReLU(),
                   layers.UpSampling2D(2, interpolation="bilinear"), layers.Cropping2D(1),
                   layers.Conv2D(12, 3), layers.UpSampling2D(2), layers.Conv2D(3, 1)],
                  2, 12, 12, 3)  # fmt: skip


@layer()
def locally() -> Sample:
    """Reshape, permute, repeat."""
    return _start([layers.Dense(24, "relu"), layers.Reshape((4, 6)), layers.Permute((2, 1)),
                   layers.Dense(8, "relu"), layers.Flatten(), layers.RepeatVector(3),
                   layers.Dense(10)], 3, 10)  # fmt: skip


@layer()
def unet() -> Sample:
    def body(x: Any) -> Any:
        skip = layers.Conv2D(16, 3, padding="same", activation="relu")(x)
        y = layers.Conv2D(24, 3, 2, "same", activation="relu")(skip)
        y = layers.Conv2D(24, 3, padding="same", activation="relu")(y)
        y = layers.concatenate([layers.UpSampling2D()(y), skip])
        return layers.Conv2D(2, 1)(layers.Conv2D(16, 3, padding="same", activation="relu")(y))

    return _functional(body, 2, 16, 16, 3)


@layer()
def squeeze_excite() -> Sample:
    def body(x: Any) -> Any:
        x = layers.Conv2D(16, 3, padding="same", activation="swish")(x)
        gate = layers.GlobalAveragePooling2D(keepdims=True)(x)
        gate = layers.Conv2D(6, 1, activation="relu")(gate)
        gate = layers.Conv2D(16, 1, activation="sigmoid")(gate)
        x = layers.multiply([x, gate])
        return layers.Dense(10)(layers.GlobalAveragePooling2D()(x))

    return _functional(body, 2, 12, 12, 3)


# Recurrent layers: keras 3 writes loops, unrolled ones are straight graphs.


def _words(*body: Any) -> Sample:
    return Sample(
        Sequential([keras.Input((7,), dtype="int32"), layers.Embedding(40, 12), *body,
                    layers.Dense(5)]), ((2, 7),), True)  # fmt: skip


@layer()
def lstm() -> Sample:
    return _words(layers.LSTM(16, return_sequences=True), layers.LSTM(16))


@layer()
def gru() -> Sample:
    return _words(layers.GRU(16))


@layer()
def bidirectional() -> Sample:
    return _words(layers.Bidirectional(layers.LSTM(12, return_sequences=True)),
                  layers.GlobalMaxPooling1D())  # fmt: skip


@layer()
def lstm_unrolled() -> Sample:
    return _words(layers.LSTM(16, unroll=True))


@layer()
def gru_unrolled() -> Sample:
    return _words(layers.GRU(16, unroll=True))


@layer()
def simple_rnn_unrolled() -> Sample:
    return _words(layers.SimpleRNN(16, unroll=True))


@layer()
def conv_lstm() -> Sample:
    return _start([layers.ConvLSTM2D(8, 3, padding="same", unroll=True), layers.Conv2D(6, 3),
                   layers.Flatten(), layers.Dense(5)], 2, 3, 8, 8, 2)  # fmt: skip


@layer()
def time_distributed() -> Sample:
    return _start([layers.TimeDistributed(layers.Conv2D(8, 3, activation="relu")),
                   layers.TimeDistributed(layers.GlobalAveragePooling2D()),
                   layers.Dense(16, "relu"), layers.GlobalAveragePooling1D(), layers.Dense(5)],
                  2, 3, 8, 8, 2)  # fmt: skip


# Attention.


def _encoder(x: Any, heads: int, width: int, **options: Any) -> Any:
    y = layers.LayerNormalization(epsilon=1e-6)(x)
    y = layers.MultiHeadAttention(heads, width // heads)(y, y, **options)
    x = layers.add([x, y])
    y = layers.LayerNormalization(epsilon=1e-6)(x)
    y = layers.Dense(width)(layers.Dense(2 * width, "gelu")(y))
    return layers.add([x, y])


class Places(layers.Layer):
    """Adds a learned vector for each position."""

    def build(self, shape: Any) -> None:
        self.table = self.add_weight(shape=shape[1:], initializer="random_normal", name="table")

    def call(self, x: Any) -> Any:
        return x + self.table


@layer("keras15", "tf2onnx13", "tf2onnx17d", "tf2onnx12d")
def attention() -> Sample:
    return _functional(lambda x: layers.Dense(6)(_encoder(x, 4, 24)), 2, 7, 24)


@layer()
def vit() -> Sample:
    def body(x: Any) -> Any:
        x = layers.Conv2D(32, 8, 8)(x)
        x = layers.Reshape((16, 32))(x)
        x = Places()(x)
        x = _encoder(_encoder(x, 4, 32), 4, 32)
        return layers.Dense(10)(layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x)))

    return _functional(body, 2, 32, 32, 3)


@layer()
def gpt() -> Sample:
    def body(ids: Any) -> Any:
        x = Places()(layers.Embedding(50, 32)(ids))
        x = _encoder(_encoder(x, 4, 32, use_causal_mask=True), 4, 32, use_causal_mask=True)
        return layers.Dense(50)(layers.LayerNormalization()(x))

    return _functional(body, 2, 9, integer=True)


@layer()
def grouped_query() -> Sample:
    def body(x: Any) -> Any:
        y = layers.GroupQueryAttention(6, 4, 2)(x, x)
        return layers.Dense(6)(layers.LayerNormalization()(layers.Dense(16)(y)))

    return _functional(body, 2, 7, 24)


@layer()
def dot_attention() -> Sample:
    def body(x: Any) -> Any:
        q, k, v = (layers.Dense(16)(x) for _ in range(3))
        return layers.Dense(6)(layers.Attention(use_scale=True)([q, v, k]))

    return _functional(body, 2, 7, 12)


@layer()
def additive_attention() -> Sample:
    def body(x: Any) -> Any:
        q, v = layers.Dense(16)(x), layers.Dense(16)(x)
        return layers.Dense(6)(layers.AdditiveAttention()([q, v]))

    return _functional(body, 2, 7, 12)


@layer()
def einsum_dense() -> Sample:
    return _start([layers.EinsumDense("abc,cde->abde", output_shape=(None, 4, 6), bias_axes="de"),
                   layers.ReLU(),
                   layers.EinsumDense("abde,def->abf", output_shape=(None, 10), bias_axes="f")],
                  2, 5, 12)  # fmt: skip


@layer()
def mixer() -> Sample:
    def block(x: Any) -> Any:
        y = layers.Permute((2, 1))(layers.LayerNormalization()(x))
        y = layers.Permute((2, 1))(layers.Dense(16)(layers.Dense(24, "gelu")(y)))
        x = layers.add([x, y])
        y = layers.LayerNormalization()(x)
        return layers.add([x, layers.Dense(32)(layers.Dense(64, "gelu")(y))])

    def body(x: Any) -> Any:
        x = layers.Reshape((16, 32))(layers.Conv2D(32, 8, 8)(x))
        return layers.Dense(10)(layers.GlobalAveragePooling1D()(block(block(x))))

    return _functional(body, 2, 32, 32, 3)


@layer()
def unit_norm() -> Sample:
    return _start([layers.Dense(16, "relu"), layers.RMSNormalization(), layers.Dense(12),
                   layers.UnitNormalization(), layers.Dense(5)], 3, 10)  # fmt: skip
