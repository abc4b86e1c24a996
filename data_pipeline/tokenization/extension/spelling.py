"""How a tokenizer would spell a whole word as one token, from the tokens that it spells it with."""

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import Any, Literal

from data_pipeline.tokenization.starts import CJK

SPACE = "▁"
LONGEST = 64
"""Characters of a word."""
Kind = Literal["wordpiece", "bytes", "unigram", "merges"]
_BYTE = re.compile("<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class Spelling:
    """What a tokenizer.json says of its tokens.

    Attributes:
        values: the tokenizer.json.
    """

    values: Mapping[str, Any]

    @property
    def model(self) -> Mapping[str, Any]:
        """Its part ``model``."""
        model: Mapping[str, Any] = self.values["model"]
        return model

    @cached_property
    def kind(self) -> Kind | None:
        """Its way of spelling; ``merges`` is BPE over characters; None for any other."""
        match self.model["type"]:
            case "WordPiece":
                return "wordpiece"
            case "Unigram":
                return "unigram"
            case "BPE":
                return "bytes" if _has_byte_level(self.values["pre_tokenizer"]) else "merges"
        return None

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token -> id, added tokens too."""
        vocabulary = self.model["vocab"]
        if not isinstance(vocabulary, dict):
            vocabulary = {piece: i for i, (piece, _) in enumerate(vocabulary)}
        return vocabulary | {token["content"]: token["id"] for token in self.values["added_tokens"]}

    @cached_property
    def tokens(self) -> dict[int, str]:
        """Id -> token."""
        return {number: token for token, number in self.ids.items()}

    @cached_property
    def _apart(self) -> set[int]:
        """Ids that stand for no letters: special and added tokens, and what is unknown."""
        apart = {token["id"] for token in self.values["added_tokens"]}
        unknown = self.model.get("unk_token")
        apart |= {self.model["unk_id"]} if self.model.get("unk_id") is not None else set()
        return apart | ({self.ids[unknown]} if unknown in self.ids else set())

    def spell(self, pieces: Sequence[int]) -> str | None:
        """The token that these tokens are together; None where they are no word."""
        if not self._apart.isdisjoint(pieces):
            return None
        tokens = [self.tokens[piece] for piece in pieces]
        if self.kind == "wordpiece":
            prefix = self.model["continuing_subword_prefix"]
            if tokens[0].startswith(prefix) or not all(t.startswith(prefix) for t in tokens[1:]):
                return None
            return tokens[0] + "".join(token.removeprefix(prefix) for token in tokens[1:])
        if self.kind == "bytes" or not self.model.get("byte_fallback"):
            return "".join(tokens)
        try:
            return "".join(_with_characters(tokens))
        except UnicodeDecodeError:
            return None

    def shown(self, token: str) -> str:
        """The text that a token stands for, its blank too."""
        if self.kind == "bytes":
            from tokenizers import decoders

            return str(decoders.ByteLevel().decode([token]))
        return token if self.kind == "wordpiece" else token.replace(SPACE, " ")


def is_word(shown: str, *, letters_only: bool) -> bool:
    """Whether a text, but for one blank before it, is a word: letters, and digits if wanted."""
    word = shown.removeprefix(" ")
    kinds = {unicodedata.category(character)[0] for character in word}
    allowed = {"L", "M"} if letters_only else {"L", "M", "N"}
    return 0 < len(word) <= LONGEST and kinds <= allowed and "L" in kinds


def is_chinese(shown: str) -> bool:
    """Whether all of it is written in CJK characters, which blanks do not set apart."""
    return bool(shown) and all(
        any(low <= ord(character) <= high for low, high in CJK) for character in shown
    )


def _has_byte_level(part: Any) -> bool:
    if isinstance(part, dict):
        return part.get("type") == "ByteLevel" or any(map(_has_byte_level, part.values()))
    return isinstance(part, list) and any(map(_has_byte_level, part))


def _with_characters(tokens: Sequence[str]) -> Iterator[str]:
    """Tokens, those that stand for bytes as the characters that the bytes make up."""
    for is_byte, group in groupby(tokens, lambda token: _BYTE.fullmatch(token) is not None):
        together = "".join(group)
        if is_byte:
            yield bytes.fromhex("".join(_BYTE.findall(together))).decode()
        else:
            yield together
