"""LSTM, GRU and RNN: the hidden size is one index in every gate, state and direction."""

from spa.rules import Op, Product, Resized, Sized, declare


def _layout(seq: str, op: Op) -> str:
    """S B ... or, where layout is 1, B S ..."""
    return seq.replace("S B", "B S").replace("d B", "B d") if op.attr("layout", 0) else seq


def _lstm(op: Op) -> str:
    """S B I, d (4 H) I, d (4 H) H, d (8 H), B, d B H, d B H, d (3 H) -> S d B H, d B H, d B H"""
    y = "B S d H" if op.attr("layout", 0) else "S d B H"
    x, h = _layout("S B I", op), _layout("d B H", op)
    w = "d (4 H) I, d (4 H) H, d (8 H)"
    return f"{x}, {w}, B, {h}, {h}, d (3 H) -> {y}, {h}, {h}"


def _gru(op: Op) -> str:
    """S B I, d (3 H) I, d (3 H) H, d (6 H), B, d B H -> S d B H, d B H"""
    y = "B S d H" if op.attr("layout", 0) else "S d B H"
    x, h = _layout("S B I", op), _layout("d B H", op)
    return f"{x}, d (3 H) I, d (3 H) H, d (6 H), B, {h} -> {y}, {h}"


def _rnn(op: Op) -> str:
    """S B I, d H I, d H H, d (2 H), B, d B H -> S d B H, d B H"""
    y = "B S d H" if op.attr("layout", 0) else "S d B H"
    x, h = _layout("S B I", op), _layout("d B H", op)
    return f"{x}, d H I, d H H, d (2 H), B, {h} -> {y}, {h}"


def _resize(node: Sized) -> Resized:
    recurrence = node.new_in[2]
    assert recurrence is not None
    return Resized(attrs={"hidden_size": recurrence[2]})


def _macs(op: Op) -> list[Product]:
    """Every step multiplies the input by W and the state by R."""
    steps = [(0, 0), (0, 1)]
    return [steps + [(k, axis) for axis in range(3)] for k in (1, 2)]


for _op, _pattern in (("LSTM", _lstm), ("GRU", _gru), ("RNN", _rnn)):
    # With all its weights zero a unit keeps h = 0: its gates open half way onto tanh(0) = 0.
    declare(
        _op,
        _pattern,
        zero="0 1 2",
        kinds=lambda op: {"H": "recurrent", "I": "linear"},
        resize=_resize,
        macs=_macs,
    )
