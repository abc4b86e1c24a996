"""Where a run that was begun elsewhere comes from: kept in each of its checkpoints."""

from collections.abc import Mapping
from typing import Any

from engine.protocols import Hook


class Origin(Hook):
    """Keeps the provenance of an imported checkpoint; empty for a run begun here."""

    name = "origin"

    def __init__(self, facts: Mapping[str, Any] | None = None) -> None:
        """``facts``: JSON-able, of the import."""
        self._facts = dict(facts or {})

    def state_dict(self) -> dict[str, Any]:
        """The facts."""
        return dict(self._facts)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them over from a checkpoint."""
        self._facts = dict(state)
