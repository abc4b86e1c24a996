"""Which locations are names on the Hugging Face hub."""

import re
from pathlib import Path

from configs.stage import split_location

_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_hub_name(location: str) -> bool:
    """Whether it names no place on this disk: nothing there, and not written as a path.

    ``models/mine`` beside a folder ``models`` is a path, too: a slip in it would pass for a name.
    """
    if split_location(location)[0] is not None or location.startswith((".", "/", "~")):
        return False
    path = Path(location)
    local = path.exists() or (len(path.parts) > 1 and Path(path.parts[0]).is_dir())
    return not local and _HUB_NAME.fullmatch(location) is not None
