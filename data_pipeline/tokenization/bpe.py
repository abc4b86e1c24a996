"""A byte-level BPE vocabulary of one's own, as GPT-2's and RoBERTa's: every text has tokens.

The same texts give the same vocabulary: the alphabet is the 256 bytes, and the library breaks
ties by ids, which follow from it.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from configs.errors import DataError
from data_pipeline.sources.source import Locate
from data_pipeline.tokenization.tokenizer import Texts, TokenizerConfig, save

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Backend

Style = Literal["decoder", "encoder"]

END = "<|endoftext|>"
OPEN, PAD, CLOSE, MASK = ENCODER = ("<s>", "<pad>", "</s>", "<mask>")
BYTES = 256


class BPETokenizer(TokenizerConfig):
    """GPT-2's kind of tokenizer.

    Attributes:
        vocabulary_size: at most so many ids; fewer where the text has no more to give.
        corpora: the corpora of the stage on whose train sides it is trained.
        style: ``decoder``: one special token, <|endoftext|>, after each document, as GPT-2;
            ``encoder``: <s>, <pad>, </s> and <mask>, as RoBERTa.
        min_frequency: a pair must occur so often to be merged.
    """

    name: Literal["bpe"] = "bpe"
    vocabulary_size: int = Field(ge=BYTES + len(ENCODER), le=1 << 20)
    corpora: list[str] = Field(min_length=1)
    style: Style = "decoder"
    min_frequency: int = Field(default=2, ge=1)

    @property
    def trained_on(self) -> Sequence[str]:
        return self.corpora

    def make(self, folder: Path, locate: Locate, texts: Texts) -> None:
        del locate
        backend = self._train(texts)
        if self.style == "decoder":
            save(backend, folder, {"bos": END, "eos": END})
            return
        roles = {"bos": OPEN, "cls": OPEN, "eos": CLOSE, "sep": CLOSE, "pad": PAD, "mask": MASK}
        save(backend, folder, roles)

    def _train(self, texts: Texts) -> "Backend":
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, pre_tokenizers, processors, trainers

        backend = Backend(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        special = self._special()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocabulary_size,
            min_frequency=self.min_frequency,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=special,
            show_progress=False,
        )
        backend.train_from_iterator(self._not_empty(texts(self.corpora)), trainer)
        if self.style == "encoder":
            ids = [(token, backend.token_to_id(token)) for token in (OPEN, CLOSE)]
            backend.post_processor = processors.TemplateProcessing(
                single=f"{OPEN} $A {CLOSE}",
                pair=f"{OPEN} $A {CLOSE} {CLOSE} $B {CLOSE}",
                special_tokens=ids,
            )
        return backend

    def _special(self) -> "list[AddedToken]":
        from tokenizers import AddedToken

        if self.style == "decoder":
            return [AddedToken(END, special=True, normalized=False)]
        # The blank before a mask belongs to it, as in RoBERTa: words carry theirs with them.
        return [
            AddedToken(token, special=True, normalized=False, lstrip=token == MASK)
            for token in ENCODER
        ]

    def _not_empty(self, texts: Iterator[str]) -> Iterator[str]:
        first = next((text for text in texts if text), None)
        if first is None:
            msg = f"tokenizer.corpora: {', '.join(self.corpora)} hold no text to train on"
            raise DataError(msg)
        yield first
        yield from texts
