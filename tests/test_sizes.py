"""Free sizes: where they stand, what numbers are tried, how they hang together."""

from __future__ import annotations

import pytest
from onnx import ModelProto, TensorProto

from models.builder import Net
from spa.reader import load
from spa.sizes import (
    batch_sizes,
    bindings,
    channel_axis,
    dims,
    feature_axis,
    free_sizes,
    realistic,
    variations,
)


def net_of(*shapes: tuple[int | str, ...]) -> ModelProto:
    """One input of each shape; nothing is done to them but a Relu."""
    net = Net("sizes")
    return net.model(*(net.relu(net.input(f"x{k}", shape)) for k, shape in enumerate(shapes)))


def first(model: ModelProto, offset: int = 0) -> dict[str, int]:
    return next(bindings(load(model), offset))


@pytest.mark.parametrize(
    ("size", "free"), [(0, True), (-1, True), (3, False), ("n", True), (None, True)]
)
def test_what_is_free(size: int | str | None, free: bool) -> None:
    model = net_of((1, 4))
    dim = model.graph.input[0].type.tensor_type.shape.dim[0]
    dim.Clear()
    if isinstance(size, str):
        dim.dim_param = size
    elif size is not None:
        dim.dim_value = size
    name = size if isinstance(size, str) else "x0.0"
    assert list(free_sizes(load(model))) == ([name] if free else [])


def test_empty_names_are_places() -> None:
    model = net_of((1, 4))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = ""
    assert list(free_sizes(load(model))) == ["x0.0"]


def test_expressions_are_computed() -> None:
    for offset in range(2):
        bound = first(net_of(("n", "past"), ("n", "now"), ("n", "past + now"), ("2*n",)), offset)
        assert bound["past + now"] == bound["past"] + bound["now"]
        assert bound["2*n"] == 2 * bound["n"]


@pytest.mark.parametrize("name", ["past + other", "batch-size", "f(n)", "a b", "unk__1", "n + 'a'"])
def test_what_is_no_expression_is_a_name(name: str) -> None:
    assert first(net_of(("n", name)))[name] == 7


def test_states_have_as_many_samples_as_what_goes_in() -> None:
    tried = list(bindings(load(net_of((None, None), (2, None, 128)))))
    assert tried[0] == {"x0.0": 3, "x0.1": 7, "x1.1": 3}
    assert any(sizes["x0.0"] != sizes["x1.1"] for sizes in tried)
    assert first(net_of((2, None, 128))) == {"x0.1": 7}  # with nothing else to go by


def test_a_sum_is_tried() -> None:
    tried = list(bindings(load(net_of(("b", "now"), ("b", "total"), ("b", 2, "past", 4)))))
    assert any(t["total"] == t["now"] + t["past"] and t["now"] != t["past"] for t in tried)


def test_a_sum_is_tried_among_many_unnamed_sizes() -> None:
    ids = [(f"b{k}", f"s{k}") for k in range(3)]
    past = [(f"p{k}", 2, f"t{k}", 4) for k in range(12)]
    tried = list(bindings(load(net_of(*ids, *past))))
    assert any(
        t["s1"] == t["s0"] + t["t0"] and t["s2"] == t["s0"] and t["t11"] == t["t0"] for t in tried
    )


def test_no_binding_comes_twice() -> None:
    tried = list(bindings(load(net_of(("n", "s")))))
    assert len({tuple(t.items()) for t in tried}) == len(tried)


@pytest.mark.parametrize(
    ("kind", "longest"), [(TensorProto.INT64, 4096), (TensorProto.FLOAT, 32000)]
)
def test_words_are_fewer_than_samples_of_sound(kind: int, longest: int) -> None:
    model = net_of(("n", "s"))
    model.graph.input[0].type.tensor_type.elem_type = kind
    tried = [b["s"] for offset in (0, 1) for b in bindings(load(model), offset)]
    tried += [b["s"] for b in realistic(load(model), 1)]
    assert 1024 < max(tried) <= longest


