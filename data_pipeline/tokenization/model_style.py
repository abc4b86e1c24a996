"""Special tokens around SentencePiece's pieces: which roles a family of models wants, and where."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from data_pipeline.tokenization.sentencepiece_model import SentencePieceModel

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend


@dataclass(frozen=True, slots=True)
class Style:
    """How a family of models dresses a text.

    Attributes:
        roles: role -> its token where the .model names none.
        single: around one text, with roles in braces; "" where nothing is added.
        pair: around two.
    """

    roles: Mapping[str, str]
    single: str = ""
    pair: str = ""


_SENTENCE = {"bos": "<s>", "cls": "<s>", "eos": "</s>", "sep": "</s>"}
STYLES = {
    "albert": Style(
        {"cls": "[CLS]", "sep": "[SEP]", "pad": "<pad>", "mask": "[MASK]", "unk": "<unk>"},
        "{cls} $A {sep}",
        "{cls} $A {sep} $B:1 {sep}:1",
    ),
    "xlm_roberta": Style(
        {**_SENTENCE, "pad": "<pad>", "mask": "<mask>", "unk": "<unk>"},
        "{bos} $A {eos}",
        "{bos} $A {eos} {eos} $B {eos}",
    ),
    "t5": Style({"eos": "</s>", "pad": "<pad>", "unk": "<unk>"}, "$A {eos}", "$A {eos} $B {eos}"),
    "llama": Style(
        {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}, "{bos} $A", "{bos} $A {bos}:1 $B:1"
    ),
    "decoder": Style({"eos": "</s>", "unk": "<unk>"}),
}
INPUTS = {"albert": ["token_type_ids"]}
_NAMED_BY_MODEL = ("bos", "eos", "pad", "unk")
_LIKE = {"cls": "bos", "sep": "eos"}


def dress(model: SentencePieceModel, backend: "Backend", style: Style) -> dict[str, str]:
    """Give a tokenizer its special tokens; those that the .model lacks follow its last id.

    Returns:
        role -> token.
    """
    from tokenizers import AddedToken, processors

    roles = {role: _token(model, style, role) for role in style.roles}
    backend.add_special_tokens(
        [
            AddedToken(token, special=True, normalized=False, lstrip=token == roles.get("mask"))
            for token in dict.fromkeys(roles.values())
        ]
    )
    if style.single:
        backend.post_processor = processors.TemplateProcessing(
            single=_filled(style.single, roles),
            pair=_filled(style.pair, roles),
            special_tokens=[
                (token, backend.token_to_id(token)) for token in dict.fromkeys(roles.values())
            ],
        )
    return roles


def _token(model: SentencePieceModel, style: Style, role: str) -> str:
    """What the .model itself has for a role, else the style's own token."""
    own = style.roles[role]
    if own == style.roles.get(_LIKE.get(role, "")):
        role = _LIKE[role]
    if role not in _NAMED_BY_MODEL:
        return own
    number = getattr(model.processor, f"{role}_id")()
    return model.proto.pieces[number].piece if number >= 0 else own


def _filled(template: str, roles: Mapping[str, str]) -> list[str]:
    """The parts of a template; a list, because a token may hold a blank or a colon."""
    return [part.format(**roles) for part in template.split()]
