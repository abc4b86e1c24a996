"""`onward datatrove`: from a recipe to datatrove's executors."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from configs.errors import CheckpointError, LaunchError, RecipeError
from launcher.chain import Request
from launcher.conduct import Conductor
from launcher.executors import Spread, parse_settings, run_spread
from launcher.placement import Placement
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder
from launcher.verbs import exchange

SLURM = {"time": "1:00", "partition": "cpu"}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    texts = [json.dumps({"text": f"a text of number {n}"}) for n in range(40)]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    path = tmp_path / "r.yaml"
    path.write_text(
        f"""name: small
output: {tmp_path}/run
stages:
  prepare:
    kind: prepare
    tokenizer: {{name: wordpiece, vocabulary_size: 60, corpora: [all]}}
    corpora:
      all:
        sources: [{{name: jsonl, path: {tmp_path}/texts.jsonl}}]
"""
    )
    return path


def conductor(recipe: Path, told: list[str]) -> Conductor:
    request = Request(("prepare",))
    return Conductor(load_recipe(recipe), request, Placement(), told.append, lambda n, w: None)


def test_settings_are_json_where_they_can_be() -> None:
    words = ["time=20:00:00", "partition=cpu", "workers=3", "requeue=false", 'sbatch_args={"a": 1}']
    assert parse_settings(words) == {
        "time": "20:00:00",
        "partition": "cpu",
        "workers": 3,
        "requeue": False,
        "sbatch_args": {"a": 1},
    }
    with pytest.raises(RecipeError, match=r"--set cpu: expected KEY=VALUE"):
        parse_settings(["cpu"])


def test_what_is_missing_is_said_before_anything_starts(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"needs datatrove: pip install 'onward\[scale\]'"):
        run_spread(conductor(recipe, []), "prepare", Spread("local", 2))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name != "ray" or None)
    with pytest.raises(RecipeError, match="ray executor needs ray: pip install ray"):
        run_spread(conductor(recipe, []), "prepare", Spread("ray", 2))
    with pytest.raises(RecipeError, match="datatrove runs prepare stages alone"):
        run_spread(conductor(recipe, []), "report", Spread("local", 2))


scale = pytest.mark.skipif(
    importlib.util.find_spec("datatrove") is None, reason="the extra 'scale'"
)


@scale
@pytest.mark.parametrize(
    ("spread", "error", "said"),
    [
        (Spread("local", 2, None, {"wrkers": 2}), RecipeError, "--set wrkers: .*has .*workers"),
        (Spread("slurm", 2, None, {"time": "1:00"}), RecipeError, "needs --set partition"),
        (Spread("slurm", 2, None, SLURM), LaunchError, "needs Slurm's command sbatch, .*PATH"),
    ],
)
def test_a_usage_error_leaves_the_stage_as_it_was(
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    spread: Spread,
    error: type[Exception],
    said: str,
) -> None:
    sbatch = None if error is LaunchError else "/usr/bin/sbatch"
    monkeypatch.setattr(shutil, "which", lambda name: sbatch)
    with pytest.raises(error, match=said):
        run_spread(conductor(recipe, []), "prepare", spread)
    assert not (recipe.parent / "run").exists()


@scale
def test_what_was_submitted_is_not_discarded_for_another_recipe(
    recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datatrove.executor import slurm

    submitted: list[str] = []
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(
        slurm, "launch_slurm_job", lambda text, *more: submitted.append(text) or str(len(submitted))
    )
    told: list[str] = []
    run_spread(conductor(recipe, told), "prepare", Spread("slurm", 2, None, SLURM))
    assert submitted
    assert told == ["prepare: submitted; when its jobs have ended, `onward run` goes on from it"]
    recipe.write_text(recipe.read_text().replace("60", "61"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.vocabulary_size: 60 -> 61"):
        conductor(recipe, []).check()


@scale
def test_a_stage_is_done_afterwards(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("sys.argv", ["onward"])
    exchange.datatrove(recipe, "prepare", None, "local", 1, None, ["workers=1"])
    status = RunFolder(recipe.parent / "run").status("prepare")
    assert status is not None
    assert status.state == "done"
    run_spread(conductor(recipe, told), "prepare", Spread("local", 1))
    assert told == ["prepare: done already"]
    assert not (recipe.parent / "run/prepare/.prepare").exists()
