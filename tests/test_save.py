"""Files appear whole or not at all, with their external data beside them."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import Result

from spa.errors import UsageError
from spa.reader import load
from spa.writer import check_writable, save, save_text
from tests.conftest import DIGITS
from tests.test_cli import ROOT

Cli = Callable[..., Result]
Files = Callable[[], dict[str, bytes]]


def logits(path: Path) -> bytes:
    """What a model file computes, external data included."""
    image = np.random.default_rng(0).standard_normal((2, 1, 8, 8)).astype(np.float32)
    return bytes(ort.InferenceSession(path).run(None, {"image": image})[0].tobytes())


def other_model() -> onnx.ModelProto:
    """The digits with another answer."""
    model = onnx.load(DIGITS)
    bias = next(t for t in model.graph.initializer if t.name == "classifier.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(np.arange(10, dtype=np.float32), bias.name))
    stem = next(t for t in model.graph.initializer if t.name == "stem.0.weight")
    stem.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(stem), stem.name))
    return model


@pytest.mark.parametrize("with_external_data", [False, True])
def test_saved_is_what_was_given(tmp_path: Path, with_external_data: bool) -> None:
    path = tmp_path / "o.onnx"
    save(other_model(), path, with_external_data)
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    for tensor in other_model().graph.initializer:
        assert np.array_equal(stored[tensor.name], onnx.numpy_helper.to_array(tensor))
    names = [r"o\.onnx", r"o\.onnx\.[0-9a-f]{12}\.data"][: 1 + with_external_data]
    there = sorted(p.name for p in tmp_path.iterdir())
    assert all(re.fullmatch(a, b) for a, b in zip(names, there, strict=True))


def test_saving_does_not_change_the_model(tmp_path: Path) -> None:
    model = other_model()
    before = model.SerializeToString()
    save(model, tmp_path / "o.onnx", with_external_data=True)
    assert model.SerializeToString() == before


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        save_text("x", tmp_path / "t")
        assert (tmp_path / "t").stat().st_mode & 0o777 == 0o640
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)


# External data


def test_external_data_in_gives_external_data_out(cli: Cli, external: Path, files: Files) -> None:
    before = files()
    done = cli("prune", external)
    assert done.exit_code == 0, done.stderr
    after = files()
    assert {n: after[n] for n in before} == before
    (data,) = set(after) - set(before) - {"digits.pruned.onnx"}
    out = external.with_name("digits.pruned.onnx")
    pointers = onnx.load(out, load_external_data=False).graph.initializer
    places = {e.value for t in pointers for e in t.external_data if e.key == "location"}
    assert places == {data}
    assert len(after["digits.pruned.onnx"]) < len(after[data])
    assert cli("analyze", out).exit_code == 0
    assert len(logits(out)) == 2 * 10 * 4


def test_external_and_inline_input_give_the_same_weights(cli: Cli, external: Path) -> None:
    inline = external.with_name("inline.onnx")
    shutil.copy(DIGITS, inline)
    for path in (external, inline):
        assert cli("prune", path).exit_code == 0
    outs = [path.with_name(f"{path.stem}.pruned.onnx") for path in (external, inline)]
    assert logits(outs[0]) == logits(outs[1])


def test_force_replaces_external_data_too(cli: Cli, external: Path, files: Files) -> None:
    args = ("prune", external, "--force", "--target")
    for target in ("macs=0.9", "macs=0.5", "macs=0.7"):
        assert cli(*args, target).exit_code == 0
    assert len(files()) == 4  # the input and the output, each a model and its data
    alone = external.with_name("alone.onnx")
    assert cli("prune", external, "-o", alone).exit_code == 0
    assert logits(external.with_name("digits.pruned.onnx")) == logits(alone)


def test_force_gives_the_same_bytes_again(cli: Cli, external: Path, files: Files) -> None:
    made = []
    for _ in range(3):
        assert cli("prune", external, "--force").exit_code == 0
        made.append(files())
    assert made[1] == made[2]


def test_files_that_only_look_like_ours_stay(tmp_path: Path) -> None:
    model, path = onnx.load(DIGITS), tmp_path / "o.onnx"
    location = "o.onnx.mine.data"
    onnx.save(model, path, save_as_external_data=True, location=location, size_threshold=1024)
    save(other_model(), path, with_external_data=True)
    assert (tmp_path / location).exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_no_data_file_where_nothing_is_large(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    del model.graph.node[:], model.graph.initializer[:]
    save(model, tmp_path / "o.onnx", with_external_data=True)
    assert [p.name for p in tmp_path.iterdir()] == ["o.onnx"]


# Failures in the middle


@pytest.mark.parametrize("with_external_data", [False, True])
@pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize("fail_at", [1, 2])
def test_a_full_disk_leaves_the_old_file(
    step: str, fail_at: int, with_external_data: bool, tmp_path: Path,
    files: Files, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    path = tmp_path / "o.onnx"
    save(onnx.load(DIGITS), path, with_external_data)
    before, calls = files(), []
    works = getattr(os, step)

    def fail(*args: object, **options: object) -> object:
        calls.append(args)
        if len(calls) == fail_at:
            raise OSError(28, "No space left on device")
        return works(*args, **options)

    monkeypatch.setattr(os, step, fail)
    if fail_at == 1 or with_external_data:
        with pytest.raises(UsageError, match=r"o\.onnx.*No space left"):
            save(other_model(), path, with_external_data)
        assert files() == before
    else:  # there is no second file
        save(other_model(), path, with_external_data)
        assert len(calls) == 1


def test_interrupt_leaves_the_old_file(
    tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_text("old", tmp_path / "t")

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_text("new", tmp_path / "t")
    assert files() == {"t": b"old"}


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
from spa.cli import main
main(sys.argv[1:])
"""
KILLED = """
import os, signal, sys
from pathlib import Path
import onnx
from spa.writer import save
step, at, path, with_data = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] == "True"
works, calls = getattr(os, step), []
def die(*args, **options):
    calls.append(args)
    if len(calls) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return works(*args, **options)
setattr(os, step, die)
save(onnx.load(sys.argv[5]), path, with_data)
"""


