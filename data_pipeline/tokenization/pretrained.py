"""A tokenizer that exists already: a local folder, an earlier stage's, or a name on the hub."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from configs.errors import DataError, RecipeError
from configs.hub import is_hub_name
from data_pipeline.sources.source import Locate
from data_pipeline.tokenization.probe import PROBES
from data_pipeline.tokenization.tokenizer import (
    FILE,
    Texts,
    TokenizerConfig,
    load_backend,
    tokenizer_sha256,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


class PretrainedTokenizer(TokenizerConfig):
    """Takes a tokenizer over as it is; DataError where transformers would make another of it.

    Attributes:
        location: ``stage:NAME/...``, a folder, or else a name on the hub.
        revision: a commit, tag or branch on the hub.
    """

    name: Literal["pretrained"] = "pretrained"
    location: str
    revision: str | None = None

    @property
    def locations(self) -> Sequence[str]:
        return () if is_hub_name(self.location) else (self.location,)

    def make(self, folder: Path, locate: Locate, texts: Texts) -> None:
        del texts
        local = not is_hub_name(self.location)
        if local and self.revision is not None:
            msg = f"tokenizer.revision: {self.revision}, but {self.location} is not on the hub"
            raise RecipeError(msg)
        place = str(locate(self.location)) if local else self.location
        tokenizer = self._load(place)
        if tokenizer.is_fast:
            self._require_own(place, tokenizer)
        else:
            tokenizer = self._converted(tokenizer)
        tokenizer.save_pretrained(str(folder))

    def _load(self, place: str) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(
                place, revision=self.revision or "main", trust_remote_code=False
            )
        # What its many tokenizer classes raise over a folder that is none of theirs.
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
            msg = f"tokenizer {self.location}: cannot be loaded: {_first_line(error)}"
            raise DataError(msg) from error

    def _require_own(self, place: str, loaded: Any) -> None:
        """DataError where the class around a tokenizer.json cuts texts otherwise than the file."""
        from transformers.utils import cached_file

        # It has been fetched: what cannot be had now is not there.
        path = cached_file(
            place,
            FILE,
            revision=self.revision or "main",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if path is None or tokenizer_sha256(own := Path(path).parent) == (
            tokenizer_sha256(loaded.backend_tokenizer)
        ):
            return
        # What is written otherwise may well mean the same, and no corpus has blanks around a text.
        backend = load_backend(own)
        for text in map(str.strip, PROBES):
            ids = backend.encode(text, add_special_tokens=False).ids
            if ids != loaded(text, add_special_tokens=False)["input_ids"]:
                msg = (
                    f"tokenizer {self.location}: transformers loads it as {type(loaded).__name__}, "
                    f"which cuts {text!r} otherwise than its own {FILE}; to have the file's ids, "
                    "set tokenizer_class to PreTrainedTokenizerFast in its tokenizer_config.json "
                    f"(in a copy, if it is on the hub); to have the class's, remove the {FILE}"
                )
                raise DataError(msg)

    def _converted(self, slow: Any) -> Any:
        """The fast form of a slow tokenizer, with the same ids for every probe."""
        from transformers import PreTrainedTokenizerFast

        tried = []
        for way in (_by_transformers, _by_model_file):
            try:
                fast = PreTrainedTokenizerFast(
                    tokenizer_object=way(slow),
                    model_input_names=slow.model_input_names,
                    **slow.special_tokens_map,
                )
            except Exception as error:
                tried.append(_first_line(error)[:160])
                continue
            different = next(_differences(slow, fast), None)
            if different is None:
                return fast
            tried.append(f"converted, it has other ids for {different!r}")
        msg = (
            f"tokenizer {self.location}: {type(slow).__name__} has no fast form ({FILE}), which "
            f"offsets need, and cannot be converted: "
            f"{'; '.join(dict.fromkeys(tried))}"
        )
        raise DataError(msg)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _by_transformers(slow: Any) -> "Backend":
    from transformers.convert_slow_tokenizer import convert_slow_tokenizer

    backend: Backend = convert_slow_tokenizer(slow)
    return backend


def _by_model_file(slow: Any) -> "Backend":
    """For the classes around a .model file that transformers has no converter for."""
    from data_pipeline.tokenization.sentencepiece_model import SentencePieceModel

    return SentencePieceModel.read(Path(slow.vocab_file)).fast()


def _differences(slow: Any, fast: Any) -> Iterator[str]:
    for text in PROBES:
        pair = [each(text, add_special_tokens=True)["input_ids"] for each in (slow, fast)]
        if pair[0] != pair[1]:
            yield text
