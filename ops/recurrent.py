"""LSTM, GRU and RNN: the hidden size is one index in every gate, state and direction.

Steps are whole: a state goes on from one to the next.
"""

from spa.rules import MICROSOFT, Op, Product, Quantised, Resized, Sized, declare


def _layout(seq: str, op: Op) -> str:
    """s B ... or, where layout is 1, B s ..."""
    return seq.replace("s B", "B s").replace("d B", "B d") if op.attr("layout", 0) else seq


def _lstm(op: Op) -> str:
    """s B I, d (4 H) I, d (4 H) H, d (8 H), B, d B H, d B H, d (3 H) -> s d B H, d B H, d B H"""
    y = "B s d H" if op.attr("layout", 0) else "s d B H"
    x, h = _layout("s B I", op), _layout("d B H", op)
    w = "d (4 H) I, d (4 H) H, d (8 H)"
    return f"{x}, {w}, B, {h}, {h}, d (3 H) -> {y}, {h}, {h}"


def _gru(op: Op) -> str:
    """s B I, d (3 H) I, d (3 H) H, d (6 H), B, d B H -> s d B H, d B H"""
    y = "B s d H" if op.attr("layout", 0) else "s d B H"
    x, h = _layout("s B I", op), _layout("d B H", op)
    return f"{x}, d (3 H) I, d (3 H) H, d (6 H), B, {h} -> {y}, {h}"


def _rnn(op: Op) -> str:
    """s B I, d H I, d H H, d (2 H), B, d B H -> s d B H, d B H"""
    y = "B s d H" if op.attr("layout", 0) else "s d B H"
    x, h = _layout("s B I", op), _layout("d B H", op)
    return f"{x}, d H I, d H H, d (2 H), B, {h} -> {y}, {h}"


def _resize(node: Sized) -> Resized:
    recurrence = node.new_in[2]
    assert recurrence is not None
    states = 1 if node.op.node.op_type == "DynamicQuantizeLSTM" else 2  # the other are the gates
    return Resized(attrs={"hidden_size": recurrence[states]})


def _macs(op: Op) -> list[Product]:
    """Every step multiplies the input by W and the state by R."""
    steps = [(0, 0), (0, 1)]
    return [steps + [(k, axis) for axis in range(3)] for k in (1, 2)]


# Which of the functions of one direction are put to sums that are zero where all weights are; the
# others belong to gates.
_SPEAKING = {"LSTM": (1, 2), "DynamicQuantizeLSTM": (1, 2), "GRU": (1,), "RNN": (0,)}
_COUNTS = {"LSTM": 3, "DynamicQuantizeLSTM": 3, "GRU": 2, "RNN": 1}
_SILENT = {b"Tanh", b"Relu", b"LeakyRelu", b"ScaledTanh", b"Elu", b"Softsign"}  # f(0) = 0


def _zero(op: Op) -> str:
    """With all its weights zero a unit keeps h = 0: its gates open some way onto f(0) = 0."""
    kind = op.node.op_type
    names = op.attr("activations") or []
    speaking = {n for k, n in enumerate(names) if k % _COUNTS[kind] in _SPEAKING[kind]}
    start = {"GRU": " + 5", "RNN": ""}.get(kind, " + 6")
    return f"0 1 + 2 + 3{start}" if speaking <= _SILENT else ""


def _inexact(op: Op) -> str:
    """A removed unit speaks to the others through R, which is stored and so zero, or computed."""
    return "" if op.input(2)[2].zero else "H"


def _dynamic(op: Op) -> str:
    """s B I, d I (4 H), d H (4 H), d (8 H), B, d B H, d B H, d (3 H), then scale and zero
    point of each matrix, d or d (4 H) -> s d B H, d B H, d B H"""
    per = ", ".join("d (4 H)" if len(op.shape(k)) > 1 else "d" for k in range(8, 12))
    x = "s B I, d I (4 H), d H (4 H), d (8 H), B, d B H, d B H, d (3 H)"
    return f"{x}, {per} -> s d B H, d B H, d B H"


def _dynamic_inexact(op: Op) -> str:
    """The range that the scale of the inputs is made of holds zero, and all that is removed."""
    letters = [] if op.input(2)[1].zero else ["H"]
    return " ".join(letters + ["I"] * (not op.input(0)[2].zero))


declare(
    "DynamicQuantizeLSTM",
    _dynamic,
    zero=_zero,
    inexact=_dynamic_inexact,
    kinds=lambda op: {"H": "recurrent", "I": "linear"},
    resize=_resize,
    macs=_macs,
    quantised={1: Quantised((8,), 9, (0, 2)), 2: Quantised((10,), 11, (0, 2))},
    states={5: 1, 6: 2},
    domain=MICROSOFT,
)
for _op, _pattern, _states in (
    ("LSTM", _lstm, {5: 1, 6: 2}),
    ("GRU", _gru, {5: 1}),
    ("RNN", _rnn, {5: 1}),
):
    declare(
        _op,
        _pattern,
        zero=_zero,
        inexact=_inexact,
        kinds=lambda op: {"H": "recurrent", "I": "linear"},
        resize=_resize,
        macs=_macs,
        states=_states,
    )