def run_code(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.skipif(sys.platform == "win32", reason="no resource limits")
def test_a_file_system_that_takes_no_more(digits: Path, files: Files, exists: bool) -> None:
    out = digits.with_name("o.onnx")
    if exists:
        out.write_bytes(b"old")
    before = files()
    done = run_code(LIMITED, "prune", digits, "-o", out, "--force")
    assert done.returncode in (1, 2)
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert files() == before


@pytest.mark.parametrize(
    ("step", "at", "with_data"),
    [("fsync", 1, False), ("replace", 1, False), ("fsync", 1, True), ("fsync", 2, True),
     ("replace", 1, True), ("replace", 2, True), ("unlink", 1, True)],
)  # fmt: skip
def test_kill_leaves_old_or_new(step: str, at: int, with_data: bool, tmp_path: Path) -> None:
    path, source = tmp_path / "o.onnx", tmp_path / "source.onnx"
    source.write_bytes(other_model().SerializeToString())
    save(onnx.load(DIGITS), path, with_data)
    old, new = logits(path), logits(source)
    done = run_code(KILLED, step, at, path, with_data, source)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert logits(path) == (new if step == "unlink" else old)
    load(path)
    save(other_model(), path, with_data)  # what a kill leaves behind is in nobody's way
    assert logits(path) == new


# Where it cannot be written


@pytest.mark.parametrize("where", ["/proc/o.onnx", "/nonexistent/o.onnx", f"{DIGITS}/o.onnx"])
def test_unwritable_folder_is_found_before_the_work(where: str) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        check_writable(Path(where))
    with pytest.raises(UsageError, match="cannot write"):
        save_text("x", Path(where))


def test_a_folder_is_not_replaced(cli: Cli, digits: Path) -> None:
    folder = digits.with_name("folder")
    folder.mkdir()
    for force in ((), ("--force",)):
        done = cli("prune", digits, "-o", folder, *force)
        assert done.exit_code == 2
        assert "is a folder" in done.stderr
    assert not list(folder.iterdir())
    assert {p.name for p in digits.parent.iterdir()} == {"digits.onnx", "folder"}


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "o.onnx")
    assert not list(tmp_path.iterdir())
