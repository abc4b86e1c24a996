"""How much is kept."""

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from configs.errors import DataError
from configs.schema import Config


class Keep(Config):
    """One of three: the best documents by number, by share, or until they fill a budget.

    Attributes:
        documents: so many.
        share: of all documents of the sources.
        characters: the best ones that together have no more.
    """

    documents: int | None = Field(default=None, ge=1)
    share: float | None = Field(default=None, gt=0, le=1)
    characters: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one(self) -> "Keep":
        given = [name for name, value in self if value is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            msg = f"give one of documents, share and characters (given: {found})"
            raise ValueError(msg)
        return self

    def choose(
        self, scores: NDArray[np.float64], characters: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Which documents, best first, equal ones in their order.

        Args:
            scores: fp64 [N], -inf where there is nothing to judge.
            characters: int64 [N], lengths.

        Raises:
            DataError: there are not so many, or not even one fits.
        """
        ranked = np.lexsort((np.arange(len(scores)), -scores))
        judged = ranked[: int(np.count_nonzero(scores > -np.inf))]
        if self.characters is not None:
            number = int(np.searchsorted(np.cumsum(characters[judged]), self.characters, "right"))
            if not number:
                longest = int(characters[judged[0]]) if judged.size else 0
                msg = (
                    f"select: keep.characters is {self.characters:,}, but the best document alone "
                    f"has {longest:,}; raise it"
                )
                raise DataError(msg)
            return judged[:number]
        number = self.documents or max(1, round((self.share or 0) * len(scores)))
        if number > len(judged):
            msg = (
                f"select: {number:,} documents were asked for, but the sources have only "
                f"{len(judged):,} with words among {len(scores):,}; lower keep"
            )
            raise DataError(msg)
        return judged[:number]
