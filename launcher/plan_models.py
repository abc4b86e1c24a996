"""Of each stage's model the config, before it is made: from recipe, folders and the hub's cache."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.errors import DataError
from configs.hub import is_hub_name
from configs.stage import StageContext, split_location
from data_pipeline.prepare import PrepareStage
from engine.models import PretrainedModel, RandomModel, read_shape
from engine.vocabulary import VocabularyStage
from launcher.chain import context_for_check, survey
from launcher.recipe import Recipe
from launcher.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class Found:
    """A model's config, and what of it is not certain yet.

    Attributes:
        vocabulary: rows of its embeddings; None: the config's own.
    """

    config: Mapping[str, Any]
    vocabulary: int | None = None
    notes: tuple[str, ...] = ()


class PlannedModels:
    """The models of a recipe's pretraining stages."""

    def __init__(self, recipe: Recipe) -> None:
        """Look at what of the recipe has been made."""
        self._recipe = recipe
        self._run = RunFolder(recipe.output.absolute())
        self._standings = survey(recipe, self._run)

    def context(self, name: str) -> StageContext:
        """Where a stage's inputs are."""
        return context_for_check(self._recipe, self._run, name, self._standings[name])

    def config_of(self, name: str) -> Found:
        """Of the model that a stage trains; DataError or RecipeError where it cannot be told."""
        stage: Any = self._recipe.stages[name]
        model: RandomModel | PretrainedModel = stage.model
        if isinstance(model, RandomModel):
            rows, note = self._vocabulary(name, model.tokenizer)
            return Found(read_shape(model.shape), rows, note)
        return self._pretrained(name, model.location)

    def config_at(self, name: str, location: str) -> Found:
        """Of a model that stage ``name`` reads; DataError or RecipeError as ``config_of``."""
        return self._pretrained(name, location)

    def _pretrained(self, name: str, location: str) -> Found:
        context = self.context(name)
        if is_hub_name(location):
            return Found(_read(_cached(location, "config.json")))
        if context.is_made(location):
            return Found(_read(context.locate(location) / "config.json"))
        before, _ = split_location(location)
        earlier = self._recipe.stages[str(before)]
        found = self.config_of(str(before))
        if isinstance(earlier, VocabularyStage):
            rows = (found.vocabulary or int(found.config["vocab_size"])) + earlier.add
            note = f"up to {earlier.add} words that stage {before} may add are counted"
            return Found(found.config, rows, (*found.notes, note))
        return found

    def _vocabulary(self, name: str, location: str) -> tuple[int, tuple[str, ...]]:
        """Ids of a tokenizer, and what is not certain of it."""
        context = self.context(name)
        if is_hub_name(location):
            return _ids(_cached(location, "tokenizer.json")), ()
        if context.is_made(location):
            return _ids(context.locate(location) / "tokenizer.json"), ()
        before, _ = split_location(location)
        earlier = self._recipe.stages[str(before)]
        if isinstance(earlier, PrepareStage):
            made: Any = earlier.tokenizer
            size = getattr(made, "vocabulary_size", None)
            if size is not None:
                return int(size), (
                    f"the vocabulary has the {size} tokens that stage {before} may make",
                )
            return self._vocabulary(str(before), made.location)
        found = self.config_of(str(before))
        return found.vocabulary or int(found.config["vocab_size"]), found.notes


def _cached(name: str, file: str) -> Path:
    """A file of a model on the hub, if it has been downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, file)
    if not isinstance(found, str):
        msg = (
            f"{name} is on the hub, and its {file} is not in the cache here; "
            f"where there is a network: hf download {name} {file}"
        )
        raise DataError(msg)
    return Path(found)


def _read(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        msg = f"{path}: {error}"
        raise DataError(msg) from None
    if not isinstance(values, dict):
        msg = f"{path}: expected a JSON object"
        raise DataError(msg)
    return values


def _ids(path: Path) -> int:
    """The largest id of a tokenizer.json, and one more."""
    values = _read(path)
    vocabulary = values.get("model", {}).get("vocab", {})
    # Unigram's is a list of pairs; the others map tokens to ids.
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    added = [int(token["id"]) for token in values.get("added_tokens", [])]
    return 1 + max([*ids, *added], default=-1)
