"""The command line: help that helps, no torch where none is needed, codes by kind, one screen."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest

from configs import errors
from engine.profiling import ProfileConfig
from launcher import cli, recipe
from launcher.environment import PROJECT
from launcher.interruption import Interrupted
from launcher.recipe import RECIPES, SCHEMA, load_recipe, schema_text
from launcher.verbs import running

VERBS = [
    *("quickstart", "check", "plan", "run", "order", "inspect", "adopt", "export-shards", "export"),
    *("report", "board", "launch-script"),
]


def onward(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of ``onward WORDS``, run in this process."""
    monkeypatch.setattr(sys, "argv", ["onward", *words])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return int(caught.value.code or 0)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert onward(monkeypatch, verb, "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Example: onward {verb} " in said


def test_help_names_every_verb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert onward(monkeypatch, "-h") == 0
    said = capsys.readouterr().out
    assert all(f"\n  {verb}" in said for verb in VERBS)
    assert "...\n" not in said.partition("Commands:")[2]
    assert onward(monkeypatch, "--version") == 0
    assert capsys.readouterr().out.startswith("onward ")


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["check", str(RECIPES / "quickstart.yaml"), "output="]]
)
def test_no_heavy_library_is_imported_where_none_is_needed(
    words: list[str], tmp_path: Path
) -> None:
    words = [f"output={tmp_path / 'run'}" if word == "output=" else word for word in words]
    program = (
        "import atexit, sys\n"
        "heavy = ('torch', 'transformers', 'deepspeed', 'datasets', 'matplotlib', 'sklearn')\n"
        "atexit.register(lambda: print([name for name in heavy if name in sys.modules]))\n"
        f"sys.argv = ['onward', *{words!r}]\n"
        "from launcher.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_recipe_alone_imports_what_configs_need_and_no_work() -> None:
    """What runs a stage is imported when it runs: every verb would wait for it."""
    works = (
        *("torch", "transformers", "datasets", "pyarrow", "rich", "asyncio", "filelock"),
        *("concurrent.futures.process", "data_pipeline.preparing.job", "engine.checkpoint"),
        *("downstream.reporting.gather", "multiprocessing", "data_pipeline.shards.read"),
        *("data_pipeline.streaming.stream", "data_pipeline.tokenization.encode"),
        *("data_pipeline.analysis.measure", "data_pipeline.selection.work"),
        *("data_pipeline.cleaning.clean", "downstream.table", "downstream.cell"),
        *("downstream.evaluation.significance", "data_pipeline.tokenization.extension"),
    )
    program = f"import launcher.recipe, sys; print([n for n in {works!r} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_schema_for_editors_is_up_to_date() -> None:
    assert SCHEMA.read_text(encoding="utf-8") == schema_text(), (
        "run: python -m launcher.recipe --write"
    )


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_that_comes_along_loads_and_resolves(path: Path, tmp_path: Path) -> None:
    import yaml

    first = load_recipe(path)
    resolved = tmp_path / "recipe.yaml"
    resolved.write_text(yaml.safe_dump(first.model_dump(mode="json"), sort_keys=False))
    assert load_recipe(resolved) == first
    assert path.read_text().startswith("# yaml-language-server: $schema=../recipe.schema.json")


def test_files_that_a_recipe_names_are_taken_into_it() -> None:
    base: Any = load_recipe(RECIPES / "quickstart.yaml").stages["base"]
    assert base.backend.config["train_batch_size"] > 0
    assert base.model.shape["model_type"] == "bert"


def test_a_profile_of_the_recipe_is_that_of_its_pretraining_stages() -> None:
    settings = ["profile=true", "stages.dapt.profile.steps=2"]
    stages = load_recipe(RECIPES / "quickstart.yaml", settings).stages
    asked = {name: getattr(stage, "profile", None) for name, stage in stages.items()}
    assert {name for name, found in asked.items() if found} == {"base", "dapt", "tapt", "tapt-only"}
    assert asked["base"] == ProfileConfig()
    assert asked["dapt"] == ProfileConfig(steps=2)


def test_a_named_file_that_is_not_there_is_told_with_its_line(tmp_path: Path) -> None:
    text = (RECIPES / "quickstart.yaml").read_text()
    path = tmp_path / "r.yaml"
    path.write_text(text.replace("shape: bert_quickstart", "shape: bert_quickstar"))
    line = text[: text.index("shape: bert_quickstart")].count("\n") + 1
    with pytest.raises(errors.RecipeError, match=rf"r\.yaml:{line}: stages\.base\.model\.shape: "):
        load_recipe(path)


def test_a_batch_that_cannot_be_split_is_told_before_anything_starts() -> None:
    loaded = load_recipe(RECIPES / "quickstart.yaml")
    recipe.check_world(loaded, ["base", "finetune", "rows"], 2)
    with pytest.raises(errors.RecipeError, match=r"stage base: .* cannot be split over 3 ranks"):
        recipe.check_world(loaded, ["base"], 3)


@pytest.mark.parametrize("kind", sorted(errors.BY_NAME))
def test_every_kind_of_error_is_one_message_and_its_code(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["onward", "check", "--json"])
    error = errors.BY_NAME[kind]("where: what; what to do")

    def fails() -> NoReturn:
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.guarded(fails)
    assert caught.value.code == error.exit_code
    said = capsys.readouterr()
    # A run that has saved its state and ended has not failed.
    word = "" if kind == "Preempted" else "error: "
    assert said.err == f"{word}where: what; what to do\n"
    assert json.loads(said.out)["error"]["exit_code"] == error.exit_code


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (Interrupted(signal.SIGTERM), "Interrupted", 143),
        (KeyboardInterrupt(), "KeyboardInterrupt", 130),
    ],
)
def test_an_interruption_answers_in_json_too(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    kind: str,
    code: int,
) -> None:
    def run() -> NoReturn:
        raise error

    monkeypatch.setattr(sys, "argv", ["onward", "run", "--json"])
    with pytest.raises(SystemExit) as caught:
        cli.guarded(run)
    assert caught.value.code == code
    told = json.loads(capsys.readouterr().out)["error"]
    assert (told["kind"], told["exit_code"]) == (kind, code)
    assert told["message"]


