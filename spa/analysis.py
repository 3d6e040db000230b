"""From a model to its groups: what is coupled with what."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnx import ModelProto

from spa import run as runs
from spa import states
from spa.ahead import ahead
from spa.beside import beside
from spa.direct import direct
from spa.enough import enough
from spa.fills import fills
from spa.graph import Graph
from spa.groups import Groups, View, merge
from spa.lists import lists
from spa.progress import Progress, quiet
from spa.propagate import foretell, load_rules, propagate
from spa.reader import load
from spa.restack import restack
from spa.rows import by_rows
from spa.shapes import Shapes, infer
from spa.solve import solve
from spa.spread import spread
from spa.unblock import unblock
from spa.unstack import unstack

Model = str | Path | ModelProto | Graph


def analyze(
    model: Model,
    *,
    exact: bool = False,
    allow_io_change: bool = False,
    progress: Progress | None = None,
) -> Groups:
    """Find what is coupled with what.

    Args:
        exact: only groups whose removal obeys the law in value.
        allow_io_change: let the sizes of states that are inputs and outputs of the file change,
            see `spa.states`.

    Raises:
        ModelError: if the model cannot be read.
    """
    say = progress or quiet
    load_rules()
    graph = load(model)
    graph = ahead(graph) or graph
    graph = direct(graph) or graph
    say("inferring shapes")
    shapes = _shapes(graph)
    for change in (unblock, lists, by_rows):
        if (changed := change(graph, shapes)) is not None:
            graph, shapes = changed, _shapes(changed)
    say("propagating ids")
    pairs = states.pairs(graph) if allow_io_change else []
    released = states.axes(graph, shapes, pairs)
    ties = propagate(graph, shapes, released)
    while other := spread(graph, shapes, ties.axes) or fills(graph, ties.axes):
        graph, shapes = other, _shapes(other)
        ties = propagate(graph, shapes, released)
    apart = unstack(graph, shapes, ties.axes)
    if apart is not None:
        graph, shapes = apart, _shapes(apart)
        ties = propagate(graph, shapes, released)
    stacked = restack(graph, shapes)
    if stacked is not None:
        again = _shapes(stacked)
        found = propagate(stacked, again, released)
        if _any_goes(solve(stacked, found)):
            graph, shapes, ties = stacked, again, found
    looked = beside(graph, shapes, ties.recorder.indices)
    if looked is not None:
        graph, shapes = looked, _shapes(looked)
        ties = propagate(graph, shapes, released)
    say("solving for groups")
    views = solve(graph, ties)
    while (left := states.together(views, pairs, released)) != released:
        released = left  # what is no state after all is locked, and may lock more
        views = solve(graph, propagate(graph, shapes, released))
    return enough(merge(graph, shapes, views, exact))


def _shapes(graph: Graph) -> Shapes:
    return infer(graph, runs.observe, foretell)


def _any_goes(views: Sequence[View]) -> bool:
    """Whether an input of a stack goes with a unit of a group."""
    return any(
        view.labels[join.ids[join.at]] in group.units
        for view in views
        for group in view.groups
        if group.size > 1
        for join in view.ties.joins
    )
