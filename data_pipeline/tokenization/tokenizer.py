"""A tokenizer is a transformers folder; this says which one it is."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import DataError
from configs.schema import Config
from data_pipeline.shards.manifest import TokenizerRecord
from data_pipeline.sources.source import Locate
from data_pipeline.tokenization.chinese import ChineseWords, read_words, segmenter, write_words
from data_pipeline.tokenization.special import special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

FILE = "tokenizer.json"
DECISIVE = ("normalizer", "pre_tokenizer", "model", "added_tokens")
"""The parts of a tokenizer.json that decide which ids a text gets, special tokens aside."""

Texts = Callable[[Sequence[str]], Iterator[str]]
"""(names of corpora) -> the texts of their train sides, in order."""


class TokenizerConfig(Config, ABC):
    """Base of the tokenizers' configs.

    Attributes:
        chinese_words: where words start in Chinese, which no blank tells: at every character, or
            where jieba cuts (extra ``chinese``). It changes the annotations, and so whole-word
            masking, and never the ids.
    """

    chinese_words: ChineseWords = "characters"

    @property
    def trained_on(self) -> Sequence[str]:
        """Names of the corpora whose texts it reads."""
        return ()

    @property
    def locations(self) -> Sequence[str]:
        """The locations it reads, as the recipe gives them."""
        return ()

    def check(self) -> None:
        """DataError where a package that it needs is not installed."""
        if self.chinese_words == "jieba":
            segmenter()

    def build(self, folder: Path, locate: Locate, texts: Texts) -> None:
        """Write a folder that ``AutoTokenizer.from_pretrained`` reads, with a tokenizer.json.

        Args:
            folder: where; made if it is not there.
            locate: a location of the recipe -> its path.
            texts: names of corpora -> the texts of their train sides; may be called again.

        Raises:
            DataError: what it is made from is missing or unfit, or a package is not installed.
            RecipeError: its settings cannot be honoured.
        """
        with write_words(folder, self.chinese_words):
            self.make(folder, locate, texts)

    @abstractmethod
    def make(self, folder: Path, locate: Locate, texts: Texts) -> None:
        """What ``build`` does for this kind of tokenizer."""


def save(
    backend: "Backend", folder: Path, roles: Mapping[str, str], inputs: Sequence[str] = ()
) -> None:
    """Write a folder for ``AutoTokenizer``, whatever model's config.json lies beside it later.

    Args:
        backend: with its special tokens.
        folder: where; made if it is not there.
        roles: role (``pad``, ``mask``, ...) -> special token.
        inputs: what a model is given beside ids and mask; nothing where it is absent.
    """
    settings: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", *inputs, "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }
    settings |= {f"{role}_token": token for role, token in roles.items()}
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / FILE))
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def load_backend(folder: Path) -> "Backend":
    """The tokenizers library's object behind a folder, without padding or truncation."""
    from tokenizers import Tokenizer as Backend

    values = _read(folder)
    try:
        backend = Backend.from_str(json.dumps(values))
    except Exception as error:  # the library raises nothing more special
        msg = f"{folder / FILE}: no tokenizer ({error}); save the tokenizer again"
        raise DataError(msg) from None
    backend.no_padding()
    backend.no_truncation()
    return backend


def tokenizer_sha256(tokenizer: "Path | Backend") -> str:
    """Hex digest of all that decides which ids a text gets.

    The same for a folder, for the folder that transformers saves after loading it, and for the
    ``backend_tokenizer`` of what it loads; special tokens around a text, padding and truncation
    do not count.

    Args:
        tokenizer: a folder with a tokenizer.json, or the tokenizers library's own object.
    """
    backend = load_backend(tokenizer) if isinstance(tokenizer, Path) else tokenizer
    values = json.loads(backend.to_str())
    decisive = {part: values.get(part) for part in DECISIVE}
    text = json.dumps(decisive, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def tokenizer_record(folder: Path) -> TokenizerRecord:
    """What a manifest says of the tokenizer in a folder."""
    backend = load_backend(folder)
    special = special_tokens(folder, backend)
    kind = type(backend.model).__name__
    size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
    return TokenizerRecord(
        name=f"{kind} of {size} ids",
        sha256=tokenizer_sha256(backend),
        vocabulary_size=size,
        special=dict(special.ids),
        prefix=list(special.prefix),
        suffix=list(special.suffix),
        words=read_words(folder),
    )


def describe_tokenizer(folder: Path) -> dict[str, Any]:
    """What a tokenizer's folder holds: for ``onward inspect``."""
    backend = load_backend(folder)
    facts = tokenizer_record(folder).model_dump(mode="json", exclude={"name"})
    model = type(backend.model).__name__
    return {"kind": "tokenizer", "folder": str(folder), "model": model} | facts


def _read(folder: Path) -> dict[str, Any]:
    path = folder / FILE
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"{folder}: no {FILE}; expected the folder of a fast transformers tokenizer"
        raise DataError(msg) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        msg = f"{path}: not readable as JSON ({error}); save the tokenizer again"
        raise DataError(msg) from None
    if not isinstance(values, dict) or "model" not in values:
        msg = f"{path}: no 'model' in it; expected what the tokenizers library saves"
        raise DataError(msg)
    return values
