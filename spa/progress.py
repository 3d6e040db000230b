"""How a stage that takes long says what it is doing."""

from collections.abc import Callable

Progress = Callable[[str], None]


def quiet(stage: str) -> None:
    """Says nothing."""
