"""A corpus on its way from cleaned texts to shards: which texts stay, and what is told of it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from configs.errors import DataError
from configs.schema import Config
from data_pipeline.cleaning import SIDES, CleanPart, Side, Split, first_occurrences
from data_pipeline.cleaning.exact_duplicates import DIGEST_BYTES
from data_pipeline.sources import Rejected, Source
from data_pipeline.spool import Block


class CorpusConfig(Config):
    """Documents that are shuffled, weighted and measured together.

    Attributes:
        sources: where they come from, in order.
        split: what is held out; nothing where it is absent.
        exclude: locations of jsonl files whose field ``text`` this corpus must not train on, such
            as a task's dev and test rows. A document of the train side is left out when it equals
            such a text, or contains one of 60 characters or more; letters and digits alone are
            compared, whatever their case. The manifest's provenance tells how many were left out.
    """

    sources: list[Source] = Field(min_length=1)
    split: Split | None = None
    exclude: list[str] = Field(default_factory=list)

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides it has."""
        return ("train",) if self.split is None else SIDES


@dataclass(slots=True)
class Corpus:
    """Cleaned parts of one corpus, in order.

    Attributes:
        name: its name in the recipe.
        config: what it is made of.
        source_digests: one a source.
        exclude_digest: of the files of ``exclude``.
        parts: what came of the parts of its sources.
        rejected: of each source, what was no document.
        kept: bool [texts] by side: which texts stay; empty until ``keep_firsts``.
    """

    name: str
    config: CorpusConfig
    source_digests: Sequence[str]
    exclude_digest: str = ""
    parts: list[CleanPart] = field(default_factory=list)
    rejected: dict[int, list[Rejected]] = field(default_factory=dict)
    kept: dict[Side, NDArray[np.bool_]] = field(default_factory=dict)

    def add(self, source: int, part: CleanPart) -> None:
        """Take the next part of a source; DataError when that is one rejected item too many."""
        rejected = self.rejected.setdefault(source, [])
        for item in part.rejected:
            rejected.append(item)
            self.config.sources[source].bear(len(rejected), item)
        self.parts.append(part)

    @property
    def documents(self) -> int:
        """How many were read."""
        return sum(part.documents for part in self.parts)

    def digests(self, side: Side) -> bytes:
        """``text_digest`` of all its texts on one side."""
        return b"".join(part.sides[side].digests for part in self.parts)

    def blocks(self, side: Side) -> Iterator[tuple[Block, NDArray[np.bool_]]]:
        """Blocks with texts that stay, and which of their texts do: bool [block.texts]."""
        at = 0
        for part in self.parts:
            for block in part.sides[side].blocks:
                kept = self.kept[side][at : at + block.texts]
                at += block.texts
                if kept.any():
                    yield block, kept

    def texts(self, side: Side) -> Iterator[str]:
        """The texts that stay, in order."""
        for block, kept in self.blocks(side):
            yield from compress(block.read(), kept)

    def refuse_empty(self) -> None:
        """DataError when a side that it should have holds no text."""
        read = self.documents
        for side in self.config.sides:
            if self.kept[side].any():
                continue
            if read == 0:
                why = "its sources hold no document"
            elif side == "held_out":
                why = f"of its {read} documents not one is held out; {self._remedy()}"
            else:
                why = f"of its {read} documents none is left: empty, twice, excluded or held out"
            msg = f"corpus {self.name}: {why}"
            raise DataError(msg)

    def _remedy(self) -> str:
        split = self.config.split
        if split is not None and split.groups is not None:
            return f"not one of the groups in {split.groups} occurs in its sources"
        return "its groups are too few for the share of split.held_out: raise it"

    def provenance(self, side: Side, seed: int) -> dict[str, Any]:
        """Where the texts of a side come from and what was left out, with counts."""
        split = self.config.split
        kept = self.kept[side]
        return {
            "corpus": self.name,
            "side": side,
            "seed": seed,
            "sources": [
                source.model_dump(mode="json") | {"sha256": digest}
                for source, digest in zip(self.config.sources, self.source_digests, strict=True)
            ],
            "split": None if split is None else split.model_dump(mode="json"),
            "exclude": {"locations": self.config.exclude, "sha256": self.exclude_digest}
            if self.config.exclude
            else None,
            "cleaning": ["normalise", "exclude", "exact_duplicates"],
            "counts": {
                "documents_read": self.documents,
                "rejected": sum(map(len, self.rejected.values())),
                "empty": sum(part.empty for part in self.parts),
                "excluded": sum(part.excluded for part in self.parts) if side == "train" else 0,
                "on_this_side": len(kept),
                "duplicates_left_out": int(len(kept) - kept.sum()),
            },
        }


def keep_firsts(corpora: Iterable[Corpus]) -> None:
    """Decide which texts stay: no text twice in a corpus, no held-out one in any train side."""
    corpora = list(corpora)
    held_out = b"".join(corpus.digests("held_out") for corpus in corpora)
    for corpus in corpora:
        corpus.kept["held_out"] = first_occurrences(corpus.digests("held_out"))
        both = first_occurrences(held_out + corpus.digests("train"))
        corpus.kept["train"] = both[len(held_out) // DIGEST_BYTES :]


def rejected_lines(corpora: Mapping[str, Corpus]) -> Iterator[dict[str, str]]:
    """One mapping for each rejected item of each corpus."""
    for name, corpus in corpora.items():
        for rejected in corpus.rejected.values():
            for item in rejected:
                yield {"corpus": name, "where": item.where, "reason": item.reason}
