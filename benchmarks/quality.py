"""Top-1 of the nets in models/trained after pruning without fine-tuning: spa, its rivals, bars.

    python -m benchmarks.quality [--quick] [--nets vgg vgg_bn] [--seeds 3] [--rows FILE]
    python -m benchmarks.quality --methods spa --inputs noise    only these rows
    python -m benchmarks.quality --docs COMMIT...    only write the page, of rows made at these

Needs the Debian package dataset-fashion-mnist (see models/fashion.py). Every row that is done is
appended to --rows (build/quality.jsonl) at once and not measured again while the net, its groups,
the settings, the seed and the code that can change an accuracy are the same; several processes may
share the file, each with other --nets. The most telling rows come first, and docs/quality.md is
written anew with every row, so that a run that is cut off leaves a page too.

Inputs: "noise" is what spa makes up; "digits" are 8x8 handwritten digits (those in spa/data, three
times as large, in a black frame), pictures of another kind than clothes; "images" are unlabelled
training images. No run sees a test image or a label.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import time
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

import spa
from benchmarks import quality_page
from models import fashion
from spa import run as runs
from spa.errors import SpaError
from spa.fold import fold
from spa.groups import Groups

ROOT = Path(__file__).parent.parent
NETS = ROOT / "models" / "trained"
PEERS = ROOT / "build" / "peers.jsonl"  # rows of `benchmarks.peer_torch_pruning`
RECIPE = 1  # of the inputs; part of every row's key
SAMPLES, WIDE_SAMPLES = 512, 256
TARGETS, WIDE_TARGETS = (0.7, 0.5, 0.35), (0.9, 0.8)
QUICK_TARGETS, QUICK_TESTS = (0.5,), 2000
TELLING = (0.5, 0.8)  # the targets that come first; no net has both

# What cannot change an accuracy unless it changes the groups, which the key of a row names, or
# breaks the law: the analysis, the file, and what people see.
ANALYSIS = "analysis axes factors follow groups patterns propagate rules shapes sizes solve sparse"
FILES = "graph parts plan protos reader rewrite unstack validate writer"
SHELL = "__init__ __main__ chart cli compare demo errors options outcome progress report shell"
APART = frozenset(f"{ANALYSIS} {FILES} {SHELL}".split())


@dataclass(frozen=True)
class Method:
    """options: of spa.prune. inputs: what it is run with; "none" for what looks at no input.
    norms: only for nets that have a BatchNormalization. judged: whether new weights are held
    against inputs; made-up ones refuse folding where real ones would not."""

    options: dict[str, str]
    inputs: tuple[str, ...]
    norms: bool = False
    judged: bool = True


ALL = ("noise", "digits", "images")
SWEEP = {"criterion": "obs-diagonal", "scope": "local", "compensate": "sweep"}
FOLD = {"criterion": "l1", "scope": "local", "compensate": "fold"}
METHODS = {
    "l1": Method({"criterion": "l1", "compensate": "none", "repair": "none"}, ("none",)),
    "l1 + BN": Method(
        {"criterion": "l1", "compensate": "none", "repair": "statistics"}, ALL, norms=True
    ),
    "dfpc": Method({"criterion": "dfpc", "compensate": "none", "repair": "none"}, ("none",)),
    "merge": Method({"criterion": "l1", "compensate": "merge", "repair": "none"}, ("noise",)),
    "merge + BN": Method(
        {"criterion": "l1", "compensate": "merge", "repair": "statistics"}, ALL, norms=True
    ),
    "sweep": Method({**SWEEP, "repair": "none"}, ALL),
    "sweep + BN": Method({**SWEEP, "repair": "statistics"}, ALL, norms=True),
    "fold": Method({**FOLD, "repair": "none"}, ("none",), judged=False),
    "fold + BN": Method({**FOLD, "repair": "statistics"}, ALL, norms=True),
    "spa": Method({}, ALL),
}


@dataclass(frozen=True)
class Job:
    """One row to be: a file, how it is pruned, and how many test images judge it."""

    net: str
    method: str
    inputs: str
    target: float
    seed: int
    tests: int

    def key(self, file: str, code: str) -> str:
        options = METHODS[self.method].options
        text = json.dumps([asdict(self), options, RECIPE, file, code], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Row:
    """What a job showed. before, after: top-1 in percent. seconds: by stage.

    helped, rejected: sites with new weights, and those where none helped. refused: whether all of
    it was dropped. error: why there is no pruned net."""

    key: str
    code: str
    net: str
    method: str
    inputs: str
    target: float
    seed: int
    tests: int
    before: float
    after: float = 0.0
    macs: float = 0.0
    params: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    helped: int = 0
    rejected: int = 0
    refused: bool = False
    error: str = ""


def is_wide(net: str) -> bool:
    return net.startswith("wide")


def jobs(nets: list[Path], seeds: int, quick: bool) -> list[Job]:
    """All rows, the most telling first. What looks at no input is run once for all seeds."""
    found = []
    for path in nets:
        norms = any(n.op_type == "BatchNormalization" for n in onnx.load(path).graph.node)
        targets = WIDE_TARGETS if is_wide(path.stem) else QUICK_TARGETS if quick else TARGETS
        for target in targets:
            for name, method in METHODS.items():
                if method.norms and not norms:
                    continue
                for kind in method.inputs:
                    for seed in range(1 if quick or kind == "none" else seeds):
                        tests = QUICK_TESTS if quick else 10_000
                        found.append(Job(path.stem, name, kind, target, seed, tests))
    return sorted(found, key=rank)


def rank(job: Job) -> tuple[int, ...]:
    """What comes first: one seed of everything, in it spa and l1 at one target with images and with
    noise, then spa at the others, then its rivals."""
    few = job.inputs in ("images", "noise", "none")
    main, telling = job.method in ("spa", "l1") and few, job.target in TELLING
    return job.seed, 0 if main and telling else 1 if main else 2 if telling and few else 3


# Inputs ----------------------------------------------------------------------------------------


def samples(kind: str, wide: bool, seed: int) -> NDArray[np.float32]:
    """Unlabelled pictures for a net, as it expects them."""
    images = digits() if kind == "digits" else fashion.train()[0]
    chosen = np.random.default_rng(seed).permutation(len(images))
    found = images[chosen[: WIDE_SAMPLES if wide else SAMPLES]]
    return fashion.rgb(found) if wide else found


def digits() -> NDArray[np.float32]:
    """Handwritten digits of the size and the scale of Fashion-MNIST, white on black."""
    stored = resources.files("spa") / "data" / "digits.npz"
    with resources.as_file(stored) as path, np.load(path) as held:
        small: NDArray[np.float32] = held["images"]
    large = np.pad(small.repeat(3, 2).repeat(3, 3), [(0, 0), (0, 0), (2, 2), (2, 2)])
    return ((large - np.float32(fashion.MEAN)) / np.float32(fashion.STD)).astype(np.float32)


# Rows ------------------------------------------------------------------------------------------


class Bench:
    """Measures jobs; dense nets and test images are looked at once."""

    def __init__(self, folder: Path, code: str) -> None:
        self.folder, self.code = folder, code
        self.images, self.labels = fashion.test()
        self.dense: dict[tuple[str, int], float] = {}
        self.files: dict[str, str] = {}

    def path(self, net: str) -> Path:
        return self.folder / f"{net}.onnx"

    def key(self, job: Job) -> str:
        if job.net not in self.files:
            held = hashlib.sha256(self.path(job.net).read_bytes()).hexdigest()
            self.files[job.net] = held + groups_digest(spa.analyze(self.path(job.net)))
        return job.key(self.files[job.net], self.code)

    def top1(self, model: Path | onnx.ModelProto, wide: bool, tests: int) -> float:
        hits = 0
        with runs.session(model, optimize=True) as running:
            (name,) = (i.name for i in running.get_inputs())
            for start in range(0, tests, 250):
                part = slice(start, min(start + 250, tests))
                images = fashion.rgb(self.images[part]) if wide else self.images[part]
                logits = running.run(None, {name: images})[0]
                hits += int((logits.argmax(1) == self.labels[part]).sum())
        return 100 * hits / tests

    def row(self, job: Job) -> Row:
        wide = is_wide(job.net)
        if (job.net, job.tests) not in self.dense:
            self.dense[job.net, job.tests] = self.top1(self.path(job.net), wide, job.tests)
        before = self.dense[job.net, job.tests]
        row = Row(self.key(job), self.code, **asdict(job), before=before)
        data = job.inputs
        given = {} if data in ("none", "noise") else {"data": samples(data, wide, job.seed)}
        clock = Clock()
        method = METHODS[job.method]
        try:
            prune = spa.prune if method.judged else folded
            result = prune(
                self.path(job.net),
                {"macs": job.target},
                **method.options,
                **given,
                seed=job.seed,
                samples=WIDE_SAMPLES if wide else SAMPLES,
                verify=False,
                progress=clock,
            )
        except SpaError as error:
            return replace(row, error=f"{type(error).__name__}: {error}")
        clock("")
        done = result.compensation
        return replace(
            row,
            after=self.top1(result.model, wide, job.tests),
            macs=result.figures.share("macs"),
            params=result.figures.share("params"),
            seconds=clock.seconds,
            helped=len(done.helped) if done else 0,
            rejected=len(done.rejected) if done else 0,
            refused=done.refused if done else False,
        )


def folded(path: Path, target: dict[str, float], **options: Any) -> spa.api.Result:
    """Prune and fold; no inputs are looked at."""
    use = {**options, "compensate": "none"}
    verify, say = use.pop("verify"), use.pop("progress")
    drafted = spa.api.draft(path, target, spa.api.Settings(**use), progress=say)
    graph = replace(drafted.groups.graph, changed=fold(drafted.groups, drafted.removed))
    new = replace(drafted, groups=replace(drafted.groups, graph=graph))
    return spa.api.finish(new, verify=verify, progress=say)


# Digests ---------------------------------------------------------------------------------------


def code_digest() -> str:
    """Of the modules that can change an accuracy, without comments and docstrings."""
    found = hashlib.sha256()
    for path in sorted(Path(spa.__file__).parent.glob("*.py")):
        if path.stem not in APART:
            found.update(f"{path.stem}: {meaning(path.read_text())}\n".encode())
    return found.hexdigest()[:12]


def meaning(code: str) -> str:
    """Code as a tree, without docstrings."""
    tree = ast.parse(code)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            is_text = bool(node.body) and isinstance(node.body[0], ast.Expr)
            if is_text and ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
    return ast.dump(tree)


def groups_digest(groups: Groups) -> str:
    """Of what the analysis of a net finds."""
    found = hashlib.sha256()
    for group in groups:
        found.update(f"{group.size} {group.kind} {group.exact}".encode())
        for member in group.members:
            found.update(f"{member.tensor}:{member.axis}".encode() + member.index.tobytes())
    return found.hexdigest()[:12]


class Clock:
    """Seconds between one stage and the next."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stage, self._since = "reading", time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        spent = self.seconds.get(self._stage, 0.0) + now - self._since
        self.seconds[self._stage] = round(spent, 3)
        self._stage, self._since = stage, now


