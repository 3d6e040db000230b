"""What the text recogniser of rapidocr-onnxruntime 1.4.4 still reads after pruning, untrained.

    pip install rapidocr-onnxruntime==1.4.4
    python -m benchmarks.ocr [--lines 200] [--calibration 64] [--fonts /usr/share/fonts/truetype]

Lines of random words are rendered in the fonts found (Debian: fonts-dejavu) and read by the file
itself, with the greedy decoding of CTC. Printed is the share of characters read right (one minus
edit distance over length) for the dense file and, at macs=0.9 and 0.8, for plain l1, for spa
without data, and for spa with rendered lines of other words as calibration.
"""

from __future__ import annotations

import argparse
import random
import string
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import rapidocr_onnxruntime
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

import spa
from spa import run as runs

MODEL = Path(rapidocr_onnxruntime.__file__).parent / "models" / "ch_PP-OCRv4_rec_infer.onnx"
FONTS = Path("/usr/share/fonts/truetype")
HEIGHT, WIDTH = 48, 320
TARGETS = (0.9, 0.8)
SIZES = (24, 36)
ROWS = (
    ("l1", {"criterion": "l1", "compensate": "none", "repair": "none"}, False),
    ("spa, no data", {}, False),
    ("spa, rendered lines", {}, True),
)


def lines(count: int, seed: int) -> list[str]:
    """Some words of letters and digits each."""
    chance = random.Random(seed)
    letters = string.ascii_lowercase * 3 + string.ascii_uppercase + string.digits
    return [
        " ".join("".join(chance.choices(letters, k=chance.randint(2, 7))) for _ in range(3))
        for _ in range(count)
    ]


def rendered(texts: list[str], fonts: list[Path], seed: int) -> NDArray[np.float32]:
    """Dark text on light, as the recogniser takes it, shape (lines, 3, 48, 320)."""
    chance = random.Random(seed)
    found = []
    for text in texts:
        font = ImageFont.truetype(str(chance.choice(fonts)), chance.randint(*SIZES))
        left, top, right, bottom = font.getbbox(text)
        image = Image.new("RGB", (int(right - left) + 16, int(bottom - top) + 12), "white")
        shade = chance.randint(0, 90)
        ImageDraw.Draw(image).text((8 - left, 6 - top), text, fill=(shade,) * 3, font=font)
        wide = min(WIDTH, round(image.width * HEIGHT / image.height))
        small = np.asarray(image.resize((wide, HEIGHT), Image.Resampling.BILINEAR), np.float32)
        padded = np.zeros((3, HEIGHT, WIDTH), np.float32)
        padded[:, :, :wide] = np.moveaxis(small / 127.5 - 1, 2, 0)
        found.append(padded)
    return np.stack(found)


def read(model: Path | onnx.ModelProto, images: NDArray[np.float32]) -> list[str]:
    """The likeliest class at every step, without repeats and blanks."""
    with runs.session(MODEL) as running:
        known = running.get_modelmeta().custom_metadata_map["character"].splitlines()
    alphabet = ["", *known, " "]
    found = []
    with runs.session(model, optimize=True) as running:
        name = running.get_inputs()[0].name
        for start in range(0, len(images), 20):
            steps = running.run(None, {name: images[start : start + 20]})[0].argmax(2)
            for row in steps:
                changes = row[np.r_[True, row[1:] != row[:-1]]]
                found.append("".join(alphabet[k] for k in changes))
    return found


def right(wanted: list[str], got: list[str]) -> float:
    """The share of characters read right, in percent."""
    wrong = sum(min(distance(a, b), len(a)) for a, b in zip(wanted, got, strict=True))
    return 100 * (1 - wrong / sum(map(len, wanted)))


def distance(a: str, b: str) -> int:
    """How many characters must be changed, put in or left out."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Characters read right after pruning.")
    parser.add_argument("--lines", type=int, default=200)
    parser.add_argument("--calibration", type=int, default=64)
    parser.add_argument("--samples", type=int, default=512, help="made-up inputs without data")
    parser.add_argument("--fonts", type=Path, default=FONTS)
    given = parser.parse_args()
    fonts = sorted(given.fonts.rglob("*.ttf"))
    if not fonts:
        raise SystemExit(f"no fonts in {given.fonts}")
    texts = lines(given.lines, 0)
    images = rendered(texts, fonts, 0)
    data = rendered(lines(given.calibration, 1), fonts, 1)
    print(f"{len(texts)} lines, {sum(map(len, texts))} characters, {len(fonts)} fonts")
    print(f"dense: {right(texts, read(MODEL, images)):.2f} % read right", flush=True)
    for target in TARGETS:
        for what, options, with_data in ROWS:
            use: dict[str, Any] = {**options, "samples": given.samples}
            start = time.perf_counter()
            if with_data:
                use["data"] = data
            result = spa.prune(MODEL, {"macs": target}, **use)
            spent, done, checked = time.perf_counter() - start, result.compensation, result
            law = checked.verification.law if checked.verification else None
            print(
                f"macs={target} {what}: {right(texts, read(result.model, images)):.2f} %, "
                f"macs {result.figures.share('macs'):.3f}, "
                f"params {result.figures.share('params'):.3f}, law {law}, "
                f"{'refused, ' if done and done.refused else ''}{spent:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
