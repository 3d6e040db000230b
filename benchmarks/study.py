"""What one file of the zoo shows: analysed, pruned to channels=0.5 by exact groups, law checked."""

from __future__ import annotations

import hashlib
import re
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from onnx import GraphProto

import spa
from spa import api
from spa import run as runs
from spa.axes import WINDOW
from spa.cost import CostModel
from spa.errors import ModelError, SpaError
from spa.graph import WEIGHTS
from spa.groups import COMBINED, Groups, LockedAxis
from spa.protos import bodies
from spa.settings import ALL_KINDS

# Where a file ended up. Of every file exactly one is true.
STATES = {
    "pruned": "pruned, and the law holds",
    "unchecked": "pruned; onnxruntime cannot run the original, so the law is not checked",
    "inexact": "analysed; no group is exact",
    "bare": "analysed; no group at all",
    "refused": "spa refuses to analyse or to prune it",
    "unrunnable": "spa refuses it, and onnxruntime runs it on none of the inputs that spa makes up",
    "crashed": "spa crashed",
    "late": "spa did not finish in time",
}


@dataclass(frozen=True)
class Row:
    """What one file showed.

    state: a key of STATES; note says why. code, file: digests of spa and of the file.
    groups: kind -> how many, ``~`` behind the kind of those that are not exact.
    locked: the share of stored weight elements that no group reaches; held: by what, largest
        first, with the share of all elements.
    macs: the least share that all groups together can reach. half: the share of parameters that
        is left with half of every group gone.
    kept: the share of parameters left at channels=0.5 by exact groups alone. law: its error, on
        so many units.
    analysis, seconds: of the analysis, and of everything.
    """

    name: str
    code: str = ""
    file: str = ""
    state: str = "crashed"
    producer: str = ""
    nodes: int = 0
    params: int = 0
    groups: dict[str, int] = field(default_factory=dict)
    locked: float | None = None
    held: list[tuple[str, float]] = field(default_factory=list)
    macs: float | None = None
    half: float | None = None
    kept: float | None = None
    law: float | None = None
    units: int = 0
    analysis: float = 0.0
    seconds: float = 0.0
    note: str = ""


def study(path: Path) -> dict[str, Any]:
    """The fields of a `Row`, measured in this process."""
    row: dict[str, Any] = {}
    start = time.perf_counter()
    try:
        _analyse(path, row)
        row["analysis"] = round(time.perf_counter() - start, 3)
        if row["state"] == "":
            _prune(path, row)
    except SpaError as error:
        row["note"] = f"{type(error).__name__}: {first_line(error)}"
        said = _onnxruntime_says(path)
        row["state"] = "unrunnable" if said else "refused"
        row["note"] = said or row["note"]
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        row["state"], row["note"] = "crashed", f"{type(error).__name__} at {place}: {error}"
    row["seconds"] = round(time.perf_counter() - start, 3)
    return row


