"""What the choice rests on and what was done to the weights that remain, in words and figures."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa.api import Draft, Result, failures
from spa.calibration import NOISE, folder_or_file
from spa.compensation import Compensation
from spa.study import judged_by


def input_line(result: Draft) -> str:
    """Which inputs the choice and the new weights rest on."""
    if result.blind:
        return (
            "inputs: none, for onnxruntime runs this model on none that spa can make up; only "
            f"weights were looked at (criterion {judged_by(result.settings, result.study)}), so "
            "what remains was not adjusted to what is missing and the outputs move further; give "
            "inputs that it runs on with --data"
        )
    if result.study is None:
        return "inputs: none were needed"
    used = result.study.calibration
    path = folder_or_file(result.settings.data)
    what = "made-up inputs" if used.kind == NOISE else str(path or used.source)
    said = f"inputs: {what} ({used.count}), {result.study.held.samples} of them held out"
    if used.kind == NOISE:
        said += "; real ones, given with --data, keep more of what the model is good at"
    return f"{said}; {used.note}" if used.note else said


def compensation_lines(result: Result, verbose: bool) -> list[str]:
    """What was done to the weights that remain."""
    found = result.compensation
    if found is None:
        return []
    before, after = found.drift
    drift = f"output drift on held-out inputs (squared, over variance): {before:.3g} without"
    if found.refused:
        return [
            "compensation: refused as a whole, the weights are the original's: it brings the "
            "outputs on held-out inputs no nearer to the original's; drift (squared, over "
            f"variance): {_weighed(found)}"
        ]
    lines = []
    if result.settings.compensate != "none":
        method = result.settings.compensate
        line = f"compensation: {_count(len(found.helped), 'site')} refitted ({method}), "
        line += f"{len(found.rejected)} left as they were because nothing helped"
        if found.helped:
            middle = np.median(_errors(found), axis=0)
            line += f"; held-out error, median: {middle[0]:.3g} -> {middle[1]:.3g}"
        lines.append(line)
    if found.repaired:
        lines.append(f"repair: {_count(len(found.repaired), 'normalisation')} brought up to date")
    lines.append(f"{drift} compensation, {after:.3g} with it")
    if verbose:
        rows = zip(found.helped, _errors(found), strict=True)
        lines += [f"  refitted {name}: {a:.3g} -> {b:.3g}" for name, (a, b) in rows]
        lines += [f"  left as it was: {name}" for name in found.rejected]
        lines += [f"  brought up to date: {name}" for name in found.repaired]
    return lines


def aside_lines(result: Draft) -> list[str]:
    """The groups that are left whole because the model fails its validation else."""
    lines = failures(result.set_aside)
    return [f"left whole, as the model fails its validation else: {line}" for line in lines]


def _weighed(found: Compensation) -> str:
    """What decided."""
    (a, b), other = found.drift, found.as_stored
    if other is None:
        return f"{a:.3g} without, {b:.3g} with it"
    both = np.sqrt(np.multiply(found.drift, other))
    return (
        f"{both[0]:.3g} without, {both[1]:.3g} with it, the geometric mean over two forms of the "
        f"network, as no made-up inputs are like those of training: settled ({a:.3g} and {b:.3g}) "
        f"and as it is stored ({other[0]:.3g} and {other[1]:.3g})"
    )


def _count(n: int, word: str) -> str:
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def _errors(found: Compensation) -> NDArray[np.float64]:
    """Held-out errors of refitted sites before and after; what rounding takes below 0 is none."""
    return np.maximum(np.asarray(list(found.helped.values()), np.float64), 0.0)


def input_dict(result: Draft) -> dict[str, Any] | None:
    if result.study is None:
        return None
    used, held = result.study.calibration, result.study.held.samples
    path = folder_or_file(result.settings.data)
    return {
        "source": str(path or used.source),
        "kind": used.kind,
        "samples": used.count,
        "held_out": held,
        "note": used.note,
    }


def compensation_dict(result: Draft) -> dict[str, Any] | None:
    found = result.compensation if isinstance(result, Result) else None
    if found is None:
        return None
    return {
        "method": result.settings.compensate,
        "refused": found.refused,
        "refitted": {
            name: {"before": float(a), "after": float(b)}
            for name, (a, b) in zip(found.helped, _errors(found), strict=True)
        },
        "left": list(found.rejected),
        "repaired": list(found.repaired),
        "drift": {"before": found.drift[0], "after": found.drift[1]},
        "drift_as_stored": None
        if found.as_stored is None
        else {"before": found.as_stored[0], "after": found.as_stored[1]},
    }
