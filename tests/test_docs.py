"""What the documentation says is so: tables are up to date, code runs, commands and paths exist."""

from __future__ import annotations

import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import click
import pytest

from spa.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])
FENCES = re.MULTILINE | re.DOTALL
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def blocks(text: str, *languages: str) -> list[str]:
    """The contents of the fenced blocks of a page."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", text, FENCES)
    return [body for language, body in found if language in languages]


def commands(text: str) -> list[str]:
    """Every ``spa ...`` in a shell block or between backticks that has more than its name."""
    shell = "\n".join(blocks(text, "sh", "console"))
    shown = re.findall(r"^(?:\$ )?(spa .*?)(?:  #.*)?$", shell, re.MULTILINE)
    return shown + re.findall(r"`(spa [a-z][^`]*)`", re.sub(r"^```.*?^```", "", text, flags=FENCES))


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    made = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    return {
        "operators.md": made["operators"](),
        "criteria.md": made["criteria"](),
        "group.svg": made["picture"](),
    }


@pytest.mark.parametrize("name", ["operators.md", "criteria.md", "group.svg"])
def test_generated_files_are_up_to_date(name: str, generated: dict[str, str]) -> None:
    stored = (ROOT / "docs" / name).read_text()
    assert stored == generated[name], "run: python docs/generate.py"


def test_picture_is_small_and_well_formed() -> None:
    path = ROOT / "docs" / "group.svg"
    assert path.stat().st_size < 20_000
    assert ElementTree.parse(path).getroot().tag.endswith("svg")


@pytest.mark.parametrize("code", blocks(README, "python"))
def test_python_in_the_readme_runs(
    code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})


def test_readme_has_python() -> None:
    assert blocks(README, "python")


def test_code_map_names_every_module() -> None:
    named = re.findall(r"^((?:spa|ops)/\w+\.py) ", README, re.MULTILINE)
    there = {
        f"{folder}/{p.name}" for folder in ("spa", "ops") for p in (ROOT / folder).glob("*.py")
    }
    assert sorted(named) == sorted(there)


@pytest.mark.parametrize(
    "line", sorted({c for page in PAGES for c in commands(page.read_text())}) or ["none found"]
)
def test_commands_parse(line: str) -> None:
    """The command exists and takes these options; ``MODEL.onnx`` and the like stand for files."""
    name, *arguments = shlex.split(line)[1:]
    context = click.Context(main)
    command = main.get_command(context, name)
    assert command is not None, f"no command {name!r}"
    if arguments:
        command.make_context(name, arguments, parent=context)


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make (\w+)", README, re.MULTILINE))
    assert named and named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        assert link.startswith("https://") or (page.parent / link).exists(), link


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"examples.{path.stem}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout
