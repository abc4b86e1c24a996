"""A recipe is read strictly; a mistake is named by file, line, key and the nearest right one."""

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from configs.errors import RecipeError
from configs.schema import Config, load


class Dynamic(Config):
    name: Literal["dynamic"] = "dynamic"
    rate: float = Field(0.15, gt=0, lt=1)


class WholeWord(Config):
    name: Literal["whole_word"] = "whole_word"
    rate: float = Field(0.15, gt=0, lt=1)
    words: int | Literal["all"] = "all"


Masking = Annotated[Dynamic | WholeWord, Field(discriminator="name")]


class Mlm(Config):
    name: Literal["mlm"]
    masking: Masking = Dynamic()


class Clm(Config):
    name: Literal["clm"]


class Task(Config):
    kind: Literal["task"]
    task: Mlm


class Train(Config):
    kind: Literal["train"]
    objective: Annotated[Mlm | Clm, Field(discriminator="name")] | None = None
    penalties: tuple[Masking, ...] = ()
    steps: int = Field(gt=0)
    backend: dict[str, Any] = Field(default_factory=dict)


class Chain(Config):
    name: str
    stages: dict[str, Annotated[Task | Train, Field(discriminator="kind")]]


GOOD = """\
name: small
stages:
  base:
    kind: train
    steps: 10
    objective:
      name: mlm
      masking: {name: whole_word, rate: 1e-1}
    penalties:
      - {name: dynamic}
      - {name: dynamic, rate: 0.5}
    backend: {clip: 1e-3}
  rows:
    kind: task
    task:
      name: mlm
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def complaint(path: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(path, Chain, overrides)
    return str(caught.value).replace(str(path), "r.yaml")


def test_a_good_recipe_becomes_its_types(tmp_path: Path) -> None:
    chain = load(written(tmp_path, GOOD), Chain)
    base = chain.stages["base"]
    assert isinstance(base, Train)
    assert isinstance(base.objective, Mlm)
    assert base.objective.masking == WholeWord(rate=0.1)
    assert base.backend == {"clip": 0.001}


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("name: small", "nam: small", "r.yaml:1: nam: unknown key; did you mean 'name'?"),
        ("steps: 10", "step: 10", "r.yaml:5: stages.base.step: unknown key; did you mean 'steps'?"),
        (
            "rate: 1e-1",
            "rat: 1e-1",
            "r.yaml:8: stages.base.objective.masking.rat: unknown key; did you mean 'rate'?",
        ),
        (
            "rate: 0.5",
            "rake: 0.5",
            "r.yaml:11: stages.base.penalties.1.rake: unknown key; did you mean 'rate'?",
        ),
        # the tag `task` and the key `task` stand beside one another in pydantic's location
        (
            "    task:\n",
            "    fask: 1\n    task:\n",
            "r.yaml:15: stages.rows.fask: unknown key; did you mean 'task'?",
        ),
        (
            "      name: mlm\n      masking",
            "      name: mln\n      masking",
            "r.yaml:6: stages.base.objective: no name 'mln'; did you mean 'mlm'?",
        ),
        (
            "kind: train",
            "kind: tain",
            "r.yaml:3: stages.base: no kind 'tain'; did you mean 'train'",
        ),
        ("    kind: task\n", "", "r.yaml:13: stages.rows: needs 'kind', one of: task, train"),
        ("    steps: 10\n", "", "r.yaml:3: stages.base.steps: missing"),
        ("steps: 10", "steps: ten", "r.yaml:5: stages.base.steps: should be a valid integer"),
        ("steps: 10", "steps: -1", "r.yaml:5: stages.base.steps: should be greater than 0"),
        ("steps: 10", "steps: 10\n    steps: 11", "r.yaml:6: steps: given twice, first on line 5"),
        ("steps: 10", "\tsteps: 10", "r.yaml:5: not YAML that a recipe may use: a tab"),
        ("steps: 10", "steps: !!python/name:os.system", "r.yaml:5: not YAML that a recipe may use"),
        ("1e-1}", "0.1, words: few}", "r.yaml:8: stages.base.objective.masking.words: "),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert GOOD.count(old) >= 1
    message = complaint(written(tmp_path, GOOD.replace(old, new, 1)))
    assert said in message
    assert message.count("r.yaml:") == 1


def every_key(text: str) -> list[str]:
    words = text.replace("{", " ").replace(",", " ").split()
    return sorted({word for word in words if word.endswith(":")} - {"base:", "rows:", "clip:"})


@pytest.mark.parametrize("key", every_key(GOOD))
def test_every_mistyped_key_is_caught_with_its_right_name(tmp_path: Path, key: str) -> None:
    wrong = GOOD.replace(f" {key}", f" {key[:-1]}x:").replace(f"{{{key}", f"{{{key[:-1]}x:")
    if wrong == GOOD:
        wrong = GOOD.replace(key, f"{key[:-1]}x:", 1)
    assert key[:-1] in complaint(written(tmp_path, wrong))


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("steps: 10", "steps: 0").replace("rate: 0.5", "rate: 5")
    assert len(complaint(written(tmp_path, text)).splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "r.yaml:1: expected keys with values (name: ..., stages: ...), found nothing"),
        ("- a\n", "r.yaml:1: expected keys with values (name: ..., stages: ...), found seq"),
        ("a: 1\n---\nb: 1\n", "r.yaml:2: not YAML"),
        ("a: [1\n", "not YAML"),
        ("a: &x {b: 1}\nc: *y\n", "r.yaml:2: not YAML"),
        ("a: 2026-13-45\n", "a value that YAML cannot read"),
    ],
)
def test_what_is_no_recipe_at_all(tmp_path: Path, text: str, said: str) -> None:
    assert said in complaint(written(tmp_path, text))


def test_bytes_and_missing_files(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"name: a\nstages: \xff\n")
    assert "r.yaml:2: not UTF-8" in complaint(path)
    with pytest.raises(RecipeError, match=r"other\.yaml: no such recipe; .* holds: r\.yaml"):
        load(tmp_path / "other.yaml", Chain)
    with pytest.raises(RecipeError, match="found a folder"):
        load(tmp_path, Chain)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load(path, Chain) == load(written(tmp_path, GOOD), Chain)


def test_overrides_reach_mappings_lists_and_absent_keys(tmp_path: Path) -> None:
    overrides = [
        "stages.base.steps=3",
        "stages.base.penalties.1.rate=0.25",
        "stages.rows.task.masking.name=dynamic",
        "stages.rows.task.masking.rate=1e-2",
    ]
    chain = load(written(tmp_path, GOOD), Chain, overrides)
    base, rows = chain.stages["base"], chain.stages["rows"]
    assert isinstance(base, Train)
    assert isinstance(rows, Task)
    assert (base.steps, base.penalties[1].rate) == (3, 0.25)
    assert rows.task.masking == Dynamic(rate=0.01)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("stages.base.steps", "expected key.path=value"),
        ("stages..steps=1", "expected key.path=value"),
        ("stages.bas.steps=1", "no stage 'bas'; did you mean 'base'?"),
        ("stages.base.stepz=1", "stages.base.stepz: unknown key; did you mean 'steps'?"),
        ("stages.base.steps=x", "command line: stages.base.steps=x: stages.base.steps: should be"),
        ("stages.base.steps.more=1", "holds a value, not keys"),
        ("stages.base.penalties.7.rate=1", "'7' is no index into a list of 2 items"),
        ("name=[", "the value is not YAML"),
    ],
)
def test_a_wrong_override_is_named(tmp_path: Path, override: str, said: str) -> None:
    message = complaint(written(tmp_path, GOOD), override)
    assert message.startswith("command line: ")
    assert said in message


def test_an_override_below_an_alias_changes_one_place_only(tmp_path: Path) -> None:
    text = GOOD.replace("objective:\n", "objective: &shared\n")
    text = text.replace("    task:\n      name: mlm\n", "    task: *shared\n")
    chain = load(written(tmp_path, text), Chain, ["stages.rows.task.masking.rate=0.5"])
    base, rows = chain.stages["base"], chain.stages["rows"]
    assert isinstance(base, Train)
    assert isinstance(base.objective, Mlm)
    assert isinstance(rows, Task)
    assert (base.objective.masking.rate, rows.task.masking.rate) == (0.1, 0.5)


@pytest.mark.parametrize("bomb", ["a: &a [*a]\n", "a: &a {b: *a}\n"])
def test_aliases_that_never_end_are_refused(tmp_path: Path, bomb: str) -> None:
    assert "aliases" in complaint(written(tmp_path, bomb))


def test_aliases_that_multiply_are_refused(tmp_path: Path) -> None:
    lines = ["l0: &l0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, 8)]
    assert "aliases" in complaint(written(tmp_path, "\n".join(lines)))