@pytest.mark.parametrize("given", ["nan", "inf", "0.5", "-inf"])
def test_a_grace_without_an_end_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], given: str
) -> None:
    assert onward(monkeypatch, "run", "r.yaml", f"--grace={given}") == 2
    assert "grace" in capsys.readouterr().err


def test_the_unexpected_goes_to_a_file_that_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["onward", "run"])

    def fails() -> NoReturn:
        raise ZeroDivisionError

    with pytest.raises(SystemExit) as caught:
        cli.guarded(fails)
    assert caught.value.code == 1
    said = capsys.readouterr().err
    path = Path(said.strip().rpartition(" ")[2])
    try:
        assert "Traceback" not in said
        assert "ZeroDivisionError" in path.read_text()
    finally:
        path.unlink()
    monkeypatch.setattr(sys, "argv", ["onward", "--debug", "run"])
    with pytest.raises(ZeroDivisionError):
        cli.guarded(fails)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["check", "missing.yaml"], 2, "missing.yaml: no such recipe"),
        (["check", "QUICK", "stages.base.stepz=1"], 2, "did you mean 'steps'?"),
        (["run", "QUICK", "bass"], 2, "no stage 'bass' in this recipe; did you mean 'base'?"),
        (["run", "QUICK", "base"], 3, "reads from stage prepare, which is not done"),
        (["run", "QUICK", "--processes", "2", "--hostfile", "h"], 2, "give one"),
        (["run", "QUICK", "--hostfile", "missing"], 2, "missing: no such hostfile"),
        (["run", "QUICK", "--processes", "3"], 2, "cannot be split over 3 ranks"),
        (["order", "QUICK", "rows", "--step", "1"], 2, "no pretraining stage 'rows'"),
        (["order", "QUICK", "base", "--step", "1"], 3, "has not been run"),
        (["inspect", "nothing-here"], 3, "nothing-here: nothing is there"),
        (["inspect", "."], 3, "nothing that Onward made"),
        (["report", "."], 3, "not a run folder"),
        (["board", "."], 3, "not a run folder"),
        (["export", ".", "out"], 3, "not a run folder"),
        (["check", "QUICK", "--bogus"], 2, "No such option: --bogus"),
    ],
)
def test_mistakes_are_told_and_nothing_is_written(
    words: list[str],
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [str(RECIPES / "quickstart.yaml") if word == "QUICK" else word for word in words]
    assert onward(monkeypatch, *words) == code
    message = capsys.readouterr().err
    assert said in message
    assert "Traceback" not in message
    assert len(message.splitlines()) < 25
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("gpus", "words", "expected"), [(8, [], 2), (1, [], 1), (8, ["--processes", "4"], 4)]
)
def test_quickstart_takes_no_more_processes_than_its_batch_allows(
    gpus: int, words: list[str], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launcher.environment.default_processes", lambda: gpus)
    asked: list[int | None] = []

    def conductor(path: Path, settings: list[str], processes: int | None, **more: object) -> None:
        asked.append(processes)
        raise errors.RecipeError("far enough")

    monkeypatch.setattr(running, "make_conductor", conductor)
    assert onward(monkeypatch, "quickstart", *words) == 2
    assert asked == [expected]
