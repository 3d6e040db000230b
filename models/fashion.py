"""Load Fashion-MNIST as the nets in models/trained expect it.

60,000 training and 10,000 test images of clothes, 28x28 grey, ten classes (Zalando, MIT licence).
The files come with the Debian package dataset-fashion-mnist; SPA_FASHION names another folder that
holds the same four .gz files. Pixels are divided by 255, then less MEAN, over STD (both of the
training images).
"""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FOLDER = Path("/usr/share/datasets/fashion-mnist")
MEAN = 0.2860
STD = 0.3530

Images = NDArray[np.float32]
Labels = NDArray[np.int64]


def folder() -> Path:
    return Path(os.environ.get("SPA_FASHION", FOLDER))


def present() -> bool:
    return all((folder() / f"{part}-images-idx3-ubyte.gz").is_file() for part in ("train", "t10k"))


def train() -> tuple[Images, Labels]:
    """60,000 images of shape (1, 28, 28) and their classes."""
    return _load("train")


def test() -> tuple[Images, Labels]:
    """10,000 images of shape (1, 28, 28) and their classes."""
    return _load("t10k")


def rgb(images: Images) -> Images:
    """Three equal channels at twice the size, each pixel repeated: (n, 3, 56, 56)."""
    return images.repeat(3, 1).repeat(2, 2).repeat(2, 3)


def _load(part: str) -> tuple[Images, Labels]:
    pixels = _read(f"{part}-images-idx3-ubyte.gz", header=16).reshape(-1, 1, 28, 28)
    images = (pixels.astype(np.float32) / np.float32(255) - np.float32(MEAN)) / np.float32(STD)
    return images, _read(f"{part}-labels-idx1-ubyte.gz", header=8).astype(np.int64)


def _read(name: str, header: int) -> NDArray[np.uint8]:
    path = folder() / name
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is missing: install the Debian package dataset-fashion-mnist, "
            "or set SPA_FASHION to the folder of its four .gz files"
        )
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)
