"""Mutation check: does a test fail when a rule is broken on purpose?

    python -m benchmarks.mutation [FAMILY ...] [--jobs 2] [--list] [--quick]
        [--verdicts FOLDER] [--report docs/mutation.md]

FAMILY is one of `ops/`, or a module of `MODULES`.

Every mutant (see `benchmarks.mutants`) runs in a process of its own, in memory, until a check
fails: first those that killed the mutants before it, then the cheapest. It meets the rows and the
other functions of its family's test that reach the broken lines, then kinds, costs, sites and what
quantised numbers stand for, then (unless --quick) those hazard models and random graphs of a fixed
set that reach them, at most `MODELS`. Mutants that compute the same as the original are listed in
`EQUIVALENT`, with the reason; they meet rows alone. Verdicts are kept in a folder if asked: what
was killed is not run again while the statement it stands in is the same. A mutant of a module
meets the tests of its own file.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import itertools
import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FrameType, FunctionType, ModuleType
from typing import Any

import pytest

from benchmarks.equivalent import EQUIVALENT, reason
from benchmarks.mutants import OPS, ROOT, Mutant, mutants
from spa import run
from spa.propagate import load_rules
from spa.rules import RULES
from tests.isolation import check_law, check_ties
from tests.numeric import Lone, Partition
from tests.ops.test_every_rule import NUMERIC, references

FAMILIES = tuple(sorted(p.stem for p in OPS.glob("[a-z]*.py")))
MODULES = ("spa.ahead", "spa.blame", "spa.direct", "spa.fills")
SLOWER = 20  # times as long as without a mutant; a loop without an end counts as killed
CORPUS = 150  # random graphs
BESIDE = {"control": ("sequence",), "movement": ("reduce",)}  # whose rows are about it as well
MODELS = 12  # hazard models and random graphs that one mutant meets, the cheapest

Line = tuple[str, int]  # family, line


@dataclass(frozen=True)
class Check:
    """One thing that may fail, the lines of `ops/` that it runs, the operators in its model.

    seconds: how long it took once, without a mutant.
    """

    name: str
    run: Callable[[], object]
    lines: frozenset[Line] | None = None
    ops: frozenset[str] = frozenset()
    seconds: float = 0.0

    def meets(self, mutant: Mutant) -> bool:
        if not self.lines and not self.ops:  # it looks at the rules themselves
            return True
        if mutant.ops and self.ops:
            return bool(self.ops & set(mutant.ops))
        first, last = mutant.lines
        here = {line for family, line in self.lines or () if family == mutant.family}
        if mutant.name.startswith(("declare:", "module:")):
            return bool(here)
        return any(first <= line <= last for line in here)


def family_checks(family: str) -> Iterator[Check]:
    """The rows of `tests/ops/test_<family>.py`, and its other functions."""
    if family in NUMERIC:
        for k, (lone, alternatives) in enumerate(references(family)):
            op = lone.op.node.op_type

            def numeric(lone: Lone = lone, found: list[Partition] = alternatives) -> None:
                if found:
                    check_ties(lone, found)
                check_law(lone)

            yield Check(f"test_every_rule[{op}-{k}]", numeric, ops=frozenset([op]))
    for name in (family, *BESIDE.get(family, ())):
        yield from functions(f"tests.ops.test_{name}")


def functions(path: str) -> Iterator[Check]:
    """The tests of a module that need no fixtures."""
    module = import_module(path)
    for name, function in vars(module).items():
        if not name.startswith("test_") or not callable(function):
            continue
        marks = [m for m in getattr(function, "pytestmark", []) if m.name == "parametrize"]
        for values in itertools.product(*(m.args[1] for m in marks)):
            given: dict[str, Any] = {}
            skip = False
            for mark, value in zip(marks, values, strict=True):
                skip |= bool(getattr(value, "marks", ()))  # expected to fail
                bare = value.values if hasattr(value, "marks") else value
                names = mark.args[0]
                names = names.replace(" ", "").split(",") if isinstance(names, str) else names
                if len(names) == 1 and not hasattr(value, "marks"):
                    bare = (bare,)
                given.update(zip(names, bare, strict=True))
            if not skip and set(inspect.signature(function).parameters) == set(given):
                label = "-".join(str(getattr(v, "name", v)) for v in given.values())
                yield Check(
                    f"{path.rsplit('.', 1)[-1]}.{name}[{label}]",
                    lambda f=function, g=given: f(**g),
                    ops=_operators(given),
                )


def _operators(given: dict[str, Any]) -> frozenset[str]:
    models = [v.model() for v in given.values() if hasattr(v, "model")]
    return frozenset(node.op_type for model in models for node in model.graph.node)


def module_checks(module: str) -> Iterator[Check]:
    """The functions of the tests of a module, with all their values and fixtures."""
    path = ROOT / "tests" / f"test_{module.rpartition('.')[2]}.py"
    for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE):

        def run_it(which: str = f"{path}::{name}") -> None:
            plain = ["-q", "-x", "-o", "addopts=", "-p", "no:cacheprovider"]
            if pytest.main([*plain, which]) != pytest.ExitCode.OK:
                raise AssertionError(which)

        yield Check(f"{path.stem}.{name}", run_it)


def timed(check: Check) -> Check | None:
    """The check with how long it takes; None where it fails without any mutant."""
    start = time.perf_counter()
    try:
        check.run()
    except Exception as error:
        print(f"fails without a mutant: {check.name}: {error!r}"[:200], file=sys.stderr)
        return None
    return replace(check, seconds=time.perf_counter() - start)


def other_checks() -> Iterator[Check]:
    """Kinds, costs, sites and quantised numbers, which the law does not see."""
    from tests import test_cost, test_groups
    from tests.ops import test_every_rule

    for every in (
        test_every_rule.test_every_operator_of_onnx_has_a_rule,
        test_every_rule.test_every_operator_of_onnxruntime_has_a_rule,
    ):
        yield Check(every.__name__, every)
    for name in test_groups.NAMED:
        yield Check(f"test_kinds[{name}]", lambda n=name: test_groups.test_kinds(n))
    for name in test_cost.MACS:
        yield Check(f"test_cost[{name}]", lambda n=name: test_cost.test_macs(n))
    yield from functions("tests.test_sites")
    yield from functions("tests.test_reals")
    yield from functions("tests.test_states")
    yield from functions("tests.test_picks")


def later_checks() -> Iterator[Check]:
    """Hazard models, mixtures of experts, then random graphs."""
    from models.hazards import HAZARDS
    from tests.models import test_hazards as hazards

    for name in HAZARDS:
        ops = frozenset(n.op_type for n in HAZARDS[name][0]().graph.node)
        yield Check(f"test_hazards[{name}]", lambda n=name: hazards.test_hazard(n), ops=ops)
    yield from functions("tests.models.test_mixtures")
    yield from _random_checks()


def _random_checks() -> Iterator[Check]:
    from hypothesis import HealthCheck, Phase, given, settings
    from onnx import ModelProto

    from tests import oracle
    from tests.drawing import graphs

    models: list[ModelProto] = []

    @settings(
        max_examples=CORPUS,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(graphs())
    def collect(model: ModelProto) -> None:
        models.append(model)

    collect()
    for k, model in enumerate(models):
        ops = frozenset(n.op_type for n in model.graph.node)
        yield Check(
            f"test_random_graphs[{k}]", lambda m=model: oracle.check(m, each=False), ops=ops
        )


# Which check runs which line ---------------------------------------------------------------------


def traced(check: Check) -> Check | None:
    """The check with the lines it runs; None where it fails without any mutant."""
    found: set[Line] = set()
    ran: set[str] = set()
    files = {str(p): p.stem for p in OPS.glob("*.py")}

    def inside(frame: FrameType, event: str, _: object) -> Any:
        if event == "line":
            found.add((files[frame.f_code.co_filename], frame.f_lineno))
        return inside

    def outside(frame: FrameType, event: str, _: object) -> Any:
        return inside if frame.f_code.co_filename in files else None

    def watched(op_type: str, function: Any) -> Any:
        """Only rules are traced: the rest of a check takes far longer."""

        def call(*given: Any) -> Any:
            ran.add(op_type)
            sys.settrace(outside)
            try:
                return function(*given)
            finally:
                sys.settrace(None)

        return function and call

    before = dict(RULES)
    for key, rule in before.items():
        clauses = {
            name: watched(rule.op_type, getattr(rule, name))
            for name in ("run", "resize", "macs", "enter")
        }
        held = {
            k: replace(
                how,
                axes=watched(rule.op_type, how.axes) if callable(how.axes) else how.axes,
                unpack=watched(rule.op_type, how.unpack),
                pack=watched(rule.op_type, how.pack),
            )
            for k, how in rule.quantised.items()
        }
        RULES[key] = replace(rule, **clauses, quantised=held)
    try:
        done = timed(check)
    finally:
        RULES.update(before)
    return done and replace(done, lines=frozenset(found), ops=check.ops | ran)


# Judging -----------------------------------------------------------------------------------------


def install(mutant: Mutant) -> bool:
    """Put the mutant's rules in place of the family's; whether the set of rules changed."""
    if mutant.family in MODULES:
        put(import_module(mutant.family), mutant.tree())
        return False
    before = {k for k, rule in RULES.items() if rule.family == mutant.family}
    for key in before:
        del RULES[key]
    names = {"__name__": f"ops.{mutant.family}", "__file__": "mutant"}
    exec(compile(mutant.tree(), "mutant", "exec"), names)
    return before != {k for k, rule in RULES.items() if rule.family == mutant.family}


def put(module: ModuleType, tree: ast.Module) -> None:
    """Put other source in place of a module's; its functions stay the objects that they are, as
    others have imported them."""
    names: dict[str, Any] = {"__name__": module.__name__}
    exec(compile(tree, "mutant", "exec"), names)
    for name, new in names.items():
        old = vars(module).get(name)
        if isinstance(new, FunctionType) and new.__module__ == module.__name__ and old:
            old.__code__, old.__defaults__ = new.__code__, new.__defaults__
        elif not name.startswith("__"):
            setattr(module, name, new)


def judge(mutant: Mutant, checks: Iterable[Check]) -> str:
    """The name of the check that fails, or nothing."""
    try:
        install(mutant)
    except Exception as error:
        return f"import: {error}"
    for check in checks:
        signal.setitimer(signal.ITIMER_PROF, 5 + SLOWER * check.seconds)
        try:
            check.run()
        except Exception:
            return check.name
    return ""


def chosen_checks(
    mutant: Mutant, own: list[Check], later: list[Check], models: list[Check], kills: Counter[str]
) -> list[Check]:
    """What a mutant meets, in order."""

    def met(checks: list[Check]) -> list[Check]:
        found = [check for check in checks if check.meets(mutant)]
        return sorted(found, key=lambda check: (-kills[check.name], check.seconds))

    if mutant.family in MODULES or reason(f"{mutant.family}.{mutant.name}"):
        return met(own)
    return [*met(own), *met(later), *met(models)[:MODELS]]


def judge_apart(
    mutant: Mutant, own: list[Check], later: list[Check], models: list[Check], kills: Counter[str]
) -> tuple[str, float]:
    """`judge` in a child process; a child that hangs or dies has been killed too."""
    start = time.perf_counter()
    checks = chosen_checks(mutant, own, later, models, kills)
    reader, writer = multiprocessing.Pipe(duplex=False)

    def child() -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        writer.send(judge(mutant, checks))

    process = multiprocessing.get_context("fork").Process(target=child)
    with _FORK:
        process.start()
    writer.close()
    try:
        verdict = str(reader.recv())
    except EOFError:
        verdict = "never ends" if process.exitcode in (None, -signal.SIGPROF) else "crash"
    process.join()
    kills[verdict] += bool(verdict)
    return verdict, time.perf_counter() - start


_FORK = threading.Lock()


class Verdicts:
    """Family -> mutant -> what killed it, or nothing, with the digest of what was broken.

    folder: holds a JSON file for every family; None for memory alone.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.held: dict[str, dict[str, list[str]]] = {}
        for path in folder.glob("*.json") if folder else ():
            self.held[path.stem] = json.loads(path.read_text())

    def of(self, mutant: Mutant) -> str | None:
        """The verdict on a mutant; None where there is none or the source has changed."""
        verdict, source = self.held.get(mutant.family, {}).get(mutant.name, ("", ""))
        return verdict if source == mutant.source else None

    def add(self, mutant: Mutant, verdict: str) -> None:
        known = self.held.setdefault(mutant.family, {})
        known[mutant.name] = [verdict, mutant.source]
        if self.folder is not None:
            self.folder.mkdir(exist_ok=True)
            (self.folder / f"{mutant.family}.json").write_text(json.dumps(known))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("families", nargs="*", default=[], metavar="FAMILY")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    parser.add_argument("--only", default="", help="only mutants whose name holds this")
    parser.add_argument("--quick", action="store_true", help="no hazard models, no random graphs")
    parser.add_argument("--verdicts", type=Path, help="a folder that holds them between runs")
    parser.add_argument("--known", action="store_true", help="judge none, report what is known")
    parser.add_argument("--report", type=Path, help="write a table in Markdown")
    options = parser.parse_args()
    families = options.families or (*FAMILIES, *MODULES)
    chosen = {f: [m for m in mutants(f) if options.only in m.name] for f in families}
    if options.list:
        for m in itertools.chain(*chosen.values()):
            print(f"{m.family}:{m.lines[0]}: {m.name}")
        return
    verdicts = Verdicts(options.verdicts)
    if options.known:
        options.report.write_text(report(verdicts, options.quick))
        return
    run.session = partial(run.session, threads=1)  # tiny models, and jobs side by side
    load_rules()
    rules = not set(families) <= set(MODULES)
    later = [check for check in map(traced, other_checks() if rules else ()) if check]
    whole = rules and not options.quick
    models = [check for check in map(traced, later_checks() if whole else ()) if check]
    survivors = 0
    for family in families:
        start = time.perf_counter()
        if family in MODULES:
            own = [check for check in map(timed, module_checks(family)) if check]
        else:
            own = [check for check in map(traced, family_checks(family)) if check]
        waiting = [m for m in chosen[family] if not verdicts.of(m)]
        print(f"{family}: {len(own)} rows, {len(waiting)} mutants to judge", flush=True)
        judged = partial(judge_apart, own=own, later=later, models=models, kills=Counter[str]())
        with ThreadPoolExecutor(options.jobs) as pool:
            for mutant, (verdict, seconds) in zip(waiting, pool.map(judged, waiting), strict=True):
                verdicts.add(mutant, verdict)
                if not verdict and not reason(f"{family}.{mutant.name}"):
                    survivors += 1
                    where = f"{family}:{mutant.lines[0]}"
                    print(f"SURVIVES {where}: {mutant.name} ({seconds:.0f} s)", flush=True)
        print(f"{family}: {time.perf_counter() - start:.0f} s", flush=True)
    if options.report:
        options.report.write_text(report(verdicts, options.quick))
    sys.exit(bool(survivors))


