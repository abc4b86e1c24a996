"""Hooks' states in a checkpoint: all are asked for, and all are given back."""

from types import SimpleNamespace
from typing import Any

import pytest

from configs.errors import ResourceError
from engine import training
from engine.assemble import hook_states
from engine.protocols import Hook


class Remembers(Hook):
    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name = name
        self.asked = 0
        self.given: list[dict[str, Any]] = []
        self._error = error

    def state_dict(self) -> dict[str, Any]:
        self.asked += 1
        if self._error:
            raise self._error
        return {"name": self.name}

    def load_state_dict(self, state: Any) -> None:
        self.given.append(dict(state))


def test_a_hook_that_fails_leaves_the_others_asked() -> None:
    hooks = [Remembers("a"), Remembers("b", ResourceError("full")), Remembers("c")]
    with pytest.raises(ResourceError, match="full"):
        hook_states(hooks)
    assert [hook.asked for hook in hooks] == [1, 1, 1]


def test_states_stand_under_the_hooks_names() -> None:
    hooks = [Remembers("a"), Remembers("b")]
    assert hook_states(hooks) == {"a": {"name": "a"}, "b": {"name": "b"}}


def test_a_hook_that_the_checkpoint_does_not_know_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(training.Cursor, "from_json", staticmethod(lambda json: json))
    found = SimpleNamespace(
        state={"hooks": {"a": {"seen": 3}}, "cursor": {}, "frozen": None},
        folder="step-4",
        step=4,
        restore=lambda backend: backend,
    )
    stream = SimpleNamespace(resume=lambda cursor: cursor)
    stream.following = lambda cursor: stream
    parts = SimpleNamespace(frozen=None, stream=stream, backend="restored")
    known, later = Remembers("a"), Remembers("guard")
    assert training.restore(parts, [known, later], found) == "restored"  # type: ignore[arg-type]
    assert known.given == [{"seen": 3}]
    assert later.given == [{}]
