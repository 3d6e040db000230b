"""scikit-learn estimators by skl2onnx."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from skl2onnx import to_onnx
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from models.zoo.registry import add

OPSETS = (13, 15, 17, 18, 20)


def _export(make: Callable[[], Any], classes: int, opset: int, path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 10)).astype(np.float32)
    y = random.integers(0, classes, 60) if classes else x[:, :2]
    onnx = to_onnx(
        make().fit(x, y), x[:1], target_opset=opset, options={"zipmap": False} if classes else None
    )
    path.write_bytes(onnx.SerializeToString())


_MLP: dict[str, Any] = {"hidden_layer_sizes": (24, 16), "max_iter": 3}
for _k, (_name, _classes, _made) in enumerate([
    ("mlp_classifier", 4, lambda: MLPClassifier(**_MLP)),
    ("mlp_binary", 2, lambda: MLPClassifier(**_MLP, activation="tanh")),
    ("mlp_regressor", 0, lambda: MLPRegressor(**_MLP, activation="logistic")),
    ("scaled_mlp", 3, lambda: make_pipeline(StandardScaler(), MLPClassifier(**_MLP))),
    ("logistic", 3, LogisticRegression),
]):  # fmt: skip
    add(f"sklearn-{_name}@skl2onnx{OPSETS[_k]}", partial(_export, _made, _classes, OPSETS[_k]))
