"""Every error a user can meet, each with the exit code that the command line gives for it."""

from __future__ import annotations


class SpaError(Exception):
    """Base of all errors that spa raises on purpose: what, where, and what to do."""

    exit_code = 1


class UsageError(SpaError, ValueError):
    """An argument that cannot be meant as given."""

    exit_code = 2


class ModelError(SpaError):
    """A model that cannot be read, or that onnxruntime cannot run."""

    exit_code = 3


class PlanError(ModelError):
    """A plan that does not fit the model it is applied to."""


class TargetError(SpaError):
    """A target that no plan for this model can reach."""

    exit_code = 4


class ValidationError(SpaError):
    """A pruned model that failed one of its checks; nothing was written."""

    exit_code = 5