def read(path: Path, code: str) -> dict[str, Row]:
    """The rows that this code has made, by key."""
    return {row.key: row for row in read_all(path) if row.code == code}


def read_all(path: Path) -> list[Row]:
    lines = path.read_text().splitlines() if path.exists() else []
    return [Row(**json.loads(line)) for line in lines if line.strip()]


def line(row: Row) -> str:
    result = row.error or f"{row.before:.2f} -> {row.after:.2f} at macs {row.macs:.3f}"
    spent = sum(row.seconds.values())
    what = f"{row.net} {row.target} {row.method} {row.inputs} seed {row.seed}"
    return f"{what}: {result}{', refused' if row.refused else ''} ({spent:.1f} s)"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Top-1 after pruning without fine-tuning.")
    parser.add_argument("--quick", action="store_true", help="one seed, macs 0.5, 2,000 images")
    parser.add_argument("--nets", nargs="*", metavar="NAME", help="default all in --folder")
    parser.add_argument("--folder", type=Path, default=NETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=Path, default=ROOT / "build" / "quality.jsonl")
    parser.add_argument("--methods", nargs="*", choices=METHODS, help="default all")
    parser.add_argument("--inputs", nargs="*", choices=("none", *ALL), help="default all")
    parser.add_argument("--docs", nargs="+", metavar="COMMIT", help="only write the page: one for "
                        "each code that made rows, in their order")  # fmt: skip
    parser.add_argument("--peers", type=Path, default=PEERS)
    parser.add_argument("--page", type=Path, default=quality_page.PAGE)
    return parser.parse_args()