def report(verdicts: Verdicts, quick: bool) -> str:
    """The text of `docs/mutation.md`; quick: whole models were left out."""
    rows: list[tuple[int, ...]] = []
    left: list[Mutant] = []
    for family in (*FAMILIES, *MODULES):
        every = list(mutants(family))
        known = [(m, v) for m in every if (v := verdicts.of(m)) is not None]
        spared = [m for m, verdict in known if not verdict]
        same = [m for m in spared if reason(f"{family}.{m.name}")]
        alive = [m for m in spared if m not in same]
        left += alive
        row = (len(every) - len(known), len(known) - len(spared), len(same), len(alive))
        rows.append((len(every), *row))
    total = tuple(map(sum, zip(*rows, strict=True)))
    command = ["python -m benchmarks.mutation", *["--quick"] * quick, "--report docs/mutation.md"]
    lines = [
        "# Mutation check",
        "",
        "Every rule is broken on purpose, one small piece at a time: letters of a pattern swapped,",
        "renamed, made live or whole; clauses dropped; statements dropped, comparisons and",
        "conditions turned round, numbers one larger. A mutant is killed when a test fails, and",
        "survives when none does: then a test is missing, or the piece is not needed. Modules of",
        "`spa/` are broken likewise, and meet the tests of their own file alone.",
        f"Made by `{' '.join(command)}`;",
        "verdicts of earlier runs, some by chosen rows of a family alone, count as long as the",
        "source of a mutant is the same.",
        *(["Hazard models and random graphs were left out, which may kill some more."] * quick),
        "",
        "| family | mutants | not run | killed | equivalent | survivors |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, row in zip((*FAMILIES, *MODULES, "all"), (*rows, total), strict=True):
        cells = (name, *row) if row[1] < row[0] else (name, row[0], "all", "", "", "")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", "Survivors:" if left else "No survivors.", ""]
    lines += [f"- {m.family}: {m.name}" for m in left]
    lines += ["", "Equivalent, with the reason:", ""]
    lines += [f"- `{name}`: {why}" for name, why in EQUIVALENT.items()]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    main()
