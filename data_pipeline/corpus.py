"""A corpus as a recipe describes it."""

from collections.abc import Sequence
from typing import Any

from pydantic import Field

from configs.schema import Config
from data_pipeline.cleaning import (
    SIDES,
    AnyFilter,
    Decontamination,
    NearDuplicates,
    Side,
    Split,
)
from data_pipeline.sources import Source


class CorpusConfig(Config):
    """Documents that are shuffled, weighted and measured together.

    Attributes:
        sources: where they come from, in order.
        split: what is held out; nothing where it is absent.
        filters: what a text of either side must pass, in order.
        decontaminate: what its train side must not hold, such as a task's dev and test rows.
        near_duplicates: how alike two texts may be; absent: only equal ones are left out.
    """

    sources: list[Source] = Field(min_length=1)
    split: Split | None = None
    filters: tuple[AnyFilter, ...] = ()
    decontaminate: Decontamination | None = None
    near_duplicates: NearDuplicates | None = None

    def check_packages(self) -> None:
        """RecipeError when a package is absent that its cleaning needs."""
        for each in self.filters:
            each.check()
        if self.near_duplicates is not None:
            self.near_duplicates.check()

    @property
    def sides(self) -> tuple[Side, ...]:
        """The sides it has."""
        return ("train",) if self.split is None else SIDES

    def described(self, sources: Sequence[str], guarded: str) -> dict[str, Any]:
        """What it is made of, for a manifest's provenance.

        Args:
            sources: digest of each source's files.
            guarded: digest of the files of ``decontaminate``; "" without it.
        """
        return {
            "sources": [
                source.model_dump(mode="json") | {"sha256": digest}
                for source, digest in zip(self.sources, sources, strict=True)
            ],
            "split": _dumped(self.split),
            "filters": [each.model_dump(mode="json") for each in self.filters],
            "decontaminate": _dumped(self.decontaminate, sha256=guarded),
            "near_duplicates": _dumped(self.near_duplicates),
        }


def _dumped(config: Config | None, **more: str) -> dict[str, Any] | None:
    return None if config is None else config.model_dump(mode="json") | more
