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
from data_pipeline.tokenization.places import BertWords, ByteOffsets, Offsets, Tokens
from data_pipeline.tokenization.starts import (
    Characters,
    characters,
    sentence_places,
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
        self._bytes = ByteOffsets.of(values, vocabulary)
        self._bert = None
        if self._continues is not None:
            self._bert = BertWords.of(values, self._backend)

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
        if self._bytes is None and self._bert is None:
            encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        else:
            encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
        tokens = _tokens(encodings)
        over = characters(texts)
        if self._bert is not None:
            annotations = self._annotate_words(over, tokens, self._bert)
        elif self._bytes is not None:
            annotations = self._annotate(over, tokens, self._completed(over, tokens, self._bytes))
        else:
            annotations = self._annotate(over, tokens, _offsets(over, tokens, encodings))
        return Encoded(tokens.ids.astype(self.dtype), tokens.counts, annotations)

    def _annotate_words(
        self, over: Characters, tokens: Tokens, bert: BertWords
    ) -> NDArray[np.uint8]:
        opens = self._opening(tokens)
        bits = opens * np.uint8(WORD_START)
        places, known = bert.first_tokens(sentence_places(over), over, tokens, opens)
        bits[places] |= np.uint8(SENTENCE_START)
        for text in np.flatnonzero(~known).tolist():
            stop = int(tokens.ends[text])
            bits[stop - int(tokens.counts[text]) : stop] = self._asked(over.texts[text])
        return bits

    def _asked(self, text: str) -> NDArray[np.uint8]:
        """Annotations of one text, from the library's offsets."""
        over = characters([text])
        encodings = self._backend.encode_batch([text], add_special_tokens=False)
        tokens = _tokens(encodings)
        return self._annotate(over, tokens, _offsets(over, tokens, encodings))

    def _completed(self, over: Characters, tokens: Tokens, by_bytes: ByteOffsets) -> Offsets:
        """Offsets from the tokens' bytes; the library's for texts whose bytes they do not spell."""
        found = by_bytes.offsets(over, tokens)
        for text in np.flatnonzero(~found.known).tolist():
            encodings = self._backend.encode_batch([over.texts[text]], add_special_tokens=False)
            stop = int(tokens.ends[text])
            own = slice(stop - int(tokens.counts[text]), stop)
            asked = _offsets(characters([over.texts[text]]), _tokens(encodings), encodings)
            found.begin[own] = asked.begin + over.starts[text]
            found.end[own] = asked.end + over.starts[text]
        return found

    def _annotate(self, over: Characters, tokens: Tokens, offsets: Offsets) -> NDArray[np.uint8]:
        begin, end = offsets.begin, offsets.end
        if self._continues is not None:
            words = self._opening(tokens)
        else:
            words = starting_tokens(word_starts(over, self._cut), begin, end)
        sentences = starting_tokens(sentence_starts(over), begin, end)
        # What starts a sentence starts a word, whatever the tokenizer calls a continuation.
        sentences &= words
        bits: NDArray[np.uint8] = words * np.uint8(WORD_START)
        bits |= sentences * np.uint8(SENTENCE_START)
        return bits

    def _opening(self, tokens: Tokens) -> NDArray[np.bool_]:
        """Tokens that do not go on with a word, where the model itself says so."""
        if self._continues is None:
            return np.ones(len(tokens.ids), np.bool_)
        opens: NDArray[np.bool_] = ~self._continues[tokens.ids]
        return opens


def _tokens(encodings: "Sequence[Encoding]") -> Tokens:
    counts = np.array([len(encoding) for encoding in encodings], np.int32)
    flat = chain.from_iterable(encoding.ids for encoding in encodings)
    return Tokens(np.fromiter(flat, np.int64, int(counts.sum())), counts)


def _offsets(over: Characters, tokens: Tokens, encodings: "Sequence[Encoding]") -> Offsets:
    flat = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
    found = np.fromiter(flat, np.int64, 2 * len(tokens.ids)).reshape(-1, 2)
    begin, end = (found + np.repeat(over.starts, tokens.counts)[:, None]).T
    return Offsets(begin, end, np.ones(len(over.starts), np.bool_))


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
