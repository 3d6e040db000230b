"""The table of blocks: a published building block per hazard, with the groups it ought to have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from onnx import ModelProto

from models.builder import Net, Tensor

Body = Callable[[Net, Tensor], Any]
Maker = Callable[[], ModelProto]

IMAGE = (2, 3, 8, 8)
ROWS = (2, 6)
TOKENS = (2, 4, 10)


class Units(NamedTuple):
    """One group: how many units it has, and whether removing one obeys the law in value."""

    size: int
    exact: bool


Ideal = dict[str, Units]

BLOCKS: dict[str, tuple[Maker, Ideal]] = {}
# maker, the groups that the topology permits, how many are found today, why
FALLS_SHORT: dict[str, tuple[Maker, Ideal, int, str]] = {}


def block(
    ideal: str,
    shape: tuple[int, ...] = IMAGE,
    opset: int = 17,
    today: int | None = None,
    why: str = "",
    **options: Any,
) -> Callable[[Body], Maker]:
    """A maker from a body (net, input) -> inner tensor, which gets a head, or tuple of outputs.

    Args:
        ideal: the groups that the topology permits, as in ``"heads 4, qk 6, hidden 8~"``: a name of
            our own, the number of units, and ~ where a statistic runs over them.
        today: how many groups are found where that is not what it ought to be, and `why`.
    """

    def wrap(body: Body) -> Maker:
        def make() -> ModelProto:
            net = Net(body.__name__, opset=opset)
            y = body(net, net.input("x", shape))
            return net.model(*(y if isinstance(y, tuple) else (head(net, y),)), **options)

        make.__name__ = body.__name__
        assert body.__name__ not in BLOCKS.keys() | FALLS_SHORT.keys()
        assert body.__doc__, f"{body.__name__} does not say what is hard about it"
        if today is None:
            BLOCKS[body.__name__] = make, parse(ideal)
        else:
            FALLS_SHORT[body.__name__] = make, parse(ideal), today, why
        return make

    return wrap


def parse(ideal: str) -> Ideal:
    """``"heads 4, hidden 8~"`` -> name -> units."""
    pairs = [part.split() for part in ideal.split(",") if part.strip()]
    found = {name: Units(int(size.rstrip("~")), not size.endswith("~")) for name, size in pairs}
    assert len(found) == len(pairs), f"one name twice in {ideal!r}"
    return found


def head(net: Net, x: Tensor) -> Tensor:
    """A linear layer: the last axis of rows and tokens, the channels of maps, may be removed."""
    if len(x.shape) == 3:
        return net.linear(x, 5)
    return net.gemm(net.flatten(net.global_avg_pool(x)) if len(x.shape) > 3 else x, 5)
