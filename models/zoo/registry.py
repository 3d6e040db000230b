"""The registry that the sources of the zoo fill: name -> what writes the .onnx."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Export = Callable[[Path], None]
ZOO: dict[str, Export] = {}


def add(name: str, export: Export) -> None:
    """Register one file.

    Raises:
        ValueError: if the name is taken.
    """
    if name in ZOO:
        raise ValueError(f"two entries of the zoo are called {name!r}")
    ZOO[name] = export
