"""Prune the three OCR models of the package rapidocr-onnxruntime 1.4.4 and read text with them.

    pip install rapidocr-onnxruntime==1.4.4
    python -m benchmarks.ocr

Prints, for each model, what was kept and the law at macs=0.8, and what the package's own API reads
of a rendered line with the original detector and with the one pruned to macs=0.95.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import rapidocr_onnxruntime
from PIL import Image, ImageDraw, ImageFont
from rapidocr_onnxruntime import RapidOCR

import spa

MODELS = Path(rapidocr_onnxruntime.__file__).parent / "models"
LINE = "structured pruning 2024"


def rendered(text: str) -> np.ndarray:
    """A line of black text on white, as an image of shape (height, width, 3), uint8."""
    image = Image.new("RGB", (720, 120), "white")
    ImageDraw.Draw(image).text((40, 40), text, fill="black", font=ImageFont.load_default(size=40))
    return np.asarray(image)


def read(**options: str) -> str:
    found, _ = RapidOCR(**options)(rendered(LINE))
    return " | ".join(text for _, text, _ in found) if found else "(nothing found)"


def main() -> None:
    for path in sorted(MODELS.glob("*.onnx")):
        result = spa.prune(path, "macs=0.8")
        checked = result.verification
        assert checked is not None
        print(
            f"{path.name}: macs {result.figures.share('macs'):.3f}, "
            f"params {result.figures.share('params'):.3f}, law {checked.law:.1e}, "
            f"unknown operators {sorted(result.groups.unknown)}"
        )
    print(f"rendered: {LINE!r}")
    print(f"original detector: {read()!r}")
    with tempfile.TemporaryDirectory() as folder:
        for share in (0.98, 0.95, 0.9):
            for options in ({}, {"criterion": "l2"}, {"aggregate": "prod", "normalize": "max"}):
                out = Path(folder) / "det.onnx"
                detector = MODELS / "ch_PP-OCRv4_det_infer.onnx"
                spa.save(spa.prune(detector, {"macs": share}, **options).model, out)
                print(f"detector at macs={share} {options}: {read(det_model_path=str(out))!r}")


if __name__ == "__main__":
    main()
