"""Backbones by transformers' Auto classes: from a shape with random weights, or pretrained."""

import json
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

import configs
from configs.errors import CheckpointError, DataError, RecipeError
from configs.hub import is_hub_name
from configs.schema import Config
from data_pipeline.randomness import keyed
from data_pipeline.tokenization import tokenizer_sha256
from engine import remote_code
from engine.quiet import quiet_transformers
from engine.remote_code import Trust

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from engine.protocols import Architecture

SHAPES = Path(configs.__file__).parent / "models"
Locate = Callable[[str], Path]
IsMade = Callable[[str], bool]
log = logging.getLogger(__name__)
_AUTO = {
    "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": "AutoModelForCausalLM",
    "encoder": "AutoModel",
}


class LoadedModel(NamedTuple):
    """A transformers model in fp32 on the CPU, and the tokenizer it is used with.

    Attributes:
        fresh: names of a pretrained model's parameters that came with no weights: its head's.
    """

    model: "PreTrainedModel"
    tokenizer: "PreTrainedTokenizerBase"
    fresh: tuple[str, ...] = ()


class RandomModel(Config):
    """A shape with fresh weights, its vocabulary sized to a tokenizer."""

    name: Literal["random"] = "random"
    shape: str | dict[str, Any] = Field(
        description="a preset of configs/models, a .json file, or the transformers config itself"
    )
    tokenizer: str = Field(description="location of a tokenizer folder, or a hub name")

    def build(
        self, locate: Locate, architecture: "Architecture", seed: int, *, shared_rows: bool = True
    ) -> LoadedModel:
        """Fresh weights keyed by ``seed``; ``shared_rows``: documents will stand beside others.

        Raises:
            RecipeError: the shape does not exist, or cannot serve the architecture.
            DataError: there is no tokenizer at the location, or it does not fit the shape.
        """
        from transformers import AutoConfig

        tokenizer = load_tokenizer(self.tokenizer, locate)
        shape = read_shape(self.shape)
        ids = _special_ids(tokenizer)
        try:
            config = AutoConfig.for_model(**shape, **ids, vocab_size=vocabulary_rows(tokenizer))
        except (TypeError, ValueError) as error:
            msg = f"model shape {self.shape}: {error}"
            raise RecipeError(msg) from error
        with _seeded(seed), _sdpa(str(shape["model_type"]), architecture):
            model = _auto(architecture).from_config(
                config,
                attn_implementation=_attention(shared_rows=shared_rows),
                trust_remote_code=False,
            )
        return _finished(model, tokenizer, self.tokenizer, shared_rows=shared_rows)

    def check(self, is_made: IsMade, locate: Locate) -> None:
        """Shape and tokenizer folder, without building anything."""
        read_shape(self.shape)
        _check_location(self.tokenizer, is_made, locate)

    def check_tokenizer(self, is_made: IsMade, locate: Locate, sha256: str) -> None:
        """DataError unless the tokenizer is the one the shards were made with."""
        check_tokenizer(self.tokenizer, is_made, locate, sha256)

    def check_rows(self, is_made: IsMade, locate: Locate, *, shared_rows: bool) -> None:
        """Fresh weights carry no additions."""


