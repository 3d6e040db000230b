"""A folder of images as the input of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, ValueInfoProto, helper

from spa.batches import Made
from spa.errors import UsageError
from spa.graph import Graph
from spa.sizes import channel_axis, dims, wanted_sizes

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm")

_SIDE = 224  # of images, where neither the model nor the user says
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_KEYS = "size=224 or 224x160, mean=M:M:M, std=S:S:S, scale=255, layout=nchw or nhwc, "
_KEYS += "order=rgb or bgr, resize=shortest or stretch"


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes an array: resized, and (pixel / scale - mean) / std.

    size: height and width.
    resize: the shortest side to the size and the middle cut out, or both sides stretched.
    """

    size: tuple[int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 255.0
    layout: str | None = None
    order: str = "rgb"
    resize: str = "shortest"

    @staticmethod
    def parse(text: str | None) -> Preprocess:
        """Read "size=224,mean=0.485:0.456:0.406,std=0.229:0.224:0.225".

        Raises:
            UsageError: naming what cannot be meant.
        """
        found = Preprocess()
        for item in (text or "").split(","):
            key, _, value = (word.strip() for word in item.partition("="))
            if not key and not value:
                continue
            try:
                found = replace(found, **{key: _READ[key](value)})
            except (KeyError, ValueError):
                raise UsageError(f"--preprocess: {item.strip()!r} is none of {_KEYS}") from None
        return found


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    sides = int(height), int(width or height)
    if min(sides) < 1:
        raise ValueError
    return sides


def _numbers(text: str) -> tuple[float, ...]:
    found = tuple(float(word) for word in text.split(":"))
    if not np.isfinite(found).all():
        raise ValueError
    return found


def _positive(text: str) -> tuple[float, ...]:
    found = _numbers(text)
    if min(found) <= 0:
        raise ValueError
    return found


def _one(text: str) -> float:
    (found,) = _positive(text)
    return found


def _choice(*words: str) -> Callable[[str], str]:
    return lambda text: words[words.index(text.lower())]


_READ: dict[str, Callable[[str], Any]] = {
    "size": _size,
    "mean": _numbers,
    "std": _positive,
    "scale": _one,
    "layout": _choice("nchw", "nhwc"),
    "order": _choice("rgb", "bgr"),
    "resize": _choice("shortest", "stretch"),
}


def files(folder: Path) -> list[Path]:
    """The images in a folder and all folders in it, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


@dataclass(frozen=True)
class Form:
    """What one image has to become. axis: of the channels; None: there is no such axis."""

    height: int
    width: int
    channels: int
    axis: int | None
    dtype: np.dtype[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        sides = [self.height, self.width]
        if self.axis is not None:
            sides.insert(self.axis, self.channels)
        return tuple(sides)


def only_input(graph: Graph) -> ValueInfoProto:
    """The one input of a model.

    Raises:
        UsageError: if it has more, or none.
    """
    infos = [i for i in graph.model.graph.input if i.name in graph.inputs]
    if len(infos) != 1 or not infos[0].type.HasField("tensor_type"):
        names = ", ".join(repr(i.name) for i in infos) or "none"
        raise UsageError(
            f"a folder of images is for models with one input; this one has {names}: give a .npz "
            "with an array for each"
        )
    found: ValueInfoProto = infos[0]
    return found


def form(graph: Graph, axis: int | None, how: Preprocess) -> Form:
    """What an image has to become for the only input of a model.

    Args:
        axis: where samples lie in it, if anywhere.

    Raises:
        UsageError: if the input takes no images, or not those that the user describes.
    """
    info = only_input(graph)
    given, known = dims(graph, info), wanted_sizes(graph)
    text = f"the input {info.name!r} is [{', '.join(map(str, given))}]"
    inner = [
        size if isinstance(size, int) else known.get(size)
        for k, size in enumerate(given)
        if k != axis
    ]
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type))
    if dtype.kind in "biuc" and dtype != np.uint8:
        kind = TensorProto.DataType.Name(info.type.tensor_type.elem_type).lower()
        raise UsageError(f"{text} and takes {kind}: images become floats or uint8")
    if dtype == np.uint8 and (how.scale, how.mean, how.std) != (255.0, (0.0,), (1.0,)):
        raise UsageError(f"{text} and takes uint8: scale, mean and std are for floats")
    if len(inner) == 2 and how.layout is None:
        channels_at = None
    elif len(inner) == 3:
        channels_at = {"nchw": 0, "nhwc": 2, None: channel_axis(inner)}[how.layout]
        if channels_at is None:
            raise UsageError(f"{text}, which does not look like images; give their layout")
    else:
        raise UsageError(f"{text}, which does not look like images")
    channels = 1 if channels_at is None else inner.pop(channels_at) or 3
    if channels not in _MODES:
        raise UsageError(f"{text}: images have 1, 3 or 4 channels, not {channels}")
    for name, numbers in (("mean", how.mean), ("std", how.std)):
        if len(numbers) not in (1, channels):
            raise UsageError(f"{text}: {name} has {len(numbers)} numbers for {channels} channels")
    height, width = (
        _side(mine, asked, text)
        for mine, asked in zip(inner, how.size or (None, None), strict=True)
    )
    return Form(height, width, channels, channels_at, dtype)


def _side(mine: int | None, asked: int | None, text: str) -> int:
    if mine and asked and mine != asked:
        raise UsageError(f"{text}, which does not fit size={asked}")
    return mine or asked or _SIDE


def column(paths: Sequence[Path], into: Form, how: Preprocess) -> Made:
    """The images, decoded when they are asked for and held as bytes.

    Raises:
        UsageError: if Pillow is missing, and, when it is asked for, if an image is damaged.
    """
    check_pillow()
    shape = [1] * len(into.shape)
    if into.axis is not None:
        shape[into.axis] = -1
    mean, std = (np.asarray(numbers, np.float32).reshape(shape) for numbers in (how.mean, how.std))
    scale = np.float32(how.scale)

    def draw(row: int) -> NDArray[Any]:
        pixels = _decode(paths[row], into, how)
        return pixels if into.axis is None else np.moveaxis(pixels, 2, into.axis)

    def finish(kept: NDArray[Any]) -> NDArray[Any]:
        if into.dtype == np.uint8:
            return kept
        return np.asarray((kept / scale - mean) / std, into.dtype)

    return Made((len(paths), *into.shape), np.uint8, draw, finish)


def check_pillow() -> None:
    """Raise UsageError if images cannot be read here."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise UsageError("reading images needs Pillow: pip install 'spa[images]'") from None


def _decode(path: Path, into: Form, how: Preprocess) -> NDArray[Any]:
    """Height, width and, if there is an axis for them, channels."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I"):  # 16 bits, which Pillow would cut off at 255
                image = Image.fromarray((np.asarray(image, np.float32) / 257).astype(np.uint8))
            image = image.convert(_MODES[into.channels])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} is not an image that can be read: {error}") from None
    size = into.width, into.height
    if how.resize == "stretch":
        image = image.resize(size, Image.Resampling.BILINEAR)
    else:
        image = ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    if into.channels == 1:
        return pixels if into.axis is None else pixels[..., None]
    if how.order == "bgr":
        pixels = np.concatenate([pixels[..., 2::-1], pixels[..., 3:]], axis=2)
    return pixels
