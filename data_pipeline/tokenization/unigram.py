"""A unigram vocabulary of one's own, trained by the sentencepiece library."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from configs.errors import DataError, RecipeError
from data_pipeline.sources.source import Locate
from data_pipeline.tokenization.lines import lines, sample
from data_pipeline.tokenization.model_file import COMPARED, FILE, report
from data_pipeline.tokenization.model_style import STYLES, dress
from data_pipeline.tokenization.sentencepiece_model import SentencePieceModel
from data_pipeline.tokenization.tokenizer import Texts, TokenizerConfig, save

Style = Literal["decoder", "encoder"]
_SPECIAL: dict[Style, dict[str, Any]] = {
    "encoder": {"bos_id": 0, "pad_id": 1, "eos_id": 2, "unk_id": 3, "control_symbols": ["<mask>"]},
    "decoder": {"bos_id": -1, "pad_id": -1, "eos_id": 1, "unk_id": 0},
}
_FAMILY: dict[Style, str] = {"encoder": "xlm_roberta", "decoder": "decoder"}


class UnigramTokenizer(TokenizerConfig):
    """SentencePiece's unigram model (Kudo 2018); its folder holds ``sentencepiece.model`` too.

    Attributes:
        vocabulary_size: at most so many ids; fewer where the text has no more to give.
        corpora: the corpora of the stage on whose train sides it is trained.
        style: ``decoder``: </s> after each document; ``encoder``: <s>, <pad>, </s> and <mask>.
        character_coverage: share of the text's characters that get pieces of their own.
        byte_fallback: whether other characters become their bytes, instead of <unk>.
        normalisation: what is done to a text first; ``identity``: nothing, so that it can be
            read back as it was. Sentencepiece's own default is ``nmt_nfkc``, which folds forms of
            a character, and blanks and line ends to single blanks.
        most_lines: trained on so many lines at most, drawn by their places; memory grows with them.
    """

    name: Literal["unigram"] = "unigram"
    vocabulary_size: int = Field(ge=16, le=1 << 20)
    corpora: list[str] = Field(min_length=1)
    style: Style = "decoder"
    character_coverage: float = Field(default=0.9995, gt=0.9, le=1)
    byte_fallback: bool = True
    normalisation: Literal["identity", "nmt_nfkc", "nmt_nfkc_cf", "nfkc", "nfkc_cf"] = "identity"
    most_lines: int = Field(default=5_000_000, ge=100)

    @model_validator(mode="after")
    def _line_ends_have_tokens(self) -> "UnigramTokenizer":
        if self.normalisation == "identity" and not self.byte_fallback:
            msg = (
                "tokenizer.byte_fallback: false, with normalisation 'identity', would make every "
                "line end <unk>; use nmt_nfkc, or leave byte_fallback true"
            )
            raise ValueError(msg)
        return self

    @property
    def trained_on(self) -> Sequence[str]:
        return self.corpora

    def make(self, folder: Path, locate: Locate, texts: Texts) -> None:
        del locate

        def every() -> Iterator[str]:
            return lines(texts(self.corpora))

        count = sum(1 for _ in every())
        if not count:
            msg = f"tokenizer.corpora: {', '.join(self.corpora)} hold no text to train on"
            raise DataError(msg)
        content = self._train(sample(every, count, self.most_lines))
        model = SentencePieceModel(content, "tokenizer")
        backend = model.fast()
        report(model.verify(backend, sample(every, count, COMPARED)))
        roles = dress(model, backend, STYLES[_FAMILY[self.style]])
        save(backend, folder, roles)
        (folder / FILE).write_bytes(content)

    def _train(self, sentences: Iterator[str]) -> bytes:
        import sentencepiece

        written = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=sentences,
                model_writer=written,
                model_type="unigram",
                vocab_size=self.vocabulary_size,
                hard_vocab_limit=False,
                character_coverage=self.character_coverage,
                byte_fallback=self.byte_fallback,
                normalization_rule_name=self.normalisation,
                remove_extra_whitespaces=self.normalisation != "identity",
                # Else indented lines, as code has them, would take a token for each blank.
                allow_whitespace_only_pieces=self.normalisation == "identity",
                # More threads add up in another order, and give another vocabulary.
                num_threads=1,
                input_sentence_size=0,
                minloglevel=2,
                **_SPECIAL[self.style],
            )
        except (RuntimeError, OSError) as error:
            raise self._explained(str(error)) from None
        return written.getvalue()

    def _explained(self, text: str) -> Exception:
        if "required_chars" in text or "Vocabulary size" in text:
            return RecipeError(
                f"tokenizer.vocabulary_size: {self.vocabulary_size} does not hold the special "
                "tokens, the bytes and the characters of the text; raise it, or lower "
                f"tokenizer.character_coverage ({text.splitlines()[0]})"
            )
        return DataError(
            f"tokenizer.corpora: {', '.join(self.corpora)}: sentencepiece cannot be trained on "
            f"them: {text.splitlines()[0]}"
        )
