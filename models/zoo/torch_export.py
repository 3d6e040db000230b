"""Export a PyTorch module by each of its exporters.

A variant is written ``legacy13``, ``legacy17d``, ``dynamo18``, ``dynamo20d``: exporter, opset, and
``d`` for dynamic axes. Static legacy files keep the framework's initial values (biases that are
all zero, which the exporter aliases); all others get biases and statistics that tell indices apart.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.zoo.registry import MODELS, add

Dynamic = dict[int, str]


@dataclass(frozen=True)
class Sample:
    """A module and what it is called with.

    inputs: name -> example value. dynamic: name -> axis -> the name of its free size.
    """

    module: nn.Module
    inputs: dict[str, Tensor]
    dynamic: dict[str, Dynamic] = field(default_factory=dict)


Make = Callable[[], Sample]


class Pick(nn.Module):
    """A module called by keyword whose first outputs are returned."""

    def __init__(self, module: nn.Module, names: Sequence[str], outputs: int = 1, **fixed: Any):
        super().__init__()
        self.module, self.names, self.outputs, self.fixed = module, list(names), outputs, fixed

    def forward(self, *args: Tensor) -> tuple[Tensor, ...] | Tensor:
        out = self.module(**dict(zip(self.names, args, strict=True)), **self.fixed)
        found = _tensors(out if isinstance(out, Tensor) else list(_values(out)))
        return found[0] if self.outputs == 1 else tuple(found[: self.outputs])


def _values(out: Any) -> Sequence[Any]:
    return list(out.values()) if hasattr(out, "values") else list(out)


def _tensors(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    if isinstance(out, (list, tuple)):
        return [t for o in out for t in _tensors(o)]
    return []


def tell_apart(module: nn.Module) -> None:
    """Biases, scales and running statistics in which no two indices are equal."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if not p.is_floating_point():
                continue
            constant = p.numel() > 1 and bool((p == p.flatten()[0]).all())
            if p.ndim == 1 and not name.endswith("bias"):
                p.uniform_(0.6, 1.4)
            elif p.ndim == 1 or constant:
                p.normal_(0, 0.2)
        for name, b in module.named_buffers():
            if name.endswith("running_mean"):
                b.normal_(0, 0.2)
            elif name.endswith("running_var"):
                b.uniform_(0.6, 1.4)


def export(make: Make, variant: str, path: Path) -> None:
    matched = re.fullmatch(r"(legacy|dynamo)(\d+)(d?)", variant)
    if matched is None:
        raise ValueError(f"{variant!r} is not a variant")
    kind, opset, dynamic = matched[1], int(matched[2]), bool(matched[3])
    torch.manual_seed(zlib.crc32(variant.encode()))
    sample = make()
    module = sample.module.eval()
    if kind == "dynamo" or dynamic:
        tell_apart(module)
    args = tuple(sample.inputs.values())
    names = list(sample.inputs)
    logging.disable(logging.WARNING)
    with torch.no_grad():
        if kind == "legacy":
            torch.onnx.export(module, args, path, input_names=names, opset_version=opset,
                              dynamic_axes=sample.dynamic if dynamic else None,
                              dynamo=False)  # fmt: skip
            return
        shapes = tuple(
            dict.fromkeys(sample.dynamic.get(n, {}), torch.export.Dim.AUTO) for n in names
        )
        program = torch.onnx.export(
            module, args, None, input_names=names, opset_version=opset, dynamo=True, verbose=False,
            dynamic_shapes=((shapes,) if isinstance(module, Pick) else shapes) if dynamic else None,
        )  # fmt: skip
        if program is None:
            raise RuntimeError("the exporter returned nothing")
        program.save(path, external_data=False)


OPSETS = (17, 14, 13, 16, 15), (18, 20, 19)


def net(*variants: str, name: str = "", source: str = "torch") -> Callable[[Make], Make]:
    """Register a maker as ``source-name@variant``.

    Without variants: once by each exporter, with opsets and static or dynamic axes that the name
    decides.
    """

    def register(make: Make) -> Make:
        called = f"{source}-{name or make.__name__}"
        k = zlib.crc32(called.encode())
        legacy, dynamo = (opsets[k % len(opsets)] for opsets in OPSETS)
        MODELS[called] = partial(export, make)
        for variant in variants or (f"legacy{legacy}{'d' if k % 3 else ''}", f"dynamo{dynamo}d"):
            add(f"{called}@{variant}", partial(export, make, variant))
        return make

    return register
