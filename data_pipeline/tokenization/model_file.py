"""A user's own SentencePiece .model, taken over with its ids."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from data_pipeline.sources.source import Locate
from data_pipeline.tokenization.lines import lines, sample
from data_pipeline.tokenization.model_style import INPUTS, STYLES, dress
from data_pipeline.tokenization.sentencepiece_model import Comparison, SentencePieceModel
from data_pipeline.tokenization.tokenizer import Texts, TokenizerConfig, save

FILE = "sentencepiece.model"
COMPARED = 20_000
"""Lines of corpora on which the fast form is compared with sentencepiece, at most."""
log = logging.getLogger(__name__)


class ModelFileTokenizer(TokenizerConfig):
    """SentencePiece's pieces and ids from a .model file, unigram or BPE.

    Attributes:
        location: of the file.
        style: whose special tokens stand around a text; those that the model lacks are added
            behind its last id.
        corpora: corpora of the stage on whose train sides its ids are compared with
            sentencepiece's own, beside a fixed set of texts: a difference is an error.
    """

    name: Literal["sentencepiece_model"] = "sentencepiece_model"
    location: str
    style: Literal["albert", "xlm_roberta", "t5", "llama"]
    corpora: list[str] = Field(default_factory=list)

    @property
    def trained_on(self) -> Sequence[str]:
        return self.corpora

    @property
    def locations(self) -> Sequence[str]:
        return (self.location,)

    def make(self, folder: Path, locate: Locate, texts: Texts) -> None:
        model = SentencePieceModel.read(locate(self.location))
        backend = model.fast()

        def every() -> Iterator[str]:
            return lines(texts(self.corpora)) if self.corpora else iter(())

        count = sum(1 for _ in every())
        report(model.verify(backend, sample(every, count, COMPARED)))
        roles = dress(model, backend, STYLES[self.style])
        save(backend, folder, roles, INPUTS.get(self.style, ()))
        (folder / FILE).write_bytes(model.content)


def report(comparison: Comparison) -> None:
    """Say what was compared."""
    log.info(
        "tokenizer: the ids of %d lines are sentencepiece's own; %d of them it cuts otherwise, "
        "with the same likelihood",
        comparison.texts,
        comparison.ties,
    )
