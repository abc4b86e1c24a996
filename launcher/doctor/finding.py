"""What a check has found: what is so, where, how bad it is, and what to do."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "ok"]
EVERYWHERE = "all hosts"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that somebody should know.

    Attributes:
        what: is so, in one line.
        where: a host, ``a -> b`` of two, a line of a file, or all hosts.
        remedy: what to do; empty where nothing is to be done.
        severity: ``error``: a run would fail.
        details: the numbers behind it.
        check: the name of the check that found it.
    """

    what: str
    where: str = EVERYWHERE
    remedy: str = ""
    severity: Severity = "error"
    details: Mapping[str, Any] = field(default_factory=dict)
    check: str = ""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"details": dict(self.details)}
