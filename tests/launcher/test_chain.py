"""A chain: done stages are skipped, changed ones refused or made anew, broken ones go on."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from configs.errors import CheckpointError, DataError, OnwardError, RecipeError, ResourceError
from launcher import chain
from launcher.chain import Request
from launcher.conduct import Conductor
from launcher.placement import Placement
from launcher.run_folder import RunFolder, Status, Workers
from tests.launcher.toy import Toy, Write

PLAN: dict[str, dict[str, Any]] = {
    "a": {"kind": "write", "text": "1"},
    "b": {"kind": "write", "text": "2", "inputs": ["stage:a/out.txt"]},
    "c": {"kind": "write", "text": "3", "inputs": ["stage:b/out.txt"]},
    "lone": {"kind": "write", "text": "4"},
}


def recipe(folder: Path, **changes: dict[str, Any]) -> Toy:
    stages = {name: PLAN[name] | changes.get(name, {}) for name in PLAN}
    return Toy(name="toy", output=folder / "run", seed=1, stages=stages)  # type: ignore[arg-type]


def run(toy: Toy, *stages: str, redo: tuple[str, ...] = ()) -> list[str]:
    told: list[str] = []
    request = Request(stages, frozenset(redo))
    Conductor(toy, request, Placement(), told.append, lambda names, world: None).run()
    return told


def times_run(folder: Path) -> dict[str, int]:
    paths = {name: folder / "run" / name / "runs" for name in PLAN}
    return {n: len(p.read_text().splitlines()) if p.exists() else 0 for n, p in paths.items()}


def status(folder: Path, name: str) -> Status:
    found = RunFolder(folder / "run").status(name)
    assert found is not None
    return found


def test_a_chain_runs_once_and_leaves_its_contract(tmp_path: Path) -> None:
    run(recipe(tmp_path))
    assert (tmp_path / "run/c/out.txt").read_text() == "321"
    made = json.loads((tmp_path / "run/b/status.json").read_text())
    assert made["state"] == "done"
    assert made["inputs"] == {"a": status(tmp_path, "a").fingerprint}
    assert made["outputs"] == ["out.txt", "runs"]
    assert made["error"] is None
    provenance = json.loads((tmp_path / "run/provenance.json").read_text())
    assert provenance["versions"]["torch"]
    assert provenance["seed"] == 1
    told = run(recipe(tmp_path))
    assert told == [f"{name}: done already" for name in PLAN]
    assert times_run(tmp_path) == dict.fromkeys(PLAN, 1)
    provenance = json.loads((tmp_path / "run/provenance.json").read_text())
    assert len(provenance["history"]) == 1


def test_named_stages_run_alone_and_need_their_inputs(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stage b reads from stage a, which is not done"):
        run(recipe(tmp_path), "b")
    assert not (tmp_path / "run").exists()
    run(recipe(tmp_path), "a")
    run(recipe(tmp_path), "b")
    assert times_run(tmp_path) == {"a": 1, "b": 1, "c": 0, "lone": 0}
    with pytest.raises(RecipeError, match="no stage 'lon' in this recipe; did you mean 'lone'"):
        run(recipe(tmp_path), "lon")


def test_a_changed_stage_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    run(recipe(tmp_path))
    before = (tmp_path / "run/recipe.yaml").read_text()
    with pytest.raises(CheckpointError) as caught:
        run(recipe(tmp_path, b={"text": "9"}))
    assert 'text: "2" -> "9"' in str(caught.value)
    assert "--redo b" in str(caught.value)
    assert (tmp_path / "run/recipe.yaml").read_text() == before


def test_redo_makes_it_anew_with_all_that_is_built_on_it(tmp_path: Path) -> None:
    run(recipe(tmp_path))
    run(recipe(tmp_path, b={"text": "9"}), redo=("b",))
    assert (tmp_path / "run/c/out.txt").read_text() == "391"
    assert times_run(tmp_path) == dict.fromkeys(PLAN, 1)


def test_redo_that_makes_the_same_leaves_the_rest(tmp_path: Path) -> None:
    run(recipe(tmp_path))
    (tmp_path / "run/c/mine").touch()
    told = run(recipe(tmp_path), redo=("b",))
    assert told == ["a: done already", "b: running", "c: done already", "lone: done already"]
    assert (tmp_path / "run/c/mine").exists()


def test_another_seed_is_another_recipe(tmp_path: Path) -> None:
    run(recipe(tmp_path))
    with pytest.raises(CheckpointError, match="seed: 1 -> 2"):
        run(recipe(tmp_path).model_copy(update={"seed": 2}))


def test_another_version_of_a_stages_code_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(recipe(tmp_path))
    monkeypatch.setattr(Write, "VERSION", 2)
    with pytest.raises(CheckpointError, match="version 1 -> 2"):
        run(recipe(tmp_path))


def test_a_failed_stage_says_why_and_goes_on_next_time(tmp_path: Path) -> None:
    needed = tmp_path / "needed"
    toy = recipe(tmp_path, c={"needs": str(needed)})
    needed.touch()
    run(toy, "a", "b")
    needed.unlink()
    with pytest.raises(DataError, match="nothing at"):
        run(toy)
    assert RunFolder(tmp_path / "run").status("c") is None
    needed.touch()
    run(toy)
    assert times_run(tmp_path) == dict.fromkeys(PLAN, 1)


def test_an_unexpected_exception_marks_the_stage_as_failed(tmp_path: Path) -> None:
    toy = recipe(tmp_path, b={"text": "break"})
    with pytest.raises(KeyError):
        run(toy)
    failed = status(tmp_path, "b")
    assert failed.state == "failed"
    assert failed.error is not None
    assert (failed.error.kind, failed.error.exit_code) == ("KeyError", 1)


def test_check_writes_nothing_and_sees_what_a_later_stage_lacks(tmp_path: Path) -> None:
    toy = recipe(tmp_path, lone={"needs": str(tmp_path / "gone")})
    told: list[str] = []
    conductor = Conductor(toy, Request(), Placement(), told.append, lambda names, world: None)
    with pytest.raises(DataError, match="gone"):
        conductor.check()
    assert not (tmp_path / "run").exists()


def test_a_removed_input_is_made_again_and_what_is_built_on_it_kept(tmp_path: Path) -> None:
    run(recipe(tmp_path))
    RunFolder(tmp_path / "run").discard("a")
    assert chain.survey(recipe(tmp_path), RunFolder(tmp_path / "run"))["c"].state == "waiting"
    run(recipe(tmp_path))
    assert times_run(tmp_path) == dict.fromkeys(PLAN, 1)


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.lock(), pytest.raises(ResourceError, match=r"in use by process \d+ on "):
        run(recipe(tmp_path))
    run(recipe(tmp_path))


def test_the_lock_is_held_while_stages_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[OnwardError] = []

    def intrude(self: Write, context: object) -> None:
        del self, context
        try:
            with RunFolder(tmp_path / "run").lock():
                pass
        except OnwardError as error:
            seen.append(error)

    monkeypatch.setattr(Write, "check", intrude)
    run(recipe(tmp_path), "a")
    assert any(isinstance(error, ResourceError) for error in seen)


def test_a_damaged_status_is_named(tmp_path: Path) -> None:
    run(recipe(tmp_path))
    (tmp_path / "run/b/status.json").write_text('{"state": "do')
    with pytest.raises(CheckpointError, match=r"(?s)status\.json cannot be read.*--redo b"):
        run(recipe(tmp_path))
    run(recipe(tmp_path), redo=("b",))
    assert times_run(tmp_path) == dict.fromkeys(PLAN, 1)


def test_a_resolved_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    from tests.launcher.toy import load_toy

    run(recipe(tmp_path))
    told = run(load_toy(tmp_path / "run/recipe.yaml"))
    assert told == [f"{name}: done already" for name in PLAN]


def test_what_does_not_change_the_result_may_change_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Write, "UNKEYED", frozenset({"needs"}))
    run(recipe(tmp_path))
    elsewhere = recipe(tmp_path, b={"needs": str(tmp_path)})
    assert run(elsewhere) == [f"{name}: done already" for name in PLAN]
    with pytest.raises(CheckpointError) as caught:
        run(recipe(tmp_path, b={"needs": str(tmp_path), "text": "9"}))
    assert "text" in str(caught.value)
    assert "needs" not in str(caught.value)


def test_fields_below_others_are_left_out_of_the_key() -> None:
    config = {"data": {"verify": "sizes", "length": 8}, "checkpoint": {"every": 1}, "log_every": 3}
    assert chain._without(config, {"data.verify", "checkpoint"}) == {
        "data": {"length": 8},
        "log_every": 3,
    }


@pytest.mark.parametrize("name", ["recipe.yaml", "provenance.json", "a/status.json"])
def test_a_full_disk_is_told_with_the_path(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(handle: int, real: Any = os.fsync) -> None:
        if f"/.{Path(name).name}." in str(Path(f"/proc/self/fd/{handle}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "run" / name
    with pytest.raises(
        ResourceError,
        match=f"^{path}: no space \\(.*\\): [0-9]* bytes free; nothing under a final name",
    ):
        run(recipe(tmp_path))
    assert not path.exists()
    assert not list(path.parent.glob(f".{path.name}*"))
    monkeypatch.undo()
    run(recipe(tmp_path))


def test_an_output_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(ResourceError, match=f"^{tmp_path / 'run'}: File exists"):
        run(recipe(tmp_path))


def test_what_stopped_a_stage_is_told_though_it_cannot_be_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: RunFolder, name: str, status: Status) -> None:
        if status.state == "failed":
            raise ResourceError("no space")
        write(self, name, status)

    write = RunFolder.write_status
    monkeypatch.setattr(RunFolder, "write_status", full)
    with pytest.raises(KeyError):
        run(recipe(tmp_path, b={"text": "break"}))
    assert status(tmp_path, "b").state == "running"


def test_going_on_with_other_workers_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    toy, folder = recipe(tmp_path), RunFolder(tmp_path / "run")

    def begin(processes: int, threads: int | None) -> list[str]:
        caplog.clear()
        chain.enter(toy, folder, "a", workers=Workers(processes=processes, threads=threads))
        return caplog.messages

    assert begin(2, 1) == []
    assert begin(2, 1) == []
    (told,) = begin(1, 2)
    assert "a: begun with 2 processes (threads in each: 1), goes on with 1 process (" in told
    assert told.endswith("to rounding, not bit for bit")
    # It was begun with those, whatever came between.
    assert begin(2, 1) == []


def test_provenance_tells_the_threads(tmp_path: Path) -> None:
    toy = recipe(tmp_path)
    placement = Placement(processes=2, environment={"OMP_NUM_THREADS": "3"})
    Conductor(toy, Request(), placement, print, lambda names, world: None).run()
    assert json.loads((tmp_path / "run/provenance.json").read_text())["threads"] == 3


def break_off(toy: Toy, name: str) -> None:
    """Leave a stage unfinished."""
    chain.enter(toy, RunFolder(toy.output), name)
    (toy.output / name / "half").touch()


def test_an_attempt_that_came_to_nothing_needs_no_redo(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        run(recipe(tmp_path, b={"text": "break"}))
    (tmp_path / "run/b/half").touch()
    assert run(recipe(tmp_path, b={"text": "9"}))[:3] == [
        "a: done already",
        "b: an unfinished attempt with another recipe lay there; begun anew",
        "b: running",
    ]
    assert status(tmp_path, "b").outputs == ["out.txt", "runs"]
    assert (tmp_path / "run/c/out.txt").read_text() == "391"


def test_an_attempt_with_the_same_recipe_goes_on(tmp_path: Path) -> None:
    break_off(recipe(tmp_path), "a")
    run(recipe(tmp_path), "a")
    assert status(tmp_path, "a").outputs == ["half", "out.txt", "runs"]


def test_what_is_worth_keeping_of_an_attempt_is_not_discarded_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Write, "KEPT", frozenset({"states/step-*"}))
    break_off(recipe(tmp_path), "a")
    changed = recipe(tmp_path, a={"text": "9"})
    (tmp_path / "run/a/states/step-3").mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r'(?s)text: "1" -> "9".*--redo a'):
        run(changed)
    (tmp_path / "run/a/states/step-3").rmdir()
    run(changed)
    assert status(tmp_path, "a").config["text"] == "9"


def test_what_a_queue_may_be_working_on_is_not_discarded_unasked(tmp_path: Path) -> None:
    break_off(recipe(tmp_path), "a")
    folder = RunFolder(tmp_path / "run")
    folder.write_status("a", status(tmp_path, "a").model_copy(update={"submitted": True}))
    with pytest.raises(CheckpointError, match="--redo a"):
        run(recipe(tmp_path, a={"text": "9"}))


def test_another_kind_of_stage_is_not_discarded_unasked(tmp_path: Path) -> None:
    break_off(recipe(tmp_path), "a")
    with pytest.raises(CheckpointError, match='kind: "write" -> "spread"'):
        run(Toy(name="toy", output=tmp_path / "run", seed=1, stages={"a": {"kind": "spread"}}))  # type: ignore[dict-item]


def test_a_change_is_told_where_it_is() -> None:
    before = {"filters": [{"name": "length", "min": 9}], "split": None, "at": [1, 2], "same": [0]}
    after = {"filters": [], "split": {"held_out": 0.1}, "at": [1, 3, 4], "same": [0], "new": "x"}
    assert list(chain._differences({"corpus": before}, {"corpus": after})) == [
        'corpus.filters: [{"name": "length", "min": 9}] -> []',
        'corpus.split: null -> {"held_out": 0.1}',
        "corpus.at.1: 2 -> 3",
        "corpus.at.2: absent -> 4",
        'corpus.new: absent -> "x"',
    ]
    assert list(chain._differences({"text": "a" * 999}, {"text": 1})) == [
        f'text: "{"a" * 199}... -> 1'
    ]


def test_what_a_killed_run_left_under_temporary_names_goes(tmp_path: Path) -> None:
    run(recipe(tmp_path), "a")
    folder = tmp_path / "run"
    left = [
        folder / name for name in (".recipe.yaml.17", ".provenance.json.17", "a/.status.json.17")
    ]
    for path in left:
        path.write_text("half")
    (folder / ".discarded-b-17").mkdir()
    run(recipe(tmp_path), "b")
    assert {path.name for path in folder.rglob(".*")} == {".lock"}


def test_going_on_with_another_share_of_the_work_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Write, "REDRAWN", frozenset({"rows at once"}))
    toy, folder = recipe(tmp_path), RunFolder(tmp_path / "run")

    def begin(**facts: str | int) -> list[str]:
        caplog.clear()
        monkeypatch.setattr(Write, "shared_out", lambda self, ranks: facts | {"of": ranks})
        chain.enter(toy, folder, "a", workers=Workers(processes=2, threads=None))
        return caplog.messages

    assert begin(tool="x", stage=2) == []
    assert begin(tool="x", stage=2) == []
    (told,) = begin(tool="x", stage=3)
    assert "a: begun with stage 2, goes on with stage 3: its losses" in told
    assert told.endswith("to rounding, not bit for bit")
    (told,) = begin(tool="y", **{"rows at once": 4})
    assert "begun with tool x, stage 2, no rows at once, goes on with tool y, no stage" in told
    assert told.endswith("not bit for bit; dropout falls elsewhere")
    assert begin(tool="x", stage=2) == []


def test_a_stage_may_say_what_of_its_config_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def facts(self: Write) -> dict[str, Any]:
        return {"kind": self.kind, "tool": {"length": len(self.text)}}

    monkeypatch.setattr(Write, "keyed_facts", facts)
    run(recipe(tmp_path))
    assert run(recipe(tmp_path, b={"text": "9"}))[1] == "b: done already"
    with pytest.raises(CheckpointError, match=r"tool\.length: 1 -> 2"):
        run(recipe(tmp_path, b={"text": "99"}))