def _analyse(path: Path, row: dict[str, Any]) -> None:
    groups = spa.analyze(path)
    model = groups.graph.model
    row["producer"] = f"{model.producer_name} {model.producer_version}".strip()
    row["nodes"] = len(groups.graph.nodes)
    row["groups"] = dict(Counter(g.kind + ("" if g.exact else "~") for g in groups))
    row["params"], row["locked"], row["held"] = locked(groups)
    cost = CostModel(groups)
    sizes = np.asarray([g.size for g in groups], np.int64)
    before, least, half = cost(), cost(np.maximum(sizes - 1, 0)), cost(sizes // 2)
    row["macs"] = least.macs / before.macs if before.macs else None
    row["half"] = half.params / before.params if before.params else None
    row["state"] = "" if len(groups) else "bare"
    if len(groups) and not any(g.exact and g.size > 1 for v in groups.views for g in v.groups):
        row["state"] = "inexact"


# The cut by itself is what is studied here, not what is done for its accuracy.
PLAIN: dict[str, Any] = {"criterion": "l1", "compensate": "none", "repair": "none"}


def _prune(path: Path, row: dict[str, Any]) -> None:
    result = spa.prune(path, "channels=0.5", exact=True, kinds=ALL_KINDS, **PLAIN)
    row["kept"] = result.figures.share("params")
    checked = result.verification
    assert checked is not None
    row["law"], row["units"] = checked.law, checked.law_units
    row["state"], row["note"] = ("pruned", "") if checked.runs else ("unchecked", checked.why)
    if result.set_aside:
        row["state"], row["note"] = (
            "refused",
            f"in part: {'; '.join(api.failures(result.set_aside))}",
        )
    elif checked.still:
        row["note"] = f"at one number only for {', '.join(checked.still)}"


def _onnxruntime_says(path: Path) -> str:
    """Why onnxruntime does not load a file, or run it on inputs that spa makes up; or nothing."""
    try:
        graph = spa.load(path)
        with runs.session(path) as running:
            runs.find_inputs(graph, running, 0)
    except ModelError as error:
        return first_line(error)
    return ""


def first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


# What is locked --------------------------------------------------------------------------------


def locked(groups: Groups) -> tuple[int, float, list[tuple[str, float]]]:
    """How many weight elements there are, which share of them no group reaches, and what holds it.

    An element counts as locked where none of its indices belongs to a group of any kind, exact or
    not. Scalars are left out; weights inside bodies that are not analysed count as locked.
    """
    free: dict[tuple[str, int], set[int]] = {}
    for group in groups:
        for m in group.members:
            free.setdefault((m.tensor, m.axis), set()).update(m.index.ravel().tolist())
    why: dict[str, list[LockedAxis]] = {}
    for lock in groups.locks():
        why.setdefault(lock.tensor, []).append(lock)
    total, held = 0, Counter[str]()
    for name, constant in groups.graph.constants.items():
        size = int(np.prod(constant.shape, dtype=np.int64))
        if constant.tensor.data_type not in WEIGHTS or size <= 1:
            continue
        if not groups.graph.readers.get(name):
            continue
        total += size
        left = 1
        for k, n in enumerate(constant.shape):
            left *= n - len(free.get((name, k), ()))
        if left:
            loose = [k for k, n in enumerate(constant.shape) if n > len(free.get((name, k), ()))]
            held[_reason(why.get(name, []), [k for k in loose if constant.shape[k] > 1])] += left
    for node in groups.graph.nodes:
        for body in bodies(node.proto) if not node.bodies else ():
            size = _stored(body)
            total += size
            if size:
                held[f"in the body of {node.op_type}"] += size
    shares = [(text, n / total) for text, n in held.most_common(6)]
    return total, sum(held.values()) / max(total, 1), shares


def _reason(locks: list[LockedAxis], axes: list[int]) -> str:
    """What holds these axes of a constant, shortly; a window only where nothing else does."""
    found = {_short(lock) for lock in locks if lock.why != WINDOW}
    if not {lock.axis for lock in locks}.issuperset(axes):
        found.add("no group of its own")
    return " + ".join(sorted(found or {_short(lock) for lock in locks}))


def _short(lock: LockedAxis) -> str:
    if lock.why.startswith("graph output"):
        return "output"
    if lock.why.startswith("meets graph input"):
        return "input"
    if lock.why == WINDOW:
        return f"window of {lock.operator}"
    if lock.why == COMBINED:
        return f"{lock.operator} with a whole axis"
    why = re.sub(r"'[^']*'", "a tensor", lock.why)
    return why if why.startswith(f"{lock.operator}:") else f"{lock.operator}: {why}"


def _stored(body: GraphProto) -> int:
    """Weight elements stored in a body and the bodies inside it."""
    tensors = [*body.initializer, *(a.t for n in body.node for a in n.attribute if a.HasField("t"))]
    sizes = [int(np.prod(t.dims, dtype=np.int64)) for t in tensors if t.data_type in WEIGHTS]
    inner = (_stored(b) for node in body.node for b in bodies(node))
    return sum(n for n in sizes if n > 1) + sum(inner)


# Digests ---------------------------------------------------------------------------------------


def code_digest() -> str:
    """Of every module of spa and ops: a row made by other code is measured again."""
    root = Path(spa.__file__).parent.parent
    found = hashlib.sha256()
    for path in _modules(root):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()[:12]


def _modules(root: Path) -> Iterator[Path]:
    yield from sorted((root / "spa").glob("*.py"))
    yield from sorted((root / "ops").glob("*.py"))
    yield root / "benchmarks" / "study.py"


def file_digest(path: Path) -> str:
    """By size and time of change: the files are many, and written once."""
    stat = path.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}"
