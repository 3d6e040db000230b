"""Run a model in stretches over all calibration inputs, so that weights can change on the way.

Every node runs once. Between two stretches only the tensors that later nodes read are held: in
memory up to a budget, beyond it in temporary files.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, ValueInfoProto, helper

from spa import run as runs
from spa.graph import free_names
from spa.parts import Parts
from spa.protos import bodies, copy_fields
from spa.run import Feeds

Values = dict[str, NDArray[Any]]


class Stream:
    """A model on its way through all batches.

    Args:
        apart: the model; never changed.
        batches: the feeds.
        goals: the tensors that will be asked for, in any order; as often as they will be.
        memory: bytes that the held tensors may take before they go to temporary files.
    """

    def __init__(
        self, apart: Parts, batches: Sequence[Feeds], goals: Iterable[str], memory: int = 2 << 30
    ) -> None:
        self._model = apart.model
        self._values: dict[str, NDArray[Any]] = dict(apart.weights)
        self._small = {t.name: t for t in apart.model.graph.initializer}
        self._nodes = list(apart.model.graph.node)
        self._reads = [_reads(node) for node in self._nodes]
        self._maker = {n: k for k, node in enumerate(self._nodes) for n in node.output if n}
        self._goals = Counter(goals)
        self._waiting = self._leading_to(set(self._goals), set())
        self._shelf = _Shelf(memory)
        self._held: list[dict[str, NDArray[Any]]] = [
            {k: v for k, v in feeds.items() if isinstance(v, np.ndarray)} for feeds in batches
        ]

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._held.clear()
        self._shelf.close()

    def replace(self, values: Mapping[str, NDArray[Any]]) -> None:
        """Give initializers new values; nodes that have run are not run again."""
        for name, value in values.items():
            self._small.pop(name, None)
            self._values[name] = value

    def put(self, name: str, values: Sequence[NDArray[Any]]) -> None:
        """Give a tensor that is held another value in every batch; what read it stays."""
        for held, value in zip(self._held, values, strict=True):
            if name in held:
                self._shelf.free(held[name])
                held[name] = self._shelf.keep(value)

    def __call__(self, names: Sequence[str]) -> list[Values]:
        """The values of these tensors, a dict for every batch."""
        todo = self._leading_to({n for n in names if n not in self._held[0]}, set(self._held[0]))
        self._waiting -= todo
        later = {n for k in self._waiting for n in self._reads[k]} | self._goals.keys()
        made = {n for k in todo for n in self._nodes[k].output if n}
        wanted = sorted(made & (later | set(names)))
        if wanted:
            self._run(sorted(todo), wanted)
        found = [{n: held[n] for n in names} for held in self._held]
        self._goals -= Counter(names)
        self._drop({n for k in self._waiting for n in self._reads[k]} | self._goals.keys())
        return found

    def _leading_to(self, names: set[str], known: set[str]) -> set[int]:
        found: set[int] = set()
        waiting = [n for n in names if n in self._maker]
        while waiting:
            k = self._maker[waiting.pop()]
            if k not in found:
                found.add(k)
                waiting += [n for n in self._reads[k] if n in self._maker and n not in known]
        return found

    def _run(self, todo: list[int], wanted: list[str]) -> None:
        nodes = [self._nodes[k] for k in todo]
        read = {n for k in todo for n in self._reads[k]}
        given = sorted(read & set(self._held[0]))
        with runs.session(self._stretch(nodes, read, given, wanted), optimize=True) as running:
            for held in self._held:
                out = running.run(wanted, {n: held[n] for n in given})
                for name, value in zip(wanted, out, strict=True):
                    held[name] = self._shelf.keep(np.asarray(value))

    def _stretch(
        self, nodes: list[NodeProto], read: set[str], given: list[str], wanted: list[str]
    ) -> Parts:
        model = ModelProto()
        copy_fields(self._model, model, but=("graph",))
        model.graph.name = self._model.graph.name or "stretch"
        model.graph.node.extend(nodes)
        model.graph.input.extend(_info(n, [held[n] for held in self._held]) for n in given)
        model.graph.output.extend(ValueInfoProto(name=n) for n in wanted)
        model.graph.initializer.extend(t for n, t in self._small.items() if n in read)
        model.graph.sparse_initializer.extend(self._model.graph.sparse_initializer)
        weights = {n: np.ascontiguousarray(v) for n, v in self._values.items() if n in read}
        return Parts(model, weights)

    def _drop(self, keep: set[str]) -> None:
        for held in self._held:
            for name in [n for n in held if n not in keep]:
                self._shelf.free(held.pop(name))


class _Shelf:
    """Arrays in memory up to a budget, the rest in files of a temporary folder."""

    def __init__(self, budget: int) -> None:
        self._free = budget
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._files = 0

    def keep(self, value: NDArray[Any]) -> NDArray[Any]:
        if value.nbytes <= self._free or value.dtype == object:
            self._free -= value.nbytes
            return value
        self._folder = self._folder or tempfile.TemporaryDirectory(prefix="spa-")
        path = Path(self._folder.name) / f"{self._files}.npy"
        self._files += 1
        np.save(path, value)
        return np.asarray(np.load(path, mmap_mode="r"))

    def free(self, value: NDArray[Any]) -> None:
        name = _file_of(value)
        if name is None:
            self._free += value.nbytes
        else:
            Path(name).unlink(missing_ok=True)

    def close(self) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def _file_of(value: NDArray[Any]) -> str | None:
    base: Any = value
    while base is not None:
        if isinstance(base, np.memmap):
            return str(base.filename)
        base = getattr(base, "base", None)
    return None


def _reads(node: NodeProto) -> frozenset[str]:
    inner = {n for body in bodies(node) for n in free_names(body)}
    return frozenset({*node.input, *inner} - {""})


def _info(name: str, values: Sequence[NDArray[Any]]) -> ValueInfoProto:
    """An input of their kind, with the rank and the sizes that all have: of those that it does not
    know, ONNX's inference makes wrong sizes."""
    kind = helper.np_dtype_to_tensor_dtype(values[0].dtype)
    if len({value.ndim for value in values}) > 1:
        return helper.make_tensor_value_info(name, kind, None)
    sizes = zip(*(value.shape for value in values), strict=True)
    shape = [s[0] if len(set(s)) == 1 else None for s in sizes]
    return helper.make_tensor_value_info(name, kind, shape)
