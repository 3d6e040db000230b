"""Nets that everyone knows, at full width, with random weights, by both PyTorch exporters.

timm imports torchvision at its start; where that is missing, a stub on PYTHONPATH will do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn

from models.zoo.torch_export import Pick, Sample, net

VARIANTS = ("legacy17d", "dynamo18d")


def on_image(module: nn.Module, side: int = 224) -> Sample:
    return Sample(module, {"x": torch.randn(2, 3, side, side)}, {"x": {0: "batch"}})


def add(name: str, make: Callable[[], Sample]) -> None:
    net(*VARIANTS, name=name, source="full")(make)


# --- timm

TIMM = {
    "resnet50": ("resnet50", 224),
    "vit-b16": ("vit_base_patch16_224", 224),
    "swin-t": ("swin_tiny_patch4_window7_224", 224),
    "convnext-t": ("convnext_tiny", 224),
    "densenet121": ("densenet121", 224),
    "efficientnet-b0": ("efficientnet_b0", 224),
    "mobilevit-s": ("mobilevit_s", 256),
}


def _timm(model: str, side: int) -> Callable[[], Sample]:
    return lambda: on_image(timm.create_model(model, pretrained=False, exportable=True), side)


for _name, (_model, _side) in TIMM.items():
    add(_name, _timm(_model, _side))

# --- transformers


def _tokens(model: str, **settings: Any) -> Callable[[], Sample]:
    def make() -> Sample:
        kind = getattr(transformers, model)
        module = kind._from_config(kind.config_class(**settings), attn_implementation="eager")
        fixed = {} if model.startswith("Bert") else {"use_cache": False}
        inputs = {
            "input_ids": torch.randint(3, 1000, (2, 9)),
            "attention_mask": torch.ones(2, 9, dtype=torch.int64),
        }
        free = {name: {0: "batch", 1: "sequence"} for name in inputs}
        return Sample(Pick(module, list(inputs), **fixed), inputs, free)

    return make


add("bert-base", _tokens("BertForSequenceClassification"))
add("bert-base-states", _tokens("BertModel"))
add("gpt2", _tokens("GPT2LMHeadModel"))
add("llama-gqa", _tokens("LlamaForCausalLM", hidden_size=1024, intermediate_size=2816,
    num_hidden_layers=4, num_attention_heads=16, num_key_value_heads=4,
    vocab_size=32000))  # fmt: skip

# --- written out


def _cbr(i: int, o: int, k: int, s: int = 1, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(i, o, k, s, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, *([nn.ReLU()] if act else []))


class Shuffled(nn.Module):
    """A unit of ShuffleNetV2: half of the channels pass by, or with a stride all go both ways."""

    def __init__(self, i: int, o: int, stride: int):
        super().__init__()
        self.stride, half = stride, o // 2
        self.side = (
            nn.Sequential(_cbr(i, i, 3, 2, i, False), _cbr(i, half, 1)) if stride > 1 else None
        )
        self.main = nn.Sequential(
            _cbr(i if stride > 1 else half, half, 1),
            _cbr(half, half, 3, stride, half, False),
            _cbr(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.side is None:
            a, b = x.chunk(2, 1)
            y = torch.cat([a, self.main(b)], 1)
        else:
            y = torch.cat([self.side(x), self.main(x)], 1)
        n, c, h, w = y.shape
        return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def shufflenet() -> Sample:
    layers: list[nn.Module] = [_cbr(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    width = 24
    for repeats, out in ((4, 116), (8, 232), (4, 464)):
        for k in range(repeats):
            layers.append(Shuffled(width if k == 0 else out, out, 2 if k == 0 else 1))
        width = out
    head = [_cbr(464, 1024, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000)]
    return on_image(nn.Sequential(*layers, *head))


class UNet(nn.Module):
    """Four levels down and up, from 64 to 1024 channels, GroupNorm with 32 groups."""

    def __init__(self, widths: tuple[int, ...] = (64, 128, 256, 512, 1024), classes: int = 2):
        super().__init__()

        def double(i: int, o: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(i, o, 3, padding=1), nn.GroupNorm(32, o), nn.ReLU(),
                nn.Conv2d(o, o, 3, padding=1), nn.GroupNorm(32, o), nn.ReLU(),
            )  # fmt: skip

        inputs = (3, *widths[:-1])
        self.down = nn.ModuleList(double(i, o) for i, o in zip(inputs, widths, strict=True))
        ups = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose2d(i, o, 2, 2) for i, o in ups)
        self.join = nn.ModuleList(double(2 * o, o) for _, o in ups)
        self.out = nn.Conv2d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for k, down in enumerate(self.down):
            x = down(nn.functional.max_pool2d(x, 2) if k else x)
            kept.append(x)
        for up, join, skip in zip(self.up, self.join, kept[-2::-1], strict=True):
            x = join(torch.cat([skip, up(x)], 1))
        return self.out(x)


add("shufflenet-v2", shufflenet)
add("unet-groupnorm", lambda: on_image(UNet(), 128))
