"""Damaged copies of files that are valid: bytes by bytes, and values by values."""

import copy
import json
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

Edit = Callable[[bytes], bytes]
NUMBERS = (0, -1, 1, 255, 256, 2**31 - 1, -(2**31), 2**32, 2**63 - 1, 2**63, -(2**63), 2**64)
"""At which counts overflow."""
WORDS = (
    "",
    "..",
    "../x",
    "/etc/passwd",
    "a\\..\\b",
    "a\0b",
    "\ud800",
    "x\n",
    "C:x",
    "é" * 300,
    "__import__('os').system('true')",
    "nan",
    "-",
)
_TOKENS = (
    b"!!python/object/apply:os.system ['true']",
    b"&a [*a]",
    b"\t",
    b"\r\n",
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"{",
    b"[" * 2000,
    b"- " * 1500,
    b"{a: " * 400,
    b"1" * 5000,
    b"1e999",
    b"0x" + b"f" * 5000,
    b"NaN",
    b"\xed\xa0\x80",
    b'"\\ud800"',
    b"<<: *a",
    b"? ",
    b": ",
    b"!!binary x",
    b"!!int y",
    b"!!timestamp 2001-99-99",
    b"2001-99-99",
    b"12:99:99.x",
    b"%YAML 9.9\n---\n",
    b"---\n",
    b"...",
    b"slots=",
    b"#",
    b"|",
    b">-",
)


def damaged(seeds: Sequence[bytes]) -> st.SearchStrategy[bytes]:
    """One of the seeds after some edits of its bytes."""
    edits = st.lists(_byte_edit(seeds), min_size=1, max_size=5)
    return st.builds(_edited, st.sampled_from(list(seeds)), edits)


def _edited(content: bytes, edits: Sequence[Edit]) -> bytes:
    for edit in edits:
        content = edit(content)
    return content


def _byte_edit(seeds: Sequence[bytes]) -> st.SearchStrategy[Edit]:
    place = st.integers(0, 1 << 20)
    size = st.integers(0, 64)
    return st.one_of(
        st.builds(_flipped, place, st.integers(0, 7)),
        st.builds(_replaced, place, st.just(1), st.binary(min_size=1, max_size=1)),
        st.builds(_cut, place),
        st.builds(_replaced, place, size, st.just(b"")),
        st.builds(_replaced, place, size, st.sampled_from(_TOKENS)),
        st.builds(_replaced, place, size, st.binary(max_size=16)),
        st.builds(_replaced, place, st.sampled_from((2, 4, 8)), _numbers()),
        st.builds(_spliced, st.sampled_from(list(seeds)), place, place, place, size),
        st.builds(_repeated, place, size, st.integers(2, 40)),
        st.builds(_swapped_lines, place, place),
    )


def _numbers() -> st.SearchStrategy[bytes]:
    """As files of binary numbers hold them."""
    width = st.sampled_from((2, 4, 8))
    return st.builds(
        lambda number, width: (number % (1 << 8 * width)).to_bytes(width, "little"),
        st.sampled_from(NUMBERS),
        width,
    )


def _at(content: bytes, place: int) -> int:
    return place % (len(content) + 1)


def _flipped(place: int, bit: int) -> Edit:
    def edit(content: bytes) -> bytes:
        if not content:
            return content
        at = place % len(content)
        return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]

    return edit


def _replaced(place: int, size: int, by: bytes) -> Edit:
    def edit(content: bytes) -> bytes:
        at = _at(content, place)
        return content[:at] + by + content[at + size :]

    return edit


def _cut(place: int) -> Edit:
    return lambda content: content[: _at(content, place)]


def _spliced(other: bytes, start: int, stop: int, place: int, size: int) -> Edit:
    first, last = sorted((_at(other, start), _at(other, stop)))
    return _replaced(place, size, other[first : min(last, first + 4096)])


def _repeated(place: int, size: int, times: int) -> Edit:
    def edit(content: bytes) -> bytes:
        at = _at(content, place)
        return content[:at] + content[at : at + size] * times + content[at:]

    return edit


def _swapped_lines(first: int, second: int) -> Edit:
    def edit(content: bytes) -> bytes:
        lines = content.split(b"\n")
        a, b = first % len(lines), second % len(lines)
        lines[a], lines[b] = lines[b], lines[a]
        return b"\n".join(lines)

    return edit


def rewritten(seeds: Sequence[Any]) -> st.SearchStrategy[Any]:
    """One of the seeds, which JSON can hold, with some of its values replaced, left out, added."""
    edits = st.lists(
        st.tuples(st.integers(0, 1 << 16), st.sampled_from(("set", "drop", "add", "copy")), _value),
        min_size=1,
        max_size=4,
    )
    return st.builds(_rewritten, st.sampled_from(list(seeds)), edits)


_value = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(NUMBERS),
    st.sampled_from(WORDS),
    st.floats(),
    st.text(max_size=8),
    st.just([]),
    st.just({}),
    st.just([[[]]]),
    st.just({"a": {"b": []}}),
    st.just(10**400),
)


def _rewritten(seed: Any, edits: Sequence[tuple[int, str, Any]]) -> Any:
    value = copy.deepcopy(seed)
    for number, kind, new in edits:
        places = list(_places(value))
        if not places:
            return new
        holder, key = places[number % len(places)]
        if kind == "drop":
            del holder[key]
        elif kind == "set":
            holder[key] = copy.deepcopy(new)
        elif kind == "copy":
            other, other_key = places[(number * 31 + 7) % len(places)]
            # One that held the other may have gone with it.
            holder[key] = copy.deepcopy(other[other_key])
        elif isinstance(holder, dict):
            holder[str(new)[:40]] = copy.deepcopy(holder[key])
        else:
            holder.append(copy.deepcopy(new))
    return value


def _places(value: Any) -> Any:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from _places(value[key])


def as_json(value: Any) -> bytes:
    """With NaN and the like as Python writes them."""
    return json.dumps(value).encode()
