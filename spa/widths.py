"""Layer normalisations over fewer channels: their scale and bias in closed form.

Where a normalised axis loses channels, mean and deviation run over those that are left, and what
leaves the node changes for all of them. With y the dense output and n the normalised kept inputs,

    y_c ~ a_c n_c + b_c    in the least squares, pulled towards the scale and the bias as stored,

each channel by itself, or one factor for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.fit import STRENGTHS, Index, Matrix
from spa.graph import Graph, Node
from spa.sites import Floats, Place, place

NORMS = {"LayerNormalization": True, "RMSNormalization": False}  # whether the mean is taken out
LARGEST = 1 << 24  # numbers that are looked at


@dataclass(frozen=True)
class Width:
    """One such node.

    x, y: what it reads and makes. scale, bias: where they are stored. mean: whether it takes out
    the mean. epsilon: what it adds to the variance.
    """

    node: int
    x: str
    y: str
    scale: Place
    bias: Place | None
    mean: bool
    epsilon: float

    @property
    def places(self) -> list[Place]:
        return [self.scale, *([self.bias] if self.bias else [])]


def widths(graph: Graph) -> list[Width]:
    """The layer normalisations over the last axis alone whose scale is stored for them alone."""
    found = []
    for node in graph.nodes:
        width = _width(graph, node) if node.op_type in NORMS else None
        if width is not None and node.is_standard:
            found.append(width)
    return found


def _width(graph: Graph, node: Node) -> Width | None:
    scale, bias = place(graph, node, 1), place(graph, node, 2)
    if scale is None or node.inputs[0] not in graph.activations or node.attrs.get("axis", -1) != -1:
        return None
    held = graph.nodes[scale[0]].inputs[scale[1]]
    if len(graph.constants[held].shape) != 1 or (len(node.inputs) > 2 and bias is None):
        return None
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    return Width(
        node.index, node.inputs[0], node.outputs[0], scale, bias, NORMS[node.op_type], epsilon
    )


def rows(x: Sequence[Floats]) -> Matrix:
    """All positions of all batches, or evenly some of them, shape (rows, channels)."""
    step = max(1, -(-sum(v.size for v in x) // LARGEST))
    return np.concatenate([v.reshape(-1, v.shape[-1])[::step] for v in x]).astype(np.float64)


def normalised(width: Width, x: Matrix) -> Matrix:
    """What the node makes of rows before scale and bias."""
    if width.mean:
        x = x - x.mean(1, keepdims=True)
    return np.asarray(x / np.sqrt(np.square(x).mean(1, keepdims=True) + width.epsilon))


Line = tuple[Matrix, Matrix]  # a factor and a shift for every channel


def lines(y: Matrix, n: Matrix, scale: Matrix, bias: Matrix, affine: bool) -> list[Line]:
    """Candidates for y ~ a n + b.

    Args:
        y, n: shape (rows, channels). scale, bias: as stored. affine: whether there is a bias.
    """
    mean_y, mean_n = (y.mean(0), n.mean(0)) if affine else (bias * 0, bias * 0)
    y, n = y - mean_y, n - mean_n
    own, both = np.square(n).mean(0), (y * n).mean(0)
    total = float((scale * scale * own).sum())
    factor = float((scale * both).sum()) / total if total > 0 else 1.0
    found = [scale, factor * scale]
    for lam in STRENGTHS:
        found.append(scale + (both - scale * own) / np.maximum((1 + lam) * own, 1e-30))
    return [(a, mean_y - a * mean_n if affine else bias) for a in found]


def far(y: Matrix, n: Matrix, line: Line) -> float:
    """E |y - a n - b|^2 over the variance of y."""
    spread = float(np.square(y - y.mean(0)).sum()) or 1.0
    return float(np.square(y - line[0] * n - line[1]).sum()) / spread


def carried(width: Width, z: Matrix, kept: Index, line: Line) -> Line:
    """The scale and the bias by which a network in which removed channels are zero, not gone,
    comes nearest to what the line makes of the kept ones."""
    n, zeroed = normalised(width, z[:, kept]), normalised(width, z)[:, kept]
    affine = width.bias is not None
    middle, other = (m.mean(0) if affine else 0 * m[0] for m in (n, zeroed))
    own = np.square(zeroed - other).mean(0)
    slope = ((n - middle) * (zeroed - other)).mean(0) / np.maximum(own, 1e-30)
    return line[0] * slope, line[0] * (middle - slope * other) + line[1]


def rescaled(
    width: Width,
    y: Sequence[Floats],
    z: Sequence[Floats],
    fits: int,
    kept: Index,
    old: Sequence[NDArray[Any]],
    repair: bool,
) -> tuple[Line | None, Line]:
    """The line that held-out batches find best, None for that which is stored; and what to tell a
    network in which removed channels are zero.

    Args:
        y: the dense outputs in every batch. z: what the node reads in the pruned network.
        fits: how many of the batches are to fit on. old: what is stored at `Width.places`.
        repair: whether other lines are tried at all.
    """
    stored = [v[kept].astype(np.float64) for v in old]
    scale, bias = stored[0], stored[1] if width.bias else np.zeros(len(kept))
    parts = slice(fits), slice(fits, None)
    (fit_y, held_y), (fit_z, held_z) = ([rows(v[p]) for p in parts] for v in (y, z))
    fit, held = (normalised(width, v[:, kept]) for v in (fit_z, held_z))
    choices = [(scale, bias)]
    if repair:
        choices += lines(fit_y[:, kept], fit, scale, bias, width.bias is not None)
    best = int(np.argmin([far(held_y[:, kept], held, line) for line in choices]))
    return choices[best] if best else None, carried(width, fit_z, kept, choices[best])


def spread(line: Line, kept: Index, old: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """A line in the shapes of what is stored, zero at removed channels."""
    found = []
    for before, value in zip(old, line, strict=False):
        new = np.zeros_like(before)
        new[kept] = value
        found.append(new)
    return found
