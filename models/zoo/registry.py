"""The registries that the sources of the zoo fill: name -> what writes the .onnx.

ZOO holds the files of the zoo, ``model@variant``; MODELS what writes any variant of a model.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

Export = Callable[[Path], None]
ZOO: dict[str, Export] = {}
MODELS: dict[str, Callable[[str, Path], None]] = {}


def add(name: str, export: Export) -> None:
    """Register one file.

    Raises:
        ValueError: if the name is taken.
    """
    if name in ZOO:
        raise ValueError(f"two entries of the zoo are called {name!r}")
    ZOO[name] = export


def find(name: str) -> Export:
    """What writes a file, of the zoo or another variant of one of its models.

    Raises:
        KeyError: if there is no such model.
    """
    if name in ZOO:
        return ZOO[name]
    model, _, variant = name.partition("@")
    return partial(MODELS[model], variant)
