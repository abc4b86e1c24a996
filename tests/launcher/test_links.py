"""References between stages: only to earlier ones, and every mistake named by line."""

from pathlib import Path

import pytest

from configs.errors import RecipeError
from launcher.links import inputs_of, load_chain
from tests.launcher.toy import Toy

RECIPE = """\
name: toy
output: out
stages:
  first: {kind: write, text: a}
  second: {kind: write, text: b, inputs: ["stage:first/out.txt", "stage:first"]}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "r.yaml"
    path.write_text(text)
    return path


def test_inputs_are_named_once_in_order(tmp_path: Path) -> None:
    recipe = load_chain(written(tmp_path, RECIPE), Toy)
    assert inputs_of(recipe.stages["second"]) == ("first",)
    assert inputs_of(recipe.stages["first"]) == ()


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("stage:first/out.txt", "stage:firts/out.txt", "no stage 'firts'; did you mean 'first'?"),
        ("stage:first/out.txt", "stage:second/x", "cannot read from itself"),
        ("stage:first/out.txt", "stage:third/x", "stage 'third' stands later; move it above"),
        ("stage:first/out.txt", "stage:/x", "expected stage:NAME"),
        ("stage:first/out.txt", "stage:first/../../etc", "must stay inside"),
        ("stage:first/out.txt", "stage:first//etc", "must stay inside"),
    ],
)
def test_a_reference_that_leads_nowhere_is_named(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    text = RECIPE.replace(old, new) + "  third: {kind: write, text: c}\n"
    with pytest.raises(RecipeError, match=r"r\.yaml:5: stages\.second\.inputs\.0: ") as caught:
        load_chain(written(tmp_path, text), Toy)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", ["../x", ".hidden", "a/b", "recipe.yaml", '"a b"'])
def test_a_stage_name_must_be_a_folder_name(tmp_path: Path, name: str) -> None:
    text = RECIPE + f"  {name}: {{kind: write, text: c}}\n"
    with pytest.raises(RecipeError, match=r"r\.yaml:6: .*a stage's name is its folder"):
        load_chain(written(tmp_path, text), Toy)
