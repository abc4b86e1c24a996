"""Where things are kept that outlive a run."""

import os
from collections.abc import Mapping
from pathlib import Path


def cache_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Where built and fetched things are kept: ONWARD_CACHE, or ~/.cache/onward."""
    given = environment.get("ONWARD_CACHE")
    return Path(given) if given else Path.home() / ".cache" / "onward"
