"""Ask what is coupled in a small vision transformer: python -m examples.coupled."""

from __future__ import annotations

from itertools import pairwise

import networkx as nx

import spa
from models.sequence import vit


def main() -> None:
    groups = spa.analyze(vit())
    network = groups.network  # a networkx graph: nodes are (tensor, axis), edges are ties

    # Groups by kind: heads, head-dim (the same index in every head), hidden, linear, ...
    for group in groups:
        exact = "exact" if group.exact else "inexact"
        print(f"{group.name}: {group.size} units, {group.kind}, {exact}")

    # How a head of the fused query-key-value projection reaches the output projection.
    heads = next(group for group in groups if group.kind == "heads")
    first, last = heads.members[0], heads.members[-1]
    axes = nx.shortest_path(network, (first.tensor, first.axis), (last.tensor, last.axis))
    print(f"\nwhat ties the ends of {heads.name}:")
    for (tensor, axis), after in pairwise(axes):
        print(f"  {tensor}:{axis}  {network.edges[(tensor, axis), after]['operator']}")
    print(f"  {last.tensor}:{last.axis}")

    # The same question by names alone; the shortest path between any two of their axes.
    path = spa.explain(groups, "blocks.0/MatMul_0.weight", "blocks.1/MatMul_0.weight")
    if path is not None:
        print(f"\nthe two projections share {path.units} units, {len(path.steps)} axes apart")

    # And what cannot go.
    for lock in groups.locks()[:3]:
        print(f"{lock.tensor}:{lock.axis} is held by {lock.reason()}")


if __name__ == "__main__":
    main()
