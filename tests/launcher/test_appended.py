"""What may grow on the way: an unfinished stage takes it, a finished one is another stage's."""

from pathlib import Path
from typing import Any

import pytest

from configs.errors import CheckpointError
from tests.launcher.test_chain import recipe, run, status, times_run
from tests.launcher.toy import Write


@pytest.fixture(autouse=True)
def appended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Write, "APPENDED", frozenset({"needs"}))


def test_an_unfinished_stage_goes_on_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Write, context: Any) -> str:
        del self, context
        raise KeyError

    with monkeypatch.context() as broken:
        broken.setattr(Write, "run", fail)
        with pytest.raises(KeyError):
            run(recipe(tmp_path), "a")
    key = status(tmp_path, "a").key
    run(recipe(tmp_path, a={"needs": str(tmp_path)}), "a")
    made = status(tmp_path, "a")
    assert (made.state, made.key) == ("done", key)
    assert made.config["needs"] == str(tmp_path)


def test_a_finished_stage_with_another_one_is_refused_by_name(tmp_path: Path) -> None:
    run(recipe(tmp_path))
    grown = recipe(tmp_path, b={"needs": str(tmp_path)})
    with pytest.raises(CheckpointError, match=r"(?s)needs: null -> .*Give --redo b") as caught:
        run(grown)
    assert caught.value.exit_code == 4
    run(grown, redo=("b",))
    assert times_run(tmp_path) == {"a": 1, "b": 1, "c": 1, "lone": 1}
    assert run(grown) == [f"{name}: done already" for name in times_run(tmp_path)]
