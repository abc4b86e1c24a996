"""One spelling of the same text: Unicode NFC, plain line ends, no control characters."""

import re
import unicodedata

# Control characters but tab and line end, byte order marks within the text, and code points that
# Unicode keeps out of texts.
_DROPPED = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufeff\ufdd0-\ufdef\U0010fffe\U0010ffff]"
)
_LINE_END = re.compile("\r\n|[\r\x85\u2028\u2029]")
_TRAILING = re.compile(r"[^\S\n]+$", re.MULTILINE)
_SURROGATES = re.compile("[\ud800-\udfff]")
_BLANK_LINES = re.compile(r"\n{3,}")


def normalise(text: str) -> str:
    """The text in its normal form; "" for a text of nothing but space. Idempotent."""
    text = _LINE_END.sub("\n", text)
    text = _DROPPED.sub("", text)
    text = _SURROGATES.sub("\ufffd", text)
    text = unicodedata.normalize("NFC", text)
    text = _TRAILING.sub("", text)
    return _BLANK_LINES.sub("\n\n", text).strip()
