"""scikit-learn estimators by skl2onnx."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from skl2onnx import to_onnx
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.ensemble import (
    GradientBoostingRegressor,
    RandomForestClassifier,
    VotingClassifier,
)
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler
from sklearn.svm import SVC
from sklearn.tree import DecisionTreeClassifier

from models.zoo.registry import add

OPSETS = (13, 15, 17, 18, 20)


def _export(make: Callable[[], Any], classes: int, opset: int, path: Path) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(60, 10)).astype(np.float32)
    y = random.integers(0, classes, 60) if classes else x[:, 0]
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
    ("deep_mlp", 3, lambda: MLPClassifier((32, 24, 16), max_iter=3)),
    ("linear_regression", 0, LinearRegression),
    ("pca_mlp", 3, lambda: make_pipeline(PCA(6), MLPClassifier(**_MLP))),
    ("polynomial_mlp", 0, lambda: make_pipeline(PolynomialFeatures(2), MLPRegressor(**_MLP))),
    ("voting", 3, lambda: VotingClassifier([("a", MLPClassifier(**_MLP)),
                                            ("b", LogisticRegression())], voting="soft",
                                           flatten_transform=False)),
    ("tree", 3, lambda: DecisionTreeClassifier(max_depth=3)),
    ("forest", 3, lambda: RandomForestClassifier(5, max_depth=3)),
    ("boosting", 0, lambda: GradientBoostingRegressor(n_estimators=5)),
    ("svc", 3, lambda: SVC(probability=True)),
    ("k_means", 0, lambda: KMeans(3, n_init=1)),
    ("neighbours", 3, lambda: KNeighborsClassifier(3)),
    ("gaussian_process", 0, GaussianProcessRegressor),
]):  # fmt: skip
    _opset = OPSETS[_k % len(OPSETS)]
    add(f"sklearn-{_name}@skl2onnx{_opset}", partial(_export, _made, _classes, _opset))
