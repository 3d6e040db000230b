"""Train the small digit classifier that ships inside the package for `spa demo`.

    python -m models.train_digits --out spa/data

Data: scikit-learn's 8x8 digits (1,797 images, UCI "Optical Recognition of Handwritten Digits"),
divided by 16; a stratified, seeded split into 1,200 training and 597 held-out images. Training
sees random shifts of at most one pixel.

Training: SGD, one-cycle rate, label smoothing, plain weight decay on every parameter; no sparsity
penalty, no pruning in the loop, the last weights are taken. But decay and epochs were chosen for
prunability: with 2e-3 and 60 epochs, zeroing 20 % of each group left 36 % on the held-out images,
so 16 settings (decay, epochs, dropout, L1 on BatchNorm) were compared on 300 training images; L1 on
BatchNorm did best and was not used. Two earlier tries had been seen on the held-out images.

Export: eval mode, opset 18, by torch.onnx's dynamo exporter, which folds every BatchNormalization
into the convolution before it. Needs torch, onnxscript and scikit-learn (development only).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

SEED = 0
HELD_OUT = 597
EPOCHS = 120
BATCH = 64
RATE = 0.1
WEIGHT_DECAY = 1e-2


def conv_bn(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Residual(nn.Module):
    """relu(body(x) + shortcut(x)), the shortcut projected where the shape changes."""

    def __init__(self, first: nn.Module, second: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.shortcut = first, second, shortcut

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.second(functional.relu(self.first(x))) + self.shortcut(x))


class DigitNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 32, 3)
        self.stage1 = Residual(conv_bn(32, 32, 3), conv_bn(32, 32, 3), nn.Identity())
        down = conv_bn(32, 64, 1, stride=2)
        self.stage2 = Residual(conv_bn(32, 64, 3, stride=2), conv_bn(64, 64, 3), down)
        self.separable = Residual(conv_bn(64, 64, 3, groups=64), conv_bn(64, 64, 1), nn.Identity())
        self.classifier = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.separable(self.stage2(self.stage1(functional.relu(self.stem(image)))))
        return self.classifier(x.mean((2, 3)))


def load_split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, then held-out images and labels."""
    digits = load_digits()
    images = (digits.images / 16).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    split = {"test_size": HELD_OUT, "stratify": labels, "random_state": SEED}
    train_x, test_x, train_y, test_y = train_test_split(images, labels, **split)
    return train_x, train_y, test_x, test_y


def shift(images: Tensor) -> Tensor:
    """Each image moved by -1, 0 or 1 pixel along both axes, zeros moving in."""
    padded = functional.pad(images, (1, 1, 1, 1))
    rows, columns = torch.randint(0, 3, (2, len(images), 1, 1))
    span, each = torch.arange(8), torch.arange(len(images))[:, None, None]
    return padded[each, 0, rows + span[:, None], columns + span][:, None]


def train(images: Tensor, labels: Tensor) -> DigitNet:
    net = DigitNet()
    optimizer = torch.optim.SGD(net.parameters(), RATE, 0.9, 0, WEIGHT_DECAY, nesterov=True)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(images)).split(BATCH):
            logits = net(shift(images[batch]))
            optimizer.zero_grad()
            functional.cross_entropy(logits, labels[batch], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def export(net: DigitNet, path: Path) -> None:
    """One self-contained file, without the exporter's stack traces."""
    program = torch.onnx.export(
        net,
        (torch.zeros(2, 1, 8, 8),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
        opset_version=18,
    )
    assert program is not None
    model = program.model_proto
    graph = model.graph
    graph.name = "digits"
    del model.metadata_props[:], graph.metadata_props[:]
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path, save_as_external_data=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train and export the demo's digit classifier.")
    parser.add_argument("--out", type=Path, default=Path("spa/data"))
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    train_x, train_y, test_x, test_y = load_split()
    start = time.perf_counter()
    net = train(torch.from_numpy(train_x), torch.from_numpy(train_y))
    seconds = time.perf_counter() - start
    export(net, out / "digits.onnx")
    np.savez_compressed(out / "digits.npz", images=test_x, labels=test_y)
    session = onnxruntime.InferenceSession(out / "digits.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": test_x})
    accuracy = float((np.asarray(logits).argmax(1) == test_y).mean())
    print(f"held-out accuracy {accuracy:.4f} in onnxruntime, trained in {seconds:.0f} s")


if __name__ == "__main__":
    main()
