"""How far every block of a network turns its residual stream."""

from __future__ import annotations

import numpy as np

from spa import run as runs
from spa.evidence import Evidence
from spa.graph import Graph
from spa.parts import parts
from spa.sites import Floats, Site

PASSES = frozenset(("BatchNormalization", "Identity", "Dropout", "Mul", "Cast", "Reshape", "Relu"))
FAR = 12  # nodes between what ends a block and the sum


def turns(evidence: Evidence) -> dict[int, float]:
    """Group -> the mean angle, a share of a half turn, between the residual stream before and after
    the block whose last weights read the group; nothing for groups without such a block."""
    graph = evidence.groups.graph
    sums: dict[int, tuple[str, str]] = {}
    for g, readers in enumerate(evidence.readers):
        for site, _ in readers:
            found = block(graph, site)
            if found is not None:
                sums.setdefault(g, found)
    names = sorted({n for pair in sums.values() for n in pair} - set(graph.inputs))
    if not names or not evidence.inputs:
        return {}
    made: list[dict[str, Floats]] = []
    with runs.session(parts(graph).showing(set(names) - set(graph.outputs)), optimize=True) as run:
        for feeds in evidence.inputs:
            shown = dict(zip(names, run.run(names, dict(feeds)), strict=True))
            made.append({**shown, **{n: v for n, v in feeds.items() if n in graph.inputs}})
    return {
        g: float(np.mean(np.concatenate([angle(m[before], m[after]) for m in made])))
        for g, (before, after) in sums.items()
    }


def block(graph: Graph, site: Site) -> tuple[str, str] | None:
    """The residual stream before and after what a site adds to it."""
    name = site.y
    for _ in range(FAR):
        readers = graph.readers.get(name, [])
        node = graph.nodes[readers[0]] if len(readers) == 1 else None
        if node is None or node.home:
            return None
        if node.op_type == "Add":
            others = [n for n in node.inputs if n != name and n in graph.activations]
            if others:
                return others[0], node.outputs[0]
        elif node.op_type not in PASSES:
            return None
        name = node.outputs[0]
    return None


def angle(a: Floats, b: Floats) -> Floats:
    """Between the samples of two arrays, over pi, shape (samples,); 0 where they do not compare."""
    if a.shape != b.shape:
        return np.zeros(1)
    one, other = (v.reshape(len(v), -1).astype(np.float64) for v in (a, b))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosine = (one * other).sum(1) / np.where(norms > 0, norms, 1)
    return np.asarray(np.arccos(np.clip(np.where(norms > 0, cosine, 1), -1, 1)) / np.pi)
