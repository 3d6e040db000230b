"""Arrays and files of arrays as calibration data: what is taken, and what is refused how."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper

from models.builder import Net
from spa import arrays
from spa.calibration import Calibration, calibrate
from spa.errors import UsageError
from spa.reader import load
from spa.run import Feeds

RANDOM = np.random.default_rng(0)


def table(shape: list[int | str], kind: int = TensorProto.FLOAT) -> ModelProto:
    return nodes({"x": (kind, shape)})


def nodes(inputs: dict[str, tuple[int, list[int | str]]]) -> ModelProto:
    """Every input goes through an Identity."""
    infos = [helper.make_tensor_value_info(n, k, s) for n, (k, s) in inputs.items()]
    outs = [helper.make_tensor_value_info(f"{n}_out", k, None) for n, (k, _) in inputs.items()]
    made = [helper.make_node("Identity", [n], [f"{n}_out"]) for n in inputs]
    graph = helper.make_graph(made, "nodes", infos, outs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def fed(model: ModelProto, data: Any, **options: Any) -> Calibration:
    return calibrate(load(model), data, **options)


def samples(found: Calibration, name: str = "x") -> NDArray[Any]:
    return np.concatenate([feeds[name] for feeds in found.batches])


def ordered(x: NDArray[Any]) -> NDArray[Any]:
    return x[np.argsort(x.reshape(len(x), -1)[:, 0])]


def numbers(*shape: int) -> NDArray[np.float32]:
    return RANDOM.standard_normal(shape).astype(np.float32)


# Files


def npy(path: Path, x: NDArray[Any]) -> Path:
    np.save(path.with_suffix(".npy"), x)
    return path.with_suffix(".npy")


def npz(path: Path, x: NDArray[Any]) -> Path:
    np.savez(path.with_suffix(".npz"), x=x)
    return path.with_suffix(".npz")


def other_name(path: Path, x: NDArray[Any]) -> Path:
    np.savez(path.with_suffix(".npz"), anything=x)
    return path.with_suffix(".npz")


def packed(path: Path, x: NDArray[Any]) -> Path:
    np.savez_compressed(path.with_suffix(".npz"), x=x)
    return path.with_suffix(".npz")


def columns_first(path: Path, x: NDArray[Any]) -> Path:
    np.savez(path.with_suffix(".npz"), x=np.asfortranarray(x))
    return path.with_suffix(".npz")


def capitals(path: Path, x: NDArray[Any]) -> Path:
    return npy(path, x).rename(path.with_suffix(".NPY"))


FORMS = (npy, npz, other_name, packed, columns_first, capitals)


@pytest.mark.parametrize("text", [str, Path])
@pytest.mark.parametrize("save", FORMS, ids=lambda f: f.__name__)
def test_files(
    save: Callable[[Path, NDArray[Any]], Path], text: Callable[[Path], Any], tmp_path: Path
) -> None:
    x = numbers(50, 5)
    path = save(tmp_path / "data", x)
    found = fed(table(["n", 5]), text(path))
    assert [len(feeds["x"]) for feeds in found.batches] == [32, 18]
    assert (found.source, found.kind, found.count) == (path.name, "data", 50)
    np.testing.assert_array_equal(ordered(samples(found)), ordered(x))


def test_what_is_not_compressed_is_mapped(tmp_path: Path) -> None:
    for save in (npy, npz):
        (array,) = arrays.read(save(tmp_path / "data", numbers(50, 5))).values()
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def renamed(path: Path) -> None:
    path.write_text("PK this is neither")


def no_arrays(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing")


def bad_array(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY but not really")


@pytest.mark.parametrize("harm", [cut, emptied, renamed, no_arrays, bad_array])
@pytest.mark.parametrize("save", [npy, npz, packed])
def test_damaged_files(
    save: Callable[[Path, NDArray[Any]], Path], harm: Callable[[Path], None], tmp_path: Path
) -> None:
    path = save(tmp_path / "data", numbers(50, 5))
    harm(path)
    with pytest.raises(UsageError, match=rf"data\{path.suffix} is not a \{path.suffix} file, or"):
        fed(table(["n", 5]), path)


@pytest.mark.parametrize("save", [npy, npz, packed])
def test_pickles_are_never_loaded(
    save: Callable[[Path, NDArray[Any]], Path], tmp_path: Path
) -> None:
    path = save(tmp_path / "data", np.array([{"a": 1}, None], object))
    with pytest.raises(UsageError, match="holds pickled Python objects"):
        fed(table(["n", 5]), path)


# Names, shapes, types, values


TWO = {"a": (TensorProto.FLOAT, ["n", 5]), "b": (TensorProto.INT64, ["n"])}


def refused(model: ModelProto, data: Any, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        fed(model, data)


def test_names_are_listed() -> None:
    match = r"the data holds the arrays 'a', 'c'; the inputs of the model are 'a', 'b'"
    refused(nodes(TWO), {"a": numbers(4, 5), "c": np.arange(4)}, match)
    refused(nodes(TWO), {"a": numbers(4, 5)}, "holds the arrays 'a'; the inputs .* are 'a', 'b'")
    refused(nodes(TWO), numbers(4, 5), "holds the arrays one without a name; the inputs")
    refused(table(["n", 5]), {"x": numbers(4, 5), "y": numbers(4)}, "'x', 'y'; the inputs .* 'x'")


def test_two_inputs_stay_together() -> None:
    found = fed(nodes(TWO), {"a": np.arange(50.0)[:, None] + np.zeros(5), "b": np.arange(50)})
    for feeds in found.batches:
        np.testing.assert_array_equal(feeds["a"][:, 0], feeds["b"])
        assert feeds["a"].dtype == np.float32
    refused(nodes(TWO), {"a": numbers(4, 5), "b": np.arange(3)}, "'a' has 4, 'b' has 3")


@pytest.mark.parametrize("shape", [(4,), (4, 6), (4, 5, 1), ()])
def test_shapes(shape: tuple[int, ...]) -> None:
    text = rf"has shape {list(shape)}; the input is [n, 5], so it has to be [samples, 5]"
    refused(table(["n", 5]), numbers(*shape), text.replace("[", r"\[").replace("]", r"\]"))


def test_free_sizes_come_from_the_data() -> None:
    assert samples(fed(table(["n", "s", 5]), numbers(7, 9, 5))).shape == (7, 9, 5)


def test_no_samples() -> None:
    refused(table(["n", 5]), numbers(0, 5), "array 'x' has no samples")


@pytest.mark.parametrize(
    ("kind", "given", "taken"),
    [
        (TensorProto.FLOAT, np.float64, np.float32),
        (TensorProto.FLOAT, np.float16, np.float32),
        (TensorProto.FLOAT16, np.float32, np.float16),
        (TensorProto.DOUBLE, np.float32, np.float64),
        (TensorProto.INT64, np.int32, np.int64),
        (TensorProto.INT32, np.int64, np.int32),
        (TensorProto.UINT8, np.int64, np.uint8),
        (TensorProto.INT64, np.bool_, np.int64),
        (TensorProto.BOOL, np.bool_, np.bool_),
        (TensorProto.STRING, np.str_, np.object_),
    ],
)
def test_types_that_fit(kind: int, given: Any, taken: Any) -> None:
    found = samples(fed(table(["n", 2], kind), np.ones((3, 2), given)))
    assert found.dtype == taken


@pytest.mark.parametrize(
    ("kind", "given", "match"),
    [
        (TensorProto.FLOAT, np.int64, "holds int64, and the input takes float; scale it"),
        (TensorProto.FLOAT, np.uint8, "holds uint8, and the input takes float; scale it"),
        (TensorProto.FLOAT, np.bool_, "holds bool, and the input takes float$"),
        (TensorProto.INT64, np.float32, "holds float32, and the input takes int64$"),
        (TensorProto.BOOL, np.int64, "holds int64, and the input takes bool$"),
        (TensorProto.FLOAT, np.str_, "holds <U1, and the input takes float$"),
        (TensorProto.STRING, np.int64, "holds int64, and the input takes string$"),
        (TensorProto.FLOAT, np.complex64, "holds complex64, and the input takes float$"),
    ],
)
def test_types_that_do_not(kind: int, given: Any, match: str) -> None:
    refused(table(["n", 2], kind), np.ones((3, 2), given), match)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    x = numbers(100, 2)
    x[77, 1] = value
    refused(table(["n", 2]), x, r"array 'x' holds values that are not finite \(NaN or infinity\)")


def test_values_that_the_type_does_not_hold() -> None:
    half, small = table(["n", 2], TensorProto.FLOAT16), table(["n", 2], TensorProto.UINT8)
    refused(half, np.full((3, 2), 1e6), "holds values beyond float16")
    refused(table(["n", 2]), np.full((3, 2), 1e300), "holds values beyond float32")
    refused(small, np.full((3, 2), 256), "holds values beyond uint8")
    refused(small, np.full((3, 2), -1), "holds values beyond uint8")


# Axes


def test_a_batch_that_the_model_fixes() -> None:
    found = fed(table([4, 5]), numbers(11, 5))
    assert [feeds["x"].shape for feeds in found.batches] == [(4, 5), (4, 5)]
    assert found.count == 8
    refused(table([4, 5]), numbers(3, 5), "has too few samples: 3, and the model takes 4 at a time")


def test_samples_on_another_axis_of_the_input() -> None:
    model = nodes(
        {"x": (TensorProto.FLOAT, ["batch", 5]), "h": (TensorProto.FLOAT, [2, "batch", 3])}
    )
    x, h = np.arange(6.0)[:, None] + np.zeros(5), np.arange(6.0)[:, None, None] + np.zeros((2, 3))
    (feeds,) = fed(model, {"x": x, "h": h}).batches
    assert feeds["h"].shape == (2, 6, 3)
    np.testing.assert_array_equal(feeds["h"][0, :, 0], feeds["x"][:, 0])


def mixed() -> ModelProto:
    return nodes({"x": (TensorProto.FLOAT, ["n", 5]), "rate": (TensorProto.INT64, [])})


def test_what_is_the_same_for_all_samples() -> None:
    found = fed(mixed(), {"x": numbers(6, 5), "rate": np.asarray(16000)})
    assert [(f["x"].shape, f["rate"].item()) for f in found.batches] == [((6, 5), 16000)]


def test_what_has_no_axis_for_samples_is_fed_alone() -> None:
    found = fed(mixed(), {"x": np.arange(6.0)[:, None] + np.zeros(5), "rate": np.arange(6)})
    assert len(found.batches) == 6
    for feeds in found.batches:
        assert feeds["x"].shape == (1, 5) and feeds["rate"].shape == ()
        assert feeds["x"][0, 0] == feeds["rate"]


def test_one_picture_at_a_time() -> None:
    found = fed(table([3, 20, 20]), numbers(6, 3, 20, 20))
    assert [feeds["x"].shape for feeds in found.batches] == [(3, 20, 20)] * 6


def test_sequences_are_refused() -> None:
    given = helper.make_tensor_sequence_value_info("xs", TensorProto.FLOAT, ["n", 3])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("ConcatFromSequence", ["xs"], ["y"], axis=0)
    graph = helper.make_graph([node], "sequence", [given], [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    refused(model, numbers(4, 3), "the input is no tensor")


# Functions that give batches


def test_a_function() -> None:
    buffer = np.zeros((4, 5), np.float32)

    def loader() -> Any:
        for k in range(5):
            buffer[:] = k  # the same memory again
            yield buffer if k % 2 else {"x": buffer}

    found = fed(table(["n", 5]), loader, count=18)
    assert [len(feeds["x"]) for feeds in found.batches] == [4, 4, 4, 4, 2]
    assert [feeds["x"][0, 0] for feeds in found.batches] == [0, 1, 2, 3, 4]


def test_a_function_may_give_batches_of_any_length() -> None:
    given = [numbers(2, 7, 5), numbers(3, 9, 5)]
    found = fed(table(["n", "s", 5]), lambda: given)
    assert [feeds["x"].shape for feeds in found.batches] == [(2, 7, 5), (3, 9, 5)]
    one = fed(table([1, "s", 5]), lambda: given)
    assert [feeds["x"].shape for feeds in one.batches] == [(1, 7, 5)] * 2 + [(1, 9, 5)] * 3


def test_a_function_that_gives_nothing_of_use() -> None:
    refused(table(["n", 5]), list, "the data has too few samples: none")
    refused(table(["n", 5]), lambda: [(numbers(2, 5), 1)], "the data are a tuple: give an array")
    refused(table(["n", 5]), lambda: [None], r"has shape \[\]; the input is")


def test_a_function_is_heard_as_far_as_the_memory_goes() -> None:
    def loader() -> Any:
        while True:
            yield numbers(4, 5)

    found = fed(table(["n", 5]), loader, memory=200, batch=4)
    assert found.count == 10
    assert "more take over 200 bytes" in found.note


def test_what_the_model_refuses_is_in_its_words() -> None:
    net = Net("written")
    x = net.relu(net.input("x", ["n", "s", 6]))
    model = net.model(net.node("Reshape", x, [0, 54], shape=["n", 54]))
    feeds: Feeds = fed(model, numbers(40, 9, 6)).batches[0]
    assert feeds["x"].shape == (32, 9, 6)
    refused(
        model, numbers(40, 8, 6), "the model does not run on the data; onnxruntime says: .*hape"
    )


def test_a_batch_that_was_traced() -> None:
    net = Net("written")
    x = net.relu(net.input("x", ["n", 7]))
    model = net.model(net.node("Reshape", x, [1, 7], shape=[1, 7]))
    assert [f["x"].shape for f in fed(model, numbers(3, 7)).batches] == [(1, 7)] * 3
