"""What a user may set, in one value that a plan records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from spa.axes import KINDS
from spa.calibration import NOISE, Data, byte_count, described

ALL_KINDS = (*KINDS, "other")
DEFAULT_KINDS = tuple(kind for kind in ALL_KINDS if kind not in ("hidden", "embedding"))


@dataclass(frozen=True)
class Settings:
    """What decides which units go; see `spa.prune`."""

    criterion: str = "l1"
    aggregate: str = "mean"
    normalize: str = "mean"
    scope: str = "global"
    seed: int = 0
    exclude: Sequence[str] = ()
    only: Sequence[str] = ()
    kinds: Sequence[str] = DEFAULT_KINDS
    min_keep: int = 1
    round_to: int | None = None
    exact: bool = False
    data: Data = NOISE
    samples: int = 512
    preprocess: str | None = None
    memory: int = 4 << 30  # in bytes; also read from a text such as 4GB

    def __post_init__(self) -> None:
        for name in ("exclude", "only", "kinds"):
            object.__setattr__(self, name, listed(getattr(self, name)))
        object.__setattr__(self, "memory", byte_count(self.memory))

    def record(self) -> dict[str, Any]:
        """What a plan says of them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "data": described(self.data)}


def listed(texts: Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)
