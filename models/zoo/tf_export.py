"""Export Keras models and TensorFlow functions, by Keras itself and by tf2onnx.

A variant is written ``keras15``, ``tf2onnx13d``, ``saved17d``, ``tflite13``: exporter, opset, and
``d`` for a free batch. ``keras`` is ``model.export(format="onnx")``, whose batch is always free;
``saved`` goes through a SavedModel, ``tflite`` through TensorFlow Lite.
"""

from __future__ import annotations

import os
import re
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import onnx
import tensorflow as tf
import tf2onnx

from models.zoo.registry import add

_function = tf.function


def _without_xla(*args: Any, **options: Any) -> Any:
    """tf.function that never compiles: tf2onnx does not look into what XLA compiles."""
    return _function(*args, **{**options, "jit_compile": None})


def _gelu(x: Any, approximate: bool = False, name: str | None = None) -> Any:
    """TensorFlow 2.21 computes gelu by Erfc, which tf2onnx 1.17 passes on as if ONNX had it."""
    if approximate:
        return 0.5 * x * (1.0 + tf.tanh(0.7978845608 * (x + 0.044715 * x**3)))
    return 0.5 * x * (1.0 + tf.math.erf(x * 0.7071067812))


tf.function, tf.nn.gelu = _without_xla, _gelu

OPSETS = (13, 15, 11, 17, 18, 9, 14, 16)


@dataclass(frozen=True)
class Sample:
    """A model or function, and the shapes of its inputs with a batch in front."""

    call: Any
    shapes: tuple[tuple[int, ...], ...]
    integer: bool = False


Make = Callable[[], Sample]


def tell_apart(model: keras.Model, seed: int) -> None:
    """Biases, scales and running statistics in which no two indices are equal."""
    random = np.random.default_rng(seed)
    for weight in model.weights:
        if len(weight.shape) != 1 or "float" not in str(weight.dtype):
            continue
        scale = weight.path.endswith(("gamma", "variance", "scale"))
        low, high = (0.6, 1.4) if scale else (-0.2, 0.2)
        weight.assign(random.uniform(low, high, weight.shape))


def export(make: Make, variant: str, path: Path) -> None:
    matched = re.fullmatch(r"(keras|tf2onnx|saved|tflite)(\d+)(d?)", variant)
    if matched is None:
        raise ValueError(f"{variant!r} is not a variant")
    kind, opset, dynamic = matched[1], int(matched[2]), bool(matched[3])
    seed = zlib.crc32(variant.encode())
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    sample = make()
    call, dtype = sample.call, tf.int32 if sample.integer else tf.float32
    if isinstance(call, keras.Model):
        tell_apart(call, seed)
    if kind == "keras":
        call(*(tf.zeros(s, dtype) for s in sample.shapes))
        with tempfile.TemporaryDirectory() as folder:
            name = f"{folder}/net.onnx"
            call.export(name, format="onnx", opset_version=opset, verbose=False)
            path.write_bytes(Path(name).read_bytes())
        return
    specs = [
        tf.TensorSpec((None, *s[1:]) if dynamic else s, dtype, name=f"x{k}")
        for k, s in enumerate(sample.shapes)
    ]
    function = tf.function(lambda *args: call(args if len(args) > 1 else args[0]))
    if not isinstance(call, keras.Model):
        function = tf.function(call)
    if kind == "tflite":
        model = _through_lite(function, specs, opset)
    elif kind == "tf2onnx":
        model, _ = tf2onnx.convert.from_function(function, specs, opset=opset)
    else:
        model = _through_file(call, function, specs, opset)
    plain = {node.op_type for node in model.graph.node if not node.domain}
    left = sorted(op for op in plain if not onnx.defs.has(op, opset, ""))
    if left:
        raise RuntimeError(f"tf2onnx leaves operators that opset {opset} does not have: {left}")
    path.write_bytes(model.SerializeToString())


def _through_file(call: Any, function: Any, specs: Sequence[Any], opset: int) -> Any:
    """By a SavedModel on disk, as tf2onnx's command line reads it."""
    from tf2onnx import tf_loader
    from tf2onnx.tfonnx import process_tf_graph

    holder = tf.Module()
    holder.weights, holder.function = call.weights, function
    with tempfile.TemporaryDirectory() as folder:
        signature = function.get_concrete_function(*specs)
        tf.saved_model.save(holder, folder, signatures={"serving_default": signature})
        graph, inputs, outputs = tf_loader.from_saved_model(folder, None, None)
        with tf.Graph().as_default() as loaded:
            tf.import_graph_def(graph, name="")
            made = process_tf_graph(loaded, opset=opset, input_names=inputs, output_names=outputs)
    return tf2onnx.optimizer.optimize_graph(made).make_model("saved")


def _through_lite(function: Any, specs: Sequence[Any], opset: int) -> Any:
    signature = function.get_concrete_function(*specs)
    lite = tf.lite.TFLiteConverter.from_concrete_functions([signature]).convert()
    with tempfile.TemporaryDirectory() as folder:
        name = Path(folder) / "net.tflite"
        name.write_bytes(lite)
        return tf2onnx.convert.from_tflite(str(name), opset=opset)[0]


def net(*variants: str, name: str = "", source: str = "tf") -> Callable[[Make], Make]:
    """Register a maker as ``source-name@variant``; without variants the name decides two."""

    def register(make: Make) -> Make:
        called = f"{source}-{name or make.__name__}"
        k = zlib.crc32(called.encode())
        first, second = (OPSETS[(k + i) % len(OPSETS)] for i in (0, 1))
        usual = (f"tf2onnx{first}{'d' if k % 2 else ''}", f"saved{second}d")
        if source == "keras":
            usual = (f"keras{max(second, 13)}", f"tf2onnx{first}{'d' if k % 2 else ''}")
        if k % 2:
            usual += (f"tflite{max(first, 14)}",)
        for variant in variants or usual:
            add(f"{called}@{variant}", partial(export, make, variant))
        return make

    return register