class PretrainedModel(Config):
    """A model from a local transformers folder, an earlier stage's export, or the hub."""

    name: Literal["pretrained"] = "pretrained"
    location: str
    tokenizer: str | None = Field(None, description="absent: the one beside the model")
    revision: str | None = Field(
        None,
        description="on the hub: a commit, tag or branch; with trust_remote_code a whole commit, "
        "or sha256:DIGEST of a folder's code",
    )
    trust_remote_code: bool = Field(
        default=False,
        description="run code that comes with the model; revision must pin it",
    )

    @model_validator(mode="after")
    def _pinned(self) -> Self:
        if problem := remote_code.wrong(self.trust):
            raise ValueError(problem)
        return self

    @property
    def trust(self) -> Trust:
        """What the recipe says of the model's own code."""
        return Trust(self.trust_remote_code, self.revision)

    def build(
        self, locate: Locate, architecture: "Architecture", seed: int, *, shared_rows: bool = True
    ) -> LoadedModel:
        """Its weights, and what adaptations added to it; a head it has not got is made afresh.

        ``seed`` keys that; ``shared_rows``: documents will stand beside others in a row.

        Raises:
            RecipeError: the model cannot serve the architecture, or not with shared rows.
            CheckpointError: an export there is damaged.
            DataError: nothing loadable there, weights of the backbone missing, or a tokenizer
                with more tokens than the model has embeddings.
        """
        from engine.additions import restore_additions

        where = self.tokenizer or self.location
        for location in {self.location, where}:
            _require_intact(resolve(location, locate))
        source = resolve(self.location, locate)
        remote_code.require(source, self.trust)
        own = self.tokenizer is None
        tokenizer = load_tokenizer(where, locate, self.trust if own else remote_code.NONE)
        with _seeded(seed), _sdpa(self.location, architecture):
            attention = _attention(shared_rows=shared_rows)
            model, fresh = _load(source, self, architecture, attention)
        if fresh:
            # Only rank 0's informations are shown.
            log.info(
                "model %s: no weights for its head, made afresh: %s",
                self.location,
                ", ".join(fresh),
            )
        finished = _finished(model, tokenizer, where, shared_rows=shared_rows)
        if not is_hub_name(self.location):
            _require_alone(Path(source), shared_rows=shared_rows)
            restore_additions(finished.model, Path(source))
        return finished._replace(fresh=fresh)

    def check(self, is_made: IsMade, locate: Locate) -> None:
        """Model and tokenizer folders, without loading anything."""
        _check_location(self.location, is_made, locate)
        if is_made(self.location) and not is_hub_name(self.location):
            remote_code.check_folder(locate(self.location), self.trust)
        if self.tokenizer is not None:
            _check_location(self.tokenizer, is_made, locate)

    def check_tokenizer(self, is_made: IsMade, locate: Locate, sha256: str) -> None:
        """DataError unless the tokenizer is the one the shards were made with."""
        check_tokenizer(self.tokenizer or self.location, is_made, locate, sha256)

    def check_rows(self, is_made: IsMade, locate: Locate, *, shared_rows: bool) -> None:
        """RecipeError if what adaptations added to the model does not go with such rows."""
        if is_made(self.location) and not is_hub_name(self.location):
            _require_alone(locate(self.location), shared_rows=shared_rows)


ModelConfig = Annotated[RandomModel | PretrainedModel, Field(discriminator="name")]


def read_shape(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """A preset's bare name, a path to a JSON file, or the mapping itself -> the config's values.

    Raises:
        RecipeError: no such file, no JSON object, or no ``model_type`` in it.
    """
    if not isinstance(given, str):
        return _with_type(given, "model shape")
    bare = "/" not in given and not given.endswith(".json")
    path = SHAPES / f"{given}.json" if bare else Path(given)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in SHAPES.glob("*.json")))
        msg = f"model shape '{given}': no file {path}; presets are: {known}"
        raise RecipeError(msg) from None
    except json.JSONDecodeError as error:
        msg = f"{path}:{error.lineno}: not JSON: {error.msg}"
        raise RecipeError(msg) from None
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path}: cannot be read as JSON: {getattr(error, 'strerror', None) or error}"
        raise RecipeError(msg) from None
    return _with_type(values, str(path))


def _with_type(values: Any, where: str) -> dict[str, Any]:
    if not isinstance(values, Mapping) or not isinstance(values.get("model_type"), str):
        msg = f"{where}: expected a JSON object with 'model_type', as in transformers' config.json"
        raise RecipeError(msg)
    if "vocab_size" in values:
        msg = f"{where}: vocab_size follows from the tokenizer; remove it"
        raise RecipeError(msg)
    return dict(values)


def resolve(location: str, locate: Locate) -> str:
    """A folder as ``locate`` finds it; else, if it can be one, a hub name as it stands."""
    if is_hub_name(location):
        return location
    return str(locate(location))


def _require_intact(source: str) -> None:
    """CheckpointError naming the files at fault, if the folder is an export that was damaged."""
    from engine.checkpoint.export import CARD, export_problems

    folder = Path(source)
    if (folder / CARD).is_file() and (problems := export_problems(folder)):
        found = "\n  ".join(problems)
        msg = f"{folder}: this export is damaged; restore it, or --redo its stage:\n  {found}"
        raise CheckpointError(msg)


def _require_alone(folder: Path, *, shared_rows: bool) -> None:
    """RecipeError for a model with a soft prompt where rows hold several documents."""
    from engine.additions import adds_to

    if shared_rows and "prompt" in adds_to(folder):
        msg = (
            f"model {folder}: it carries a soft prompt, which stands before a row and not before "
            "each of its documents; give packing: {name: single}"
        )
        raise RecipeError(msg)


def _check_location(location: str, is_made: IsMade, locate: Locate) -> None:
    if is_made(location) and not is_hub_name(location):
        locate(location)


