"""The direction of imports, the length of files, and what the command line may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = sorted((ROOT / "spa").glob("*.py"))
FAMILIES = sorted((ROOT / "ops").glob("*.py"))
LONGEST = 420


def imported(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it; ``from a import b`` may mean ``a.b``."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            module = node.module or ""
            found |= {f"{module}.{a.name}" for a in node.names} if module == "spa" else {module}
    return found


@pytest.mark.parametrize("path", FAMILIES, ids=lambda p: p.stem)
def test_families_import_only_rules_and_patterns(path: Path) -> None:
    allowed = {"spa.rules", "spa.patterns"}
    for module in imported(path):
        top = module.partition(".")[0]
        assert module in allowed or top == "numpy" or top in sys.stdlib_module_names, module


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: p.stem)
def test_only_propagate_imports_ops(path: Path) -> None:
    reads = {m for m in imported(path) if m.partition(".")[0] == "ops"}
    assert not reads or path.stem == "propagate"


@pytest.mark.parametrize("path", [*PACKAGE, *FAMILIES], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


@pytest.mark.parametrize("path", [*PACKAGE, *FAMILIES], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_files_say_what_they_do(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "no docstring"


@pytest.mark.parametrize("module", ["spa", "spa.cli"])
def test_the_command_line_starts_without_heavy_imports(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"numpy", "onnx", "onnxruntime", "onnx_graphsurgeon", "networkx", "scipy", "rich"}
    assert heavy.isdisjoint(run.stdout.split())


def test_families_are_all_loaded() -> None:
    from spa import rules
    from spa.propagate import load_rules

    load_rules()
    families = {p.stem for p in FAMILIES} - {"__init__"}
    assert {rule.family for rule in rules.RULES.values()} == families
