"""A folder of images as the input of a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto

from spa.calibration import Calibration, calibrate
from spa.errors import UsageError
from spa.images import Preprocess
from spa.reader import load
from tests.test_arrays import nodes, ordered, table

Image = pytest.importorskip("PIL.Image")

RANDOM = np.random.default_rng(0)
FLOAT, UINT8 = TensorProto.FLOAT, TensorProto.UINT8


def fed(model: ModelProto, folder: Path, how: str | None = None, **options: Any) -> Calibration:
    return calibrate(load(model), folder, preprocess=how, **options)


def pixels(found: Calibration) -> NDArray[Any]:
    return np.concatenate([feeds["x"] for feeds in found.batches])


def refused(model: ModelProto, folder: Path, match: str, how: str | None = None) -> None:
    with pytest.raises(UsageError, match=match):
        fed(model, folder, how)


def plain(folder: Path, *colours: tuple[int, ...], size: tuple[int, int] = (30, 20)) -> Path:
    """Images of one colour each, 30 wide and 20 high."""
    for k, colour in enumerate(colours):
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[len(colour)]
        Image.new(mode, size, colour if len(colour) > 1 else colour[0]).save(folder / f"{k}.png")
    return folder


# What is read


@pytest.mark.parametrize("suffix", ["png", "jpg", "JPEG", "bmp", "webp", "ppm"])
def test_formats(suffix: str, tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    Image.new("RGB", (30, 20), (255, 0, 51)).save(tmp_path / "deep" / "er" / f"a.{suffix}")
    (tmp_path / "notes.txt").write_text("no image")
    x = pixels(fed(table(["n", 3, 8, 8]), tmp_path))
    assert x.shape == (1, 3, 8, 8) and x.dtype == np.float32
    assert x[0, :, 4, 4] == pytest.approx([1, 0, 0.2], abs=0.02)


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [
        (["n", 3, 8, 9], FLOAT, (1, 3, 8, 9)),
        (["n", 8, 9, 3], FLOAT, (1, 8, 9, 3)),
        (["n", 8, 9, 3], UINT8, (1, 8, 9, 3)),
        (["n", 3, 8, 9], TensorProto.FLOAT16, (1, 3, 8, 9)),
        (["n", 1, 8, 9], FLOAT, (1, 1, 8, 9)),
        (["n", 4, 8, 9], FLOAT, (1, 4, 8, 9)),
        (["n", 8, 9], FLOAT, (1, 8, 9)),
        ([3, 18, 19], FLOAT, (3, 18, 19)),
        (["n", 3, "h", "w"], FLOAT, (1, 3, 224, 224)),
        (["n", 3, "h", 8], FLOAT, (1, 3, 224, 8)),
    ],
    ids=str,
)
def test_form_is_the_input_s(
    shape: list[int | str], kind: int, expected: tuple[int, ...], tmp_path: Path
) -> None:
    (feeds,) = fed(table(shape, kind), plain(tmp_path, (255, 0, 51))).batches
    assert feeds["x"].shape == expected
    assert feeds["x"].max() == 255 if kind == UINT8 else feeds["x"].max() <= 1


def test_grey_and_alpha(tmp_path: Path) -> None:
    folder = plain(tmp_path, (200,), (200, 200, 200), (200, 200, 200, 0))
    for shape in (["n", 1, 8, 8], ["n", 3, 8, 8]):
        assert pixels(fed(table(shape), folder)) == pytest.approx(200 / 255)
    x = pixels(fed(table(["n", 4, 8, 8]), folder))
    assert sorted(x[:, 3, 0, 0]) == [0, 1, 1]


def test_sixteen_bits(tmp_path: Path) -> None:
    Image.fromarray(np.full((9, 9), 51400, np.uint16)).save(tmp_path / "a.png")
    assert pixels(fed(table(["n", 1, 8, 8]), tmp_path)) == pytest.approx(200 / 255, abs=0.01)


def test_a_camera_held_upright(tmp_path: Path) -> None:
    lying = np.zeros((20, 30, 3), np.uint8)
    lying[:, :15] = 255  # left
    image, exif = Image.fromarray(lying), Image.Exif()
    exif[0x0112] = 6  # to be turned right: what is left comes to the top
    image.save(tmp_path / "a.jpg", exif=exif, quality=95)
    x = pixels(fed(table(["n", 3, 8, 8]), tmp_path))[0, 0]
    assert x[1].min() > 0.9 and x[-2].max() < 0.1


def test_which_are_taken(tmp_path: Path) -> None:
    folder = plain(tmp_path, *[(10 * k,) for k in range(20)])
    model = table(["n", 1, 8, 8])
    runs = [pixels(fed(model, folder, count=6, seed=seed))[:, 0, 0, 0] for seed in (0, 0, 1)]
    assert len(runs[0]) == 6 and len(set(runs[0])) == 6
    assert list(runs[0]) == list(runs[1]) != list(runs[2])
    whole = ordered(pixels(fed(model, folder)))[:, 0, 0, 0]
    assert whole == pytest.approx(np.arange(20) * 10 / 255)


def test_images_are_decoded_when_asked_for(tmp_path: Path) -> None:
    folder = plain(tmp_path, *[(k,) for k in range(40)])
    found = fed(table(["n", 1, 8, 8]), folder, batch=10)
    first = found.batches[0]["x"]
    for path in folder.glob("*.png"):
        path.unlink()
    assert np.array_equal(found.batches[0]["x"], first)  # held
    with pytest.raises(UsageError, match="is not an image that can be read"):
        found.batches[1]


# What the user says


def test_mean_and_std_by_channel(tmp_path: Path) -> None:
    how = "mean=0.5:0.25:0, std=0.5:0.25:2, size=8"
    x = pixels(fed(table(["n", 3, "h", "w"]), plain(tmp_path, (255, 0, 255)), how))
    assert x.shape == (1, 3, 8, 8)
    assert x[0, :, 0, 0] == pytest.approx([1, -1, 0.5])


def test_scale_order_and_layout(tmp_path: Path) -> None:
    folder = plain(tmp_path, (10, 20, 30))
    x = pixels(fed(table(["n", "a", "b", "c"]), folder, "layout=nhwc,order=bgr,scale=1,size=4x6"))
    assert x.shape == (1, 4, 6, 3)
    assert list(x[0, 0, 0]) == [30, 20, 10]
    x = pixels(fed(table(["n", 3, 3, 3]), folder, "layout=nchw,scale=1"))
    assert list(x[0, :, 0, 0]) == [10, 20, 30]


def test_resize(tmp_path: Path) -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    model = table(["n", 3, 12, 12])
    middle = pixels(fed(model, tmp_path))[0, 0]
    assert middle[:, 2:10].min() == 1
    whole = pixels(fed(model, tmp_path, "resize=stretch"))[0, 0]
    assert whole[:, :3].max() < 0.1 and whole[:, 5:7].min() > 0.9


def test_defaults() -> None:
    assert Preprocess.parse(None) == Preprocess.parse("") == Preprocess()
    assert Preprocess.parse("size=224").size == (224, 224)
    assert Preprocess.parse(" size = 224x160 , RESIZE=STRETCH ".lower()).size == (224, 160)


@pytest.mark.parametrize(
    "text",
    ["colour=red", "size", "size=0", "size=-3", "size=a", "size=1x2x3", "mean=", "mean=a:b",
     "mean=nan", "std=0", "std=1:-1", "scale=0", "scale=1:2", "layout=chw", "order=grb",
     "resize=longest", "size=224;mean=1"],
)  # fmt: skip
def test_what_is_not_understood(text: str) -> None:
    with pytest.raises(UsageError, match=r"--preprocess: '.*' is none of size=224 or 224x160, mea"):
        Preprocess.parse(f"scale=255,{text}")


# What does not fit


def test_images_that_the_input_cannot_take(tmp_path: Path) -> None:
    folder = plain(tmp_path, (1, 2, 3))
    refused(table(["n", 3, 8, 8]), folder, r"\[n, 3, 8, 8\], which does not fit size=9", "size=9")
    refused(table(["n", 5, 8, 8]), folder, r"\[n, 5, 8, 8\], which does not look like images; give")
    refused(table(["n", 5]), folder, r"\[n, 5\], which does not look like images$")
    refused(table(["n", 5, 8, 8]), folder, "1, 3 or 4 channels, not 5", "layout=nchw")
    refused(table(["n", 3, 8, 8]), folder, "mean has 2 numbers for 3 channels", "mean=1:2")
    refused(table(["n", 3, 8, 8]), folder, "std has 4 numbers for 3 channels", "std=1:2:3:4")
    refused(table(["n", 3, 8, 8], TensorProto.INT64), folder, "takes int64: images become floats")
    refused(table(["n", 3, 8, 8], UINT8), folder, "takes uint8: scale, mean and std", "mean=0.5")
    both = nodes({"x": (FLOAT, ["n", 3, 8, 8]), "y": (FLOAT, ["n"])})
    refused(both, folder, "is for models with one input; this one has 'x', 'y': give a .npz")


def test_damaged_images(tmp_path: Path) -> None:
    folder = plain(tmp_path, (1, 2, 3))
    whole = (folder / "0.png").read_bytes()
    for data in (b"", b"not an image", whole[:40]):
        (folder / "0.png").write_bytes(data)
        refused(table(["n", 3, 8, 8]), folder, r"0\.png is not an image that can be read")


def test_without_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = plain(tmp_path, (1, 2, 3))
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    refused(table(["n", 3, 8, 8]), folder, r"needs Pillow: pip install 'spa\[images\]'")
