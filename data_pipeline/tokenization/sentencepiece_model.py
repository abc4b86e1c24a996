"""SentencePiece's .model files as fast tokenizers with sentencepiece's own ids, and the proof.

Offsets, which the words' starts need, come from the tokenizers library alone; so a .model is
written as a tokenizer.json, and both are asked for the ids of the same texts.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.errors import DataError
from data_pipeline.tokenization.probe import PROBES

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

SPACE = "▁"
UNIGRAM, BPE = 1, 2
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
"""Kinds of piece, as the file numbers them."""

COMPARED_BYTES = 4000
"""A longer line is left out of the comparison: sentencepiece's sums of float32 blur with length."""
TIE = 1e-5
"""Two cuts of a text count as equally likely when their scores differ by this share at most."""
# To the tokenizers library such a text is the piece of that name, to sentencepiece it is text.
_NAMES_A_PIECE = re.compile("<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True, slots=True)
class Comparison:
    """How many texts were compared, and how many of them were cut otherwise, equally likely."""

    texts: int
    ties: int


@dataclass(frozen=True)
class SentencePieceModel:
    """A .model file.

    Attributes:
        content: its bytes.
        where: what errors call it.
    """

    content: bytes
    where: str

    @classmethod
    def read(cls, path: Path) -> "SentencePieceModel":
        """DataError unless it is a model that can be written as a fast tokenizer."""
        try:
            model = cls(path.read_bytes(), str(path))
        except OSError as error:
            msg = f"{path}: cannot be read ({error.strerror}); expected sentencepiece's .model file"
            raise DataError(msg) from None
        model.require_supported()
        return model

    @cached_property
    def proto(self) -> Any:
        """The message in it."""
        from sentencepiece import sentencepiece_model_pb2

        proto = sentencepiece_model_pb2.ModelProto()
        try:
            proto.ParseFromString(self.content)
        except import_module("google.protobuf.message").DecodeError:
            msg = f"{self.where}: not a .model file of sentencepiece, or damaged"
            raise DataError(msg) from None
        if not proto.pieces:
            msg = f"{self.where}: holds no pieces; expected sentencepiece's .model file"
            raise DataError(msg)
        return proto

    @cached_property
    def processor(self) -> Any:
        """Sentencepiece's own object."""
        import sentencepiece

        return sentencepiece.SentencePieceProcessor(model_proto=self.content)

    def require_supported(self) -> None:
        """DataError for what the tokenizers library cannot do."""
        kind = self.proto.trainer_spec.model_type
        if kind not in {UNIGRAM, BPE}:
            msg = f"{self.where}: its algorithm is number {kind}; only unigram (1) and BPE (2) work"
            raise DataError(msg)
        if self.proto.trainer_spec.treat_whitespace_as_suffix:
            msg = (
                f"{self.where}: writes blanks behind words; only those that write them before work"
            )
            raise DataError(msg)
        if not self.proto.normalizer_spec.escape_whitespaces:
            msg = f"{self.where}: does not write blanks as {SPACE}; such models do not work"
            raise DataError(msg)

    def pieces(self, *kinds: int) -> list[str]:
        """Pieces of some kinds, by id."""
        return [piece.piece for piece in self.proto.pieces if piece.type in kinds]

    def fast(self) -> "Backend":
        """A tokenizer with the same ids; its control pieces are special tokens."""
        from tokenizers import AddedToken
        from tokenizers import Tokenizer as Backend

        backend = Backend(self._model())
        backend.normalizer = self._normalizer()
        backend.pre_tokenizer = self._pre_tokenizer()
        backend.decoder = self._decoder()
        special = self.pieces(CONTROL, UNKNOWN)
        backend.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in special]
        )
        return backend

    def _model(self) -> Any:
        from tokenizers import models

        spec = self.proto.trainer_spec
        scores = [(piece.piece, piece.score) for piece in self.proto.pieces]
        if spec.model_type == UNIGRAM:
            return models.Unigram(scores, unk_id=self._unknown, byte_fallback=spec.byte_fallback)
        from transformers.tokenization_utils_base import generate_merges

        ids = {piece: i for i, (piece, _) in enumerate(scores)}
        # No merge makes or uses a piece that stands for something else than its letters.
        apart = set(self.pieces(UNKNOWN, CONTROL, USER_DEFINED, BYTE, UNUSED))
        normal = [(piece, score) for piece, score in scores if piece not in apart]
        merges = generate_merges(ids, dict(normal), skip_tokens=apart)
        return models.BPE(
            ids,
            merges,
            unk_token=self.proto.pieces[self._unknown].piece,
            fuse_unk=True,
            byte_fallback=spec.byte_fallback,
            # No merge leads to its users' symbols; they are cut out before.
            ignore_merges=bool(self.pieces(USER_DEFINED)),
        )

    @property
    def _unknown(self) -> int:
        return next(i for i, piece in enumerate(self.proto.pieces) if piece.type == UNKNOWN)

    def _normalizer(self) -> Any:
        from tokenizers import Regex, normalizers

        spec = self.proto.normalizer_spec
        steps: list[Any] = []
        if spec.precompiled_charsmap:
            steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
        if spec.remove_extra_whitespaces:
            steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
            steps.append(normalizers.Replace(Regex(" {2,}"), " "))
        if spec.add_dummy_prefix:
            steps.append(normalizers.Prepend(SPACE))
        steps.append(normalizers.Replace(" ", SPACE))
        return normalizers.Sequence(steps)

    def _pre_tokenizer(self) -> Any:
        from tokenizers import Regex, pre_tokenizers

        steps: list[Any] = []
        own = self.pieces(USER_DEFINED)
        if own and self.proto.trainer_spec.model_type == BPE:  # a unigram model finds them by score
            longest_first = sorted(own, key=lambda piece: (-len(piece), piece))
            pattern = Regex("|".join(map(re.escape, longest_first)))
            steps.append(pre_tokenizers.Split(pattern, "isolated"))
        # Cuts that no piece goes over change nothing, and save time: short parts are remembered.
        pieces = [*self.pieces(NORMAL), *own]
        if not any(SPACE in piece[1:] for piece in pieces):
            steps.append(pre_tokenizers.Metaspace(SPACE, prepend_scheme="never", split=True))
        elif not any(SPACE in piece.lstrip(SPACE) for piece in pieces):
            words = Regex(f"{SPACE}*[^{SPACE}]+|{SPACE}+")
            steps.append(pre_tokenizers.Split(words, "isolated"))
        return pre_tokenizers.Sequence(steps) if steps else None

    def _decoder(self) -> Any:
        from tokenizers import decoders

        steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.proto.normalizer_spec.add_dummy_prefix:
            steps.append(decoders.Strip(content=" ", left=1, right=0))
        return decoders.Sequence(steps)

    def verify(self, backend: "Backend", texts: Iterable[str] = ()) -> Comparison:
        """Compare ids with sentencepiece's own; DataError at the first difference.

        Two cuts that are equally likely are no difference: which one a unigram model takes is a
        matter of rounding. Texts that name a special piece, and long ones, are left out.
        """
        compared = ties = 0
        lines = chain(PROBES, self.pieces(USER_DEFINED), texts)
        wanted = (line for line in lines if self._is_comparable(line))
        while batch := list(islice(wanted, 1000)):
            own = self.processor.encode(batch, out_type=int, num_threads=1)
            found = [e.ids for e in backend.encode_batch(batch, add_special_tokens=False)]
            for line, a, b in zip(batch, own, found, strict=True):
                if a != b:
                    self._require_tie(line, a, b)
                    ties += 1
            compared += len(batch)
        return Comparison(compared, ties)

    @cached_property
    def _special(self) -> Sequence[str]:
        return self.pieces(CONTROL, UNKNOWN)

    def _is_comparable(self, line: str) -> bool:
        return not (
            len(line.encode()) > COMPARED_BYTES
            or any(token in line for token in self._special)
            or ("<0x" in line and _NAMES_A_PIECE.search(line))
        )

    def _require_tie(self, line: str, own: Sequence[int], found: Sequence[int]) -> None:
        totals = [sum(map(self.processor.get_score, ids)) for ids in (own, found)]
        same_text = self.processor.decode(own) == self.processor.decode(found)
        unigram = self.proto.trainer_spec.model_type == UNIGRAM
        if unigram and same_text and abs(totals[0] - totals[1]) <= TIE * abs(totals[0]):
            return
        at = next((i for i, (a, b) in enumerate(zip(own, found, strict=False)) if a != b), 0)
        shown = [
            [self.processor.id_to_piece(i) for i in ids[max(0, at - 2) : at + 6]]
            for ids in (own, found)
        ]
        msg = (
            f"{self.where}: as a fast tokenizer it cuts {_shortened(line)!r} otherwise than "
            f"sentencepiece does: {shown[1]} for {shown[0]}; "
            "normalise the texts (NFKC), or use a model with the normalisation 'identity'"
        )
        raise DataError(msg)


def _shortened(line: str) -> str:
    return line if len(line) <= 200 else f"{line[:200]}…"
