"""Building blocks of published networks, each a hazard to a structured pruner."""

from models.blocks import attention, positions, projections
from models.blocks.table import BLOCKS, FALLS_SHORT

__all__ = ["BLOCKS", "FALLS_SHORT"]

TOPICS = (attention, positions, projections)  # each fills the tables
