"""Degrees and their legality, the named rank grid, and the placement of ranks on a cluster."""

from launcher.layout.degrees import Layout, LayoutRequest
from launcher.layout.grid import RankGrid
from launcher.layout.placement import Link, Placement

__all__ = ["Layout", "LayoutRequest", "Link", "Placement", "RankGrid"]
