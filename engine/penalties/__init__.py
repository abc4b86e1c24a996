"""Penalties: what keeps old knowledge. To add one: write its file, then name it here."""

from engine.penalties.l2_sp import StartingPoint

PenaltyConfig = StartingPoint

__all__ = ["PenaltyConfig", "StartingPoint"]
