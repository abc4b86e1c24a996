"""Word and sentence starts for tokens of which only the ids are left."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.errors import DataError
from data_pipeline.adopting.foreign import Surveyed
from data_pipeline.example import WORD_START
from data_pipeline.shards.manifest import FileRecord
from data_pipeline.shards.output import HashedOutput
from data_pipeline.tokenization import Encoder, load_backend

BATCH_TOKENS = 1 << 18
NOT_REPRODUCED = 0.01
"""The largest share of documents whose ids are not what the tokenizer makes of their text."""


@dataclass
class Annotator:
    """Decodes documents, encodes them again, and keeps the starts where the ids are the same.

    In a document that does not come back the same (its writer cut it up otherwise, or took a
    special token for one), every token counts as a word.

    Attributes:
        prefix: so many special tokens stand before each document.
        suffix: so many stand behind it.
        documents: how many were annotated.
        not_reproduced: how many of them did not come back the same.
    """

    tokenizer: Path
    prefix: int
    suffix: int
    documents: int = 0
    not_reproduced: int = 0

    def __post_init__(self) -> None:
        self._encoder = Encoder(self.tokenizer)
        self._backend = load_backend(self.tokenizer)

    def write(self, surveyed: Surveyed, path: Path) -> FileRecord:
        """Write the ``.ann`` of a pair of files; ResourceError when it cannot be written."""
        with HashedOutput(path) as output:
            for part in self._annotated(surveyed):
                output.write(part.tobytes())
        return output.record

    def require_enough(self, name: str) -> None:
        """DataError when too many documents did not come back the same."""
        if self.not_reproduced > NOT_REPRODUCED * self.documents:
            msg = (
                f"{name}: {self.not_reproduced} of {self.documents} documents are not what the "
                "tokenizer makes of their text, so that their words cannot be told; name the "
                "tokenizer that made them, or adopt them without annotations"
            )
            raise DataError(msg)

    def _annotated(self, surveyed: Surveyed) -> Iterator[NDArray[np.uint8]]:
        tokens = surveyed.tokens()
        starts, stops = surveyed.documents()
        first = 0
        while first < len(starts):
            enough = int(np.searchsorted(stops, starts[first] + BATCH_TOKENS))
            last = min(max(enough, first + 1), len(starts))
            spans = zip(starts[first:last].tolist(), stops[first:last].tolist(), strict=True)
            yield self._batch([tokens[start:stop] for start, stop in spans])
            first = last

    def _batch(self, documents: list[NDArray[Any]]) -> NDArray[np.uint8]:
        inner = [each[self.prefix : len(each) - self.suffix] for each in documents]
        ids = [each.tolist() for each in inner]
        texts = self._backend.decode_batch(ids, skip_special_tokens=False)
        again = self._encoder.encode(texts)
        ends = np.cumsum(again.lengths, dtype=np.int64)
        parts: list[NDArray[np.uint8]] = []
        for own, whole, end, length in zip(
            inner, documents, ends.tolist(), again.lengths.tolist(), strict=True
        ):
            bits = np.full(len(whole), WORD_START, np.uint8)
            if np.array_equal(again.tokens[end - length : end], own):
                bits[self.prefix : self.prefix + length] = again.annotations[end - length : end]
            else:
                self.not_reproduced += 1
            parts.append(bits)
        self.documents += len(documents)
        return np.concatenate(parts)
