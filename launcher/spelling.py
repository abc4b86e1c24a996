"""Words that any shell hands on as they are: every other byte as ``+XX``.

deepspeed's pdsh and Slurm launchers put words on command lines that a shell, pdsh or srun reads
again, and each changes other characters.
"""

import os
import re
from collections.abc import Sequence

FLAG = "--spelled"
"""On a worker's command line: the words after it are spelled."""
_PLAIN = re.compile(r"[A-Za-z0-9_./:=-]*")
_OTHERS = re.compile(rb"[^A-Za-z0-9_./:=-]")
_BYTE = re.compile(rb"\+([0-9A-F]{2})")


def is_plain(word: str) -> bool:
    """Whether every launcher and shell hands it on as it is."""
    return _PLAIN.fullmatch(word) is not None


def spell(word: str) -> str:
    """A word in plain characters."""
    return _OTHERS.sub(lambda found: b"+%02X" % found[0][0], os.fsencode(word)).decode("ascii")


def read(word: str) -> str:
    """What ``spell`` was given."""
    return os.fsdecode(_BYTE.sub(lambda found: bytes([int(found[1], 16)]), word.encode("ascii")))


def spell_if_needed(words: Sequence[str]) -> list[str]:
    """The words, or FLAG and all of them spelled if one is not plain."""
    if all(map(is_plain, words)):
        return list(words)
    return [FLAG, *map(spell, words)]


def read_if_spelled(words: Sequence[str]) -> list[str]:
    """What ``spell_if_needed`` was given, after what a launcher has put before it."""
    if FLAG not in words:
        return list(words)
    at = list(words).index(FLAG)
    return [*words[:at], *map(read, words[at + 1 :])]
