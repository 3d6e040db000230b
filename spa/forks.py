"""More inputs for a model with branches, so that it is seen to run in every one of them.

What decides is found by going back from the condition of an If: inputs of the model, and numbers
that are compared with. Switches are thrown, single numbers are set to those numbers and beside
them, and floats are scaled.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa import run as runs
from spa.graph import Graph, Node
from spa.parts import Parts
from spa.run import ORT_ERRORS, Feeds, Inputs
from spa.shapes import Shapes
from spa.sizes import Sizes, realistic

MOST = 8  # more inputs
_TRIES = 64
_COMPARES = {"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Sub", "Mod", "And", "Or"}
_SCALES = (0.0, -1.0, 10.0, 0.01)


def forks(graph: Graph, shapes: Shapes) -> list[Node]:
    """The If nodes of which either branch may be taken."""
    return [
        node
        for node in graph.nodes
        if node.op_type == "If" and node.bodies and node.inputs[0] not in shapes.values
        if node.inputs[0] in graph.activations
    ]


def more(
    graph: Graph, shapes: Shapes, apart: Parts, first: Inputs, seed: int = 0
) -> tuple[list[Inputs], list[str]]:
    """Inputs on which branches are taken that the first inputs do not take.

    A branch may ask for other sizes than the first inputs have: then those in use are tried. A
    condition inside of a body cannot be seen; where there are such, all that runs is kept.

    Returns:
        The inputs, and the names of the nodes of which only one branch was seen.
    """
    nodes = forks(graph, shapes)
    if not nodes:
        return [], []
    conditions = dict.fromkeys(node.inputs[0] for node in nodes)
    shown = [name for name in conditions if name not in graph.hidden]
    found: list[Inputs] = []
    with runs.session(apart.showing(n for n in shown if n not in graph.outputs)) as running:
        outcome = _outcome(runs.run(running, first.feeds), shown)
        seen = {outcome}
        for sizes, feeds in islice(_tries(graph, list(conditions), first, seed), _TRIES):
            both = all(len(set(taken)) == 2 for taken in zip(*seen, strict=True))
            if len(found) == MOST or (both and len(shown) == len(conditions)):
                break
            try:
                outputs = runs.run(running, feeds)
            except ORT_ERRORS:
                continue
            outcome = _outcome(outputs, shown)
            if outcome not in seen or len(shown) < len(conditions):
                seen.add(outcome)
                outputs = {name: v for name, v in outputs.items() if name in first.outputs}
                found.append(Inputs(sizes, feeds, outputs))
    taken = zip(shown, zip(*seen, strict=True), strict=True)
    once = {name for name, outcomes in taken if len(set(outcomes)) < 2}
    unseen = once | (conditions.keys() - set(shown))
    return found, [node.name for node in nodes if node.inputs[0] in unseen]


def _outcome(outputs: runs.Outputs, names: list[str]) -> tuple[bool, ...]:
    return tuple(bool(np.all(outputs[name])) for name in names)


def _tries(
    graph: Graph, conditions: list[str], first: Inputs, seed: int
) -> Iterator[tuple[Sizes, Feeds]]:
    roots = _roots(graph, conditions)
    yield from ((first.sizes, feeds) for feeds in _changed(graph, roots, first.feeds))
    for sizes in realistic(graph, 1) if first.sizes else ():
        feeds = runs.make_feeds(graph, sizes, seed)
        yield from ((sizes, changed) for changed in _changed(graph, roots, feeds))


def _changed(graph: Graph, roots: tuple[set[str], list[float]], feeds: Feeds) -> Iterator[Feeds]:
    """The same inputs with other values of those that decide."""
    inputs, numbers = roots
    arrays = {n: feeds[n] for n in graph.inputs if n in inputs and _is_array(feeds.get(n))}
    single = {n: _values(v, numbers) for n, v in arrays.items() if v.size == 1}
    for chosen in product(*single.values()):
        yield {**feeds, **dict(zip(single, chosen, strict=True))}
    for name, value in arrays.items():
        if value.dtype.kind == "b" and name not in single:
            yield {**feeds, name: ~value}
        elif value.dtype.kind == "f" and name not in single:
            for scale in _SCALES:
                yield {**feeds, name: (value * scale).astype(value.dtype)}


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biuf"


def _values(like: NDArray[Any], numbers: list[float]) -> list[NDArray[Any]]:
    """What a single number may be."""
    if like.dtype.kind == "b":
        return [np.full_like(like, value) for value in (True, False)]
    wanted = dict.fromkeys((*(n + step for n in numbers for step in (0, 1, -1)), 0, 1))
    if like.dtype.kind != "f":
        least, most = np.iinfo(like.dtype).min, np.iinfo(like.dtype).max
        wanted = {n: None for n in wanted if least <= n <= most}
    return [np.full_like(like, n) for n in wanted]


def _roots(graph: Graph, conditions: list[str]) -> tuple[set[str], list[float]]:
    """The inputs of the model that decide, and the single numbers that it is compared with."""
    inputs: set[str] = set()
    numbers: list[float] = []
    seen, waiting = set(conditions), list(conditions)
    while waiting:
        name = waiting.pop()
        if name in graph.inputs:
            inputs.add(name)
        if name not in graph.makers:
            continue
        node = graph.nodes[graph.makers[name]]
        for read in (n for n in (*node.inputs, *node.captured) if n and n not in seen):
            seen.add(read)
            waiting.append(read)
            constant = graph.constants.get(read)
            if constant is not None and node.op_type in _COMPARES and np.prod(constant.shape) == 1:
                numbers += graph.array(read).ravel().tolist()
    return inputs, [n for n in dict.fromkeys(numbers) if isinstance(n, int | float)]
