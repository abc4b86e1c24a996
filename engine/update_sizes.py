"""How many values an optimizer works on at once: what that takes is planned without torch."""

PIECE = 1 << 22
"""Values that are updated at once: a larger tensor goes in pieces, whether they are measured or
not, so that the same kernels see the same values."""

GATHERED = 1 << 24
"""Values of cut matrices that are put together at once, about."""
