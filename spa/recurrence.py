"""The recurrence of LSTM, GRU and RNN without some of its hidden units.

What the removed units h_P gave to the gates of the others, R_P h_P, goes to the kept ones in the
least squares, over the states that the dense network goes through (teacher forcing). The states of
the pruned one are others, and small errors may grow from step to step: so the candidates are judged
by running the node over held-out inputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, helper

from spa import run as runs
from spa.fit import STRENGTHS, Index, Matrix, moments, refit
from spa.graph import Graph
from spa.parts import Parts
from spa.sites import Floats, Place, place

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
Values = Mapping[int, NDArray[Any]]  # position of an input -> value


@dataclass(frozen=True)
class Recurrence:
    """One such node.

    y: all its states. weight, bias: where R, and W's and R's biases side by side, are stored.
    backwards: for every direction whether it starts at the last step. batch_first: the layout.
    gates: how many there are, linear: how many of them, from the first on, sum the states
        themselves.
    """

    node: int
    y: str
    weight: Place
    bias: Place | None
    backwards: tuple[bool, ...]
    batch_first: bool
    gates: int
    linear: int

    @property
    def places(self) -> list[Place]:
        return [self.weight, *([self.bias] if self.bias else [])]


def recurrences(graph: Graph) -> list[Recurrence]:
    """Those whose weights are stored for them alone, and all of whose states are an output."""
    found = []
    for node in graph.nodes:
        at = place(graph, node, 2) if node.op_type in GATES else None
        if at is None or not node.is_standard or not node.outputs[0]:
            continue
        if node.inputs[0] not in graph.activations:
            continue
        bias = place(graph, node, 3)
        if bias is None and len(node.inputs) > 3 and node.inputs[3]:
            continue
        way = node.attrs.get("direction", b"forward")
        ways = {b"forward": (False,), b"reverse": (True,)}.get(way, (False, True))
        gates = GATES[node.op_type]
        # Without linear_before_reset the last gate of a GRU sees states that are reset.
        reset = node.op_type == "GRU" and not node.attrs.get("linear_before_reset", 0)
        found.append(
            Recurrence(
                node.index,
                node.outputs[0],
                at,
                bias,
                ways,
                bool(node.attrs.get("layout", 0)),
                gates,
                gates - reset,
            )
        )
    return found


def states_before(recurrence: Recurrence, y: Floats, start: Floats | None) -> Floats:
    """The state that every step reads, shape (directions, steps * batch, hidden).

    Args:
        y: all states. start: the state before the first step, zero where it is None.
    """
    y = np.moveaxis(y, 0, 2) if recurrence.batch_first else y  # (steps, directions, batch, hidden)
    if start is None:
        start = np.zeros(y.shape[1:], y.dtype)
    elif recurrence.batch_first:
        start = np.swapaxes(start, 0, 1)
    found = []
    for k, back in enumerate(recurrence.backwards):
        first = start[k][None]
        states = [y[1:, k], first] if back else [first, y[:-1, k]]
        found.append(np.concatenate(states).reshape(-1, y.shape[3]))
    return np.stack(found)


def candidates(
    recurrence: Recurrence, r: Matrix, states: Floats, kept: Index, affine: bool, full: bool
) -> Iterator[tuple[Matrix, Matrix]]:
    """New R, shape (directions, gates * hidden, hidden), zero at what is removed, and the change of
    its bias, shape (directions, gates * hidden). The first is plain removal.

    Args:
        states: that every step reads, shape (directions, rows, hidden). full: or only the bias.
    """
    hidden = r.shape[2]
    rows = (np.arange(recurrence.gates)[:, None] * hidden + kept).ravel()
    plain = np.zeros_like(r)
    plain[:, rows[:, None], kept] = r[:, rows[:, None], kept]
    yield plain, np.zeros(r.shape[:2])
    rows = rows[: recurrence.linear * len(kept)]
    seen = moments(r[:, rows], states, states[:, :, kept], affine)
    for lam in (np.inf, *STRENGTHS) if full else (np.inf,):
        new, change = plain.copy(), np.zeros(r.shape[:2])
        new[:, rows[:, None], kept], change[:, rows] = refit(r[:, rows][:, :, kept], seen, lam)
        yield new, change * affine


def shifted(bias: NDArray[Any], change: Matrix) -> NDArray[Any]:
    """The bias of W and R, shape (directions, 2 * gates * hidden), with R's part changed."""
    new = bias.astype(np.float64)
    new[:, new.shape[1] // 2 :] += change
    return new


class Alone:
    """One recurrent node by itself; all it reads are inputs."""

    def __init__(self, graph: Graph, recurrence: Recurrence, example: Values) -> None:
        node = graph.nodes[recurrence.node]
        model = ModelProto(ir_version=graph.model.ir_version)
        model.opset_import.extend(graph.model.opset_import)
        model.graph.name = "alone"
        copy = model.graph.node.add()
        copy.CopyFrom(node.proto)
        del copy.input[:], copy.output[:]
        last = max(example)
        copy.input.extend(f"in{k}" if k in example else "" for k in range(last + 1))
        copy.output.append("y")
        for k, value in example.items():
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            model.graph.input.append(helper.make_tensor_value_info(f"in{k}", kind, None))
        model.graph.output.append(ValueInfoProto(name="y"))
        self._model = Parts(model, {})

    def states(self, batches: Sequence[Values]) -> list[Floats]:
        """All states, for every batch."""
        with runs.session(self._model) as running:
            return [
                np.asarray(running.run(None, {f"in{k}": v for k, v in values.items()})[0])
                for values in batches
            ]


def far(wanted: Sequence[Floats], got: Sequence[Floats], kept: Index) -> float:
    """E |y - y'|^2 of the kept states, over E |y|^2."""
    lost = whole = 0.0
    for a, b in zip(wanted, got, strict=True):
        one, other = (v[..., kept].astype(np.float64) for v in (a, b))
        lost += float(np.square(one - other).sum())
        whole += float(np.square(one).sum())
    return lost / max(whole, 1e-300)


def refitted(
    graph: Graph,
    recurrence: Recurrence,
    r: NDArray[Any],
    states: Sequence[Floats],
    y: Sequence[Floats],
    read: Sequence[Values],
    fits: int,
    kept: Index,
    full: bool,
) -> tuple[list[NDArray[Any]] | None, float, float]:
    """What to store at `Recurrence.places`, None where nothing is better than plain removal on
    held-out batches; and the error of the states without and with it.

    Args:
        r: dense. states: of the dense network before every step, in every batch. y: after it.
        read: all that the node reads in the pruned network, in every batch. fits: how many of the
            batches are to fit on. full: or only the bias.
    """
    affine, fit = recurrence.bias is not None, np.concatenate(states[:fits], axis=1)
    choices: list[dict[int, NDArray[Any]]] = []
    for new, change in candidates(recurrence, r.astype(np.float64), fit, kept, affine, full):
        choice = {2: new.astype(r.dtype)}
        if affine:
            choice[3] = shifted(read[0][3], change).astype(r.dtype)
        choices.append(choice)
    alone = Alone(graph, recurrence, read[0])
    errors = [
        far(y[fits:], alone.states([{**v, **choice} for v in read[fits:]]), kept)
        for choice in choices
    ]
    best = int(np.argmin(errors))
    return [*choices[best].values()] if best else None, errors[0], errors[best]
