"""The nets of `benchmarks.quality` pruned by Torch-Pruning (Fang et al. 2023) to the same MACs.

    python -m benchmarks.peer_torch_pruning [--nets vgg_bn] [--targets 0.5] [--tests 2000]

Group L2 norms, no fine-tuning; once as it is, and once with the statistics of BatchNormalization
re-estimated on 512 training images. Needs torch, torch-pruning and dataset-fashion-mnist. The nets
are built by models/train_fashion.py and get the weights of NAME_bn.onnx, whose initializers have
the names of the modules' parameters; the ViT's have not, so it is left out. The share of channels
to remove is found by bisection: the smallest whose MACs meet the target.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import onnx
import torch
import torch_pruning
from onnx import numpy_helper
from torch import Tensor, nn

from models import fashion
from models.train_fashion import RECIPES

NETS = Path(__file__).parent.parent / "models" / "trained"
STEPS = 8  # of the bisection


def load(path: Path) -> nn.Module:
    """The net of a file that keeps its BatchNormalization."""
    net = RECIPES[path.stem.removesuffix("_bn")].make()
    graph = onnx.load(path).graph
    stored = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    for node in graph.node:  # what was equal is stored once
        if node.op_type == "Identity" and node.input[0] in stored:
            stored[node.output[0]] = stored[node.input[0]]
    wanted = net.state_dict()
    found = {n: stored[n] for n in wanted if not n.endswith("num_batches_tracked")}
    net.load_state_dict(found, strict=False)
    return net.eval()


def pruned(path: Path, share: float, everywhere: bool, example: Tensor) -> nn.Module:
    """The net without this share of its channels."""
    net = load(path)
    last = [m for m in net.modules() if isinstance(m, nn.Linear)]
    torch_pruning.pruner.BasePruner(
        net,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=everywhere,
        pruning_ratio=share,
        ignored_layers=last,
    ).step()
    return net


def macs(net: nn.Module, example: Tensor) -> float:
    return float(torch_pruning.utils.count_ops_and_params(net, example)[0])


def to_target(path: Path, target: float, everywhere: bool, example: Tensor) -> nn.Module:
    most = target * macs(load(path), example)
    low, high = 0.0, 0.95
    for _ in range(STEPS):
        middle = (low + high) / 2
        met = macs(pruned(path, middle, everywhere, example), example) <= most
        low, high = (low, middle) if met else (middle, high)
    return pruned(path, high, everywhere, example)


@torch.no_grad()
def repaired(net: nn.Module, images: Tensor) -> nn.Module:
    """Its statistics are those of these images, all at once."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the plain mean over batches
    net.train()
    for part in images.split(128):
        net(part)
    return net.eval()


@torch.no_grad()
def top1(net: nn.Module, images: Tensor, labels: np.ndarray) -> float:
    logits = torch.cat([net(part) for part in images.split(250)])
    return 100 * float((logits.argmax(1).numpy() == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description="Torch-Pruning on the nets of bench-quality.")
    names = [f"{name}_bn" for name, recipe in RECIPES.items() if not recipe.adam]
    parser.add_argument("--nets", nargs="*", default=names, metavar="NAME")
    parser.add_argument("--folder", type=Path, default=NETS)
    parser.add_argument("--targets", type=float, nargs="*", default=[0.7, 0.5, 0.35])
    parser.add_argument("--tests", type=int, default=10_000)
    given = parser.parse_args()
    images, labels = (part[: given.tests] for part in fashion.test())
    chosen = np.random.default_rng(0).permutation(60_000)[:512]
    some = fashion.train()[0][chosen]
    for name in given.nets:
        rgb = RECIPES[name.removesuffix("_bn")].rgb
        tests, fit = (torch.from_numpy(fashion.rgb(x) if rgb else x) for x in (images, some))
        path, example = given.folder / f"{name}.onnx", tests[:1]
        before, whole = top1(load(path), tests, labels), macs(load(path), example)
        for target in given.targets:
            for everywhere in (False, True):
                net = to_target(path, target, everywhere, example)
                row = {
                    "net": name,
                    "target": target,
                    "scope": "global" if everywhere else "local",
                    "macs": round(macs(net, example) / whole, 3),
                    "before": before,
                    "after": top1(net, tests, labels),
                    "repaired": top1(repaired(net, fit), tests, labels),
                }
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