def main() -> None:
    given = parse()
    if given.docs:
        made = read_all(given.rows)
        codes = list(dict.fromkeys(row.code for row in made))
        if len(codes) != len(given.docs):
            raise SystemExit(f"the rows in {given.rows} are by {len(codes)} codes, not as many")
        command = f"python -m benchmarks.quality --docs {' '.join(given.docs)}"
        commits = dict(zip(codes, given.docs, strict=True))
        text = quality_page.page(made + read_all(given.peers), command, commits=commits)
        given.page.write_text(text)
        return
    found = sorted(given.folder.glob("*.onnx"))
    wanted: list[Any] = [p for p in found if given.nets is None or p.stem in given.nets]
    if not wanted:
        raise SystemExit(f"no nets in {given.folder}")
    code = code_digest()
    bench = Bench(given.folder, code)
    given.rows.parent.mkdir(parents=True, exist_ok=True)
    rows = read(given.rows, code)
    todo = {bench.key(job) for job in jobs(found, given.seeds, given.quick)}
    command = "python -m benchmarks.quality" + (" --quick" if given.quick else "")

    def write_page() -> None:
        kept = [row for key, row in read(given.rows, code).items() if key in todo]
        peers = [row for row in read_all(given.peers) if row.net in {r.net for r in kept}]
        text = quality_page.page(kept + peers, command, len(todo) - len(kept))
        given.page.write_text(text)

    methods, inputs = given.methods or METHODS, given.inputs or ("none", *ALL)
    for job in jobs(wanted, given.seeds, given.quick):
        asked = job.method in methods and job.inputs in inputs
        if asked and bench.key(job) not in rows:
            row = bench.row(job)
            with given.rows.open("a") as out:
                out.write(json.dumps(asdict(row)) + "\n")
            print(line(row), flush=True)
            write_page()
    write_page()
    print(f"wrote {given.page}")


if __name__ == "__main__":
    main()
