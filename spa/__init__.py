"""Structured pruning of ONNX models: smaller files that compute nearly the same function."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spa.analysis import analyze
    from spa.api import Comparison, Figures, Result, prune, verify
    from spa.errors import (
        ModelError,
        PlanError,
        SpaError,
        TargetError,
        UsageError,
        ValidationError,
    )
    from spa.groups import Group, Groups, Member, explain
    from spa.plan import Plan
    from spa.reader import load
    from spa.writer import save

__version__ = "0.1.0"

_HOMES = {
    "spa.analysis": ("analyze",),
    "spa.api": ("Comparison", "Figures", "Result", "prune", "verify"),
    "spa.errors": (
        "ModelError",
        "PlanError",
        "SpaError",
        "TargetError",
        "UsageError",
        "ValidationError",
    ),
    "spa.groups": ("Group", "Groups", "Member", "explain"),
    "spa.reader": ("load",),
    "spa.plan": ("Plan",),
    "spa.writer": ("save",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Comparison",
    "Figures",
    "Group",
    "Groups",
    "Member",
    "ModelError",
    "Plan",
    "PlanError",
    "Result",
    "SpaError",
    "TargetError",
    "UsageError",
    "ValidationError",
    "analyze",
    "explain",
    "load",
    "prune",
    "save",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``spa --help`` does not wait for onnxruntime."""
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'spa' has no attribute {name!r}")
