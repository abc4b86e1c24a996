"""Chinese words, which no blank sets apart: jieba's cutting, and a note of it beside a tokenizer.

rjieba is jieba's algorithm and dictionary in Rust: the same cut, many times as fast.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module, metadata
from pathlib import Path
from typing import Literal

from configs.errors import DataError

ChineseWords = Literal["characters", "jieba"]
Cut = Callable[[str], list[str]]
"""A text -> its words, which make up the text again."""

FILE = "words.json"
CHARACTERS = "characters"


def segmenter() -> Cut:
    """Jieba's cutting; DataError where rjieba is not installed."""
    try:
        module = import_module("rjieba")
    except ImportError:
        msg = (
            "tokenizer.chinese_words: jieba, but rjieba is not installed; "
            "pip install 'onward[chinese]', or choose characters"
        )
        raise DataError(msg) from None
    cut: Cut = module.cut
    return cut


@contextmanager
def write_words(folder: Path, words: ChineseWords) -> Iterator[None]:
    """Note in the tokenizer's folder, once it is made, how words are found with it."""
    found = CHARACTERS
    if words == "jieba":
        segmenter()
        found = _installed()
    yield
    if found != CHARACTERS:
        (folder / FILE).write_text(json.dumps({"chinese_words": found}) + "\n", encoding="utf-8")


def read_words(folder: Path) -> str:
    """``characters``, or the segmenter and its version."""
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return str(values["chinese_words"])
    except FileNotFoundError:
        return CHARACTERS
    except (ValueError, KeyError, TypeError) as error:
        msg = f"{folder / FILE}: damaged ({error}); make the tokenizer again"
        raise DataError(msg) from None


def cutting(folder: Path) -> Cut | None:
    """What cuts Chinese for the tokenizer in a folder; None where each character is a word.

    Raises:
        DataError: the segmenter is not installed here, or in another version, which may cut
            otherwise.
    """
    words = read_words(folder)
    if words == CHARACTERS:
        return None
    cut = segmenter()
    if words != _installed():
        msg = (
            f"{folder}: its words are cut by {words}, but {_installed()} is installed; "
            "install that version, or make the tokenizer again"
        )
        raise DataError(msg)
    return cut


def _installed() -> str:
    return f"rjieba {metadata.version('rjieba')}"
