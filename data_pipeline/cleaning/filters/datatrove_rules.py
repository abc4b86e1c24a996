"""How datatrove's rules are asked about one text: without its pipelines, and without its models."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol

from pydantic import Field, model_validator

from configs.errors import RecipeError
from data_pipeline.cleaning.filters.filter import Filter, Judge, Refusal
from data_pipeline.cleaning.packages import require

if TYPE_CHECKING:
    from datatrove.data import Document

# For rules that datatrove skips where the limit is 0: nobody means that by it.
PositiveShare = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]
# Languages whose words need a dictionary that is not at hand.
UNSPACED = frozenset({"bo", "dz", "ja", "km", "lo", "my", "th"})


class Rules(Protocol):
    """A filter of datatrove's."""

    def filter(self, doc: "Document") -> bool | tuple[bool, str]:
        """Whether a document stays; else why not."""
        ...


class DatatroveFilter(Filter):
    """Base of the filters that are datatrove's: their keys are those of its classes.

    Class attributes:
        CHINESE: what other defaults ``language: zh`` has.
    """

    CHINESE: ClassVar[Mapping[str, Any]]

    language: str = Field(default="en", pattern=r"^[a-z]{2,3}$")

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_language(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("language") == "zh":
            return {**cls.CHINESE, **values}
        return values

    @staticmethod
    @abstractmethod
    def rules() -> type[Any]:
        """Its class in datatrove; imports it."""

    def check(self) -> None:
        """RecipeError when a package is absent, or words of the language cannot be told."""
        if self.language in UNSPACED:
            msg = (
                f"filter {self.title}: words of '{self.language}' cannot be told; "
                "give zh, or a language with space between words"
            )
            raise RecipeError(msg)
        for package in ("datatrove", *(("rjieba",) if self.language == "zh" else ())):
            require(package, f"filter {self.title}")

    def build(self, notes: Counter[str]) -> Judge:
        self.check()
        return judge_by(self.rules(), self.model_dump(exclude={"name"}), notes)


def judge_by(rules: type[Any], given: dict[str, Any], notes: Counter[str]) -> Judge:
    """A judge by a filter class of datatrove's.

    Args:
        rules: the class.
        given: its arguments; ``language`` as a code.
        notes: takes what the rules would count in datatrove's own statistics.
    """
    from data_pipeline.cleaning.filters.word_tokenizer import word_tokenizer

    class Counting(rules):  # type: ignore[misc]
        def stat_update(self, *labels: str, value: int = 1, unit: str | None = None) -> None:
            del unit
            for label in labels:
                notes[label] += value

    built = Counting(**(given | {"language": word_tokenizer(given["language"])}))
    return _Judge(built)


class _Judge:
    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def __call__(self, text: str) -> str | Refusal:
        from datatrove.data import Document

        document = Document(text=text, id="")
        answer = self._rules.filter(document)
        if answer is True:
            return str(document.text)
        return Refusal(answer[1] if isinstance(answer, tuple) else "refused")
