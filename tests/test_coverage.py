"""What benchmarks/ counts and writes for docs/coverage.md."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import helper, numpy_helper

import spa
from benchmarks import coverage, zoo
from benchmarks.study import STATES, Row, locked, study
from models.builder import Net

DATA = Path(__file__).parent / "data"


def test_locked_counts_what_no_group_reaches() -> None:
    net = Net("two layers")
    hidden = net.relu(net.gemm(net.input("x", ["batch", 5]), 8))
    total, share, held = locked(spa.analyze(net.model(net.gemm(hidden, 3))))
    assert total == 8 * 5 + 8 + 3 * 8 + 3
    assert share == pytest.approx(3 / total)  # the bias of the outputs
    assert held == [("output", pytest.approx(3 / total))]


def test_a_single_layer_is_locked_on_both_axes() -> None:
    net = Net("one layer")
    total, share, held = locked(spa.analyze(net.model(net.gemm(net.input("x", ["batch", 5]), 3))))
    assert (total, share) == (5 * 3 + 3, 1.0)
    assert [text for text, _ in held] == ["input + output", "output"]


def test_weights_in_a_body_count() -> None:
    net = Net("two layers")
    model = net.model(net.gemm(net.relu(net.gemm(net.input("x", ["batch", 5]), 8)), 3))
    weight = onnx.numpy_helper.from_array(numpy_helper.to_array(model.graph.initializer[0]), "w")
    size = int(numpy_helper.to_array(weight).size)
    value = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, list(weight.dims))
    body = helper.make_graph([], "body", [], [value], initializer=[weight])
    condition = numpy_helper.from_array(numpy_helper.to_array(weight).ravel()[:1] > 0, "yes")
    model.graph.initializer.append(condition)
    branch = helper.make_node("If", ["yes"], ["chosen"], then_branch=body, else_branch=body)
    model.graph.node.append(branch)
    before, share, _ = locked(spa.analyze(model))
    assert before == 8 * 5 + 8 + 3 * 8 + 3 + 2 * size
    model.graph.output.append(helper.make_tensor_value_info("chosen", 1, list(weight.dims)))
    total, whole, held = locked(spa.analyze(model))
    assert total == before
    assert whole - share == pytest.approx(2 * size / total)
    assert dict(held)["output"] == pytest.approx((3 + 2 * size) / total)


def test_study_of_a_file() -> None:
    row = Row("lcnet@paddle13", **study(DATA / "paddle-lcnet@paddle13.onnx"))
    assert (row.state, row.groups) == ("pruned", {"conv": 5})
    assert row.law is not None and row.law <= 1e-3
    assert row.kept is not None and row.kept < 0.5


def test_rows_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, rows = tmp_path / "a@jax20.onnx", tmp_path / "rows.jsonl"
    file.write_bytes(b"")
    seen = []

    def fake(path: Path, timeout: float) -> Row:
        seen.append(path)
        return Row(path.stem, zoo.code_digest(), zoo.file_digest(path))

    monkeypatch.setattr(zoo, "study_apart", fake)
    for _ in range(2):
        zoo.measure([file], rows, 1, 1.0)
    assert seen == [file] and list(zoo.read_rows(rows)) == ["a@jax20"]
    file.write_bytes(b"changed")
    zoo.measure([file], rows, 1, 1.0)
    assert len(seen) == 2


def test_page_names_every_file() -> None:
    rows = [Row(f"torch-net{k}@legacy17d", state=state) for k, state in enumerate(STATES)]
    rows += [
        Row("hf-bert@dynamo18d+half", state="pruned", law=4e-3, locked=0.25, held=[("x", 0.2)])
    ]
    rows += [Row("full-gpt2@legacy17d", state="pruned", law=0.0, locked=0.0)]
    text = coverage.page(rows, {"torch": "2.13"}, {"tf-a@tflite9": "Error: no | pipes"},
                         {"tf-b@tflite9", "hf-bert@legacy14+ort-all"})  # fmt: skip
    assert "2 more files of the zoo were not run on this code (" in text
    assert "then onnxruntime's last level: 1" in text
    for row in rows[:8]:
        assert text.count(row.name.split("-")[1].split("@")[0]) >= 1
    assert "| bert | dynamo18d+half |" in text and "| GPT-2 | legacy17d |" in text
    assert "torch 2.13" in text and "no / pipes" in text
    assert all(title[1:] in text for state, title in STATES.items() if state != "pruned")
    assert coverage.exporter("hf-bert@dynamo18d+half") == "+half"
    assert coverage.exporter("hf-bert@dynamo18d+to21") == "+to"
