"""Compute once what a file makes of stored weights alone, where statistics or scatters hold it.

A weight that is normalised or standardised at run time (weight normalisation, Salimans and Kingma
2016; weight standardisation, Qiao et al. 2019) is divided by a norm over its input channels.
Without some of these the others would change, and there is no stored weight to refit. What is
written into a weight, such as zeros in the place of the biases of keys, stands at fixed positions.
So the result is stored in its place, and what only it was made from goes. Nothing else is computed
ahead: what is merely moved about or scaled keeps the names that the framework gave it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from spa import rules
from spa import run as runs
from spa.errors import ModelError
from spa.graph import FLOATS, Graph, Node, free_names
from spa.index import other_form
from spa.protos import bodies, copy_without

_STATISTICS = {"norm", "reduce"}  # families of rules
_PASSES = {"elementwise", "movement", "repeat", "reshape", *_STATISTICS}
_WRITES = {"Scatter", "ScatterElements", "ScatterND"}
_CHANGES = {"Dropout"}  # what may differ from run to run


def ahead(graph: Graph) -> Graph | None:
    """The graph with these weights stored; None where it computes none, or where onnxruntime
    cannot compute them."""
    made = _made_from_constants(graph)
    wanted = {name: made[name] for name in _ends(graph, made) if _is_held(graph, made[name])}
    if not wanted:
        return None
    try:
        values = [v for name, nodes in wanted.items() for v in _value(graph, name, nodes)]
    except (ModelError, TypeError, ValueError, *runs.ORT_ERRORS):
        return None
    if not values:
        return None
    model = _with_stored(graph, {v.name: wanted[v.name] for v in values}, values)
    return other_form(graph, model)


def _made_from_constants(graph: Graph) -> dict[str, frozenset[int]]:
    """Tensor -> the nodes that make it, from constants alone."""
    fed = {i.name for i in graph.model.graph.input}
    fixed = {name for name, c in graph.constants.items() if c.source not in fed}
    made: dict[str, frozenset[int]] = {}
    for node in graph.nodes:
        if not node.inputs or not _may_be_ahead(node):
            continue
        if all(not n or n in fixed or n in made for n in node.inputs):
            before = (made[n] for n in node.inputs if n in made)
            nodes = frozenset({node.index}).union(*before)
            made.update({name: nodes for name in node.outputs if name})
    return made


def _may_be_ahead(node: Node) -> bool:
    rule = rules.find(node.op_type, node.domain)
    if rule is None or rule.family not in _PASSES or node.op_type in _CHANGES:
        return False
    return not node.home and not node.bodies and not node.captured


def _ends(graph: Graph, made: Iterable[str]) -> list[str]:
    """What other nodes read of it."""
    inside = {graph.makers[name] for name in made}
    seen = {*graph.outputs}.union(*(node.captured for node in graph.nodes))
    return [
        name
        for name in made
        if name not in seen
        and sum(map(bool, graph.nodes[graph.makers[name]].outputs)) == 1
        and any(k not in inside for k in graph.readers.get(name, ()))
    ]


def _is_held(graph: Graph, nodes: Iterable[int]) -> bool:
    """Whether a mean or a norm is taken of what is made from a matrix, a filter or a larger one, or
    something is written into it."""
    wide: set[str] = set()
    for node in (graph.nodes[k] for k in sorted(nodes)):
        if node.op_type in _WRITES:
            return True
        if any(name in wide or _is_wide(graph, name) for name in node.inputs):
            wide.update(node.outputs)
            rule = rules.find(node.op_type, node.domain)
            if rule is not None and rule.family in _STATISTICS:
                return True
    return False


def _is_wide(graph: Graph, name: str) -> bool:
    constant = graph.constants.get(name)
    if constant is None or constant.tensor.data_type not in FLOATS:
        return False
    return sum(n > 1 for n in constant.shape) > 1


def _value(graph: Graph, name: str, nodes: Iterable[int]) -> Iterator[TensorProto]:
    """What onnxruntime computes for a tensor, if it holds no more numbers than it is made from."""
    within = [graph.nodes[k] for k in sorted(nodes)]
    made = {own for node in within for own in node.outputs}
    feeds = {
        own: graph.array(named)
        for node in within
        for own, named in zip(node.proto.input, node.inputs, strict=True)
        if named and named not in made
    }
    inputs = [
        helper.make_tensor_value_info(own, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for own, v in feeds.items()
    ]
    body = helper.make_graph(
        [node.proto for node in within], "ahead", inputs, [onnx.ValueInfoProto(name=name)]
    )
    model = helper.make_model(
        body, ir_version=graph.model.ir_version, opset_imports=graph.model.opset_import
    )
    with runs.session(model) as running:
        value = runs.run(running, feeds)[name]
    if value.dtype.kind == "f" and value.size <= sum(v.size for v in feeds.values()):
        yield numpy_helper.from_array(value, name)


def _with_stored(
    graph: Graph, made: Mapping[str, frozenset[int]], values: Iterable[TensorProto]
) -> ModelProto:
    """The model with values in place of what made them, and without what then nothing reads."""
    given = graph.model
    led = {graph.nodes[k].at for nodes in made.values() for k in nodes}
    read = {o.name for o in given.graph.output}
    kept: list[NodeProto] = []
    for at, node in reversed([*enumerate(given.graph.node)]):
        if at not in led or read.intersection(node.output) - made.keys():
            kept.append(node)
            read.update(node.input, *(free_names(body) for body in bodies(node)))
    lost = {name for at in led for name in given.graph.node[at].input} - read
    model = copy_without(given, "node", "initializer", "value_info")
    model.graph.node.extend(reversed(kept))
    model.graph.initializer.extend(t for t in given.graph.initializer if t.name not in lost)
    model.graph.initializer.extend(values)
    known = {name for node in kept for name in node.output} | made.keys()
    model.graph.value_info.extend(i for i in given.graph.value_info if i.name in known)
    return model
