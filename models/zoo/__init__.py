"""A zoo of files as exporters write them, with random weights and no downloads.

`load()` imports every source whose framework is installed; each adds to `registry.ZOO`.
"""

from __future__ import annotations

from importlib import import_module

from models.zoo.registry import ZOO, Export

SOURCES = (
    "torch_nets",
    "odd_nets",
    "transformers_nets",
    "timm_nets",
    "named_nets",
    "sklearn_nets",
    "jax_nets",
    "paddle_nets",
    "keras_nets",
    "tf_nets",
    "optimized",
)

__all__ = ["SOURCES", "ZOO", "Export", "load"]


def load() -> tuple[dict[str, Export], dict[str, str]]:
    """The registry, and source -> why it could not be imported."""
    missing = {}
    for source in SOURCES:
        try:
            import_module(f"models.zoo.{source}")
        except ImportError as error:
            missing[source] = str(error).splitlines()[0]
    return ZOO, missing
