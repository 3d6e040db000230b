"""Cut the removed indices out of a model: slice what is stored, bring stored sizes up to date.

Names of nodes and tensors stay. The input model is not changed. A size that is computed at run
time is right after the cut when it reads a tensor's shape; where constants enter it (a head count
written as 12), the constant is replaced, or the computed size is corrected before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto

from spa import rules, values
from spa.assemble import Pieces, assemble, loose, place
from spa.errors import ValidationError
from spa.graph import Constant, Node
from spa.groups import Groups, Kept, Removed
from spa.protos import as_tensor, set_attribute, set_value, unused, with_inputs
from spa.rules import Resized, Sized
from spa.shorten import shorten
from spa.wake import shortened

Value = NDArray[Any]

_ONE_TO_ONE = {"Unsqueeze", "Squeeze", "Reshape", "Cast", "Identity"}


@dataclass
class _Way:
    """How a computed size comes about, back to the constants that decide it.

    nodes: what computes it. wanted: (node, position, name, value) of what those have to read.
    alone: whether nothing else reads anything on the way.
    """

    nodes: list[int]
    wanted: list[tuple[int, int, str, Value]]
    alone: bool


def rewrite(groups: Groups, removed: Removed) -> ModelProto:
    """The model without the removed units, without what goes with them, and without the blocks
    that its graph is to lose.

    Raises:
        ValidationError: if a size computed at run time can be made right in no way.
    """
    model = _Rewriter(groups, groups.kept(removed)).model()
    graph = shortened(groups, removed)
    if graph.blocks or graph.dropped:
        shorten(model, graph)
    return model


class _Rewriter:
    def __init__(self, groups: Groups, kept: Kept) -> None:
        self.groups, self.graph, self.kept = groups, groups.graph, kept
        self.old = groups.shapes
        self.new_shapes = {n: s for n in self.old.shapes if (s := kept.shape(n)) is not None}
        self.new_values: dict[str, Value] = {}
        self.nodes = [loose(self.graph, node) for node in self.graph.nodes]
        self.pieces = Pieces(self.nodes)
        self.names = {*self.old.shapes, *self.graph.constants, *self.graph.makers}
        self.names.update(self.graph.spelling.values())
        self.reads: dict[tuple[int, int], str] = {}  # inputs that were given their own constant
        self.own: dict[tuple[str, bytes], str] = {}

    def model(self) -> ModelProto:
        self._cut_constants()
        for node in self.graph.nodes:
            stored = node.outputs and node.outputs[0] in self.graph.constants
            if not stored and not node.enters:  # the node behind the body reads the same
                self._visit(node)
        return assemble(self.graph, self.pieces, self.old.shapes, self.new_shapes, self._unused)

    # Stored tensors ----------------------------------------------------------------------------

    def _cut_constants(self) -> None:
        by_source: dict[str, list[Constant]] = {}
        for constant in self.graph.constants.values():
            by_source.setdefault(constant.source, []).append(constant)
        for source, uses in by_source.items():
            homes: dict[tuple[bytes, ...], str] = {}
            for constant in uses:
                axes = self.kept.axes(constant.name)
                assert axes is not None
                own = constant.name if constant.name in self.graph.changed else ""
                key = (own.encode(), *(a.tobytes() for a in axes))
                value = self._cut(constant, axes)
                if constant.name in self.old.values:
                    self.new_values[constant.name] = (
                        self.old.values[constant.name] if value is None else value
                    )
                if not homes:
                    homes[key] = source
                    if value is not None:
                        self._store(constant, value)
                elif key not in homes:
                    homes[key] = self._add(self._unused(source), value, constant)
                if constant.name != homes[key]:
                    self._rename_reader(constant.name, homes[key])

    def _cut(self, constant: Constant, axes: list[NDArray[np.intp]]) -> Value | None:
        """The kept part of a constant, or None where it is all kept, as it is stored."""
        value: Value | None = self.graph.changed.get(constant.name)
        for k, kept in enumerate(axes):
            if len(kept) != constant.shape[k]:
                value = self.graph.array(constant.name) if value is None else value
                value = value.take(kept, axis=k)
        return value

    def _store(self, constant: Constant, value: Value) -> None:
        tensor = as_tensor(self.graph.spelled(constant.source), value, constant.tensor)
        if constant.node is None:
            self.pieces.stored[constant.source] = tensor
        else:
            set_value(self.nodes[constant.node], tensor)

    def _add(self, name: str, value: Value | None, constant: Constant) -> str:
        array = self.graph.array(constant.name) if value is None else value
        self.pieces.added.append(as_tensor(name, array, None))
        return name

    def _rename_reader(self, alias: str, name: str) -> None:
        for k in self.graph.readers.get(alias, []):
            for position, read in enumerate(self.graph.nodes[k].inputs):
                if read == alias:
                    self.nodes[k].input[position] = self.graph.spelled(name)

    def _unused(self, base: str) -> str:
        return unused(base, self.names)

    # Stored and computed sizes -----------------------------------------------------------------

    def _visit(self, node: Node) -> None:
        wanted = self._resized(node)
        for name, value in wanted.attrs.items():
            set_attribute(self.nodes[node.index], name, value)
        computes = any(name in self.old.values for name in node.outputs if name)
        for position, name in enumerate(node.inputs):
            want = wanted.inputs.get(position)
            decides = node.bodies and position < node.given  # such as which branch is taken
            if want is None and self._is_computed(name) and (decides or not computes):
                want = self._sliced(name)  # whatever else reads it must read what it read before
            if want is not None:
                self._provide(node, position, np.asarray(want))
        for position in wanted.inputs:
            if position >= len(node.inputs):
                self._provide(node, position, np.asarray(wanted.inputs[position]))
        if computes:
            self._recompute(node)

    def _resized(self, node: Node) -> Resized:
        op = self.groups.views[0].ties.ops.get(node.index)
        rule = rules.find(node.op_type, node.domain)
        refused = node.index in self.groups.views[0].ties.refused
        if op is None or rule is None or rule.resize is None or refused:
            return Resized()
        touched = [n for n in (*node.inputs, *node.outputs) if n in self.new_shapes]
        indices = self.groups.views[0].ties.recorder.indices
        pointed = [self.kept.of(indices[n]) if n in indices else None for n in node.inputs]
        read = [indices[n] for n in node.inputs if n in indices]
        moved = any(len(self.kept.of(ids)) < len(ids) for ids in read)
        same = all(self.new_shapes[n] == self.old.shapes[n] for n in touched)
        if same and not moved and all(self._unchanged(n) for n in node.inputs):
            return Resized()
        return rule.resize(
            Sized(
                op,
                [self.new_shapes.get(n) for n in node.inputs],
                [self.new_shapes.get(n) for n in node.outputs],
                [self.kept.axes(n) if n else None for n in node.inputs],
                [self.kept.axes(n) if n else None for n in node.outputs],
                pointed,
            )
        )

    def _is_computed(self, name: str) -> bool:
        return name in self.old.values and name not in self.graph.constants

    def _sliced(self, name: str) -> Value:
        value, axes = self.old.values[name], self.kept.axes(name)
        for k, kept in enumerate(axes or []):
            if len(kept) != value.shape[k]:
                value = value.take(kept, axis=k)
        return value

    def _recompute(self, node: Node) -> None:
        """The values that the pruned model computes here."""
        changed = (self.reads.get((node.index, k)) for k in range(len(node.inputs)))
        if not any(changed) and all(self._unchanged(name) for name in node.inputs):
            self.new_values.update({n: self.old.values[n] for n in node.outputs if n})
            return
        inputs = [self.reads.get((node.index, k), n) for k, n in enumerate(node.inputs)]
        proto = with_inputs(self.nodes[node.index], inputs)
        renamed = replace(node, inputs=tuple(inputs), proto=proto)
        got = values.evaluate(self.graph, renamed, self.new_shapes, self.new_values)
        for name, value in zip(node.outputs, got or [], strict=False):
            if name and value is not None:
                self.new_values[name] = value

    def _unchanged(self, name: str) -> bool:
        """Whether a tensor has its old value, or at least the old shape where only that counts."""
        if name in self.old.values:
            new = self.new_values.get(name)
            return new is not None and np.array_equal(new, self.old.values[name])
        return not name or self.new_shapes.get(name) == self.old.shapes.get(name)

    def _provide(self, node: Node, position: int, want: Value) -> None:
        """Make the node read ``want`` at this input."""
        name = node.inputs[position] if position < len(node.inputs) else ""
        got = self.new_values.get(name)
        if got is not None and got.shape == want.shape and np.array_equal(got, want):
            return
        proto = self.nodes[node.index]
        while len(proto.input) <= position:
            proto.input.append("")
        if name in self.graph.constants or not name:
            base = self.graph.constants[name].source if name else f"{node.outputs[0]}.sizes"
            self._own_constant(node.index, position, base, want)
        elif not self._chase(node, position, want):
            fixed = self._correct(node, position, got, want)
            proto.input[position] = self.reads[node.index, position] = fixed
            self.new_values[fixed] = want

    def _own_constant(self, index: int, position: int, base: str, want: Value) -> None:
        """Replace a constant where only this node reads it, else give the node its own."""
        inputs = self.graph.nodes[index].inputs
        constant = self.graph.constants.get(inputs[position]) if position < len(inputs) else None
        uses = [c for c in self.graph.constants.values() if c.source == base]
        alone = len(uses) == 1 and len(self.graph.readers.get(base, [])) == 1
        if constant is not None and alone and base not in self.graph.outputs:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(constant.tensor.data_type)
            self._store(constant, want.astype(dtype))
            self.new_values[constant.name] = want
            return
        key = (base, want.dtype.str.encode() + str(want.shape).encode() + want.tobytes())
        if key not in self.own:
            self.own[key] = self._unused(base)
            self.pieces.added.append(as_tensor(self.own[key], want, None))
            self.new_values[self.own[key]] = want
        self.nodes[index].input[position] = self.reads[index, position] = self.own[key]

    def _chase(self, reader: Node, position: int, want: Value) -> bool:
        """Correct the constants that a computed size is put together from.

        Where others read something on the way, this reader gets a copy of the whole way.
        """
        name, found = reader.inputs[position], _Way([], [], True)
        if not self._pieces(name, want, reader.index, found):
            return False
        if found.alone:
            for index, at, base, value in found.wanted:
                self._own_constant(index, at, base, value)
            self.new_values[name] = want
        else:
            copy = self._copied(name, want, place(self.graph, reader, position), found)
            self.nodes[reader.index].input[position] = self.reads[reader.index, position] = copy
            self.new_values[copy] = want
        return True

    def _copied(self, name: str, want: Value, reader: int, way: _Way) -> str:
        """A computed size of its own for a reader, and for later ones that want the same."""
        key = (name, want.dtype.str.encode() + str(want.shape).encode() + want.tobytes())
        if key in self.own:
            return self.own[key]
        made: dict[str, str] = {}  # by the names in the file
        for index in sorted(set(way.nodes)):
            copy = NodeProto()
            copy.CopyFrom(self.nodes[index])
            for at, read in enumerate(copy.input):
                copy.input[at] = made.get(read, read)
            for at, base, value in [w[1:] for w in way.wanted if w[0] == index]:
                copy.input[at] = self._unused(base)
                self.pieces.added.append(as_tensor(copy.input[at], value, None))
            for at, output in enumerate(copy.output):
                copy.output[at] = made[output] = self._unused(output)
            copy.name = self._unused(copy.name) if copy.name else ""
            self.pieces.inserted.setdefault(reader, []).append(copy)
        self.own[key] = made[self.graph.spelled(name)]
        return self.own[key]

    def _pieces(self, name: str, want: Value, reader: int, way: _Way) -> bool:
        got = self.new_values.get(name)
        if got is not None and got.shape == want.shape and np.array_equal(got, want):
            return True
        maker = self.graph.makers.get(name)
        if maker is None:
            return False
        way.alone &= self.graph.readers.get(name) == [reader] and name not in self.graph.outputs
        node = self.graph.nodes[maker]
        way.nodes.append(maker)
        if node.op_type == "Concat":
            at = 0
            for position, part in enumerate(node.inputs):
                size = int(np.prod(self.old.shapes[part]))
                if not self._piece(node, position, want[at : at + size], way):
                    return False
                at += size
            return True
        if node.op_type in _ONE_TO_ONE:
            return self._piece(node, 0, want, way)
        if node.op_type in ("Mul", "Div"):
            return self._factor(node, want, way)
        return False

    def _factor(self, node: Node, want: Value, way: _Way) -> bool:
        """Solve ``other * fixed = want``, or ``other / fixed = want``, for the fixed."""
        stored = [k for k, n in enumerate(node.inputs) if self._is_static(n)]
        if len(stored) != 1 or (node.op_type == "Div" and stored != [1]):
            return False
        other = self.new_values.get(node.inputs[1 - stored[0]])
        if other is None or other.size != 1 or want.size != 1 or want.dtype.kind != "i":
            return False
        big, small = (want, other) if node.op_type == "Mul" else (other, want)
        if not small.all() or (big % small).any():
            return False
        return self._piece(node, stored[0], big // small, way)

    def _piece(self, node: Node, position: int, want: Value, way: _Way) -> bool:
        name = node.inputs[position]
        old = self.old.values.get(name)
        if old is None or old.size != want.size:
            return False
        value = want.reshape(old.shape).astype(old.dtype)
        if np.array_equal(self.new_values.get(name, np.zeros(0)), value):
            return True
        if name in self.graph.constants or self._is_static(name):
            constant = self.graph.constants.get(name)
            base = constant.source if constant is not None else name
            way.wanted.append((node.index, position, base, value))
            return True
        return self._pieces(name, value, node.index, way)

    def _correct(self, node: Node, position: int, got: Value | None, want: Value) -> str:
        """Put nodes in front of the reader that turn the computed size into the wanted one."""
        name = node.inputs[position]
        if self._is_static(name) or got is None:
            if not self._is_static(name):
                raise ValidationError(
                    f"node {node.name!r}: the size it reads from {name!r} is computed in a way "
                    "that cannot be followed; exclude what it reshapes with --exclude"
                )
            fixed = self._unused(name)
            self.pieces.added.append(
                as_tensor(fixed, want.astype(self.old.values[name].dtype), None)
            )
            return fixed
        if got.shape != want.shape or np.any((got == 0) & (want != 0)):
            raise ValidationError(f"node {node.name!r}: the size in {name!r} cannot be corrected")
        factor = np.where(got == want, 1, want)
        divisor = np.where(got == want, 1, got)
        common = np.gcd(factor, divisor) if factor.dtype.kind == "i" else np.ones_like(factor)
        steps = self.pieces.inserted.setdefault(place(self.graph, node, position), [])
        name = self.graph.spelled(name)
        for op_type, operand in (("Mul", factor // common), ("Div", divisor // common)):
            result, constant = self._unused(name), self._unused(name)
            self.pieces.added.append(as_tensor(constant, operand.astype(got.dtype), None))
            steps.append(
                onnx.helper.make_node(
                    op_type, [name, constant], [result], name=f"{result}.{op_type}"
                )
            )
            name = result
        return name

    def _is_static(self, name: str) -> bool:
        """Whether a computed value is the same whatever the free sizes are."""
        return name not in self.old.moving
