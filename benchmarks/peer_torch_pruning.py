"""The nets of `benchmarks.quality` pruned by Torch-Pruning (Fang et al. 2023) to the same MACs.

    python -m benchmarks.peer_torch_pruning [--nets vgg_bn] [--tests 2000] [--rows FILE]

Group L2 norms, no fine-tuning; once as it is, and once with the statistics of BatchNormalization
re-estimated on 512 training images. Needs torch, torch-pruning and dataset-fashion-mnist. The nets
are built by models/train_fashion.py and get the weights of NAME_bn.onnx, or of NAME.onnx where
there is no BatchNormalization. The share of channels to remove is found by bisection: the smallest
whose MACs meet the target. The rows are appended to --rows; `benchmarks.quality` puts them on its
page.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch_pruning
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from benchmarks.quality import NETS, PEERS, TARGETS, WIDE_TARGETS, Row, is_wide, line
from models import fashion
from models.train_fashion import RECIPES, Attention

PEER = "Torch-Pruning"
STEPS = 8  # of the bisection


def load(path: Path) -> nn.Module:
    """The net of a file that was exported without folding."""
    net = RECIPES[path.stem.removesuffix("_bn")].make()
    graph = onnx.load(path).graph
    stored = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Identity" and node.input[0] in stored:  # equal ones are stored once
            stored[node.output[0]] = stored[node.input[0]]
        for bias, product in itertools.permutations(node.input, 2) if node.op_type == "Add" else ():
            if bias.endswith(".bias") and made.get(product, node).op_type == "MatMul":
                weight = stored[made[product].input[1]]  # of a Linear layer, without a name
                stored[bias.removesuffix("bias") + "weight"] = weight.T.contiguous()
    wanted = net.state_dict()
    found = {n: stored[n] for n in wanted if not n.endswith("num_batches_tracked")}
    net.load_state_dict(found, strict=False)
    for module in net.modules():
        if isinstance(module, Attention):
            module.forward = partial(attend, module)  # type: ignore[method-assign]
    return net.eval()


def attend(attention: Attention, x: Tensor) -> Tensor:
    """Its forward pass, by the width that its projection has left and not by that of ``x``."""
    qkv = attention.qkv(x).unflatten(2, (3, attention.heads, -1))
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    weights = (query * attention.scale @ key.transpose(-2, -1)).softmax(-1)
    return attention.out((weights @ value).transpose(1, 2).flatten(2))


def pruned(path: Path, share: float, everywhere: bool, example: Tensor) -> nn.Module:
    """The net without this share of its channels."""
    net = load(path)
    last = [m for m in net.modules() if isinstance(m, nn.Linear)][-1:]
    heads = {m.qkv: m.heads for m in net.modules() if isinstance(m, Attention)}
    torch_pruning.pruner.BasePruner(
        net,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=everywhere,
        pruning_ratio=share,
        ignored_layers=last,
        num_heads=heads,
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


def rows(
    path: Path, targets: Sequence[float], tests: Tensor, labels: NDArray[Any], fit: Tensor
) -> Iterator[Row]:
    name, count = path.stem, len(labels)
    example = tests[:1]
    before, whole = top1(load(path), tests, labels), macs(load(path), example)
    norms = name.endswith("_bn")
    for target, (where, everywhere) in itertools.product(
        targets, (("local", False), ("global", True))
    ):
        row = Row("", PEER, name, f"{PEER}, {where}", "none", target, 0, count, before)
        try:
            net = to_target(path, target, everywhere, example)
            row = replace(row, macs=macs(net, example) / whole)
            yield replace(row, after=top1(net, tests, labels))
            if norms:
                after = top1(repaired(net, fit), tests, labels)
                yield replace(row, method=f"{row.method} + BN", inputs="images", after=after)
        except (RuntimeError, ValueError, IndexError) as error:
            yield replace(row, error=f"{type(error).__name__}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Torch-Pruning on the nets of bench-quality.")
    names = [f"{name}_bn" if not recipe.adam else name for name, recipe in RECIPES.items()]
    parser.add_argument("--nets", nargs="*", default=names, metavar="NAME")
    parser.add_argument("--folder", type=Path, default=NETS)
    parser.add_argument("--tests", type=int, default=10_000)
    parser.add_argument("--rows", type=Path, default=PEERS)
    given = parser.parse_args()
    given.rows.parent.mkdir(parents=True, exist_ok=True)
    images, labels = (part[: given.tests] for part in fashion.test())
    some = fashion.train()[0][np.random.default_rng(0).permutation(60_000)[:512]]
    for name in given.nets:
        wide = is_wide(name)
        tests, fit = (torch.from_numpy(fashion.rgb(x) if wide else x) for x in (images, some))
        targets, path = WIDE_TARGETS if wide else TARGETS, given.folder / f"{name}.onnx"
        for row in rows(path, targets, tests, labels, fit):
            print(line(row), flush=True)
            with given.rows.open("a") as out:
                out.write(json.dumps(asdict(row)) + "\n")


if __name__ == "__main__":
    main()
