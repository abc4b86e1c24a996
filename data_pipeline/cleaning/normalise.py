"""One spelling of the same text: Unicode NFC, plain line ends, no control characters.

Joiners and direction marks stay, and nothing is folded: emoji sequences, Persian and Indic
spellings, and text from right to left come through as they are.
"""

import re
import unicodedata
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_NONCHARACTERS = "".join(f"{chr(end - 1)}{chr(end)}" for end in range(0xFFFF, 0x110000, 0x10000))
# Control characters but tab and line ends, byte order marks within the text, and code points that
# Unicode keeps out of texts.
_DROPPED_SET = f"\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufdd0-\ufdef{_NONCHARACTERS}"
_DROPPED = re.compile(f"[{_DROPPED_SET}]")
# Form feeds and vertical tabs end lines, too (Unicode 5.8): dropped, they would glue words.
_LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_UNUSUAL = re.compile(f"[{_DROPPED_SET}\r\x0b\x0c\x85\u2028\u2029\ud800-\udfff]")
_UNUSUAL_ASCII = bytes(code for code in range(0x80) if _UNUSUAL.match(chr(code)))
_BLANK_LINES = re.compile(r"\n{3,}")


def normalise(text: str) -> str:
    """The text in its normal form; "" for a text of nothing but space. Idempotent.

    Time is linear in the text, whatever it holds. An ordinary text is only looked through.
    """
    if _is_unusual(text):
        text = _LINE_END.sub("\n", text)
        text = _DROPPED.sub("", text)
        text = _SURROGATES.sub("\ufffd", text)
    # The quick check comes first in it: a text in normal form is not built anew.
    text = unicodedata.normalize("NFC", text)
    if "\n" in text:
        text = "\n".join(map(str.rstrip, text.split("\n")))
        if "\n\n\n" in text:
            text = _BLANK_LINES.sub("\n\n", text)
    return text.strip()


def _is_unusual(text: str) -> bool:
    """Whether there is a character to drop or to replace."""
    if text.isascii():
        content = text.encode("ascii")
        return len(content.translate(None, _UNUSUAL_ASCII)) < len(content)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return bool(_unusual_codes()[codes].any())


@lru_cache(maxsize=1)
def _unusual_codes() -> NDArray[np.bool_]:
    """Of every code point: whether ``_UNUSUAL`` matches it."""
    unusual = np.zeros(0x110000, np.bool_)
    every = "".join(map(chr, range(0x110000)))
    unusual[[match.start() for match in _UNUSUAL.finditer(every)]] = True
    return unusual
