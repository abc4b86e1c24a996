"""Where words and sentences start, for any tokenizer: from the text and the tokens' offsets.

Guessing from the tokens themselves does not work: "##" is WordPiece's alone, and byte-level BPE
starts words without its space mark after every punctuation sign.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from data_pipeline.tokenization.chinese import Cut

SPACE, WORD, SINGLE = 0, 1, 2
"""Kinds of character; each character of the kind SINGLE is a word by itself."""

CJK = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
_OPENED_BY_CAPITALS = ".!?…"
_WESTERN, _EASTERN = f"{_OPENED_BY_CAPITALS}।۔؟", "。！？｡"
_CLOSING = "\"'”’»)]}"
_SENTENCE_ENDS = re.compile(
    rf"[{_WESTERN}][{re.escape(_CLOSING)}]*\s+(?=\S)"
    rf"|[{_EASTERN}]+[”’」』）》\"')]*\s*(?=\S)|\n[^\S\n]*\n\s*(?=\S)"
)
_NAMES_FOLLOW = (
    "Mr Mrs Ms Dr Prof Rev Hon Gen Col Sgt Capt Lt Gov Sen Rep Pres St Mt e.g i.e cf vs viz"
)
_NUMBERS_FOLLOW = (
    "al No Nos Fig Figs Eq Eqs Sec Ch Vol pp p ca Ref Refs Tab Art "
    "Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec"
)
_LONGEST_ABBREVIATION = 6
_BOUNDARY = "([\"'“‘.-"
# An initial ("J. Smith", "U.S. troops") is a capital by itself.
_ABBREVIATED = re.compile(
    r"(?<![^\s(\[\"'“‘.-])(?:(?P<initial>[A-Z])|"
    rf"(?P<name>{'|'.join(map(re.escape, _NAMES_FOLLOW.split()))})|"
    rf"(?P<number>{'|'.join(_NUMBERS_FOLLOW.split())}))\Z"
)


@dataclass(frozen=True, slots=True)
class Starts:
    """Places in a text where something starts.

    Attributes:
        first: bool [characters]: at the first character of the thing.
        mark: bool [characters]: the same, but at the single blank before it where there is one,
            because many tokenizers write that blank into the thing's first token.
    """

    first: NDArray[np.bool_]
    mark: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Characters:
    """Texts laid end to end.

    Attributes:
        codes: uint32 [characters], code points.
        texts: the texts.
        starts: int64 [texts], where each begins.
        opening: the starts of those that are not empty.
    """

    codes: NDArray[np.uint32]
    texts: Sequence[str]
    starts: NDArray[np.int64]
    opening: NDArray[np.int64]


def characters(texts: Sequence[str]) -> Characters:
    """Lay texts end to end; none may hold surrogates."""
    lengths = np.array([len(text) for text in texts], np.int64)
    codes = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
    starts = np.cumsum(lengths) - lengths
    return Characters(codes, texts, starts, starts[lengths > 0])


def word_starts(over: Characters, cut: Cut | None = None) -> Starts:
    """Words as BERT cuts them: runs of letters and digits, single signs, single CJK characters.

    A run of space that is more than the one blank between two words counts as a word, so that
    tokens of nothing but space belong to no other word.

    Args:
        over: the texts.
        cut: cuts each stretch of CJK characters into words; absent: each is one by itself.
    """
    kinds = _kinds_by_code()[over.codes]
    before = np.empty_like(kinds)
    before[1:] = kinds[:-1]
    before[over.opening] = 255  # like nothing else: every text starts something
    changed = kinds != before
    visible = (kinds == SINGLE) | (changed & (kinds == WORD))
    if cut is not None:
        visible &= ~_inside_chinese_words(over, cut)
    blank = _blank_before(over, visible)
    space = changed & (kinds == SPACE) & ~blank
    first = visible | space
    return Starts(first, _moved(first, blank))


def _inside_chinese_words(over: Characters, cut: Cut) -> NDArray[np.bool_]:
    """Bool [characters]: CJK characters that go on with a word."""
    inside = _is_cjk()[over.codes]
    if not inside.any():
        return inside
    opens = inside.copy()
    opens[1:] &= ~inside[:-1]
    opens[over.opening] = inside[over.opening]
    ends = inside.copy()
    ends[:-1] &= ~inside[1:] | opens[1:]
    begins, stops = np.flatnonzero(opens), np.flatnonzero(ends) + 1
    text = "".join(over.texts)
    # At once, set apart by line ends, which no word holds: a call for each takes longer.
    stretches = "\n".join(text[a:b] for a, b in zip(begins.tolist(), stops.tolist(), strict=True))
    words = cut(stretches)
    starts = np.zeros(len(stretches) + 1, np.bool_)
    starts[np.cumsum([0, *map(len, words)])] = True
    separators = np.cumsum(stops - begins + 1)[:-1] - 1
    inside[inside] = ~np.delete(starts[:-1], separators)
    return inside


def sentence_starts(over: Characters) -> Starts:
    """After . ! ? and space, after their CJK forms, and at paragraphs.

    Not where a small letter follows the space, nor after initials and common abbreviations.
    """
    first = np.zeros(len(over.codes), np.bool_)
    first[sentence_places(over)] = True
    return Starts(first, _moved(first, _blank_before(over, first)))


def sentence_places(over: Characters) -> NDArray[np.int64]:
    """The first character of each sentence, ascending: int64 [sentences]."""
    signs = np.flatnonzero(_is_sign()[over.codes])
    owners = np.searchsorted(over.starts, signs, side="right") - 1
    stops = np.append(over.starts, len(over.codes))[owners + 1]
    plain, unsure = _plain_ends(over, signs, stops)
    places = [over.opening, plain]
    asked = [
        start + found
        for sign, start, text in zip(
            signs[unsure].tolist(),
            over.starts[owners[unsure]].tolist(),
            (over.texts[owner] for owner in owners[unsure].tolist()),
            strict=True,
        )
        if (found := _sentence_after(text, sign - start)) is not None
    ]
    return np.unique(np.concatenate([*places, np.array(asked, np.int64)]))


def _plain_ends(
    over: Characters, signs: NDArray[np.int64], stops: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Most sentences end in a sign and one blank, which needs no regular expression.

    Args:
        over: the texts.
        signs: characters that a match of ``_SENTENCE_ENDS`` may begin with.
        stops: where the text of each ends.

    Returns:
        first characters of sentences; and bool [signs], which are to be looked at more closely.
    """
    room = signs + 2 < stops
    last = len(over.codes) - 1
    space = _is_space()
    code = over.codes[signs]
    following, beyond = (over.codes[np.minimum(signs + step, last)] for step in (1, 2))
    blank = space[following] & (signs + 1 < stops)
    western = _is_opened_by_capitals()[code]
    plain = western & room & blank & ~space[beyond]
    # A line end that no space follows ends nothing, and neither does a sign within a word.
    nothing = (western & ~blank & ~_is_closing()[following]) | ((code == ord("\n")) & ~blank)
    near = np.zeros(len(signs), np.bool_)
    boundary = _is_boundary()
    for back in range(1, _LONGEST_ABBREVIATION):
        near |= boundary[over.codes[np.maximum(signs - back, 0)]]
    begins = signs - (_LONGEST_ABBREVIATION - 1)
    near |= np.searchsorted(over.starts, begins) < np.searchsorted(over.starts, signs, "right")
    abbreviated = (code == ord(".")) & near
    capital = ~_are_small(beyond)
    good = plain & ~abbreviated & capital
    unsure = ~nothing & (~plain | (abbreviated & capital))
    return signs[good] + 2, unsure


