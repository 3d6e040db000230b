"""Convolutions of every kind: any rank, grouped, depthwise, transposed."""

from math import prod

from spa.rules import MICROSOFT, Op, Product, Quantised, Resized, Sized, declare, is_silent


def _groups(op: Op) -> dict[str, int]:
    return {"G": int(op.attr("group", 1))}


def _kinds(op: Op) -> dict[str, str]:
    return dict.fromkeys("GIO", "conv")


def _weight(op: Op) -> int:
    return 3 if op.node.op_type == "QLinearConv" else 1


def _resize_conv(node: Sized) -> Resized:
    x, w = node.new_in[0], node.new_in[_weight(node.op)]
    assert x is not None and w is not None
    group = int(node.op.attr("group", 1))
    channels = x[-1] if _is_last(node.op) else x[1]
    return Resized(attrs={"group": channels // w[1]}) if group > 1 else Resized()


def _is_last(op: Op) -> bool:
    """Whether channels stand last in the data, as onnxruntime's own QLinearConv may have it."""
    return bool(op.attr("channels_last", 0)) or op.node.op_type.startswith("Nhwc")


def _resize_transpose(node: Sized) -> Resized:
    y, w = node.new_out[0], node.new_in[1]
    assert y is not None and w is not None
    group = int(node.op.attr("group", 1))
    return Resized(attrs={"group": y[1] // w[1]}) if group > 1 else Resized()


def _macs(op: Op) -> list[Product]:
    """Every output element sums over the kernel and the input channels of its group."""
    out, weight = [(-1, k) for k in range(len(op.out_shape()))], _weight(op)
    return [out + [(weight, k) for k in range(1, len(op.shape(weight)))]]


def _macs_transpose(op: Op) -> list[Product]:
    """Every input element is spread over the kernel and the output channels of its group."""
    x = [(0, k) for k in range(len(op.shape(0)))]
    return [x + [(1, k) for k in range(1, len(op.shape(1)))]]


def _passes(op: Op) -> list[bool]:
    """Which axes behind C have a window of 1, so that every index stands for itself."""
    kernel = op.shape(1)[2:]
    steps, pads = op.attr("strides", [1] * len(kernel)), op.attr("pads", [0] * 2 * len(kernel))
    return [
        size == step == 1 and not (before or behind)
        for size, step, before, behind in zip(
            kernel, steps, pads[: len(kernel)], pads[len(kernel) :], strict=True
        )
    ]


def _is_filter(op: Op) -> bool:
    """One row that a window slides over without a change of size, as ECA does over channels."""
    (x, y), steps = (op.shape(), op.out_shape()), op.attr("strides", [1])
    row = op.shape(1)[:2] == (1, 1) and len(x) == 3 and x[2] == y[2]
    return row and steps == [1] and not all(_passes(op))


def _conv(op: Op) -> str:
    """N (G I) *, (G O) I *, (G O) -> N (G O) *   (an axis behind C with a window of 1 passes; a
    row of one channel is filtered: N 1 X, 1 1 *, 1 -> N 1 X, inexact)"""
    passes = _passes(op)
    if _is_filter(op):
        return "N 1 X0, 1 1 *, 1 -> N 1 X0"
    if not any(passes):
        return "N (G I) *, (G O) I *, (G O) -> N (G O) *"
    axes = " ".join(f"X{k}" if p else f"window{k}" for k, p in enumerate(passes))
    made = " ".join(f"X{k}" if p else f"windows{k}" for k, p in enumerate(passes))
    return f"N (G I) {axes}, (G O) I *, (G O) -> N (G O) {made}"


declare(
    "Conv",
    _conv,
    zero="0 1 + 2",
    inexact=lambda op: "X0" if _is_filter(op) else "",
    sizes=_groups,
    kinds=_kinds,
    resize=_resize_conv,
    macs=_macs,
)


def _fused(op: Op) -> str:
    """N (G I) *, (G O) I *, (G O), N (G O) * -> N (G O) *   (channels last where it says Nhwc)"""
    if op.node.op_type.startswith("Nhwc"):
        return "N * (G I), (G O) I *, (G O), N * (G O) -> N * (G O)"
    inputs, y = _conv(op).split(" -> ")
    return f"{inputs}, {y} -> {y}"


declare(
    "FusedConv NhwcConv NhwcFusedConv",
    _fused,
    zero=lambda op: "0 1 + 2 + 3" if is_silent(op) else "",
    summed="0 1 + 2 + 3",
    sizes=_groups,
    kinds=_kinds,
    resize=_resize_conv,
    macs=_macs,
    domain=MICROSOFT,
)


def _quantised(op: Op) -> str:
    """N (G I) *, *, *, (G O) I *, (G O), (G O), *, *, (G O) -> N (G O) *"""
    # Scale and zero point of the weight: one, or one for every output channel.
    per = ["(G O)" if op.has(k) and op.shape(k) not in ((), (1,)) else "*" for k in (3, 4, 5)]
    if op.node.op_type == "ConvInteger":
        return f"N (G I) *, (G O) I *, *, {per[0]} -> N (G O) *"
    x, y = ("N * (G I)", "N * (G O)") if _is_last(op) else ("N (G I) *", "N (G O) *")
    return f"{x}, *, *, (G O) I *, {per[1]}, {per[2]}, *, *, (G O) -> {y}"


_integer = {0: Quantised(point=2), 1: Quantised(point=3, axes=(0,), behind=True)}
_linear = {0: Quantised((1,), 2), 3: Quantised((4,), 5, (0,)), 8: Quantised((1, 4), axes=(0,))}
for _op, _domain, _zero, _numbers in (
    ("ConvInteger", "", "0 1", _integer),
    ("QLinearConv", "", "0 3 + 8", _linear),
    ("QLinearConv", MICROSOFT, "0 3 + 8", _linear),
):
    declare(
        _op,
        _quantised,
        zero=_zero,
        sizes=_groups,
        kinds=_kinds,
        resize=_resize_conv,
        macs=_macs,
        quantised=_numbers,
        domain=_domain,
    )
declare(
    "ConvTranspose",
    "N (G I) *, (G I) O *, (G O) -> N (G O) *",
    zero="0 1 + 2",
    sizes=_groups,
    kinds=_kinds,
    resize=_resize_transpose,
    macs=_macs_transpose,
)
declare(
    "ConvTransposeWithDynamicPads",
    "N (G I) *, (G I) O *, *, (G O) -> N (G O) *",
    zero="0 1 + 3",
    sizes=_groups,
    kinds=_kinds,
    resize=_resize_transpose,
    macs=_macs_transpose,
    domain=MICROSOFT,
)


def _deform(op: Op) -> str:
    """N (f C) *, O (f C) *, N *, O, N * -> N O *   (whole where both kinds of groups are many)"""
    if int(op.attr("group", 1)) == 1:  # a channel goes from every group of offsets
        return "N (f C) *, O (f C) *, N *, O, N * -> N O *"
    if int(op.attr("offset_group", 1)) == 1:
        return "N (G C) *, (G O) C *, N *, (G O), N * -> N (G O) *"
    return "*, *, *, *, * -> *"


declare(
    "DeformConv",
    _deform,
    zero="0 1 + 3",
    sizes=lambda op: {"f": int(op.attr("offset_group", 1)), **_groups(op)},
    kinds=lambda op: dict.fromkeys("GCO", "conv"),
    resize=_resize_conv,
    macs=_macs,
)

declare("CausalConvWithState", "N C *, C *, C, N C * -> N C *, N C *", zero="+", states={3: 1})


def _causal(op: Op) -> str:
    """N C *, C *, C, N C * -> N C *, N C *   (N * C where channels_last; else whole)"""
    if op.attr("input_channels", 0) or op.attr("state_window", 0) or len(op.node.outputs) > 2:
        return "*, *, *, * -> *, *, *"
    x = "N * C" if op.attr("channels_last", 0) else "N C *"
    return f"{x}, C *, C, {x} -> {x}, {x}"


declare(
    "CausalConvWithState",
    _causal,
    zero="0 1 + 2 + 3 1, 0 + 3",
    states={3: 1},
    domain=MICROSOFT,
)


# Block reorderings between channels and space; DCR and CRD differ in which factor is outermost.
def _block(op: Op) -> dict[str, int]:
    return {"b": int(op.attr("blocksize"))}


def _depth_to_space(op: Op) -> str:
    """N (b b C) * -> N C *   (mode CRD: N (C b b) *)"""
    if op.attr("mode", b"DCR") == b"CRD":
        return "N (C b b) * -> N C *"
    return "N (b b C) * -> N C *"


declare("DepthToSpace", _depth_to_space, zero="0", sizes=_block)


def _space_to_depth(op: Op) -> str:
    """N C * -> N (b b C) *   (mode CRD: N (C b b) *)"""
    if op.attr("mode", b"DCR") == b"CRD":
        return "N C * -> N (C b b) *"
    return "N C * -> N (b b C) *"


declare("SpaceToDepth", _space_to_depth, zero="0", sizes=_block)


def _col2im(op: Op) -> dict[str, int]:
    return {"k": int(prod(op.value(2).tolist()))}


declare("Col2Im", "N (C k) *, *, * -> N C *", zero="0", sizes=_col2im)
