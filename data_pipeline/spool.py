"""Texts on disk between cleaning and tokenising, in blocks that one process reads at a time."""

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

BLOCK_BYTES = 1 << 19
LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Block:
    """Some texts of a spool file.

    Attributes:
        path: the file.
        start: offset of the first text in bytes.
        texts: how many there are.
    """

    path: Path
    start: int
    texts: int

    def read(self) -> Iterator[str]:
        """Its texts, in order."""
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            for _ in range(self.texts):
                (length,) = LENGTH.unpack(stream.read(LENGTH.size))
                yield stream.read(length).decode()

    def heads(self, places: Iterable[int], characters: int) -> Iterator[str]:
        """So many first characters of some of its texts; ``places`` ascend, and count from 0."""
        with self.path.open("rb", buffering=BLOCK_BYTES) as stream:
            stream.seek(self.start)
            at = 0
            for place in places:
                for _ in range(place - at):
                    (length,) = LENGTH.unpack(stream.read(LENGTH.size))
                    stream.seek(length, os.SEEK_CUR)
                (length,) = LENGTH.unpack(stream.read(LENGTH.size))
                # A character takes at most four bytes; the last one may be cut.
                head = stream.read(min(length, 4 * characters))
                stream.seek(length - len(head), os.SEEK_CUR)
                at = place + 1
                yield head.decode(errors="ignore")[:characters]


class Spool:
    """A file that texts are appended to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._blocks: list[Block] = []
        self._stream = path.open("wb")
        self._start = self._at = self._texts = 0

    def append(self, text: str) -> None:
        """Add a text; it must be without surrogates."""
        content = text.encode()
        self._stream.write(LENGTH.pack(len(content)))
        self._stream.write(content)
        self._at += LENGTH.size + len(content)
        self._texts += 1
        if self._at - self._start >= BLOCK_BYTES:
            self._end_block()

    def close(self) -> tuple[Block, ...]:
        """Finish the file; its blocks, in order."""
        if self._texts:
            self._end_block()
        self._stream.close()
        return tuple(self._blocks)

    def _end_block(self) -> None:
        self._blocks.append(Block(self.path, self._start, self._texts))
        self._start, self._texts = self._at, 0

    def __enter__(self) -> "Spool":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stream.close()
