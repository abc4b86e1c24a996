"""New words in a tokenizer: each as one token where it stands as a whole word.

What was there keeps its ids, and a text without a new word its tokens. How a word gets in depends
on the model: WordPiece and unigram find it in their vocabularies (a longer word that begins with
it may use it, too); BPE reaches nothing without a merge, so the word is cut out as a whole before
the merges, which then are ignored for it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.errors import DataError
from data_pipeline.tokenization.extension.spelling import SPACE, Spelling, is_chinese, is_word

LIKELIER = 0.01
"""By how much, in log likelihood, a unigram model prefers a new word to the pieces it was."""
_LETTER = r"[\p{L}\p{M}\p{N}]"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A word that costs several tokens.

    Attributes:
        token: how the tokenizer spells it as one.
        shown: the text it stands for, with the blank before it where there is one.
        pieces: the ids it is spelled with now.
        count: how often it was seen.
    """

    token: str
    shown: str
    pieces: tuple[int, ...]
    count: int

    @property
    def saved(self) -> int:
        """Tokens that it saves in what was counted."""
        return self.count * (len(self.pieces) - 1)


@dataclass(frozen=True, slots=True)
class Extended:
    """A tokenizer with new words.

    Attributes:
        values: its tokenizer.json.
        first: id of the first word; the others follow.
        words: in the order of their ids.
        unreachable: candidates that the tokenizer would never use as one token.
        shadowed: old tokens that no merges led to, and that now stand for a text of their own.
    """

    values: dict[str, Any]
    first: int
    words: tuple[Candidate, ...]
    unreachable: tuple[Candidate, ...]
    shadowed: tuple[str, ...]


def rank(
    spelling: Spelling,
    counts: Mapping[tuple[int, ...], int],
    *,
    min_count: int,
    letters_only: bool,
) -> list[Candidate]:
    """Candidates, those that save most tokens first; ties by the token."""
    together: Counter[str] = Counter()
    commonest: dict[str, tuple[int, ...]] = {}
    for pieces, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        token = spelling.spell(pieces)
        if token is not None and token not in spelling.ids:
            together[token] += count
            commonest.setdefault(token, pieces)
    found = [
        Candidate(token, shown, commonest[token], count)
        for token, count in together.items()
        if count >= min_count and is_word(shown := spelling.shown(token), letters_only=letters_only)
    ]
    return sorted(found, key=lambda word: (-word.saved, word.token))


def extend(spelling: Spelling, ranked: Sequence[Candidate], add: int) -> Extended:
    """Give a tokenizer the first ``add`` candidates that it will use.

    Raises:
        DataError: it is of a kind that cannot be extended.
    """
    if spelling.kind is None:
        msg = (
            f"the tokenizer's model is {spelling.model['type']}; "
            "only WordPiece, BPE and unigram tokenizers can be extended"
        )
        raise DataError(msg)
    first = 1 + max(spelling.ids.values())
    left, unreachable = list(ranked), list[Candidate]()
    while True:
        chosen = left[:add]
        values = _with_words(spelling, chosen, first)
        missed = set(_unreached(spelling, values, chosen, first))
        if not missed:
            break
        unreachable += [word for word in chosen if word.token in missed]
        left = [word for word in left if word.token not in missed]
    shadowed = _shadowed(spelling) if chosen and spelling.model["type"] == "BPE" else []
    return Extended(values, first, tuple(chosen), tuple(unreachable), tuple(shadowed))


def _with_words(spelling: Spelling, words: Sequence[Candidate], first: int) -> dict[str, Any]:
    values = json.loads(json.dumps(spelling.values))
    model = values["model"]
    if not words:
        return dict(values)
    if spelling.kind == "unigram":
        model["vocab"] = [*_filled(spelling, first), *_scored(model, words)]
        return dict(values)
    # Added tokens that the model does not know count on from its size when they are read.
    model["vocab"] = spelling.ids | {word.token: first + i for i, word in enumerate(words)}
    if spelling.kind == "wordpiece":
        return dict(values)
    model["ignore_merges"] = True
    if split := _cut_out(spelling, words):
        steps = [values["pre_tokenizer"]] if values["pre_tokenizer"] else []
        # The words of a byte-level model are cut out before letters are written as bytes.
        steps = [split, *steps] if spelling.kind == "bytes" else [*steps, split]
        values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    return dict(values)


