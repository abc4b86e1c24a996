"""What `onward check` must catch before anything runs: each told on one screen, by its code."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import yaml

from configs.deepspeed_json import read_deepspeed
from configs.errors import DataError
from engine.protocols import Backend, Fragment, Progress
from launcher import cli
from launcher.chain import enter, fail, survey
from launcher.recipe import load_recipe
from launcher.run_folder import RunFolder

TEXT = """\
name: small
output: OUT
seed: 1
stages:
  prepare:
    kind: prepare
    processes: 1
    tokenizer: {name: wordpiece, vocabulary_size: 200, corpora: [text]}
    corpora:
      text:
        sources: [{name: jsonl, path: ROWS}]
        split: {held_out: 0.2}
  other:
    kind: prepare
    processes: 1
    tokenizer: {name: wordpiece, vocabulary_size: 150, corpora: [text]}
    corpora:
      text: {sources: [{name: jsonl, path: ROWS}]}
  base:
    kind: pretrain
    model: {name: random, shape: bert_tiny, tokenizer: stage:prepare/tokenizer}
    data: {length: 32, sources: {text: {shards: stage:prepare/corpora/text/train}}}
    objective: {name: mlm}
    optimizer: {name: adamw, lr: 1.0e-3}
    schedule: {name: linear}
    steps: 4
    backend: {name: deepspeed, config: zero1_fp32}
    checkpoint: {every: 2}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe whose data is prepared."""
    folder = tmp_path_factory.mktemp("small")
    with (folder / "rows.jsonl").open("w") as file:
        for number in range(40):
            words = " ".join(f"word{(number * step) % 17}" for step in range(1, 30))
            file.write(json.dumps({"id": str(number), "text": f"{words}."}) + "\n")
    place(folder)
    with pytest.MonkeyPatch.context() as patch:
        assert onward(patch, "run", str(folder / "r.yaml"), "prepare", "other") == 0
    return folder


@pytest.fixture
def small(made: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    for item in ("rows.jsonl", "run"):
        source = made / item
        target = tmp_path / item
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    # The paths are part of the stages' keys: keep those that were prepared.
    shutil.copy(made / "r.yaml", tmp_path / "r.yaml")
    text = (tmp_path / "r.yaml").read_text().replace(str(made / "run"), str(tmp_path / "run"))
    (tmp_path / "r.yaml").write_text(text)
    return tmp_path


def place(folder: Path) -> None:
    text = TEXT.replace("OUT", str(folder / "run")).replace("ROWS", str(folder / "rows.jsonl"))
    (folder / "r.yaml").write_text(text)


def onward(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["onward", *words])
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def replace(old: str, new: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        text = (folder / "r.yaml").read_text()
        assert old in text
        (folder / "r.yaml").write_text(text.replace(old, new))

    return change


def cut_a_shard(folder: Path) -> None:
    shard = next((folder / "run/prepare/corpora/text/train").glob("*.bin"))
    shard.write_bytes(shard.read_bytes()[:-2])


def remove_a_shard(folder: Path) -> None:
    next((folder / "run/prepare/corpora/text/train").glob("*.bin")).unlink()


def another_key(folder: Path) -> None:
    """As if the stage had run with one step more, up to a checkpoint."""
    enter(
        load_recipe(folder / "r.yaml", ["stages.base.steps=5"]), RunFolder(folder / "run"), "base"
    )
    save_checkpoint(folder / "run/base/checkpoints", fingerprint="of that recipe")


def foreign_checkpoint(folder: Path) -> None:
    """A checkpoint in the stage's folder that another recipe left."""
    enter(load_recipe(folder / "r.yaml"), RunFolder(folder / "run"), "base")
    save_checkpoint(folder / "run/base/checkpoints", fingerprint="of another recipe")


class OneWeight:
    """As much of a backend as a checkpoint asks for."""

    def fragments(self) -> Iterator[Fragment]:
        import torch

        yield Fragment("weight", "fp32", (2,), 0, torch.zeros(2))

    def extra_state(self) -> dict[str, Any]:
        return {}


def save_checkpoint(root: Path, fingerprint: str) -> None:
    from engine.checkpoint import save

    save(root, Progress(2), cast("Backend", OneWeight()), {}, fingerprint)


def empty_corpus(folder: Path) -> None:
    (folder / "empty.jsonl").touch()
    shutil.rmtree(folder / "run")
    replace("rows.jsonl}]", "empty.jsonl}]")(folder)
    text = yaml.safe_load((folder / "r.yaml").read_text())
    for name in ("prepare", "other"):
        source = text["stages"][name]["corpora"]["text"]["sources"][0]
        source["path"] = str(folder / "empty.jsonl")
    (folder / "r.yaml").write_text(yaml.safe_dump(text, sort_keys=False))


