"""Analysis at scale: a graph with the shapes of Llama-2-7B, and nets that get deeper and deeper.

    python -m benchmarks.scale [FILE...]

Prints, for each graph, its nodes, the seconds (of the clock, and of CPU) that `spa.analyze` takes
in a fresh process, and the most memory that it held. The weights of the 7B graph are zeros in a
sparse file of 27 GB that takes no room on the disk; none of them is read. A FILE is measured too.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import onnx
from onnx import ModelProto

from models import sequence, vision
from models.builder import Net, Tensor
from models.hollow import Hollow

LLAMA = {"hidden": 4096, "heads": 32, "kv_heads": 32, "inner": 11008, "vocab": 32000}


def llama_7b(folder: Path, legacy: bool) -> Path:
    net = Hollow("legacy" if legacy else "plain")
    free: dict[str, str] = {"batch": "batch", "seq": "seq"}
    model = sequence.llama_like(layers=32, legacy=legacy, net=net, **LLAMA, **free)  # type: ignore[arg-type]
    return net.save(model, folder)


def residual_chain(blocks: int) -> ModelProto:
    """ResNet's bottlenecks in a row."""
    net = Net("residual")
    x = net.relu(net.conv_bn(net.input("image", ["batch", 3, 32, 32]), 64, 3))
    for _ in range(blocks):
        y = net.relu(net.conv_bn(x, 16, 1))
        x = net.relu(net.add(x, net.conv_bn(net.relu(net.conv_bn(y, 16, 3)), 64, 1)))
    return net.model(net.gemm(net.flatten(net.global_avg_pool(x)), 10))


def dense_chain(blocks: int) -> ModelProto:
    """DenseNet's blocks of eight layers, with transitions, in a row."""
    net = Net("dense")

    def layer(x: Tensor, out: int, k: int) -> Tensor:
        return net.conv(net.relu(net.bn(x)), out, k, bias=False)

    x = net.conv(net.input("image", ["batch", 3, 32, 32]), 32, 3)
    for _ in range(blocks):
        for _ in range(8):
            x = net.concat(x, layer(layer(x, 32, 1), 8, 3))
        x = layer(x, 32, 1)
    return net.model(net.gemm(net.flatten(net.global_avg_pool(x)), 10))


CHAINS: dict[str, tuple[Callable[[int], ModelProto], int]] = {
    "llama": (lambda n: sequence.llama_like(n, batch="batch", seq="seq", legacy=True), 8),
    "bert": (lambda n: sequence.bert_like(n, batch="batch", seq="seq", legacy=True), 8),
    "vit": (lambda n: sequence.vit(n, batch="batch"), 8),
    "residual": (residual_chain, 25),
    "dense": (dense_chain, 4),
}


def measure(path: Path) -> None:
    """Analyse one file, in this process."""
    from spa.analysis import analyze

    nodes = len(onnx.load(path, load_external_data=False).graph.node)
    start, cpu = time.perf_counter(), time.process_time()
    groups = analyze(path)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{nodes:6d} nodes  {len(groups):5d} groups  {seconds:6.2f} s  {cpu:6.2f} s of CPU  "
        f"{peak:5.2f} GB",
        flush=True,
    )


def measure_apart(name: str, path: Path) -> None:
    print(f"{name:24s}", end="", flush=True)
    subprocess.run([sys.executable, "-m", "benchmarks.scale", "--one", str(path)], check=True)


def main(files: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for legacy in (False, True):
            measure_apart(f"7B{', legacy' if legacy else ''}", llama_7b(folder, legacy))
        for kind, (make, least) in CHAINS.items():
            for n in (least, 2 * least, 4 * least):
                path = folder / "chain.onnx"
                onnx.save(make(n), path)
                measure_apart(f"{kind} x {n}", path)
        path = folder / "resnet50.onnx"
        onnx.save(vision.resnet50(width=0.25), path)
        measure_apart("resnet50", path)
    for file in files:
        measure_apart(Path(file).name, Path(file))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        measure(Path(sys.argv[2]))
    else:
        main(sys.argv[1:])
