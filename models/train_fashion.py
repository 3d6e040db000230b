"""Train the nets in models/trained on Fashion-MNIST and export them.

    python -m models.train_fashion [NAME ...] [--epochs N] [--threads 1] [--out models/trained]

Training: all 60,000 training images, seed 0, the last weights are taken; nothing was chosen by
test accuracy. Flips and shifts of at most two pixels, cross-entropy without label smoothing. CNNs:
SGD with Nesterov momentum, weight decay 5e-4 on every parameter as in ordinary training, one-cycle
rate. ViT: AdamW, weight decay 0.05 on matrices. No sparsity penalty, no pruning in the loop.

Export: torch.onnx's TorchScript exporter, opset 17, dynamic batch. `NAME.onnx` has each
BatchNormalization folded into the convolution before it where there is one; `NAME_bn.onnx` keeps
all of them. Needs torch (development only).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional

from models import fashion

SEED = 0
BATCH = 128
CLASSES = 10
SHIFT = 2
CNN_DECAY = 5e-4
VIT_DECAY = 0.05


def conv_bn(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class BasicBlock(nn.Module):
    """relu(conv(relu(conv(x))) + shortcut(x)), the shortcut projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, 3)
        same = inputs == outputs and stride == 1
        self.shortcut = nn.Identity() if same else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; added to the input where the shape stays."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [conv_bn(inputs, hidden, 1), nn.ReLU6(inplace=True)] if expansion > 1 else []
        depthwise = [conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6(inplace=True)]
        self.body = nn.Sequential(*expand, *depthwise, conv_bn(hidden, outputs, 1))
        self.same = inputs == outputs and stride == 1

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.same else self.body(x)


class DenseLayer(nn.Module):
    """The input and, behind it, what a bottleneck of two convolutions makes of it."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(functional.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(functional.relu(self.norm2(hidden)))], 1)


class Attention(nn.Module):
    """Self-attention written out, one projection for query, key and value."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (query * self.scale @ key.transpose(-2, -1)).softmax(-1)
        return self.out((weights @ value).transpose(1, 2).reshape(batch, tokens, dim))