def missing_file(folder: Path) -> None:
    empty_corpus(folder)
    (folder / "empty.jsonl").unlink()


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (replace("steps: 4", "stepz: 4"), 2, "r.yaml:26: stages.base.stepz: unknown key; did you"),
        (missing_file, 3, "empty.jsonl"),
        (empty_corpus, 3, "empty.jsonl"),
        (cut_a_shard, 3, ".bin"),
        (remove_a_shard, 3, ".bin"),
        (replace("tokenizer: stage:prepare", "tokenizer: stage:other"), 3, "tokenizer"),
        (another_key, 4, "steps: 5 -> 4"),
        (foreign_checkpoint, 4, "checkpoint"),
        (replace("zero1_fp32", "zero1_fp3"), 2, "presets are: "),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_does_not_fit_is_told_and_nothing_is_written(
    spoil: Callable[[Path], None],
    code: int,
    said: str,
    small: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(small)
    before = files(small)
    capsys.readouterr()
    assert onward(monkeypatch, "check", str(small / "r.yaml")) == code
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert said in message
    assert "Traceback" not in message
    assert len(message.splitlines()) < 25
    assert files(small) == before


def test_what_fits_is_told_so(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files(small)
    capsys.readouterr()
    assert onward(monkeypatch, "check", str(small / "r.yaml"), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["stages"] == {"prepare": "done", "other": "done", "base": "open"}
    assert files(small) == before


def test_order_and_inspect_answer_in_json(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, shards = str(small / "r.yaml"), str(small / "run/prepare/corpora/text/train")
    capsys.readouterr()
    asked = ["order", recipe, "base", "--step", "1", "--steps", "2", "--world", "2", "--json"]
    assert onward(monkeypatch, *asked) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["step"], row["rank"]) for row in rows} == {(1, 0), (1, 1), (2, 0), (2, 1)}
    assert [row["index"] for row in rows] == list(range(rows[0]["index"], rows[-1]["index"] + 1))
    assert onward(monkeypatch, "order", recipe, "base", "--step", "9") == 2
    capsys.readouterr()
    assert onward(monkeypatch, "inspect", shards, "--json") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "shards"
    assert onward(monkeypatch, "inspect", str(small / "run"), "--json") == 0
    run = json.loads(capsys.readouterr().out)
    assert (run["kind"], run["stages"]["prepare"]["state"]) == ("run", "done")


def test_inspect_tells_of_a_prepare_stage_and_its_tokenizer(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def inspected(folder: Path, code: int = 0) -> Any:
        capsys.readouterr()
        assert onward(monkeypatch, "inspect", str(folder), "--json") == code
        return json.loads(capsys.readouterr().out)

    prepare = small / "run/prepare"
    stage, tokenizer = inspected(prepare), inspected(prepare / "tokenizer")
    train = inspected(prepare / "corpora/text/train")
    assert (stage["kind"], stage["stage"], stage["state"]) == ("stage", "prepare", "done")
    found = stage["corpora"]["text"]["train"]
    for key in ("documents", "tokens", "fingerprint"):
        assert found[key] == train[key]
    assert found["removed"] == train["provenance"]["removed"]
    assert found["counts"]["documents_read"] == train["provenance"]["counts"]["documents_read"] > 0
    assert stage["tokenizer"] == tokenizer
    assert (tokenizer["kind"], tokenizer["model"]) == ("tokenizer", "WordPiece")
    for key in ("sha256", "vocabulary_size", "special"):
        assert tokenizer[key] == train["tokenizer"][key]
    shutil.copytree(small / "run/other/tokenizer", prepare / "tokenizer", dirs_exist_ok=True)
    assert "tokenizer: not what the stage made" in inspected(prepare, 3)["error"]["message"]
    cut_a_shard(small)
    assert ".bin" in inspected(prepare, 3)["error"]["message"]


def test_inspect_tells_why_a_stage_failed(
    small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, recipe = RunFolder(small / "run"), load_recipe(small / "r.yaml")
    enter(recipe, run, "base")
    fail(run, "base", DataError("nothing at here"))
    capsys.readouterr()
    assert onward(monkeypatch, "inspect", str(small / "run/base"), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["stage"], facts["state"]) == ("pretrain", "failed")
    assert facts["error"]["message"] == "nothing at here"


def test_logging_and_checkpointing_may_change_on_the_way_and_the_steps_may_not(small: Path) -> None:
    def standing(*settings: str) -> str:
        recipe = load_recipe(small / "r.yaml", settings)
        return survey(recipe, RunFolder(small / "run"))["base"].state

    enter(load_recipe(small / "r.yaml"), RunFolder(small / "run"), "base")
    assert standing("stages.base.steps=5") == "open"
    save_checkpoint(small / "run/base/checkpoints", fingerprint="of this recipe")
    free = ("log_every=3", "checkpoint.keep=5", "checkpoint.every=1", "data.verify=digests")
    assert standing(*(f"stages.base.{setting}" for setting in free)) == "unfinished"
    assert standing("stages.prepare.processes=2") == "unfinished"
    assert standing("stages.base.steps=5") == "foreign"
    assert standing("stages.base.optimizer.lr=0.1") == "foreign"


def test_the_contents_of_a_defaulted_preset_are_taken_in(small: Path) -> None:
    replace("{name: deepspeed, config: zero1_fp32}", "{name: deepspeed}")(small)
    backend = load_recipe(small / "r.yaml").stages["base"].backend
    assert backend.config == read_deepspeed("zero1_bf16")
