"""What the tests of spa's shell share: model files, the command line, a snapshot of a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import ModelProto

import spa
from spa import api, run
from spa.cli import main

PLAIN = {"criterion": "l1", "compensate": "none", "repair": "none"}  # only weights, only a cut
CUT = tuple(part for name, value in PLAIN.items() for part in (f"--{name}", value))
DIGITS = Path(spa.__file__).parent / "data" / "digits.onnx"


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Tiny models run fastest on one thread, and the tests themselves run side by side."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "session", partial(run.session, threads=1))
        yield


@pytest.fixture(autouse=True)
def no_second_try(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that fails its validation fails the test: nothing is chosen in place of it."""
    monkeypatch.setattr(api, "ATTEMPTS", 0)


@pytest.fixture
def cli() -> Callable[..., Result]:
    """Run ``spa ARGS`` in this interpreter; .stdout and .stderr are kept apart."""
    return lambda *args: CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture
def plain(cli: Callable[..., Result]) -> Callable[..., Result]:
    """The same, pruning by weights alone: for what has nothing to do with calibration inputs."""

    def run(*args: object) -> Result:
        return cli("prune", *CUT, *args[1:]) if args and args[0] == "prune" else cli(*args)

    return run


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """The trained model that ships with spa, as a file of its own."""
    return Path(shutil.copy(DIGITS, tmp_path / "digits.onnx"))


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """The same model with its weights in a file beside it."""
    path = tmp_path / "digits.onnx"
    model, data = onnx.load(DIGITS), "digits.weights"
    onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=1024)
    return path


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a model into the test's folder."""

    def write(model: ModelProto, name: str = "m.onnx") -> Path:
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.fixture
def files(tmp_path: Path) -> Callable[[], dict[str, bytes]]:
    """What every file in the test's folder holds, hidden ones too."""
    return lambda: {
        str(p.relative_to(tmp_path)): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()
    }
