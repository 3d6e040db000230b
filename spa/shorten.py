"""Take branches out of a model: what read a sum reads its skip, a longer sum and a stack go on with
their other inputs, and what only the branch needed goes. Names of what stays do not change."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from onnx import GraphProto, ModelProto, NodeProto

from spa.graph import Graph, behind, free_names
from spa.protos import bodies


def shorten(model: ModelProto, index: Graph) -> None:
    """Take blocks, and inputs that are to be dropped, out of a model, which is changed.

    Args:
        index: what names them; the model has the names of its nodes' outputs.
    """
    graph, passed = model.graph, {b.sum: b.skip for b in index.blocks}
    needed, read = _needed(graph), _read(graph)
    dropped: dict[str, list[int]] = {}
    for at, position in index.dropped:
        dropped.setdefault(index.nodes[at].outputs[0], []).append(position)
    for node in graph.node:
        gone = dropped.get(node.output[0], []) if node.output else []
        _keep(node.input, [k not in gone for k in range(len(node.input))])
    fixed = {o.name for o in graph.output}.union(*map(_captured, graph.node))
    for node in graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = behind(name, passed)
    for node in graph.node:
        name = next((n for n in node.output if n in passed), "")
        if name in fixed:  # an output, or read in a body: the name has to stay
            del node.input[:], node.attribute[:]
            node.op_type = "Identity"
            node.input.append(behind(name, passed))
    dead = needed - _needed(graph)
    lost = {name for k in dead for name in graph.node[k].output}
    for k, node in enumerate(graph.node):  # what nothing needed stays as long as it can
        if k not in needed and not lost.isdisjoint({*node.input, *_captured(node)}):
            dead.add(k)
            lost.update(node.output)
    _keep(graph.node, [k not in dead for k in range(len(graph.node))])
    unread = {t.name for t in graph.initializer} & (read - _read(graph))
    _keep(graph.initializer, [t.name not in unread for t in graph.initializer])
    # In old files an initializer is an input as well.
    _keep(graph.input, [i.name not in unread for i in graph.input])
    _keep_known(graph)


def _read(graph: GraphProto) -> set[str]:
    found = {o.name for o in graph.output}
    return found.union(*({*node.input, *_captured(node)} for node in graph.node))


def _needed(graph: GraphProto) -> set[int]:
    """The positions of the nodes that outputs need."""
    makers = {name: k for k, node in enumerate(graph.node) for name in node.output if name}
    found, waiting = set[int](), [o.name for o in graph.output]
    while waiting:
        k = makers.get(waiting.pop(), -1)
        if k >= 0 and k not in found:
            found.add(k)
            waiting += [*graph.node[k].input, *_captured(graph.node[k])]
    return found


def _captured(node: NodeProto) -> set[str]:
    return {name for body in bodies(node) for name in free_names(body)}


def _keep(field: Any, stays: Iterable[bool]) -> None:
    for k in [k for k, stay in enumerate(stays) if not stay][::-1]:
        del field[k]


def _keep_known(graph: GraphProto) -> None:
    """What is said of tensors that are gone."""
    made = {name for node in graph.node for name in node.output}
    made.update(i.name for i in (*graph.input, *graph.initializer))
    made.update(s.values.name for s in graph.sparse_initializer)
    _keep(graph.value_info, [i.name in made for i in graph.value_info])
    _keep(
        graph.quantization_annotation,
        [q.tensor_name in made for q in graph.quantization_annotation],
    )
