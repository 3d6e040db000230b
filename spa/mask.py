"""The masked original: what a pruned model must compute, with nothing cut."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from spa import reals, rules
from spa.graph import FLOATS, Graph, Node
from spa.groups import Groups, Kept, Removed
from spa.parts import Parts
from spa.picks import SUMS
from spa.wake import shortened

FAR = 3e4  # below all that is compared, in half precision as well
# What compares the indices of an axis, and which axis unless it says.
_COMPARE = {"Softmax": -1, "TopK": -1, "ArgMax": 0, "ArgMin": 0}
_DIVIDING = ("Div", "Mod", "QuantizeLinear")  # by their second input


def mask(
    groups: Groups,
    removed: Removed,
    original: Parts,
    scale: float = 0.0,
    unasked: bool = False,
) -> Parts:
    """The original with every stored slice of the removed units and the closing weights of the
    removed blocks set to zero, and with the values that `Graph.changed` holds.

    Zero in a quantised tensor is its zero point. A slice that a division divides by is set to one,
    which changes nothing for a zero numerator.

    Args:
        scale: where zero has no norm to divide by, multiply by this instead.
        unasked: let Softmax and TopK find removed units far below all others, which is as if they
            were gone: the shares of the others are those of the pruned file then.
    """
    graph, kept = groups.graph, groups.kept(removed)
    values: dict[str, NDArray[np.generic]] = {}
    reads: dict[tuple[int, int], str] = {}
    for name, constant in graph.constants.items():
        axes = kept.axes(name) or []
        gone = [k for k, a in enumerate(axes) if len(a) != constant.shape[k]]
        if not gone and name not in graph.changed:
            continue
        held = graph.changed.get(name, original.weights.get(name))
        value = np.array(graph.array(name) if held is None else held)
        point = reals.nothing(graph, name, value)
        for k in gone:
            cut = np.setdiff1d(np.arange(constant.shape[k]), axes[k])
            lines = np.moveaxis(value, k, 0)  # a view
            if point is not None:
                lines[cut] = np.moveaxis(point, k, 0)[cut]
            else:
                lines[cut] = 1 if _divides(graph, name) else lines[cut] * scale if scale else 0
        # Per-reader constants get an initializer of their own here.
        own = name if "@" in name else f"{name}@masked"
        values[own] = value
        for node in (graph.nodes[k] for k in graph.readers.get(name, [])):
            for position, read in enumerate(node.inputs):
                if read == name and not node.enters:
                    reads[node.index, position] = own
    short = shortened(groups, removed)
    for block in short.blocks[len(graph.blocks) :]:
        if graph.nodes[block.node].op_type not in SUMS:
            continue
        rank = len(groups.shapes.shapes[block.branch])
        kind = helper.tensor_dtype_to_np_dtype(groups.shapes.dtypes[block.branch])
        values[own := f"{block.branch}@nothing"] = np.zeros([1] * rank, kind)
        reads[block.node, graph.nodes[block.node].inputs.index(block.branch)] = own
    for k, position in sorted(c for block in graph.blocks for c in block.closing):
        name = graph.nodes[k].inputs[position]
        value = np.asarray(graph.array(name))
        point = reals.nothing(graph, name, value)
        reads[k, position] = own = f"{k}.{position}@closed"
        values[own] = np.zeros_like(value) if point is None else np.array(point)
    moved = {}
    for node in graph.nodes if unasked else ():
        vector = _far_below(groups, kept, node)
        if vector is not None:
            moved[node.index, 0] = own = f"{node.index}.0@below"
            values[own] = vector
    return original.reading(values, reads, sorted(short.dropped - graph.dropped), moved)


def _far_below(groups: Groups, kept: Kept, node: Node) -> NDArray[np.generic] | None:
    """What brings the removed indices of the axis that a node compares far below all others."""
    axes = groups.views[0].ties.axes.get(node.inputs[0]) if node.op_type in _COMPARE else None
    kind = groups.shapes.dtypes.get(node.inputs[0], 0) if axes else 0
    if not axes or kind not in FLOATS or node.home or node.index in groups.graph.dead:
        return None
    at = int(node.attrs.get("axis", _COMPARE[node.op_type])) % len(axes)
    stays = kept.of(axes[at].ids)
    if len(stays) == len(axes[at].ids) or not node.is_standard:
        return None
    vector = np.full([len(a.ids) if k == at else 1 for k, a in enumerate(axes)], -FAR)
    np.moveaxis(vector, at, 0)[stays] = 0
    sign = -1 if node.op_type == "ArgMin" or not node.attrs.get("largest", 1) else 1
    return np.asarray(sign * vector, helper.tensor_dtype_to_np_dtype(kind))


def _divides(graph: Graph, name: str) -> bool:
    """Whether a zero there, or what is computed from it alone, would be no finite number."""
    for k in graph.readers.get(name, []):
        node = graph.nodes[k]
        if node.op_type in ("Reciprocal", "Log"):
            return True
        if node.op_type in _DIVIDING and node.inputs[1] == name:
            return True
        rule = rules.find(node.op_type, node.domain)
        # Past a product or a sum its slice no longer stands alone.
        ends = rule is None or rule.macs is not None or node.op_type.startswith("Reduce")
        if ends or any(n in graph.activations for n in node.outputs):
            continue
        if any(_divides(graph, n) for n in node.outputs):
            return True
    return False
