"""Which texts stay, and which one stands for each that goes: a pure function of digests."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_pipeline.cleaning import (
    SIDES,
    NearDuplicates,
    Removal,
    Side,
    near_duplicates,
    read_names,
    read_signatures,
)
from data_pipeline.cleaning.removal import HEAD
from data_pipeline.preparing.cleaned import SideTexts, names_file, signatures_file, spool_file
from data_pipeline.spool import Block

Step = Literal["exact_duplicates", "near_duplicates"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of the texts of one side of a corpus.

    Attributes:
        kept: bool [texts]: whether each stays.
        exact: int64 [texts]: the text that a removed one equals; -1 elsewhere. Below
            ``held_out`` it is one of all held-out texts, in the order of the corpora; from there
            on, one of this side.
        near: int64 [texts]: the text that a removed one is near to, of this corpus: its held-out
            texts come first; -1 elsewhere.
        held_out: how many held-out texts there are before this side's own in ``exact``.
    """

    kept: NDArray[np.bool_]
    exact: NDArray[np.int64]
    near: NDArray[np.int64]
    held_out: int


def first_equals(digests: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The first text that each equals; itself where there is none before it.

    Args:
        digests: uint64 [N, 2].

    Returns:
        int64 [N].
    """
    high, low = digests.T
    # A stable sort: within a run of equal digests the order is that of the texts.
    order = np.lexsort((low, high))
    opens = np.ones(len(order), np.bool_)
    opens[1:] = (np.diff(high[order]) != 0) | (np.diff(low[order]) != 0)
    found = np.empty(len(order), np.int64)
    found[order] = order[opens][np.cumsum(opens) - 1]
    return found


def exact_verdicts(
    corpora: Mapping[str, Mapping[Side, SideTexts]],
) -> dict[str, dict[Side, Verdict]]:
    """No text twice in a corpus, and no held-out one in any train side."""
    held_out = np.concatenate([sides["held_out"].digests for sides in corpora.values()])
    found: dict[str, dict[Side, Verdict]] = {}
    for name, sides in corpora.items():
        own = sides["held_out"].digests
        train = first_equals(np.concatenate((held_out, sides["train"].digests)))
        found[name] = {
            "held_out": _verdict(first_equals(own), 0),
            "train": _verdict(train, len(held_out)),
        }
    return found


def _verdict(firsts: NDArray[np.int64], before: int) -> Verdict:
    kept = (firsts == np.arange(len(firsts)))[before:]
    exact = np.where(kept, -1, firsts[before:])
    return Verdict(kept, exact, np.full(len(kept), -1, np.int64), before)


def near_verdicts(
    exact: Mapping[Side, Verdict], settings: NearDuplicates, stems: Sequence[Path]
) -> dict[Side, Verdict]:
    """Take near duplicates out of one corpus; its held-out texts come first."""
    files = [signatures_file(stem, side) for side in SIDES for stem in stems]
    signatures = [read_signatures(path, settings) for path in files]
    kept = np.concatenate([exact[side].kept for side in SIDES])
    nearest = near_duplicates(signatures, settings, kept)
    found: dict[Side, Verdict] = {}
    at = 0
    for side in SIDES:
        one = exact[side]
        near = nearest[at : at + len(one.kept)]
        found[side] = Verdict(one.kept & (near < 0), one.exact, near, one.held_out)
        at += len(one.kept)
    return found


@dataclass(frozen=True, slots=True)
class Documents:
    """The ids of the documents of all corpora and how each begins, read from their files.

    Attributes:
        stems: of the parts of each corpus, by its name.
        texts: where its texts lie, by name and side.
    """

    stems: Mapping[str, Sequence[Path]]
    texts: Mapping[str, Mapping[Side, SideTexts]]

    def of(self, corpus: str, side: Side) -> Iterator[str]:
        """Of one side, in order."""
        for stem in self.stems[corpus]:
            yield from read_names(names_file(stem, side))

    def held_out(self) -> Iterator[str]:
        """Of all held-out sides, in order."""
        for corpus in self.stems:
            yield from self.of(corpus, "held_out")

    def heads(
        self, corpus: str, side: Side, wanted: NDArray[np.int64]
    ) -> Iterator[tuple[int, str]]:
        """Place and beginning of some texts of one side; ``wanted`` ascends."""
        rows = self.texts[corpus][side].blocks
        owners = np.searchsorted(rows[:, 3], wanted, side="right") - 1
        for places in np.split(wanted, np.flatnonzero(np.diff(owners)) + 1):
            if len(places):
                row = np.searchsorted(rows[:, 3], places[0], side="right") - 1
                part, start, texts, first, _ = rows[row].tolist()
                block = Block(spool_file(self.stems[corpus][part], side), start, texts)
                yield from zip(
                    places.tolist(), block.heads((places - first).tolist(), HEAD), strict=True
                )

    def removals(self, corpus: str, side: Side, verdict: Verdict) -> Iterator[Removal]:
        """A line for each text that a verdict takes out; memory grows with their number."""
        gone, near = np.flatnonzero(verdict.exact >= 0), np.flatnonzero(verdict.near >= 0)
        if not len(gone) and not len(near):
            return
        equals = verdict.exact[gone]
        among_own = equals >= verdict.held_out
        own = _picked(
            self.of(corpus, side),
            np.concatenate((gone, near, (equals - verdict.held_out)[among_own])),
        )
        other = _picked(self.held_out(), equals[~among_own])
        for (text, head), first in zip(
            self.heads(corpus, side, gone), equals.tolist(), strict=True
        ):
            by_own = first >= verdict.held_out
            said = own[first - verdict.held_out] if by_own else other[first]
            reason = "equal" if by_own else "held_out"
            yield Removal(own[text], side, "exact_duplicates", reason, said, head)
        both = _picked((n for s in SIDES for n in self.of(corpus, s)), verdict.near[near])
        for (text, head), first in zip(
            self.heads(corpus, side, near), verdict.near[near].tolist(), strict=True
        ):
            yield Removal(own[text], side, "near_duplicates", "near", both[first], head)


def _picked(names: Iterator[str], wanted: NDArray[np.int64]) -> dict[int, str]:
    """Some of the names, by their place."""
    places = set(wanted.tolist())
    if not places:
        return {}
    return {at: name for at, name in enumerate(names) if at in places}
