"""What a verb says: results on stdout, the rest on stderr."""

import contextlib
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def stdout_kept_clean() -> Iterator[None]:
    """What libraries print goes to stderr: stdout is for answers."""
    from launcher.environment import settle_accelerator

    settle_accelerator()
    with contextlib.redirect_stdout(sys.stderr):
        yield


def tell(line: str) -> None:
    """A line for the person who watches, on stderr; their terminal may be gone."""
    with contextlib.suppress(OSError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def answer(value: Mapping[str, Any], as_json: bool) -> None:  # noqa: FBT001 -- from typer's flag
    """A result on stdout, as YAML or JSON."""
    if as_json:
        sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        return
    from configs.yaml_source import yaml_text

    sys.stdout.write(yaml_text(value))
