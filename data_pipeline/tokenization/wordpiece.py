"""A WordPiece vocabulary of one's own, trained on the train side of corpora.

The same text gives the same vocabulary. The library's trainer alone does not: it numbers the
alphabet in the order of a hash table and breaks ties by those numbers, so the alphabet is
settled here and handed to it.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from configs.errors import DataError, RecipeError
from data_pipeline.sources.source import Locate
from data_pipeline.tokenization.tokenizer import Texts, TokenizerConfig, save

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

PAD, UNKNOWN, OPEN, CLOSE, MASK = SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CONTINUING = "##"
ROLES = {"pad": PAD, "unk": UNKNOWN, "cls": OPEN, "sep": CLOSE, "mask": MASK}


class WordPieceTokenizer(TokenizerConfig):
    """BERT's kind of tokenizer.

    Attributes:
        vocabulary_size: at most so many ids; fewer where the text has no more to give.
        corpora: the corpora of the stage on whose train sides it is trained.
        lower_case: whether capitals and accents are taken away.
        alphabet_size: at most so many different characters; rarer ones become [UNK].
        min_frequency: a piece must occur so often.
    """

    name: Literal["wordpiece"] = "wordpiece"
    vocabulary_size: int = Field(ge=16, le=1 << 20)
    corpora: list[str] = Field(min_length=1)
    lower_case: bool = True
    alphabet_size: int = Field(default=1000, ge=1)
    min_frequency: int = Field(default=2, ge=1)

    @property
    def trained_on(self) -> Sequence[str]:
        return self.corpora

    def make(self, folder: Path, locate: Locate, texts: Texts) -> None:
        del locate
        save(self._train(texts), folder, ROLES, ["token_type_ids"])

    def _train(self, texts: Texts) -> "Backend":
        from tokenizers import trainers

        empty = self._backend({UNKNOWN: 0})
        alphabet = self._alphabet(empty, texts(self.corpora))
        pieces = [*alphabet, *_continuing(empty, alphabet)]
        if len(SPECIAL) + len(pieces) > self.vocabulary_size:
            msg = (
                f"tokenizer.vocabulary_size: {self.vocabulary_size}, but the special tokens and "
                f"{len(alphabet)} characters alone take {len(SPECIAL) + len(pieces)}; "
                "raise it, or lower tokenizer.alphabet_size"
            )
            raise RecipeError(msg)
        trainer = trainers.WordPieceTrainer(
            vocab_size=self.vocabulary_size,
            min_frequency=self.min_frequency,
            special_tokens=[*SPECIAL, *pieces],
            initial_alphabet=alphabet,
            limit_alphabet=len(alphabet),
            continuing_subword_prefix=CONTINUING,
            show_progress=False,
        )
        empty.train_from_iterator(texts(self.corpora), trainer)
        # A new one around the vocabulary: in the trained one the alphabet counts as special.
        vocabulary = json.loads(empty.to_str())["model"]["vocab"]
        return self._backend(vocabulary)

    def _backend(self, vocabulary: dict[str, int]) -> "Backend":
        from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
        from tokenizers import Tokenizer as Backend

        backend = Backend(models.WordPiece(vocab=vocabulary, unk_token=UNKNOWN))
        backend.normalizer = normalizers.BertNormalizer(lowercase=self.lower_case)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(prefix=CONTINUING)
        if MASK in vocabulary:
            backend.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
            backend.post_processor = processors.TemplateProcessing(
                single=f"{OPEN} $A {CLOSE}",
                pair=f"{OPEN} $A {CLOSE} $B:1 {CLOSE}:1",
                special_tokens=[(token, vocabulary[token]) for token in (OPEN, CLOSE)],
            )
        return backend

    def _alphabet(self, backend: "Backend", texts: Iterable[str]) -> list[str]:
        """The most frequent characters of normalised text, in the order of their code points."""
        raw: Counter[str] = Counter()
        for text in texts:
            raw.update(text)
        if not raw:
            msg = f"tokenizer.corpora: {', '.join(self.corpora)} hold no text to train on"
            raise DataError(msg)
        counts: Counter[str] = Counter()
        for character, count in raw.items():
            for normal in backend.normalizer.normalize_str(character):
                if not normal.isspace():
                    counts[normal] += count
        by_count = sorted(counts, key=lambda character: (-counts[character], character))
        return sorted(by_count[: self.alphabet_size])


def _continuing(backend: "Backend", alphabet: Sequence[str]) -> Iterator[str]:
    """Those that can stand within a word: signs and Chinese characters are words by themselves."""
    for character in alphabet:
        text = backend.normalizer.normalize_str(f"a{character}")
        if len(backend.pre_tokenizer.pre_tokenize_str(text)) == 1:
            yield f"{CONTINUING}{character}"