def _sentence_after(text: str, sign: int) -> int | None:
    """The first character of the sentence that begins behind a sign, if one does."""
    found = _SENTENCE_ENDS.match(text, sign)
    if found is None or not _opens(text, sign, found.end()):
        return None
    return found.end()


def starting_tokens(
    places: Starts, begin: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which tokens open one of the places.

    A token does when it is the first that begins at or after the place's mark, and the place's
    first character does not lie inside an earlier token.

    Args:
        places: where things start.
        begin: [tokens] first character of each token, ascending. Several tokens may share
            characters (the bytes of one character, say).
        end: [tokens] behind its last character.

    Returns:
        bool [tokens].
    """
    if not len(begin):
        return np.zeros(0, np.bool_)
    covered = np.concatenate(([0], np.maximum.accumulate(end)[:-1]))
    marks = np.concatenate(([0], np.cumsum(places.mark)))
    firsts = np.concatenate(([0], np.cumsum(places.first)))
    last = len(places.mark)
    opened = marks[np.minimum(begin + 1, last)]
    before = np.concatenate(([0], opened[:-1]))
    taken = firsts[np.minimum(covered, last)]
    starting: NDArray[np.bool_] = (opened > np.maximum(before, taken)) & (begin >= covered)
    return starting


def _opens(text: str, begin: int, end: int) -> bool:
    """Whether a sentence begins at ``end``, where a match of ``_SENTENCE_ENDS`` ends."""
    sign = text[begin]
    if sign not in _OPENED_BY_CAPITALS or (end - begin > 2 and text.count("\n", begin, end) > 1):
        return True
    following = text[end]
    if following.islower():
        return False
    if sign != "." or not text[begin + 1].isspace():
        return True
    # One character more than the longest, to see what stands before it.
    found = _abbreviation(text[max(0, begin - _LONGEST_ABBREVIATION - 1) : begin])
    return found is None or (found == "number" and not following.isdecimal())


@lru_cache(maxsize=1 << 16)
def _abbreviation(head: str) -> str | None:
    """The kind of abbreviation that ``head`` ends in."""
    found = _ABBREVIATED.search(head)
    return None if found is None else found.lastgroup


def _blank_before(over: Characters, first: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Blanks that stand right before a place, within the same text."""
    blank = np.zeros(len(first), np.bool_)
    blank[:-1] = first[1:] & (over.codes[:-1] == ord(" "))
    blank[over.opening[1:] - 1] = False
    return blank


def _moved(first: NDArray[np.bool_], blank: NDArray[np.bool_]) -> NDArray[np.bool_]:
    mark = first | blank
    mark[1:] &= ~blank[:-1]
    return mark


@cache
def _is_sign() -> NDArray[np.bool_]:
    return _among(f"{_WESTERN}{_EASTERN}\n")


@cache
def _is_opened_by_capitals() -> NDArray[np.bool_]:
    return _among(_OPENED_BY_CAPITALS)


@cache
def _is_closing() -> NDArray[np.bool_]:
    return _among(_CLOSING)


@cache
def _is_boundary() -> NDArray[np.bool_]:
    return _among(_BOUNDARY) | _is_space()


@cache
def _is_space() -> NDArray[np.bool_]:
    every = np.arange(0x110000, dtype="<u4").tobytes().decode("utf-32-le", "surrogatepass")
    return _among("".join(re.findall(r"\s", every)))


def _are_small(codes: NDArray[np.uint32]) -> NDArray[np.bool_]:
    known, places = np.unique(codes, return_inverse=True)
    small = np.array([chr(code).islower() for code in known.tolist()], np.bool_)
    return small[places]


def _among(characters_: str) -> NDArray[np.bool_]:
    """Bool [code points]."""
    found = np.zeros(0x110000, np.bool_)
    found[[ord(character) for character in characters_]] = True
    return found


@lru_cache(maxsize=1)
def _kinds_by_code() -> NDArray[np.uint8]:
    """Kind of every code point, by BERT's rules."""
    kinds = np.full(0x110000, WORD, np.uint8)
    for code in range(0x110000):
        category = unicodedata.category(chr(code))[0]
        if category == "Z" or chr(code) in "\t\n\r":
            kinds[code] = SPACE
        elif category == "P":
            kinds[code] = SINGLE
    for code in range(0x21, 0x7F):
        if not chr(code).isalnum():
            kinds[code] = SINGLE
    kinds[_is_cjk()] = SINGLE
    return kinds


@lru_cache(maxsize=1)
def _is_cjk() -> NDArray[np.bool_]:
    """Bool by code point."""
    found = np.zeros(0x110000, np.bool_)
    for low, high in CJK:
        found[low : high + 1] = True
    return found
