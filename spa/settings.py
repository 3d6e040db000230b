"""What a user may set, in one value that a plan records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from spa.axes import KINDS
from spa.calibration import NOISE, Data, byte_count, described, is_noise, recorded
from spa.calibration import check as check_data
from spa.criteria import CRITERIA
from spa.errors import UsageError
from spa.fit import METHODS
from spa.score import pick

SCOPES = ("curves", "global", "floor", "erk", "local")
COMPENSATE = (*METHODS, "fold", "none")
REPAIR = ("statistics", "none")
ALL_KINDS = (*KINDS, "other")
DEPTH = "depth"  # residual branches as a whole, see `spa.depth`
ALIASES = {"ffn": "linear"}
DEFAULT_KINDS = tuple(kind for kind in ALL_KINDS if kind not in ("hidden", "embedding"))


@dataclass(frozen=True)
class Settings:
    """What decides which units go; see `spa.prune`."""

    criterion: str = "obspa"
    aggregate: str = "mean"
    normalize: str = "mean"
    scope: str | None = None  # None: curves for obspa, else global
    steps: int = 1
    seed: int = 0
    exclude: Sequence[str] = ()
    only: Sequence[str] = ()
    kinds: Sequence[str] = DEFAULT_KINDS
    min_keep: int = 1
    round_to: int | None = None
    exact: bool = False
    compensate: str = "refit"
    repair: str = "statistics"
    data: Data = NOISE
    samples: int = 512
    preprocess: str | None = None
    memory: int = 4 << 30  # in bytes; also read from a text such as 4GB
    align: bool = False  # see `spa.align`
    allow_io_change: bool = False  # see `spa.states`

    def __post_init__(self) -> None:
        for name in ("exclude", "only", "kinds"):
            object.__setattr__(self, name, listed(getattr(self, name)))
        kinds = (ALIASES.get(kind, kind) for kind in self.kinds)
        object.__setattr__(self, "kinds", tuple(dict.fromkeys(kinds)))
        object.__setattr__(self, "memory", byte_count(self.memory))

    @property
    def needs_inputs(self) -> bool:
        """Whether the network must run on calibration inputs."""
        compensates = self.compensate != "none" or self.repair != "none"
        return compensates or CRITERIA[self.criterion].needs == "calibration inputs"

    def scope_for(self, criterion: str) -> str:
        """The scope asked for, or the best that a criterion allows."""
        if self.scope == "curves" and criterion != "obspa":
            return "global"
        return self.scope or ("curves" if criterion == "obspa" else "global")

    def check(self) -> None:
        """Raises UsageError for a choice that is not known."""
        pick(dict.fromkeys(SCOPES), self.scope or SCOPES[0], "scope")
        pick(dict.fromkeys(COMPENSATE), self.compensate, "compensation")
        pick(dict.fromkeys(REPAIR), self.repair, "repair")
        if self.scope == "curves" and self.criterion != "obspa":
            raise UsageError("scope curves goes with criterion obspa; choose another")
        if self.steps < 1:
            raise UsageError(f"{self.steps} steps: there must be 1 or more")
        if self.steps > 1 and self.scope_for(self.criterion) != "curves":
            raise UsageError("more than one step goes with criterion obspa and scope curves")
        if self.steps > 1 and DEPTH in self.kinds:
            raise UsageError("more than one step does not go with kind depth")
        if self.steps > 1 and self.allow_io_change:
            raise UsageError("more than one step does not go with inputs and outputs that change")
        if self.samples < 1:
            raise UsageError(f"{self.samples} samples: there must be 1 or more")
        check_data(self.data, self.preprocess)

    def replayed(self, made_by: Mapping[str, Any]) -> Settings:
        """These settings with all that decides on new weights as a plan has it; a plan that says
        nothing of it changes none.

        Raises:
            PlanError: if inputs are needed that are not where the plan says, and no others are
                given.
        """
        names = ("samples", "preprocess", "seed", "memory", "allow_io_change")
        found = {k: made_by[k] for k in names if k in made_by}
        for k in ("compensate", "repair"):
            found[k] = made_by.get(k, "none")
        use = replace(self, criterion="l1", scope=None, steps=1, **found)
        if is_noise(use.data) and use.needs_inputs:
            use = replace(use, data=recorded(made_by.get("data", {})))
        use.check()
        return use

    def record(self) -> dict[str, Any]:
        """What a plan says of them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {**values, "data": described(self.data)}


def listed(texts: Sequence[str]) -> tuple[str, ...]:
    return (texts,) if isinstance(texts, str) else tuple(texts)
