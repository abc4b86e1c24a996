"""The recipe: every kind of stage in one union, and files it names taken in.

``python -m launcher.recipe --schema`` prints the JSON schema that editors complete from.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

import configs
from configs.deepspeed_json import read_deepspeed
from configs.errors import RecipeError
from configs.schema import validate
from configs.yaml_source import YamlSource, read_yaml
from data_pipeline.analysis.domain_gap import GapStage
from data_pipeline.prepare import PrepareStage
from data_pipeline.selection.stage import SelectStage
from downstream.evaluate import EvaluateStage
from downstream.finetune import FinetuneStage
from downstream.pretraining import ProbedPretraining
from downstream.report import ReportStage
from downstream.tasks import TaskStage
from engine.fisher import FisherStage
from engine.models import read_shape
from engine.pretraining import PretrainStage
from engine.profiling import ProfileConfig
from engine.vocabulary import VocabularyStage
from launcher.leakage import leaks
from launcher.links import ChainRecipe, problems, refuse
from launcher.secrecy import mask, secret_places

SCHEMA = Path(configs.__file__).parent / "recipe.schema.json"
RECIPES = Path(configs.__file__).parent / "recipes"

Stage = Annotated[
    TaskStage
    | PrepareStage
    | SelectStage
    | GapStage
    | VocabularyStage
    | FisherStage
    | ProbedPretraining
    | FinetuneStage
    | EvaluateStage
    | ReportStage,
    Field(discriminator="kind"),
]


class Recipe(ChainRecipe):
    """One YAML file: a chain of named stages."""

    strict: bool = Field(
        default=False, description="refuse the recipe where evaluation rows may be trained on"
    )
    profile: ProfileConfig | None = Field(
        default=None, description="of every pretraining stage that gives none itself"
    )
    stages: dict[str, Stage] = Field(min_length=1, description="the chain: name -> stage, in order")


def load_recipe(path: Path, overrides: Iterable[str] = ()) -> Recipe:
    """Read a recipe, with the DeepSpeed JSON and model shapes it names taken into it.

    So a run's ``recipe.yaml`` says all, and a stage's key covers the contents of those files.

    Raises:
        RecipeError: with file, line and key.
    """
    source = read_yaml(path, overrides)
    _refuse_secrets(source)
    recipe = validate(source, Recipe)
    refuse(source, problems(recipe.stages))
    if recipe.strict:
        refuse(source, leaks(recipe.stages))
    _take_in_files(source, recipe)
    _hand_down_profile(source, recipe)
    _refuse_secrets(source)
    return validate(source, Recipe)


def _refuse_secrets(source: YamlSource) -> None:
    """RecipeError: what a recipe says is written into run folders, reports and logs."""
    lines = [
        f"{mask(source.where(keys))}: a password, key or token does not belong in a recipe, which "
        "is kept in the run folder; keep it where its driver looks for it (~/.netrc, "
        "~/.aws/credentials, an environment variable on a single host)"
        for keys in secret_places(source.values)
    ]
    if lines:
        raise RecipeError("\n".join(lines))


def _take_in_files(source: YamlSource, recipe: Recipe) -> None:
    """Put contents in the place of names, also of those that the file leaves to the defaults."""
    for name, stage in recipe.stages.items():
        for part, key, reader in (
            ("backend", "config", read_deepspeed),
            ("model", "shape", read_shape),
        ):
            given = getattr(getattr(stage, part, None), key, None)
            if isinstance(given, str):
                where = source.where(("stages", name, part, key))
                source.values["stages"][name][part][key] = _read(reader, given, where)


def _hand_down_profile(source: YamlSource, recipe: Recipe) -> None:
    """``profile=true`` on the command line reaches the stages that train."""
    for name, stage in recipe.stages.items():
        if recipe.profile and isinstance(stage, PretrainStage) and stage.profile is None:
            source.values["stages"][name]["profile"] = source.values["profile"]


def _read(reader: Any, given: str, where: str) -> Mapping[str, Any]:
    try:
        values: Mapping[str, Any] = reader(given)
    except RecipeError as error:
        msg = f"{where}: {error}"
        raise RecipeError(msg) from None
    return values


def check_world(recipe: Recipe, names: Sequence[str], world: int) -> None:
    """RecipeError if a batch that all ranks share cannot be split over so many."""
    for name in names:
        stage = recipe.stages[name]
        alone = isinstance(stage, FinetuneStage) and stage.backend.name == "plain"
        if isinstance(stage, PretrainStage | FinetuneStage) and not alone:
            try:
                stage.backend.plan(world)
            except RecipeError as error:
                msg = f"stage {name}: {error}"
                raise RecipeError(msg) from None


def schema_text() -> str:
    """What ``configs/recipe.schema.json`` must hold."""
    schema = Recipe.model_json_schema()
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    """``--schema``: print it; ``--write``: put it where editors look for it."""
    if sys.argv[1:] == ["--schema"]:
        sys.stdout.write(schema_text())
    elif sys.argv[1:] == ["--write"]:
        SCHEMA.write_text(schema_text(), encoding="utf-8")
    else:
        sys.exit("usage: python -m launcher.recipe --schema | --write")


if __name__ == "__main__":
    main()
