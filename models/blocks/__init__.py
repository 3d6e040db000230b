"""Building blocks of published networks, each a hazard to a structured pruner."""

from models.blocks import (
    attention,
    channels,
    dense,
    layers,
    norms,
    positions,
    projections,
    resampling,
    sets,
    signals,
    vision_attention,
    weights,
)
from models.blocks.table import BLOCKS, FALLS_SHORT

__all__ = ["BLOCKS", "FALLS_SHORT"]

TOPICS = (
    attention,
    channels,
    dense,
    layers,
    norms,
    positions,
    projections,
    resampling,
    sets,
    signals,
    vision_attention,
    weights,
)  # each fills the tables
