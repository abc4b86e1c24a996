"""A tokenizer that exists already: a local folder, an earlier stage's, or a name on the hub."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from configs.errors import DataError, RecipeError
from configs.stage import split_location
from data_pipeline.sources.source import Locate
from data_pipeline.tokenization.tokenizer import FILE, Texts, TokenizerConfig


class PretrainedTokenizer(TokenizerConfig):
    """Takes a tokenizer over as it is.

    Attributes:
        location: ``stage:NAME/...``, a folder, or else a name on the hub.
        revision: a commit, tag or branch on the hub.
    """

    name: Literal["pretrained"] = "pretrained"
    location: str
    revision: str | None = None

    @property
    def locations(self) -> Sequence[str]:
        return (self.location,) if self._is_local() else ()

    def build(self, folder: Path, locate: Locate, texts: Texts) -> None:
        del texts
        if self._is_local() and self.revision is not None:
            msg = f"tokenizer.revision: {self.revision}, but {self.location} is not on the hub"
            raise RecipeError(msg)
        tokenizer = self._load(str(locate(self.location)) if self._is_local() else self.location)
        if not tokenizer.is_fast:
            msg = f"tokenizer {self.location}: it has no fast form ({FILE}), which offsets need"
            raise DataError(msg)
        tokenizer.save_pretrained(str(folder))

    def _is_local(self) -> bool:
        stage, _ = split_location(self.location)
        given_as_path = self.location.startswith((".", "/", "~"))
        return stage is not None or given_as_path or Path(self.location).exists()

    def _load(self, place: str) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(place, revision=self.revision or "main")
        except (OSError, ValueError, KeyError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            msg = f"tokenizer {self.location}: cannot be loaded: {first}"
            raise DataError(msg) from error
