"""Builds an ONNX graph node by node, with inferred shapes and seeded random weights."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod, sqrt
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import defs, helper, numpy_helper, shape_inference
from onnx_graphsurgeon.ir.tensor import Tensor

Dim = int | str
_PACKED = ("int4", "int2", "e2m1fn")  # the types of which a byte holds several
HE = sqrt(2)  # gain that keeps the variance through a ReLU


class Graph:
    def __init__(self, name: str, seed: int = 0, opset: int = 17) -> None:
        self.graph = self.main = gs.Graph(name=name, opset=opset)
        self.rng = np.random.default_rng(seed)
        self._counts: Counter[str] = Counter()
        self._scope = ""
        self._domains: set[str] = set()
        self._homes: dict[str, str] = {}  # constant -> the graph that it was made in

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix the names of all that is made inside."""
        outer, self._scope = self._scope, f"{self._scope}{name}/"
        yield
        self._scope = outer

    @contextmanager
    def body(self, *inputs: Tensor) -> Iterator[gs.Graph]:
        """All that is made inside goes into a body, whose outputs are for the caller to set."""
        outer = self.graph
        self._counts["body"] += 1
        name = f"body_{self._counts['body']}"
        self.graph = gs.Graph(name=name, inputs=list(inputs), opset=outer.opset)
        yield self.graph
        self.graph = outer

    def input(self, name: str, shape: Sequence[Dim], dtype: Any = np.float32) -> Tensor:
        tensor = gs.Variable(name, dtype=np.dtype(dtype), shape=list(shape))
        self.main.inputs.append(tensor)
        return tensor

    def const(self, values: Any, name: str = "const") -> Tensor:
        """An initializer; Python floats become float32, ints become int64."""
        array = np.asarray(values)
        if not isinstance(values, np.ndarray | np.generic) and array.dtype == np.float64:
            array = array.astype(np.float32)
        name = self._name(name)
        self._homes[name] = self.graph.name
        return gs.Constant(name, array)

    def weight(
        self, *shape: int, fan: int | None = None, gain: float = HE, name: str = "weight"
    ) -> Tensor:
        """Normal values of scale gain / sqrt(fan); fan defaults to all but the first axis."""
        std = gain / sqrt(fan or prod(shape[1:]) or 1)
        return self.const(self.rng.normal(0, std, shape).astype(np.float32), name)

    def uniform(self, low: float, high: float, *shape: int, name: str = "weight") -> Tensor:
        return self.const(self.rng.uniform(low, high, shape).astype(np.float32), name)

    def nodes(
        self,
        op: str,
        inputs: Sequence[Any],
        n_outputs: int = 1,
        *,
        shapes: Sequence[Sequence[Dim]] | None = None,
        dtype: Any = np.float32,
        domain: str = "",
        **attrs: Any,
    ) -> list[Tensor]:
        """Add a node; `shapes` (and `dtype`) are needed only where ONNX cannot infer them."""
        name = self._next(op)
        feeds = [self._as_tensor(i, f"{name}.const") for i in inputs]
        self._counts[self._scope + op] += 1
        name = self._scope + name
        suffixes = [f".{i}" if n_outputs > 1 else "" for i in range(n_outputs)]
        outputs = [gs.Variable(f"{name}.out{suffix}") for suffix in suffixes]
        attrs = {k: v for k, v in attrs.items() if v is not None}
        if domain:
            self._domains.add(domain)
        if shapes is None:
            self._infer(op, feeds, outputs, attrs)
        else:
            for out, shape in zip(outputs, shapes, strict=True):
                out.shape, out.dtype = list(shape), np.dtype(dtype)
        attrs = {k: gs.Constant(k, v) if isinstance(v, np.ndarray) else v for k, v in attrs.items()}
        node = gs.Node(op, name, attrs, feeds, outputs)
        if domain:
            node.domain = domain
        self.graph.nodes.append(node)
        return outputs

    def node(
        self, op: str, *inputs: Any, shape: Sequence[Dim] | None = None, **attrs: Any
    ) -> Tensor:
        """Add a node of one output; numbers, lists and arrays among the inputs become constants."""
        return self.nodes(op, inputs, shapes=None if shape is None else [shape], **attrs)[0]

    def model(
        self, *outputs: Tensor, ir_version: int = 8, initializers_as_inputs: bool = False
    ) -> onnx.ModelProto:
        self.graph.outputs = list(outputs)
        domains = [helper.make_opsetid(d, 1) for d in sorted(self._domains)]
        self.graph.import_domains = [helper.make_opsetid("", self.graph.opset), *domains]
        model = self._export()
        self._bring_home(model)
        model.ir_version = ir_version
        if initializers_as_inputs:
            model.graph.input.extend(
                helper.make_tensor_value_info(i.name, i.data_type, i.dims)
                for i in model.graph.initializer
            )
        return model

    def _bring_home(self, model: onnx.ModelProto) -> None:
        """Leave constants where they were made: gs puts them into every graph that reads them."""
        graphs = list(graphs_of(model.graph))
        held = {t.name: t for graph in graphs for t in graph.initializer}
        for graph in graphs if len(graphs) > 1 else ():
            mine = [t for n, t in held.items() if self._homes.get(n, graph.name) == graph.name]
            del graph.initializer[:]
            graph.initializer.extend(mine)

    def _export(self) -> onnx.ModelProto:
        """What is packed stands in bytes until it is in the file: gs cannot pack it."""
        packed = {
            t.name: (t, t.values)
            for t in self.graph.tensors().values()
            if isinstance(t, gs.Constant) and np.dtype(t.dtype).name.endswith(_PACKED)
        }
        for tensor, values in packed.values():
            tensor.values = values.astype(np.int8)
        model = gs.export_onnx(self.graph, do_type_check=False)
        for initializer in model.graph.initializer:
            if initializer.name in packed:
                tensor, tensor.values = packed[initializer.name]
                initializer.CopyFrom(numpy_helper.from_array(tensor.values, tensor.name))
        return model

    def _name(self, base: str) -> str:
        """A name for a constant that no other has."""
        name = self._scope + base
        self._counts[name] += 1
        n = self._counts[name] - 1
        return f"{name}_{n}" if n else name

    def _next(self, kind: str) -> str:
        """The name, less its scope, of the next node of this kind: `Conv_0`."""
        return f"{kind}_{self._counts[self._scope + kind]}"

    def _as_tensor(self, value: Any, name: str) -> Tensor:
        if value is None:
            return gs.Variable.empty()
        return value if isinstance(value, Tensor) else self.const(value, name)

    def _infer(
        self, op: str, feeds: list[Tensor], outputs: list[Tensor], attrs: dict[str, Any]
    ) -> None:
        protos = {
            k: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v
            for k, v in attrs.items()
        }
        proto = helper.make_node(op, [f.name for f in feeds], [o.name for o in outputs], **protos)
        types = {
            f.name: helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(f.dtype), f.shape)
            for f in feeds
            if f.name
        }
        values = {
            f.name: numpy_helper.from_array(f.values, f.name)
            for f in feeds
            if isinstance(f, gs.Constant) and prod(f.shape) <= 64
        }
        opset = self.graph.opset
        found = shape_inference.infer_node_outputs(
            defs.get_schema(op, opset, ""),
            proto,
            types,
            values,
            opset_imports=[helper.make_opsetid("", opset)],
        )
        for out in outputs:
            kind = found[out.name].tensor_type
            out.dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
            out.shape = (
                [
                    d.dim_value if d.HasField("dim_value") else d.dim_param or None
                    for d in kind.shape.dim
                ]
                if kind.HasField("shape")
                else None
            )


def graphs_of(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies in it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from graphs_of(attribute.g)
