"""Token files that other projects wrote, read as they are."""

from data_pipeline.adopting.adopt import Adoption, Contains, adopt

__all__ = ["Adoption", "Contains", "adopt"]
