"""Where tokens lie in the text, found from their ids: the library's own offsets cost a third more.

Two families of tokenizers allow it, exactly: byte-level BPE, whose tokens spell the bytes of the
text one behind the other, and BERT's WordPiece, whose words follow from the kind of each character.
Both are held against the tokens of every text; a text that does not agree is asked for its offsets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tokenization.starts import SINGLE, SPACE, WORD, Characters

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

_DROPPED, _UNCLEAR, _UNKNOWN = 3, 4, 255
_KEEPING = {"ByteLevel", "Split", "Digits", "Punctuation", "Sequence"}


@dataclass(frozen=True, slots=True)
class Tokens:
    """Ids of texts end to end.

    Attributes:
        ids: int64 [T].
        counts: int32 [texts], tokens of each.
    """

    ids: NDArray[np.int64]
    counts: NDArray[np.int32]

    @property
    def owners(self) -> NDArray[np.int64]:
        """The text of each: int64 [T]."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    @property
    def ends(self) -> NDArray[np.int64]:
        """Int64 [texts]: behind the last token of each."""
        return np.cumsum(self.counts, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Offsets:
    """Characters of tokens, counted over all texts.

    Attributes:
        begin: int64 [T], the first of each.
        end: int64 [T], behind the last.
        known: bool [texts]; what stands for the tokens of any other text means nothing.
    """

    begin: NDArray[np.int64]
    end: NDArray[np.int64]
    known: NDArray[np.bool_]


class ByteOffsets:
    """Offsets of byte-level BPE tokens, from how many bytes each spells."""

    def __init__(self, bytes_of: NDArray[np.int64]) -> None:
        self._bytes_of = bytes_of

    @classmethod
    def of(cls, values: Mapping[str, Any], vocabulary: Mapping[str, int]) -> "ByteOffsets | None":
        """For a tokenizer.json that changes no byte of a text and drops none; else None."""
        if (
            values["model"]["type"] != "BPE"
            or values["normalizer"] is not None
            or not _keeps_bytes(values["pre_tokenizer"])
        ):
            return None
        found = np.zeros(max(vocabulary.values()) + 1, np.int64)
        # The alphabet of byte-level BPE has one character for each byte.
        for token, number in vocabulary.items():
            found[number] = len(token)
        for token in values["added_tokens"]:
            found[token["id"]] = len(token["content"].encode())
        return cls(found)

    def offsets(self, over: Characters, tokens: Tokens) -> Offsets:
        """Where the tokens lie in the texts."""
        lengths = self._bytes_of[tokens.ids]
        content = np.frombuffer("".join(over.texts).encode(), np.uint8)
        opens = (content & 0xC0) != 0x80
        # The character that each byte belongs to, and behind the last one their number.
        character = np.append(np.cumsum(opens) - 1, len(over.codes))
        first = np.append(np.flatnonzero(opens), len(content))
        text_begin = first[over.starts]
        text_bytes = np.diff(np.append(text_begin, len(content)))
        sums = np.append(0, np.cumsum(lengths))
        ends = tokens.ends
        before = sums[ends - tokens.counts]
        known = sums[ends] - before == text_bytes
        begin = sums[:-1] + np.repeat(text_begin - before, tokens.counts)
        begin = np.clip(begin, 0, max(len(content) - 1, 0))
        last = np.clip(begin + lengths - 1, 0, max(len(content) - 1, 0))
        return Offsets(character[begin], character[last] + 1, known)


def _keeps_bytes(pre: Mapping[str, Any] | None) -> bool:
    """Whether a pre-tokenizer ends in bytes and neither adds nor drops a character."""
    steps = _steps(pre)
    return (
        any(step["type"] == "ByteLevel" for step in steps)
        and all(step["type"] in _KEEPING for step in steps)
        and not any(step.get("add_prefix_space") for step in steps)
        and not any(step.get("behavior") == "Removed" for step in steps)
    )


def _steps(pre: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    if pre is None:
        return []
    if pre["type"] != "Sequence":
        return [pre]
    return [step for inner in pre["pretokenizers"] for step in _steps(inner)]


class BertWords:
    """Words of BERT's normalizer and pre-tokenizer, from the kind that they make of a character."""

    def __init__(self, backend: "Backend") -> None:
        self._backend = backend
        self._kinds = np.full(0x110000, _UNKNOWN, np.uint8)

    @classmethod
    def of(cls, values: Mapping[str, Any], backend: "Backend") -> "BertWords | None":
        """For a tokenizer.json with both of them and no token of its own for whole texts."""
        parts = (values["normalizer"] or {}, values["pre_tokenizer"] or {}, values["model"])
        kinds = tuple(part.get("type") for part in parts)
        if kinds != ("BertNormalizer", "BertPreTokenizer", "WordPiece"):
            return None
        return cls(backend) if all(token["special"] for token in values["added_tokens"]) else None

    def first_tokens(
        self,
        places: NDArray[np.int64],
        over: Characters,
        tokens: Tokens,
        opens: NDArray[np.bool_],
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The first token at or behind each place, within its text.

        Args:
            places: int64, ascending: characters.
            over: the texts.
            tokens: theirs.
            opens: bool [T]: tokens that open a word.

        Returns:
            indices of such tokens; and bool [texts], of which texts the words are known: for the
            others there is none.
        """
        words, clear = self._words(over)
        number = len(over.starts)
        of_word = np.searchsorted(over.starts, words, side="right") - 1
        of_place = np.searchsorted(over.starts, places, side="right") - 1
        counted = np.bincount(of_word, minlength=number)
        opening = np.flatnonzero(opens)
        told = np.bincount(tokens.owners[opening], minlength=number)
        known = clear & (counted == told)
        first_word = np.cumsum(counted) - counted
        first_token = np.cumsum(told) - told
        nth = np.searchsorted(words, places) - first_word[of_place]
        good = known[of_place] & (nth < counted[of_place])
        return opening[(first_token[of_place] + nth)[good]], known

    def _words(self, over: Characters) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where words begin, in characters; and of which texts that is clear."""
        kinds = self._kinds[over.codes]
        if (kinds == _UNKNOWN).any():
            for code in np.unique(over.codes[kinds == _UNKNOWN]).tolist():
                self._kinds[code] = self._kind(chr(code))
            kinds = self._kinds[over.codes]
        clear = np.ones(len(over.starts), np.bool_)
        unclear = np.flatnonzero(kinds == _UNCLEAR)
        clear[np.searchsorted(over.starts, unclear, side="right") - 1] = False
        kept = np.flatnonzero(kinds != _DROPPED)
        kinds = kinds[kept]
        before = np.full(len(kept), SPACE, np.uint8)
        before[1:] = kinds[:-1]
        opening = np.searchsorted(kept, over.opening)
        before[opening[opening < len(kept)]] = SPACE
        first = (kinds == SINGLE) | ((kinds == WORD) & (before != WORD))
        return kept[first], clear

    def _kind(self, character: str) -> int:
        # Both go character by character, so that one alone tells what it is anywhere.
        normal = self._backend.normalizer.normalize_str(character)
        if not normal:
            return _DROPPED
        cut = [word for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(f"a{normal}a")]
        if len(cut) == 1:
            return WORD
        if cut == ["a", "a"]:
            return SPACE
        return SINGLE if len(cut) == 3 else _UNCLEAR