def _filled(spelling: Spelling, size: int) -> list[list[Any]]:
    """A unigram vocabulary with added tokens in it, at their ids."""
    pieces: list[list[Any]] = [list(piece) for piece in spelling.model["vocab"]]
    lowest = min(score for _, score in pieces)
    # An id that no token has still takes its place.
    names = (spelling.tokens.get(i, f"<unused{i}>") for i in range(len(pieces), size))
    return [*pieces, *([name, lowest] for name in names)]


def _scored(model: Mapping[str, Any], words: Iterable[Candidate]) -> list[list[Any]]:
    """New pieces a little likelier than what they are spelled with now.

    So a longer word changes its spelling only where it was spelled with the same pieces.
    """
    pieces = model["vocab"]
    lowest = min(score for _, score in pieces)

    def score(word: Candidate) -> float:
        own = [pieces[piece] for piece in word.pieces]
        if any(piece.startswith("<0x") for piece, _ in own):  # bytes: less likely than any piece
            return float(lowest)
        return float(sum(value for _, value in own)) + LIKELIER

    return [[word.token, score(word)] for word in words]


def _cut_out(spelling: Spelling, words: Sequence[Candidate]) -> dict[str, Any] | None:
    """A pre-tokenizer that sets new words apart; None where the tokenizer does so already."""
    chinese = [word.shown for word in words if is_chinese(word.shown)]
    patterns = [_either(chinese)] if chinese else []
    if spelling.kind == "merges":
        others = [word.token for word in words if not is_chinese(word.shown)]
        after = [token.removeprefix(SPACE) for token in others if token.startswith(SPACE)]
        inside = [token for token in others if not token.startswith(SPACE)]
        patterns += [f"{SPACE}{_either(after)}(?!{_LETTER})"] if after else []
        patterns += [f"(?<![{SPACE}{_LETTER}]){_either(inside)}(?!{_LETTER})"] if inside else []
    if not patterns:
        return None
    return {
        "type": "Split",
        "pattern": {"Regex": "|".join(patterns)},
        "behavior": "Isolated",
        "invert": False,
    }


def _either(words: Iterable[str]) -> str:
    """A pattern for any of some words, the longest that fits: a tree of their letters."""
    tree: dict[str, Any] = {}
    for word in words:
        branch = tree
        for letter in word:
            branch = branch.setdefault(letter, {})
        branch[""] = {}
    return _pattern(tree)


def _pattern(tree: Mapping[str, Any]) -> str:
    ways = [re.escape(letter) + _pattern(branch) for letter, branch in tree.items() if letter]
    if not ways:
        return ""
    together = ways[0] if len(ways) == 1 and "" not in tree else f"(?:{'|'.join(ways)})"
    return f"{together}?" if "" in tree else together


def _unreached(
    spelling: Spelling, values: Mapping[str, Any], words: Sequence[Candidate], first: int
) -> list[str]:
    """Tokens of those words that are not one token where they stand between others."""
    from tokenizers import Tokenizer as Backend

    backend = Backend.from_str(json.dumps(values))
    probes = [_probe(word.shown) for word in words]
    found = backend.encode_batch(probes, add_special_tokens=False)
    return [
        word.token
        for number, (word, encoding) in enumerate(zip(words, found, strict=True))
        if first + number not in encoding.ids
    ]


def _probe(shown: str) -> str:
    if is_chinese(shown):
        return shown
    return f"a{shown} a" if shown.startswith(" ") else f"({shown})"


def _shadowed(spelling: Spelling) -> list[str]:
    """Tokens that a BPE model's merges do not lead to, from their own letters."""
    from tokenizers import Tokenizer as Backend

    if spelling.model.get("ignore_merges"):
        return []
    model = Backend.from_str(json.dumps(spelling.values)).model
    added = {token["content"] for token in spelling.values["added_tokens"]}
    return [
        token
        for token in spelling.model["vocab"]
        if token not in added
        and not token.startswith("<0x")
        and [piece.value for piece in model.tokenize(token)] != [token]
    ]
