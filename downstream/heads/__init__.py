"""Heads: hidden states of a text to classes. To add one: write its file, then name it here."""

from downstream.heads.linear import LinearHead

Head = LinearHead

__all__ = ["Head", "LinearHead"]
