"""`onward import`: a run begun elsewhere becomes an unfinished stage, or nothing has happened."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from configs.errors import CheckpointError, DataError, RecipeError, ResourceError
from engine.checkpoint import read_card
from engine.importing import Request
from launcher import chain, provenance
from launcher.importing import import_into
from launcher.inspection import describe
from launcher.recipe import Recipe, load_recipe
from launcher.run_folder import RunFolder
from launcher.verbs.app import app
from tests.engine.checkpoint.import_deepspeed import handmade, place


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = place.make(tmp_path_factory.mktemp("verb"))
    handmade.write_all(folder)
    return folder


def recipe_file(at: Path, folder: Path, **changes: Any) -> Path:
    stage = place.stage(at, **changes).model_dump(mode="json", exclude_none=True)
    values = {"name": "taken over", "output": str(folder / "run"), "stages": {"dapt": stage}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    return folder / "recipe.yaml"


def test_the_verb_imports_and_a_run_goes_on(at: Path, tmp_path: Path) -> None:
    path = recipe_file(at, tmp_path)
    done = CliRunner().invoke(app, ["import", str(at / "zero1"), str(path), "dapt", "--json"])
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert (facts["stage"], facts["step"], facts["kind"]) == ("dapt", 3, "ZeRO stage 1")
    recipe = load_recipe(path)
    run = RunFolder(tmp_path / "run")
    assert chain.survey(recipe, run)["dapt"].state == "unfinished"
    assert describe(Path(facts["folder"]))["origin"]["from"] == str(at / "zero1" / "global_step3")
    assert describe(run.root)["kind"] == "run"
    context = chain.enter(recipe, run, "dapt")
    assert context is not None
    chain.finish(run, "dapt", recipe.stages["dapt"].run(context))
    lines = (run.stage("dapt") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [4, 5, 6, 7, 8]
    card = read_card(run.stage("dapt") / "export")
    assert card["lineage"]["imported"]["kind"] == "ZeRO stage 1"
    with pytest.raises(RecipeError, match="stage dapt is done already"):
        import_into(recipe, "dapt", Request(at / "zero1"))


def attempt(recipe: Recipe, source: Path) -> None:
    with pytest.raises(CheckpointError, match="cut or damaged"):
        import_into(recipe, "dapt", Request(source))


def test_a_failed_import_leaves_the_run_as_it_was(at: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(at, tmp_path))
    source = tmp_path / "source"
    source.mkdir()
    (source / "mp_rank_00_model_states.pt").write_bytes(b"PK")
    attempt(recipe, source)
    run = RunFolder(tmp_path / "run")
    assert not run.stage("dapt").exists()
    assert not run.recipe.exists()
    chain.enter(recipe, run, "dapt")
    before = run.status("dapt")
    attempt(recipe, source)
    assert run.status("dapt") == before
    import_into(recipe, "dapt", Request(at / "zero1"))


def test_what_fails_after_the_import_takes_it_back(
    at: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(recipe_file(at, tmp_path))
    run = RunFolder(tmp_path / "run")
    chain.enter(recipe, run, "dapt")

    def fail(*given: object) -> None:
        del given
        raise ResourceError("no space")

    with monkeypatch.context() as full:
        full.setattr(provenance, "record", fail)
        with pytest.raises(ResourceError, match="no space"):
            import_into(recipe, "dapt", Request(at / "zero1"))
    assert not (run.stage("dapt") / "checkpoints").exists()
    import_into(recipe, "dapt", Request(at / "zero1"))


def test_a_stage_that_cannot_take_it_is_refused(at: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(at, tmp_path))
    with pytest.raises(RecipeError, match="no pretraining stage 'dept'"):
        import_into(recipe, "dept", Request(at / "zero1"))
    data = {"length": place.LENGTH, "sources": {"only": {"shards": str(tmp_path / "none")}}}
    with pytest.raises(DataError, match="nothing at"):
        import_into(
            load_recipe(recipe_file(at, tmp_path, data=data)), "dapt", Request(at / "zero1")
        )