def test_variations_change_the_named_size() -> None:
    sizes = {"n": 2, "a": 7, "b": 7, "sum": 14}
    tried = list(variations(sizes, "a"))
    assert all(t["a"] != 7 and min(t.values()) > 0 for t in tried)
    for others in ({"b": 8}, {"sum": 15}, {}):  # alike, a sum, alone
        assert {**sizes, "a": 8, **others} in tried


def linear(last: int | str) -> ModelProto:
    net = Net("linear")
    y = net.linear(net.relu(net.input("x", ["n", "s", 6])), 5)
    model = net.model(y)
    if isinstance(last, str):
        model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = last
    del model.graph.value_info[:]
    return model


def test_the_weights_of_the_first_layer_fix_a_free_size() -> None:
    for offset in range(2):
        assert first(linear("c"), offset)["c"] == 6


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 3, 1, 2)])
def test_channels_that_are_free_are_those_of_the_convolution(order: tuple[int, ...]) -> None:
    net = Net("image")
    shape = [2, 3, 8, 8]
    x = net.input("x", [shape[order.index(k)] for k in range(4)])
    model = net.model(net.conv(net.transpose(net.mul(x, 2.0), *order), 4))
    for k, dim in enumerate(model.graph.input[0].type.tensor_type.shape.dim):
        dim.dim_param = f"d{k}"
    bound = first(model)
    assert bound[f"d{order[1]}"] == 3


def test_an_input_of_unknown_rank_has_that_of_its_reader() -> None:
    net = Net("image")
    model = net.model(net.conv(net.relu(net.input("x", [2, 3, 8, 8])), 4))
    model.graph.input[0].type.tensor_type.ClearField("shape")
    graph = load(model)
    assert dims(graph, model.graph.input[0]) == ["x.0", "x.1", "x.2", "x.3"]
    assert first(model)["x.1"] == 3


# Sizes as they are in use


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ([("n", 4)], {"n"}),
        ([(None, 4), (None,)], {"x0.0", "x1.0"}),
        ([("t", "batch", 4)], {"batch"}),
        ([("batch_size", "s"), ("batch_size", "s", "s")], {"batch_size"}),
        ([(2, "s", 4)], set()),
        ([("n", 4), (2, None, 5)], {"n", "x1.1"}),
        ([("n", 4), (2, None, None)], {"n"}),
        ([("n", 4), ("m + n", 4), ("m", 4)], {"n", "m"}),
        ([(3, 4), ()], set()),
    ],
    ids=lambda given: str(sorted(given) if isinstance(given, set) else given),
)
def test_which_sizes_count_samples(shapes: list[tuple[int | str, ...]], expected: set[str]) -> None:
    assert batch_sizes(load(net_of(*shapes))) == expected


@pytest.mark.parametrize(
    ("shape", "axis"),
    [((3, 9, 9), 0), ((9, 9, 3), 2), ((1, None, None), 0), ((None, None, 4), 2), ((4, 5, 6), 0),
     ((3, 9, 3), None), ((5, 9, 9), None), ((None, 9, 9), None), ((3, 9), None), ((1, 1, 1), None)],
)  # fmt: skip
def test_where_channels_are(shape: tuple[int | None, ...], axis: int | None) -> None:
    assert channel_axis(shape) == axis


def test_numbers_in_use() -> None:
    model = net_of(("n", 3, "h", "w"), ("n", "s", 7), ("n", 5, "d", "d", "d"), ("n", "s + s"))
    one = next(realistic(load(model), 16))
    assert one == {"n": 16, "h": 224, "w": 224, "s": 64, "d": 56, "s + s": 128}


def test_the_axis_that_the_first_weight_reads() -> None:
    net = Net("features")
    a, b, c = (net.input(n, ["n", 6, 6]) for n in "abc")
    turned = net.linear(net.transpose(net.mul(b, 2.0), 0, 2, 1), 4)
    graph = load(net.model(net.linear(a, 4), turned, net.conv(c, 4), net.relu(c)))
    assert [feature_axis(graph, n, 3) for n in "abc"] == [(2, 6), (1, 6), (1, 6)]
    assert feature_axis(load(net_of(("n", 4))), "x0", 2) is None
