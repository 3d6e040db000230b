"""Building blocks of published networks, each a hazard to a structured pruner."""

from models.blocks import attention, layers, positions, projections, vision_attention
from models.blocks.table import BLOCKS, FALLS_SHORT

__all__ = ["BLOCKS", "FALLS_SHORT"]

TOPICS = (attention, layers, positions, projections, vision_attention)  # each fills the tables
