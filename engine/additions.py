"""Modules that an adaptation adds and nothing can fold in: with the model, and saved beside it."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import CheckpointError, RecipeError
from configs.schema import Config
from data_pipeline.randomness import keyed

if TYPE_CHECKING:
    from torch import Tensor, nn

WEIGHTS = "adaptation.safetensors"
CARD = "adaptation.json"
FORMAT = "onward-adaptation-1"
_CARRIED = "_onward_additions"


@dataclass(frozen=True, slots=True)
class Addition:
    """What one adaptation added.

    Attributes:
        settings: its config, JSON-able.
        modules: names of the added modules within the base model.
    """

    settings: Mapping[str, Any]
    modules: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the adaptation."""
        return str(self.settings["name"])


class Adding(ABC):
    """Base of adaptations that add modules: they alone train, all else is frozen.

    A model that carries the very same addition, from an earlier stage, trains on with it.
    """

    def __init__(self, config: Config, seed: int) -> None:
        self._settings: dict[str, Any] = config.model_dump(mode="json")
        self._seed = seed

    @abstractmethod
    def insert(self, backbone: "nn.Module") -> tuple[str, ...]:
        """Put the modules and their hooks in place; the names of the modules in the base model.

        It draws first weights from torch's generator, which is seeded around it.
        """

    def apply(self, backbone: "nn.Module") -> "nn.Module":
        """The same backbone with the modules added; only these are trainable.

        Raises:
            RecipeError: they do not fit this model, or it carries such ones with other settings.
        """
        name = self._settings["name"]
        found = [addition for addition in carried(backbone) if addition.name == name]
        if not found:
            with _seeded(self._seed, name):
                found = [Addition(self._settings, self.insert(backbone))]
            setattr(_base(backbone), _CARRIED, (*carried(backbone), found[0]))
        elif found[0].settings != self._settings:
            msg = (
                f"adaptation {name}: the model carries one with other settings, "
                f"{dict(found[0].settings)}; give the same ones to train it on, or adaptation full"
            )
            raise RecipeError(msg)
        backbone.requires_grad_(requires_grad=False)
        for module in found[0].modules:
            _base(backbone).get_submodule(module).requires_grad_()
        return backbone

    def merge(self, backbone: "nn.Module") -> "nn.Module":
        """The backbone as it is: what was added stays with it."""
        return backbone.requires_grad_()

    def files(self, backbone: "nn.Module") -> Mapping[str, bytes]:
        """None: exports carry every addition."""
        del backbone
        return {}


def carried(backbone: "nn.Module") -> tuple[Addition, ...]:
    """What was added to a transformers model, in the order in which it was."""
    found: tuple[Addition, ...] = getattr(_base(backbone), _CARRIED, ())
    return found


def without_additions(backbone: "nn.Module") -> "dict[str, Tensor]":
    """The state of the plain transformers model."""
    added = _added_names(backbone)
    return {name: value for name, value in backbone.state_dict().items() if name not in added}


def save_additions(backbone: "nn.Module", folder: Path) -> None:
    """Write what the model carries into a folder; nothing if it carries nothing."""
    from safetensors.torch import save

    if not carried(backbone):
        return
    content = save(_tensors(backbone))
    (folder / WEIGHTS).write_bytes(content)
    card = {
        "format": FORMAT,
        "adaptations": [
            {"settings": dict(addition.settings), "modules": list(addition.modules)}
            for addition in carried(backbone)
        ],
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")


def adds_to(folder: Path) -> tuple[str, ...]:
    """Names of the adaptations whose modules lie in a model folder; none: a plain one.

    Raises:
        CheckpointError: their card is damaged.
    """
    if not (folder / CARD).is_file():
        return ()
    return tuple(str(settings["name"]) for settings in _read(folder))


def restore_additions(backbone: "nn.Module", folder: Path) -> None:
    """Give a plain model back what was saved beside it; nothing if nothing was.

    Raises:
        CheckpointError: the files are damaged, or belong to another model.
        RecipeError: the model has no place for them.
    """
    from pydantic import TypeAdapter, ValidationError
    from safetensors.torch import load

    from engine.adaptation import AdaptationConfig

    if not (folder / CARD).is_file():
        return
    known: TypeAdapter[Any] = TypeAdapter(AdaptationConfig)
    for settings in _read(folder):
        try:
            config = known.validate_python(settings)
        except ValidationError as error:
            msg = f"{folder / CARD}: its settings are not known here: {error}"
            raise CheckpointError(msg) from error
        config.build(0).apply(backbone)
    own, saved = _tensors(backbone), load((folder / WEIGHTS).read_bytes())
    if {name: value.shape for name, value in own.items()} != {
        name: value.shape for name, value in saved.items()
    }:
        msg = f"{folder / WEIGHTS}: its weights are those of another model than lies beside them"
        raise CheckpointError(msg)
    for name, value in own.items():
        value.copy_(saved[name])
    backbone.requires_grad_()


def _read(folder: Path) -> list[dict[str, Any]]:
    """The settings in a card whose weights are as written."""
    card, weights = folder / CARD, folder / WEIGHTS
    try:
        values = json.loads(card.read_bytes())
        settings = [dict(each["settings"]) for each in values["adaptations"]]
        if not all(isinstance(each["name"], str) for each in settings):
            msg = "an adaptation without its name"
            raise ValueError(msg)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        is_known = values["format"] == FORMAT
        is_whole = values["sha256"] == digest
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        msg = f"{card}: missing or damaged: {error}"
        raise CheckpointError(msg) from error
    if not is_known or not is_whole:
        what = "its sha256 is not the one in the card" if is_known else f"expected {FORMAT}"
        msg = f"{weights if is_known else card}: damaged, or of another format: {what}"
        raise CheckpointError(msg)
    return settings


def _tensors(backbone: "nn.Module") -> "dict[str, Tensor]":
    """Weights of all additions, by their names within the base model."""
    base = _base(backbone)
    return {
        f"{module}.{name}": value.detach().contiguous()
        for addition in carried(backbone)
        for module in addition.modules
        for name, value in base.get_submodule(module).state_dict().items()
    }


def _added_names(backbone: "nn.Module") -> set[str]:
    base = _base(backbone)
    path = next(name for name, module in backbone.named_modules() if module is base)
    return {f"{path}.{name}" if path else name for name in _tensors(backbone)}


def _base(backbone: "nn.Module") -> "nn.Module":
    model: Any = backbone
    base: nn.Module = model.base_model
    return base


@contextmanager
def _seeded(seed: int, name: str) -> Iterator[None]:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed(seed, name))
        yield
