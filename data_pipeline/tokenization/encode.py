"""Texts to ids and annotations, many at a time."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.example import SENTENCE_START, WORD_START
from data_pipeline.shards.layout import token_dtype
from data_pipeline.tokenization.chinese import cutting
from data_pipeline.tokenization.starts import (
    characters,
    sentence_starts,
    starting_tokens,
    word_starts,
)
from data_pipeline.tokenization.tokenizer import load_backend

if TYPE_CHECKING:
    from tokenizers import Encoding

LONGEST_PIECE = 1 << 18
"""Characters. A longer text is cut between lines and tokenised in pieces: it bounds memory."""
UNWRITTEN = "\U0010fffe"
"""A code point that Unicode keeps out of texts."""
BATCH = 1 << 19
"""Characters that the library is given at once."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Sequences end to end, one a text.

    Attributes:
        tokens: [T] in the dtype of the shards.
        lengths: int32 [texts], 0 for a text without a token.
        annotations: uint8 [T]: WORD_START, SENTENCE_START.
    """

    tokens: NDArray[Any]
    lengths: NDArray[np.int32]
    annotations: NDArray[np.uint8]


class Encoder:
    """Applies a tokenizer; what looks like a special token in a text is text."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer as Backend

        values = _without_special(json.loads(load_backend(folder).to_str()))
        self._backend = Backend.from_str(json.dumps(values))
        self._backend.encode_special_tokens = True
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values()) + 1
        self.dtype = token_dtype(size)
        self._cut = cutting(folder)
        self._continues = None
        if self._cut is None:  # else a word may be several tokens none of which says so
            self._continues = _continuations(values["model"], vocabulary, size)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Ids of texts, without special tokens.

        Args:
            texts: without surrogates.
        """
        pieces = [list(_pieces(text)) for text in texts]
        batches = [self._encode(batch) for batch in _batches(chain.from_iterable(pieces))]
        counts = np.concatenate([batch.lengths for batch in batches] or [np.zeros(0, np.int32)])
        owner = np.repeat(np.arange(len(texts)), [len(group) for group in pieces])
        lengths = np.bincount(owner, counts, len(texts)).astype(np.int32)
        nothing = Encoded(np.zeros(0, self.dtype), lengths, np.zeros(0, np.uint8))
        return Encoded(
            np.concatenate([batch.tokens for batch in (nothing, *batches)]),
            lengths,
            np.concatenate([batch.annotations for batch in (nothing, *batches)]),
        )

    def _encode(self, texts: Sequence[str]) -> Encoded:
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        counts = np.array([len(encoding) for encoding in encodings], np.int32)
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int64, counts.sum())
        annotations = self._annotate(texts, encodings, counts, ids)
        return Encoded(ids.astype(self.dtype), counts, annotations)

    def _annotate(
        self,
        texts: Sequence[str],
        encodings: "Sequence[Encoding]",
        counts: NDArray[np.int32],
        ids: NDArray[np.int64],
    ) -> NDArray[np.uint8]:
        over = characters(texts)
        flat = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
        offsets = np.fromiter(flat, np.int64, 2 * len(ids)).reshape(-1, 2)
        begin, end = (offsets + np.repeat(over.starts, counts)[:, None]).T
        if self._continues is not None:
            words = ~self._continues[ids]
        else:
            words = starting_tokens(word_starts(over, self._cut), begin, end)
        sentences = starting_tokens(sentence_starts(over), begin, end)
        # What starts a sentence starts a word, whatever the tokenizer calls a continuation.
        sentences &= words
        bits = words * np.uint8(WORD_START) | sentences * np.uint8(SENTENCE_START)
        return bits.astype(np.uint8)


def _without_special(values: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json with the same ids that gives no special token for any text.

    Post-processors go: they add special tokens, and trim the blank off the tokens' offsets. The
    special tokens get names that no text has: a unigram model finds them as pieces otherwise.
    """
    model = values["model"]
    special = {token["content"] for token in values["added_tokens"] if token["special"]}
    if model["type"] == "BPE" and not model.get("ignore_merges"):
        special = set()  # pieces are reached by merges alone, which make no special token
    special.discard(model.get("unk_token"))

    def name(token: str) -> str:
        return f"{UNWRITTEN}{token}" if token in special else token

    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        vocabulary = {name(token): i for token, i in vocabulary.items()}
    else:
        if model.get("unk_id") is not None:
            special.discard(vocabulary[model["unk_id"]][0])
        vocabulary = [[name(piece), score] for piece, score in vocabulary]
    added = [t | {"content": name(t["content"])} for t in values["added_tokens"]]
    model = model | {"vocab": vocabulary}
    return values | {"post_processor": None, "model": model, "added_tokens": added}


def _continuations(
    model: dict[str, Any], vocabulary: dict[str, int], size: int
) -> NDArray[np.bool_] | None:
    """Bool [vocabulary]: ids that go on with a word, where the model itself says so."""
    prefix = model.get("continuing_subword_prefix")
    if model.get("type") != "WordPiece" or not prefix:
        return None
    continues = np.zeros(size, np.bool_)
    continues[[i for token, i in vocabulary.items() if token.startswith(prefix)]] = True
    return continues


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > LONGEST_PIECE:
        limit = start + LONGEST_PIECE
        for mark in ("\n", " "):
            cut = text.rfind(mark, start + 1, limit) + 1
            if cut:
                break
        else:
            cut = limit
        yield text[start:cut]
        start = cut
    yield text[start:]
