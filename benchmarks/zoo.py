"""Analyse, prune and verify every file of the zoo (see `models.zoo`); print a table.

    python -m benchmarks.zoo [REGEX...] --python PYTHON --python PYTHON

Every PYTHON exports what its frameworks can; an optimiser among them, which starts from files that
are there, comes last.

Columns: groups by kind; *locked*, the share of parameters in float constants that have no axis
with a unit that can be removed; what locks most of them; *macs*, the least share reachable with
every kind of group; the law's error at channels=0.5 with exact groups only; seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class Row:
    """What one file showed; seconds are of analysis and of everything."""

    name: str
    groups: dict[str, int] = field(default_factory=dict)
    locked: float = 0.0
    why: str = ""
    macs: float = 1.0
    law: float | None = None
    units: int = 0
    analysis: float = 0.0
    seconds: float = 0.0
    note: str = ""


def study(path: Path) -> Row:
    """Analyse, prune and verify one file, in this process."""
    import numpy as np

    import spa
    from spa import api
    from spa.errors import SpaError

    row: dict[str, object] = {"name": path.stem}
    start = time.perf_counter()
    try:
        groups = spa.analyze(path)
        row["analysis"] = time.perf_counter() - start
        row["groups"] = dict(Counter(g.kind + ("" if g.exact else "~") for g in groups))
        row["locked"], row["why"] = _locked(groups)
        counts = np.asarray([max(g.size - 1, 0) for g in groups], np.int64)
        cost = api.CostModel(groups)
        row["macs"] = cost(counts).macs / max(cost().macs, 1)
        row["note"] = "; ".join(f"no rule: {k}" for k in groups.unknown)
        result = spa.prune(path, target="channels=0.5", exact=True)
        checked = result.verification
        if checked is not None:
            row["law"], row["units"] = checked.law, checked.law_units
            if not checked.runs:
                row["note"] = "onnxruntime cannot run the original"
    except SpaError as error:
        row["note"] = f"{type(error).__name__}: {error}"
    except Exception as error:
        import traceback

        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        row["note"] = f"CRASH {type(error).__name__} at {place}: {error}"
    row["seconds"] = time.perf_counter() - start
    return Row(**row)  # type: ignore[arg-type]


def _locked(groups: object) -> tuple[float, str]:
    """The share of parameters in constants without one removable unit, and what holds most."""
    from spa.groups import Groups

    assert isinstance(groups, Groups)
    free = {m.tensor for g in groups for m in g.members}
    total, held = 0, {}
    for name, constant in groups.graph.constants.items():
        size = 1
        for n in constant.shape:
            size *= n
        if groups.graph.array(name).dtype.kind != "f" or size <= 1:
            continue
        total += size
        if name not in free:
            held[name] = size
    reasons: Counter[str] = Counter()
    for lock in groups.locks():
        if lock.tensor in held:
            text = f"{lock.operator or 'output'}: {lock.why}"
            reasons[DIGITS.sub("#", text)[:60]] += held[lock.tensor]
    top = reasons.most_common(1)
    return sum(held.values()) / max(total, 1), top[0][0] if top else ""


def study_apart(path: Path, timeout: float) -> Row:
    """The same in a process of its own."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.zoo", "--one", str(path)],
            capture_output=True,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired:
        return Row(path.stem, seconds=timeout, note=f"TIMEOUT after {timeout:.0f} s")
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = done.stderr.strip().splitlines()[-1:] or [""]
        return Row(path.stem, note=f"CRASH, exit code {done.returncode}: {last[0]}")
    return Row(**json.loads(lines[-1]))


def export(python: str, folder: Path, patterns: list[str], retry: bool) -> list[str]:
    """Write the files that are not there yet; returns the names that match."""
    here = {**os.environ, "SPA_ZOO": str(folder)}
    listed = subprocess.run(
        [python, "-m", "models.zoo"], capture_output=True, text=True, check=True, env=here
    )
    names = [n for n in listed.stdout.split() if not patterns or _matches(n, patterns)]
    done = (".onnx",) if retry else (".onnx", ".error")
    wanted = [n for n in names if not any((folder / f"{n}{s}").exists() for s in done)]
    for k in range(0, len(wanted), 20):
        command = [python, "-m", "models.zoo", str(folder), *wanted[k : k + 20]]
        subprocess.run(command, check=False, env=here)
    return names


def _matches(name: str, patterns: list[str]) -> bool:
    return any(re.search(p, name) for p in patterns)


def line(row: Row) -> str:
    kinds = " ".join(f"{k}:{n}" for k, n in sorted(row.groups.items()))
    law = "-" if row.law is None else f"{row.law:.0e}"
    return (
        f"{row.name:40s} {kinds:44s} {100 * row.locked:5.1f} % {100 * row.macs:5.1f} % "
        f"{law:>6s} {row.units:5d} {row.analysis:5.1f} {row.seconds:5.1f}  "
        f"{' | '.join(filter(None, (row.note, row.why)))}"
    )


HEADER = (
    f"{'name @ exporter':40s} {'groups (~ inexact)':44s} {'locked':>7s} {'macs':>7s} "
    f"{'law':>6s} {'units':>5s} {'anal.':>5s} {'s':>5s}  note | what locks most"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*", help="regular expressions of names")
    parser.add_argument("--cache", type=Path, default=Path("/tmp/spa-zoo"))
    parser.add_argument("--python", action="append", help="a Python with some of the frameworks")
    parser.add_argument("--timeout", type=float, default=120)
    parser.add_argument("--no-export", action="store_true", help="only what the cache holds")
    parser.add_argument("--retry", action="store_true", help="export again what failed before")
    parser.add_argument("--json", type=Path, help="append the rows to this file")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(asdict(study(args.one))))
        return
    if args.no_export:
        names = [p.stem for p in sorted(args.cache.glob("*.onnx"), key=lambda p: p.stat().st_mtime)]
        names = [n for n in names if not args.patterns or _matches(n, args.patterns)]
    else:
        pythons = args.python or [sys.executable]
        found = [export(p, args.cache, args.patterns, args.retry) for p in pythons]
        names = list(dict.fromkeys(name for listed in found for name in listed))
    print(HEADER, flush=True)
    rows = []
    for name in names:
        path = args.cache / f"{name}.onnx"
        if not path.exists():
            continue
        rows.append(study_apart(path, args.timeout))
        print(line(rows[-1]), flush=True)
        if args.json:
            with args.json.open("a") as file:
                file.write(json.dumps(asdict(rows[-1])) + "\n")
    crashed = sum("CRASH" in r.note or "TIMEOUT" in r.note for r in rows)
    failed = sum("Error:" in r.note and "CRASH" not in r.note for r in rows)
    proven = sum(r.law is not None and r.law <= 1e-3 for r in rows)
    print(
        f"\n{len(rows)} files of {len(names)} names: {proven} pruned with the law to 1e-3, "
        f"{failed} refused, {crashed} crashed or timed out; "
        f"median locked {sorted(r.locked for r in rows)[len(rows) // 2] if rows else 0:.1%}"
    )


if __name__ == "__main__":
    main()
