"""What new words save: the texts of a corpus, read back from its tokens and tokenised anew."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.shards import ShardedDataset
from data_pipeline.tokenization.encode import Encoder
from data_pipeline.tokenization.extension.words import stretches
from data_pipeline.tokenization.tokenizer import load_backend

WORDS = 256
"""A text that does not read back as it was is tried in pieces of so many words."""
SEQUENCES = 256


@dataclass(slots=True)
class Saved:
    """Tokens of one corpus with the old vocabulary and with the new one.

    Attributes:
        before: tokens of the texts that were compared, as the shards hold them.
        after: tokens of the same texts with the new vocabulary.
        words: in these texts.
        left_out: unknown tokens, and those of texts that do not read back exactly.
    """

    before: int = 0
    after: int = 0
    words: int = 0
    left_out: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For a report."""
        share = 1 - self.after / self.before if self.before else 0.0
        words = max(1, self.words)
        return {
            "tokens_before": self.before,
            "tokens_after": self.after,
            "saved_share": round(share, 6),
            "words": self.words,
            "fertility_before": round(self.before / words, 4),
            "fertility_after": round(self.after / words, 4),
            "tokens_left_out": self.left_out,
        }


@dataclass(frozen=True, slots=True)
class _Text:
    ids: NDArray[Any]
    begins: NDArray[np.bool_]

    def cut(self, at: Sequence[int]) -> "list[_Text]":
        parts = zip(np.split(self.ids, at), np.split(self.begins, at), strict=True)
        return [_Text(ids, begins) for ids, begins in parts if len(ids)]


@dataclass
class Measure:
    """Compares two tokenizers, the second of which has new words.

    Attributes:
        old: folder of the tokenizer that made the shards.
        new: folder of the other.
        first: its first new id.
        reached: old ids that only the second tokenizer gives to any text.
    """

    old: Path
    new: Path
    first: int
    reached: frozenset[int] = frozenset()
    _encoders: tuple[Encoder, Encoder] = field(init=False)

    def __post_init__(self) -> None:
        self._backend = load_backend(self.old)
        self._encoders = (Encoder(self.old), Encoder(self.new))

    def corpus(self, data: ShardedDataset, most_tokens: int) -> Saved:
        """Compare on a corpus, or on about ``most_tokens`` from everywhere in it.

        Raises:
            DataError: a text without a new word has other tokens than before.
        """
        saved = Saved()
        unknown = data.manifest.tokenizer.special.get("unk", -1)
        for texts in _texts(data, most_tokens, unknown):
            known = [text for text in texts if text.ids[0] != unknown]
            saved.left_out += len(texts) - len(known)
            again: list[_Text] = []
            for text in self._compare(known, saved):
                places = np.flatnonzero(text.begins)[WORDS::WORDS].tolist()
                again += text.cut(places) if places else []
                saved.left_out += 0 if places else len(text.ids)
            saved.left_out += sum(len(text.ids) for text in self._compare(again, saved))
        return saved

    def _compare(self, texts: Sequence[_Text], saved: Saved) -> list[_Text]:
        """Count texts that read back; those that do not are returned."""
        shown = self._backend.decode_batch(
            [text.ids.tolist() for text in texts], skip_special_tokens=False
        )
        old, new = (_split(encoder, shown) for encoder in self._encoders)
        failed: list[_Text] = []
        for text, before, after in zip(texts, old, new, strict=True):
            if not np.array_equal(before, text.ids):
                failed.append(text)
                continue
            if not self._has_new(after) and not np.array_equal(before, after):
                msg = f"{self.new}: it tokenises texts without a new word otherwise than before"
                raise DataError(msg)
            saved.before += len(before)
            saved.after += len(after)
            saved.words += int(np.count_nonzero(text.begins))
        return failed

    def _has_new(self, ids: NDArray[Any]) -> bool:
        return bool((ids >= self.first).any() or np.isin(ids, list(self.reached)).any())


def _texts(data: ShardedDataset, most_tokens: int, unknown: int) -> Iterator[list[_Text]]:
    """Sequences, some at a time, cut where a token is unknown; such a one stands by itself."""
    for stretch in stretches(data, most_tokens):
        begins = np.zeros(len(stretch.tokens), np.bool_)
        begins[stretch.words] = True
        whole = _Text(stretch.tokens, begins).cut(stretch.starts[1:].tolist())
        for at in range(0, len(whole), SEQUENCES):
            batch: list[_Text] = []
            for text in whole[at : at + SEQUENCES]:
                places = np.flatnonzero(text.ids == unknown)
                batch += text.cut(np.union1d(places, places + 1).tolist())
            yield batch


def _split(encoder: Encoder, texts: Sequence[str]) -> list[NDArray[Any]]:
    encoded = encoder.encode(texts)
    return np.split(encoded.tokens, np.cumsum(encoded.lengths))[:-1]
