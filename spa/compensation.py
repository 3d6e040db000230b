"""What compensation changed, and how much it helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from spa.sites import Place


@dataclass(frozen=True)
class Compensation:
    """What was changed.

    values: input of a node -> what it holds from now on, in the shape of the original.
    helped: name of a node -> its error on held-out inputs before and after, as shares of the
        energy of its output; of made-up inputs with errors put on them.
    rejected: the sites whose weights stayed as they were, because no change helped.
    repaired: the BatchNormalization nodes with new statistics, and the layer normalisations over
        fewer channels with a new scale.
    drift: of the outputs on held-out inputs, before and after, as shares of their variance.
    as_stored: the same with the network as the file has it, where ``drift`` is of a settled one;
        both then count, by their geometric means.
    refused: whether all of it was dropped because that drift did not shrink.
    """

    values: Mapping[Place, NDArray[Any]] = field(default_factory=dict, repr=False)
    helped: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    rejected: Sequence[str] = ()
    repaired: Sequence[str] = ()
    drift: tuple[float, float] = (0.0, 0.0)
    as_stored: tuple[float, float] | None = None
    refused: bool = False

    @property
    def worst(self) -> float:
        """The drift with the weights that it leaves, in the form in which it is larger."""
        return max(d[0 if self.refused else 1] for d in (self.drift, self.as_stored) if d)
