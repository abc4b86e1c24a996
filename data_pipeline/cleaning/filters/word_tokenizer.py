"""A word tokenizer for datatrove's rules, which takes any of its ``WordTokenizer`` class.

datatrove itself cuts English by spaCy and Chinese by spaCy over jieba. This one needs no model:
runs of letters, digits and inner apostrophes; a repeated sign as one word; Chinese by rjieba (the
same cut as jieba, 26 times as fast). Import it only where datatrove is wanted.
"""

from collections.abc import Iterator
from functools import lru_cache

import regex
from datatrove.utils.word_tokenizers import WordTokenizer

from data_pipeline.tokenization.chinese import Cut, segmenter
from data_pipeline.tokenization.starts import characters, sentence_starts

_SINGLE = r"\p{Han}\p{Hiragana}\p{Katakana}"
_LETTER = rf"[[\w\p{{M}}\u200c\u200d]--[{_SINGLE}]]"
_WORDS = regex.compile(
    rf"(?P<han>\p{{Han}}+)|[{_SINGLE}]|{_LETTER}+(?:['’]{_LETTER}+)*|(?P<sign>[^\w\s])(?P=sign)*",
    regex.V1,
)


class Words(WordTokenizer):  # type: ignore[misc]
    """Words and sentences of one language, of which only ``zh`` is cut by a dictionary."""

    def __init__(self, language: str) -> None:
        super().__init__(language)
        self._cut: Cut = segmenter() if language == "zh" else list

    def word_tokenize(self, text: str) -> list[str]:
        """The words and signs, without space."""
        return list(self._words(text))

    def sent_tokenize(self, text: str) -> list[str]:
        """The sentences, trimmed."""
        cut = (text[low:high].strip() for low, high in self.span_tokenize(text))
        return [sentence for sentence in cut if sentence]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Begin and end of each sentence, in characters."""
        if not text:
            return []
        starts = sentence_starts(characters([text])).first.nonzero()[0].tolist()
        return list(zip(starts, [*starts[1:], len(text)], strict=True))

    def _words(self, text: str) -> Iterator[str]:
        for match in _WORDS.finditer(text):
            if match["han"] is None:
                yield match[0]
            else:
                yield from self._cut(match[0])


@lru_cache(maxsize=8)
def word_tokenizer(language: str) -> Words:
    """For the ``language`` argument of datatrove's filters."""
    return Words(language)