def load_tokenizer(
    location: str, locate: Locate, trust: Trust = remote_code.NONE
) -> "PreTrainedTokenizerBase":
    """The fast tokenizer at a location; DataError if there is none.

    ``trust``: of its own code, which ``remote_code.require`` has passed.
    """
    from transformers import AutoTokenizer

    source = resolve(location, locate)
    try:
        with quiet_transformers():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                source, **trust.arguments(source)
            )
    except (OSError, ValueError, KeyError) as error:
        msg = f"tokenizer {location}: transformers cannot load it from {source}: {error}"
        raise DataError(msg) from error
    return tokenizer


def check_tokenizer(location: str, is_made: IsMade, locate: Locate, sha256: str) -> None:
    """DataError unless the tokenizer at a local location gives every text the shards' ids.

    A location that has not been made yet, or lies on the hub, cannot be told before it is loaded.
    """
    if not is_made(location) or is_hub_name(location):
        return
    folder = locate(location)
    found = tokenizer_sha256(folder)
    if found != sha256:
        msg = (
            f"tokenizer {location}: {folder} has digest {found}, but the shards were made with "
            f"{sha256}; prepare the data with this tokenizer, or name the one it was prepared with"
        )
        raise DataError(msg)


def vocabulary_rows(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Embeddings that the tokenizer needs: its largest id and one more."""
    return 1 + int(max(tokenizer.get_vocab().values()))


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> dict[str, int | None]:
    """The special ids by their names in a transformers config; None replaces its defaults."""
    roles = ("pad", "bos", "eos", "cls", "sep")
    return {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id", None) for role in roles}


def _auto(architecture: "Architecture") -> Any:
    import transformers

    return getattr(transformers, _AUTO[architecture])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed(seed, "model"))
        yield


@contextmanager
def _sdpa(where: str, architecture: "Architecture") -> Iterator[None]:
    """What transformers says of an unfit model, as a RecipeError."""
    try:
        yield
    except (ValueError, ImportError) as error:
        kind = _AUTO[architecture]
        msg = f"model {where} does not work as {kind} with sdpa attention: {error}"
        raise RecipeError(msg) from error


def _attention(*, shared_rows: bool) -> str | None:
    """The implementation that isolates documents; None: the best that the model has."""
    return "sdpa" if shared_rows else None


def _load(
    source: str, given: PretrainedModel, architecture: "Architecture", attention: str | None
) -> "tuple[PreTrainedModel, tuple[str, ...]]":
    """The model, and the names of its head's parameters that it has no weights for."""
    import torch
    from transformers import AutoConfig

    # Else a model without safetensors has transformers tell a service on the hub of it.
    os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
    location, trusted = given.location, given.trust.arguments(source)
    try:
        config = AutoConfig.from_pretrained(source, **trusted)
    except (OSError, ValueError) as error:
        msg = f"model {location}: transformers cannot load it from {source}: {error}"
        raise DataError(msg) from error
    try:
        with quiet_transformers():
            model, report = _auto(architecture).from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                attn_implementation=attention,
                output_loading_info=True,
                weights_only=True,
                **trusted,
            )
    except pickle.UnpicklingError as error:
        msg = (
            f"model {location}: its weights are a pickle that holds more than tensors, which would "
            f"run as code, and nothing was loaded; get it as safetensors: {_first_line(error)}"
        )
        raise DataError(msg) from error
    except (OSError, RuntimeError) as error:
        msg = f"model {location}: transformers cannot load it from {source}: {error}"
        raise DataError(msg) from error
    backbone = f"{model.base_model_prefix}."
    in_backbone = model.base_model is model
    unfilled = sorted(name for name in report["missing_keys"] if "pooler." not in name)
    missing = [name for name in unfilled if in_backbone or name.startswith(backbone)]
    if missing:
        msg = f"model {location}: {len(missing)} weights are missing, among them {missing[0]}"
        raise DataError(msg)
    return model, tuple(unfilled)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _finished(
    model: Any, tokenizer: "PreTrainedTokenizerBase", where: str, *, shared_rows: bool
) -> LoadedModel:
    """Checked against its tokenizer, without the pooler that no objective here reads."""
    from engine.isolation import allow_alone, check_isolation

    rows = model.get_input_embeddings().weight.shape[0]
    if vocabulary_rows(tokenizer) > rows:
        msg = (
            f"tokenizer {where} has {vocabulary_rows(tokenizer)} ids, the model {rows} embeddings; "
            "use the tokenizer that the model was trained with"
        )
        raise DataError(msg)
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    model.train()
    if shared_rows:
        check_isolation(model)
    else:
        allow_alone(model)
    return LoadedModel(model, tokenizer)
