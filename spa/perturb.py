"""The criterion that asks the outputs: how far they move when a unit alone goes.

What reads a unit is given zero in its place, the network runs on a few calibration inputs, and the
squared distance of the outputs is the score. No labels are looked at, and no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper

from spa import run as runs
from spa.activity import brought_to
from spa.drift import distance
from spa.errors import UsageError
from spa.evidence import Evidence, Scores, magnitudes
from spa.graph import Graph
from spa.groups import Index
from spa.parts import Parts, parts
from spa.protos import copy_without
from spa.run import Feeds
from spa.sites import Site

RUNS = 1024  # at most; where there are more units, some that l1 holds for alike go together


def perturbation(evidence: Evidence) -> list[Scores]:
    """The drift of the outputs. Groups that no site reads are judged by l1, brought to the mean of
    the others.

    Raises:
        UsageError: without inputs.
    """
    if not evidence.inputs:
        raise UsageError("criterion 'perturbation' needs calibration inputs, and there are none")
    sizes = magnitudes(evidence)
    read = {g: r for g, r in enumerate(evidence.readers) if r}
    total = sum(evidence.groups[g].size for g in read)
    block = max(1, -(-total // RUNS))
    found: dict[int, Scores] = {}
    sites = {site.node: site for r in read.values() for site, _ in r}
    with runs.session(
        with_gates(evidence.groups.graph, [*sites.values()]), optimize=True
    ) as running:
        probe = _Probe(running, evidence.groups.graph, list(sites.values()), evidence.inputs)
        for g, readers in read.items():
            found[g] = np.zeros(evidence.groups[g].size)
            order = np.argsort(sizes[g], kind="stable")
            for start in range(0, len(order), block):
                units = order[start : start + block]
                found[g][units] = probe.drift(readers, units) / len(units)
    usual = float(np.mean([s.mean() for s in found.values()])) if found else 1.0
    return [found[g] if g in found else brought_to(usual, s) for g, s in enumerate(sizes)]


class _Probe:
    def __init__(
        self,
        running: ort.InferenceSession,
        graph: Graph,
        sites: Sequence[Site],
        inputs: Sequence[Feeds],
    ) -> None:
        self._running, self._inputs = running, inputs
        self._open = {gate(s): np.ones(width(graph, s), kind(graph, s)) for s in sites}
        self._size = {gate(s): graph.constants[s.weight].shape[s.in_axis] for s in sites}
        self._wanted = self._outputs({})

    def drift(self, readers: Sequence[tuple[Site, Index]], units: Index) -> float:
        closed = {}
        for site, index in readers:
            closed[gate(site)] = self._open[gate(site)].copy()
            closed[gate(site)].reshape(-1, self._size[gate(site)])[:, index[units].ravel()] = 0
        return distance(self._wanted, self._outputs(closed))

    def _outputs(self, closed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        made = [runs.run(self._running, {**f, **self._open, **closed}) for f in self._inputs]
        names = [n for n, v in made[0].items() if v.dtype.kind == "f"]
        return [np.concatenate([m[n].reshape(-1) for m in made]) for n in names]


def gate(site: Site) -> str:
    """The name of the input that multiplies what a site reads."""
    return f"{site.node}@gate"


def width(graph: Graph, site: Site) -> int:
    """How many channels a site reads on one axis."""
    size = graph.constants[site.weight].shape[site.in_axis]
    return size if site.stacked else site.groups * size


def kind(graph: Graph, site: Site) -> np.dtype[Any]:
    """The type of what a site reads."""
    return np.asarray(graph.array(site.weight)).dtype


def with_gates(graph: Graph, sites: Sequence[Site]) -> Parts:
    """The model, in which a vector, an input, multiplies the channels that every site reads."""
    apart = parts(graph)
    model = copy_without(apart.model, "node")
    by_node = {graph.nodes[s.node].at: s for s in sites}
    for number, node in enumerate(apart.model.graph.node):
        site = by_node.get(number)
        if site is not None:
            name, count = gate(site), width(graph, site)
            kind = graph.constants[site.weight].tensor.data_type
            model.graph.input.append(helper.make_tensor_value_info(name, kind, [count]))
            spread = [1] * (len(graph.constants[site.weight].shape) - 2)
            shape = [1, count, *spread] if site.axis == 1 else [count]
            held = helper.make_tensor(f"{name}.shape", TensorProto.INT64, [len(shape)], shape)
            model.graph.initializer.append(held)
            model.graph.node.add(
                op_type="Reshape", input=[name, held.name], output=[f"{name}.vector"]
            )
            model.graph.node.add(
                op_type="Mul", input=[node.input[0], f"{name}.vector"], output=[f"{name}.read"]
            )
        model.graph.node.append(node)
        if site is not None:
            model.graph.node[-1].input[0] = f"{gate(site)}.read"
    return Parts(model, apart.weights)
