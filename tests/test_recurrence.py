"""Recurrences without hidden units: what they read, least squares, and nets that lose nothing."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import ModelProto

import spa
from models.builder import Net
from spa import run as runs
from spa.index import index
from spa.recurrence import Recurrence, candidates, recurrences, shifted, states_before

KINDS = [("LSTM", 4, {}), ("GRU", 3, {"linear_before_reset": 1}), ("GRU", 3, {}), ("RNN", 1, {})]
NODE = Recurrence(0, "y", (0, 2), (0, 3), (False, True), False, 4, 4)


def net(kind: str, gates: int, ways: int = 2, **attrs: object) -> ModelProto:
    """Hidden units the second half of which are what the first half are."""
    made, random = Net(kind), np.random.default_rng(4)
    x = made.transpose(made.input("x", ("n", 5, 6)), 1, 0, 2)
    w, r, b = (
        random.standard_normal((ways, gates, 8, *rest)).astype("f4") / 2
        for rest in ((6,), (8,), ())
    )
    c = random.standard_normal((ways, gates, 8)).astype("f4") / 2
    for v in (w, r, b, c):
        v[:, :, 4:] = v[:, :, :4]
    flat = [v.reshape(ways, gates * 8, -1) for v in (w, r)]
    bias = np.concatenate([v.reshape(ways, -1) for v in (b, c)], 1)
    way = "bidirectional" if ways == 2 else "forward"
    y = made.nodes(kind, [x, *flat, bias], 1, hidden_size=8, direction=way, **attrs)[0]
    y = made.reshape(made.transpose(y, 0, 2, 1, 3), (0, 0, -1))
    y.shape = (5, "n", 8 * ways)
    return made.model(made.linear(y, 3))


@pytest.mark.parametrize(("kind", "gates", "attrs"), KINDS)
def test_states_that_others_repeat_can_go(kind: str, gates: int, attrs: dict[str, object]) -> None:
    """All but what a reset gate lets through of them, which is not refitted."""
    model = net(kind, gates, **attrs)
    x = np.random.default_rng(0).standard_normal((96, 5, 6)).astype("f4")
    drifts = []
    for how in ("none", "bias", "refit"):
        options = {"kinds": "recurrent", "round_to": 1, "criterion": "apoz", "compensate": how}
        result = spa.prune(model, "channels=0.5", data={"x": x}, **options)
        ((_, gone),) = result.removed.items()
        assert sorted(k % 4 for k in gone.tolist()) == [0, 1, 2, 3]
        with runs.session(model) as one, runs.session(result.model) as other:
            a, b = (next(iter(runs.run(r, {"x": x[:32]}).values())) for r in (one, other))
        drifts.append(float(np.abs(a - b).max() / np.abs(a).max()))
        law = result.verification
        assert law is not None and (law.law or 0) < 1e-4
    reset = kind == "GRU" and not attrs
    assert drifts[2] < (0.8 * drifts[0] if reset else 1e-3) and drifts[0] > 1e-2


def test_states_before_are_those_of_the_step_before() -> None:
    y = np.arange(3 * 2 * 2 * 1.0).reshape(3, 2, 2, 1)  # steps, directions, batch, hidden
    start = np.asarray([[[-1.0], [-2]], [[-3], [-4]]])
    forth, back = states_before(NODE, y, start)[:, :, 0]
    assert forth.tolist() == [-1, -2, 0, 1, 4, 5]
    assert back.tolist() == [6, 7, 10, 11, -3, -4]
    assert states_before(NODE, y, None)[0, :2].tolist() == [[0], [0]]
    batch_first = Recurrence(0, "y", (0, 2), None, (False, True), True, 4, 4)
    turned = states_before(batch_first, np.moveaxis(y, 2, 0), np.swapaxes(start, 0, 1))
    assert np.array_equal(turned, states_before(NODE, y, start))


def test_candidates_are_least_squares() -> None:
    random = np.random.default_rng(0)
    states, r = random.normal(size=(2, 40, 4)) + 0.5, random.normal(size=(2, 16, 4))
    kept = np.asarray([0, 3])
    plain, bias, weakest, *_ = candidates(NODE, r, states, kept, True, True)
    rows = [g * 4 + k for g in range(4) for k in (0, 3)]
    others = np.setdiff1d(np.arange(16), rows)
    for new, change in (plain, bias, weakest):
        assert not new[:, others].any() and not new[:, :, [1, 2]].any()
        assert not change[:, others].any()
    for d in range(2):
        design = np.hstack([states[d][:, kept], np.ones((40, 1))])
        best = np.linalg.lstsq(design, states[d] @ r[d, rows].T, rcond=None)[0]
        np.testing.assert_allclose(weakest[0][d][np.ix_(rows, kept)], best[:2].T, rtol=1e-4)
        np.testing.assert_allclose(weakest[1][d][rows], best[2], rtol=1e-4)
        mean = states[d].mean(0) @ r[d, rows].T - states[d][:, kept].mean(0) @ r[d, rows][:, kept].T
        np.testing.assert_allclose(bias[1][d][rows], mean)


def test_the_bias_of_the_recurrence_is_the_second_half() -> None:
    found = shifted(np.zeros((1, 4), np.float32), np.asarray([[1.0, 2.0]]))
    assert found.tolist() == [[0, 0, 1, 2]]


def test_which_are_found() -> None:
    (found,) = recurrences(index(net("GRU", 3)))
    assert (found.gates, found.linear, found.backwards) == (3, 2, (False, True))
    (found,) = recurrences(index(net("LSTM", 4, 1)))
    assert (found.gates, found.linear, found.backwards) == (4, 4, (False,))
    made = Net("last")
    x = made.input("x", (5, 2, 6))
    weights = [made.weight(1, 16, n) for n in (6, 4)]
    model = made.model(made.nodes("LSTM", [x, *weights], 2, hidden_size=4)[1])
    assert len(recurrences(index(model))) == 1
    model.graph.node[0].output[0] = ""
    assert not recurrences(index(model))