class EncoderLayer(nn.Module):
    """Pre-LN attention and MLP, each added to its input."""

    def __init__(self, dim: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = Attention(dim, heads)
        self.mlp = nn.Sequential(
            nn.Linear(dim, ratio * dim), nn.GELU(), nn.Linear(ratio * dim, dim)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches of 4x4, a class token, learned positions."""

    def __init__(self, dim: int, depth: int, heads: int, ratio: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 4, 4)
        self.token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.randn(1, 7 * 7 + 1, dim) * 0.02)
        self.layers = nn.Sequential(*(EncoderLayer(dim, heads, ratio) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patches(image).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.layers(x))[:, 0])


def pooled_head(channels: int) -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)]


def resnet20() -> nn.Module:
    """Three stages of three blocks, as for CIFAR (He et al. 2015, section 4.2)."""
    layers: list[nn.Module] = [conv_bn(1, 16, 3), nn.ReLU()]
    inputs = 16
    for width, stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(3):
            layers.append(BasicBlock(inputs, width, stride if block == 0 else 1))
            inputs = width
    return nn.Sequential(*layers, *pooled_head(inputs))


def vgg() -> nn.Module:
    """Six plain 3x3 convolutions, pooled after every second one."""
    layers: list[nn.Module] = []
    inputs = 1
    for stage, width in enumerate((32, 64, 96)):
        layers += [nn.MaxPool2d(2)] if stage else []
        layers += [conv_bn(inputs, width, 3), nn.ReLU(), conv_bn(width, width, 3), nn.ReLU()]
        inputs = width
    return nn.Sequential(*layers, *pooled_head(inputs))


def mobilenet_like(
    channels: int, stem: int, stride: int, rows: list[tuple[int, int, int, int]], last: int
) -> nn.Module:
    """MobileNetV2 of these (expansion, width, blocks, stride) rows."""
    layers: list[nn.Module] = [conv_bn(channels, stem, 3, stride), nn.ReLU6(inplace=True)]
    inputs = stem
    for expansion, width, blocks, first in rows:
        for block in range(blocks):
            step = first if block == 0 else 1
            layers.append(InvertedResidual(inputs, width, step, expansion))
            inputs = width
    return nn.Sequential(
        *layers, conv_bn(inputs, last, 1), nn.ReLU6(inplace=True), *pooled_head(last)
    )


def mobilenet() -> nn.Module:
    rows = [(1, 16, 1, 2), (4, 24, 2, 1), (4, 40, 3, 2), (4, 64, 3, 1)]
    return mobilenet_like(1, 16, 1, rows, 256)


def wide_mobilenet() -> nn.Module:
    """For 56x56 images of three channels: a strided stem and wide expansions, as for ImageNet."""
    rows = [(1, 16, 1, 2), (6, 24, 2, 1), (6, 32, 3, 2), (6, 48, 3, 1), (6, 64, 2, 2)]
    return mobilenet_like(3, 24, 2, rows, 320)


def densenet() -> nn.Module:
    """DenseNet-BC: three blocks of six layers, growth 12, transitions that halve the width."""
    growth, width = 12, 24
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, 1, 1, bias=False), nn.MaxPool2d(2)]
    for stage in range(3):
        if stage:
            norm, halve = nn.BatchNorm2d(width), nn.Conv2d(width, width // 2, 1, bias=False)
            layers += [norm, nn.ReLU(), halve, nn.AvgPool2d(2)]
            width //= 2
        for _ in range(6):
            layers.append(DenseLayer(width, growth))
            width += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(width), nn.ReLU(), *pooled_head(width))


def vit() -> nn.Module:
    return VisionTransformer(dim=96, depth=5, heads=6, ratio=2)


@dataclass(frozen=True)
class Recipe:
    """rgb: whether the net takes three channels at 56x56; rate: the peak of the schedule.

    mixed: bfloat16 where autocast uses it; slower on depthwise convolutions.
    """

    make: Callable[[], nn.Module]
    epochs: int
    rate: float = 0.2
    rgb: bool = False
    adam: bool = False
    mixed: bool = True


RECIPES = {
    "resnet20": Recipe(resnet20, 7),
    "vgg": Recipe(vgg, 7),
    "mobilenet": Recipe(mobilenet, 6, mixed=False),
    "densenet": Recipe(densenet, 3),
    "vit": Recipe(vit, 8, rate=1.5e-3, adam=True),
    "wide_mobilenet": Recipe(wide_mobilenet, 3, rgb=True, mixed=False),
}


def augment(images: Tensor) -> Tensor:
    """Each image moved by up to SHIFT pixels along both axes, half of them mirrored."""
    count, _, size, _ = images.shape
    # What moves in is black, which is not zero after the normalisation.
    padded = functional.pad(images, (SHIFT,) * 4, value=-fashion.MEAN / fashion.STD)
    rows, columns = torch.randint(0, 2 * SHIFT + 1, (2, count, 1, 1))
    span, each = torch.arange(size), torch.arange(count)[:, None, None]
    along = torch.where(torch.rand(count, 1, 1) < 0.5, span, size - 1 - span)
    return padded[each, 0, rows + span[:, None], columns + along][:, None]


def widen(images: Tensor) -> Tensor:
    """fashion.rgb for tensors."""
    return images.repeat_interleave(2, 2).repeat_interleave(2, 3).repeat(1, 3, 1, 1)


def optimizer_of(net: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if not recipe.adam:
        return torch.optim.SGD(net.parameters(), recipe.rate, 0.9, 0, CNN_DECAY, nesterov=True)
    matrices = [p for p in net.parameters() if p.ndim > 1 and p.shape[0] != 1]
    others = [p for p in net.parameters() if p.ndim == 1 or p.shape[0] == 1]
    groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, recipe.rate, weight_decay=VIT_DECAY)


def batches(images: Tensor, labels: Tensor, rgb: bool) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in torch.randperm(len(images)).split(BATCH):
        chosen = augment(images[batch])
        yield widen(chosen) if rgb else chosen, labels[batch]


def train(recipe: Recipe, epochs: int, images: Tensor, labels: Tensor) -> nn.Module:
    net = recipe.make().to(memory_format=torch.channels_last)
    optimizer = optimizer_of(net, recipe)
    steps = epochs * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, total_steps=steps, cycle_momentum=False
    )
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        for x, y in batches(images, labels, recipe.rgb):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.mixed):
                logits = net(x.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(logits.float(), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(y)
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}: loss {total / len(images):.4f}, {seconds:.0f} s", flush=True)
    return net.eval().to(memory_format=torch.contiguous_format)


def export(net: nn.Module, path: Path, rgb: bool, fold: bool) -> None:
    """One file; the exporter folds BatchNormalization in eval mode only."""
    mode = torch.onnx.TrainingMode.EVAL if fold else torch.onnx.TrainingMode.PRESERVE
    shape = (2, 3, 56, 56) if rgb else (2, 1, 28, 28)
    torch.onnx.export(
        net,
        (torch.zeros(shape),),
        path,
        dynamo=False,
        opset_version=17,
        training=mode,
        do_constant_folding=fold,
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
    )
    model = onnx.load(path)
    model.graph.name = path.stem
    for node in model.graph.node:
        node.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def logits_of(path: Path, images: fashion.Images) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    parts = [session.run(["logits"], {"image": part})[0] for part in np.split(images, 40)]
    return np.concatenate(parts)


def write(name: str, net: nn.Module, rgb: bool, out: Path) -> dict[str, float]:
    """Export both forms (one without BatchNormalization), top-1 of each in onnxruntime."""
    images, labels = fashion.test()
    images = fashion.rgb(images) if rgb else images
    has_norms = any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    logits = {}
    for stem, fold in ((name, True), (f"{name}_bn", False)) if has_norms else ((name, True),):
        export(net, out / f"{stem}.onnx", rgb, fold)
        logits[stem] = logits_of(out / f"{stem}.onnx", images)
    folded, *kept = logits.values()
    for other in kept:
        assert np.abs(folded - other).max() < 1e-4, "the two forms must compute the same"
    return {stem: float((out.argmax(1) == labels).mean()) for stem, out in logits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and export nets on Fashion-MNIST.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RECIPES))
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("models/trained"))
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    torch.use_deterministic_algorithms(True)
    # Filling every new tensor, which it would do besides, takes a third of the time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    images, labels = map(torch.from_numpy, fashion.train())
    for name in arguments.names or RECIPES:
        recipe = RECIPES[name]
        torch.manual_seed(SEED)
        start = time.perf_counter()
        epochs = arguments.epochs or recipe.epochs
        net = train(recipe, epochs, images, labels)
        seconds = time.perf_counter() - start
        top1 = write(name, net, recipe.rgb, out)
        print(json.dumps({"net": name, "epochs": epochs, "seconds": round(seconds), "top1": top1}))


if __name__ == "__main__":
    main()
