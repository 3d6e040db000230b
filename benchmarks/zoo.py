"""Make the files of the zoo (see `models.zoo`), study each one, write docs/coverage.md.

    python -m benchmarks.zoo [REGEX...] --python PYTHON --python PYTHON   make and study
    python -m benchmarks.zoo [REGEX...] --no-export --jobs 4              study what is there
    python -m benchmarks.zoo --docs                                       write the document

Every PYTHON exports what its frameworks can; an optimiser among them, which starts from files that
are there, comes last. Every file is studied in a process of its own with a limit of time. The rows
go to a file (--rows) as they come; a run that is taken up again measures only files that have no
row by the same code. What a row holds is said in `benchmarks.study.Row`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks import coverage
from benchmarks.study import Row, code_digest, file_digest, study

CACHE = Path(os.environ.get("SPA_ZOO", "/tmp/spa-zoo"))
APART = multiprocessing.get_context("forkserver")
APART.set_forkserver_preload(["benchmarks.study", "spa.api"])


def study_apart(path: Path, timeout: float) -> Row:
    """Study a file in a process of its own, which starts with all that is imported here."""
    known = {"name": path.stem, "code": code_digest(), "file": file_digest(path)}
    receiver, sender = APART.Pipe(duplex=False)
    studying = APART.Process(target=_study, args=(path, sender), daemon=True)
    studying.start()
    sender.close()
    try:
        if receiver.poll(timeout):
            return Row(**known, **receiver.recv())
        studying.kill()
        return Row(**known, state="late", seconds=timeout, note=f"not done in {timeout:.0f} s")
    except EOFError:
        studying.join()
        return Row(**known, state="crashed", note=f"exit code {studying.exitcode}")


def _study(path: Path, sender: Connection) -> None:
    sender.send(study(path))


# Export ----------------------------------------------------------------------------------------


def export(pythons: list[str], folder: Path, patterns: list[str], retry: bool, only: bool) -> None:
    """Write the files that are not there yet, and which models and versions the zoo has.

    Args:
        only: write the latter only.
    """
    here = {**os.environ, "SPA_ZOO": str(folder)}
    folder.mkdir(parents=True, exist_ok=True)
    made = coverage.Made()
    for python in pythons:
        zoo = [python, "-m", "models.zoo"]
        listed = subprocess.run(zoo, stdout=subprocess.PIPE, text=True, check=True, env=here)
        names = listed.stdout.split()
        done = (".onnx",) if retry else (".onnx", ".error")
        wanted = [] if only else [n for n in names if _matches(n, patterns)]
        wanted = [n for n in wanted if not any((folder / f"{n}{s}").exists() for s in done)]
        for k in range(0, len(wanted), 20):
            subprocess.run([*zoo, str(folder), *wanted[k : k + 20]], check=False, env=here)
        found = subprocess.run([*zoo, "--versions"], stdout=subprocess.PIPE, check=True)
        models = (name.partition("@")[0] for name in names)
        versions = {**made.versions, **json.loads(found.stdout)}
        made = coverage.Made({*made.models, *models}, versions, {*made.files, *names})
    made.save(folder)


def _matches(name: str, patterns: list[str]) -> bool:
    return not patterns or any(re.search(p, name) for p in patterns)


# Rows ------------------------------------------------------------------------------------------


def read_rows(path: Path) -> dict[str, Row]:
    """The last row of every file."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = (Row(**json.loads(line)) for line in lines)
    return {row.name: row for row in rows}


def measure(files: Iterable[Path], rows: Path, jobs: int, timeout: float) -> None:
    """Study the files that have no row yet; append the rows as they come."""
    known, code = read_rows(rows), code_digest()
    done = {r.name for r in known.values() if r.code == code}
    wanted = [p for p in files if p.stem not in done or known[p.stem].file != file_digest(p)]
    wanted.sort(key=lambda p: p.stat().st_size)  # the quick ones first
    rows.parent.mkdir(parents=True, exist_ok=True)
    with rows.open("a") as out, ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(study_apart, path, timeout) for path in wanted]
        for k, finished in enumerate(as_completed(waiting), 1):
            row = finished.result()
            out.write(json.dumps(asdict(row)) + "\n")
            out.flush()
            print(f"{k:4d}/{len(wanted)} {line(row)}", flush=True)


def line(row: Row) -> str:
    kinds = " ".join(f"{k}:{n}" for k, n in sorted(row.groups.items()))
    law = "-" if row.law is None else f"{row.law:.0e}"
    held = row.held[0][0] if row.held else ""
    shares = " ".join("-" if s is None else f"{s:.1%}" for s in (row.locked, row.macs, row.kept))
    return (
        f"{row.name:40s} {row.state:10s} {kinds:40s} {shares:20s} {law:>6s} "
        f"{row.analysis:5.1f} {row.seconds:5.1f}  {' | '.join(filter(None, (row.note, held)))}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("patterns", nargs="*", help="regular expressions of names")
    parser.add_argument("--cache", type=Path, default=CACHE, help=f"folder of files ({CACHE})")
    parser.add_argument("--rows", type=Path, help="where the rows go (rows.jsonl in that folder)")
    parser.add_argument("--python", action="append", help="a Python with some of the frameworks")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one file")
    parser.add_argument("--no-export", action="store_true", help="only what is there; "
                        "the Pythons, if any, say which models and versions these are")  # fmt: skip
    parser.add_argument("--retry", action="store_true", help="export again what failed before")
    parser.add_argument("--docs", action="store_true", help="only write docs/coverage.md")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(study(args.one)))
        return
    rows = args.rows or args.cache / "rows.jsonl"
    if not args.docs:
        pythons = args.python or [] if args.no_export else args.python or [sys.executable]
        if pythons:
            export(pythons, args.cache, args.patterns, args.retry, args.no_export)
        made = coverage.Made.load(args.cache)
        files = [p for p in sorted(args.cache.glob("*.onnx")) if made.has(p.stem)]
        measure(
            [p for p in files if _matches(p.stem, args.patterns)], rows, args.jobs, args.timeout
        )
    there = [row for row in read_rows(rows).values() if (args.cache / f"{row.name}.onnx").exists()]
    if other := sum(row.code != code_digest() for row in there):
        print(f"{other} of {len(there)} rows are by other code than this", file=sys.stderr)
    coverage.write(there, args.cache)


if __name__ == "__main__":
    main()
