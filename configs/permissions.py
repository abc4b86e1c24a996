"""Who may read what a run writes: the umask of whoever starts it, or ONWARD_UMASK."""

import os
import re
from collections.abc import Mapping

from configs.errors import RecipeError

VARIABLE = "ONWARD_UMASK"
_OCTAL = re.compile(r"0?[0-7]{3}")
_OWNERS = 0o700


def apply_umask(environment: Mapping[str, str] = os.environ) -> None:
    """Have this process, and all that it starts, create files as ONWARD_UMASK says.

    As the shell's umask: ``077`` gives files 0600 and folders 0700, ``027`` lets the group read.
    Nothing is done where it is not set: then the umask is whatever it was.

    Raises:
        RecipeError: it is no umask, or one that would keep the run from its own files.
    """
    given = environment.get(VARIABLE)
    if not given:
        return
    if not _OCTAL.fullmatch(given) or int(given, 8) & _OWNERS:
        msg = (
            f"{VARIABLE}={given}: expected three octal digits that take nothing from the owner, "
            "such as 077 (nobody else reads) or 027 (the group reads)"
        )
        raise RecipeError(msg)
    os.umask(int(given, 8))
