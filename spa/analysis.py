"""From a model to its groups: what is coupled with what."""

from __future__ import annotations

from pathlib import Path

from onnx import ModelProto

from spa import run as runs
from spa.graph import Graph
from spa.groups import Groups, merge
from spa.progress import Progress
from spa.propagate import foretell, propagate
from spa.reader import load
from spa.shapes import infer
from spa.solve import solve
from spa.unblock import unblock
from spa.unstack import unstack

Model = str | Path | ModelProto | Graph


def analyze(model: Model, *, exact: bool = False, progress: Progress | None = None) -> Groups:
    """Find what is coupled with what.

    Args:
        exact: only groups whose removal obeys the law in value.

    Raises:
        ModelError: if the model cannot be read.
    """
    say = progress or (lambda stage: None)
    graph = load(model)
    say("inferring shapes")
    shapes = infer(graph, runs.observe, foretell)
    plain = unblock(graph, shapes)
    if plain is not None:
        graph, shapes = plain, infer(plain, runs.observe, foretell)
    say("propagating ids")
    ties = propagate(graph, shapes)
    apart = unstack(graph, shapes, ties.axes)
    if apart is not None:
        graph, shapes = apart, infer(apart, runs.observe, foretell)
        ties = propagate(graph, shapes)
    say("solving for groups")
    return merge(graph, shapes, solve(graph, ties), exact)
