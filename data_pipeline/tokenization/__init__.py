"""From text to token ids: which tokenizer, and how it is applied."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from configs.deferred import deferred
from data_pipeline.tokenization.bpe import BPETokenizer
from data_pipeline.tokenization.model_file import ModelFileTokenizer
from data_pipeline.tokenization.pretrained import PretrainedTokenizer
from data_pipeline.tokenization.special import SpecialTokens, special_tokens
from data_pipeline.tokenization.tokenizer import (
    Texts,
    TokenizerConfig,
    describe_tokenizer,
    load_backend,
    tokenizer_record,
    tokenizer_sha256,
)
from data_pipeline.tokenization.unigram import UnigramTokenizer
from data_pipeline.tokenization.wordpiece import WordPieceTokenizer

if TYPE_CHECKING:
    from data_pipeline.tokenization.encode import Encoded, Encoder

Tokenizer = Annotated[
    WordPieceTokenizer | BPETokenizer | UnigramTokenizer | ModelFileTokenizer | PretrainedTokenizer,
    Field(discriminator="name"),
]

__getattr__ = deferred(__name__, {"encode": ("Encoded", "Encoder")})

__all__ = [
    "BPETokenizer",
    "Encoded",
    "Encoder",
    "ModelFileTokenizer",
    "PretrainedTokenizer",
    "SpecialTokens",
    "Texts",
    "Tokenizer",
    "TokenizerConfig",
    "UnigramTokenizer",
    "WordPieceTokenizer",
    "describe_tokenizer",
    "load_backend",
    "special_tokens",
    "tokenizer_record",
    "tokenizer_sha256",
]
