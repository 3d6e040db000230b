"""Whether an output of a node is zero where some of its inputs are, by what its rule says."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from spa import rules
from spa.axes import Recorder, is_whole
from spa.patterns import PatternError
from spa.rules import Op


def silent(op: Op, zeros: Collection[int], output: int = 0) -> bool:
    """Whether an output is zero where these inputs hold nothing but zero.

    The rule tells when asked about indices of which every one is removed. It says nothing of
    tensors of one number, so these count as not zero.
    """
    recorder = Recorder()
    axes = [
        None if had is None else [recorder.fresh(len(a.ids), k in zeros) for a in had]
        for k, had in enumerate(op.axes)
    ]
    rule = rules.find(op.node.op_type, op.node.domain)
    if rule is None:
        return False
    try:
        made = rule.run(replace(op, axes=axes, recorder=recorder))
    except (PatternError, IndexError, ValueError, TypeError, KeyError):
        return False
    return output < len(made) and any(axis.zero and not is_whole(axis) for axis in made[output])
