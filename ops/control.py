"""If, Loop and Scan: what a body is given and what it leaves is one with what stands outside."""

from spa.rules import Axes, Op, rule, whole

_SHAPES = "has another size in the other branch, or one that is not known"
_ROUNDS = "has another size in the next round, or one that is not known"


def _alone(op: Op) -> list[Axes]:
    """The bodies are not analysed: older forms, sparse tensors."""
    for k in range(len(op.axes)):
        op.lock_input(k, f"a form of {op.node.op_type} that is not analysed")
    return op.whole_outputs()


def _one(op: Op, out: int, inputs: list[int], why: str) -> Axes:
    """An output that is now this, now that input: their axes go together where the sizes agree."""
    shape = op.out_shapes[out]
    inputs = [k for k in inputs if k not in op.empty]
    if shape is None or any(len(op.shapes[k] or ()) != len(shape) for k in inputs):
        for k in inputs:
            op.lock_input(k, why)
        return [whole(n) for n in shape or ()]
    made = []
    for size, axes in zip(shape, zip(*map(op.input, inputs), strict=True), strict=True):
        if any(len(axis.ids) != size for axis in axes):
            for axis in axes:
                op.lock(axis, why)
            axes = (whole(size),)
        for axis in axes[1:]:
            op.tie(axis.ids, axes[0].ids)
        made.append(axes[0]._replace(zero=all(axis.zero for axis in axes)))
    return made


@rule("If", partial=True, text="ties what the branches make; locks axes where sizes differ")
def if_(op: Op) -> list[Axes]:
    if not op.node.bodies:
        return _alone(op)
    count, decided = len(op.out_shapes), op.fixed(0)
    outputs = []
    for k in range(count):
        ends = [1 + k, 1 + count + k]
        if decided is not None:  # the other branch never runs, but is kept in step where it can be
            taken = ends[not decided.all()]
            ends = [end for end in ends if op.shapes[end] == op.shapes[taken]]
        outputs.append(_one(op, k, ends, _SHAPES))
    return outputs


def _states(op: Op) -> tuple[int, int]:
    """The first input that starts a state, and how many states there are."""
    if op.node.op_type == "Loop":
        return 2, op.node.given - 2
    return 0, op.node.given - int(op.attr("num_scan_inputs"))


def _scanned(op: Op, which: str, k: int, rank: int) -> int:
    axes = op.attr(f"scan_{which}_axes", [])
    return (int(axes[k]) if k < len(axes) else 0) % max(rank, 1)


def _enter(op: Op) -> list[Axes]:
    """States as they start, and slices of what is scanned."""
    first, count = _states(op)
    outputs: list[Axes] = [[whole(n) for n in op.out_shape(k)] for k in range(first)]
    for k in range(first, op.node.given):
        axes = list(op.input(k))
        if op.out_shapes[k] is None:
            op.lock_input(k, _ROUNDS)
        elif k < first + count:
            axes = op.begin(k)
            for axis in axes:
                op.kind(axis, "recurrent")
        else:
            at = _scanned(op, "input", k - count, len(axes))
            op.lock(axes.pop(at), "runs over the rounds")
        outputs.append(axes)
    return outputs


@rule(
    "Loop Scan",
    enter=_enter,
    partial=True,
    text="ties a state to what every round leaves of it",
)
def loop(op: Op) -> list[Axes]:
    if not op.node.bodies:
        return _alone(op)
    first, count = _states(op)
    given = op.node.given
    ends = given + (first > 0)
    outputs = []
    for k in range(count):
        outputs.append(_one(op, k, [first + k, ends + k], _ROUNDS))
        op.come_round(first + k, outputs[-1])
    for k in range(count, len(op.out_shapes)):
        shape, made = op.out_shapes[k], list(op.input(ends + k))
        if shape is None or len(made) != len(shape) - 1:
            op.lock_input(ends + k, _ROUNDS)
            outputs.append([whole(n) for n in shape or ()])
            continue
        at = _scanned(op, "output", k - count, len(shape))
        outputs.append([*made[:at], whole(shape[at]), *made[at:]])
    return outputs
