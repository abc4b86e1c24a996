"""The stage that makes a labelled task: rows on three sides, and what simple methods reach."""

from collections import Counter
from statistics import median
from typing import Annotated, Any, Literal

from pydantic import Field

from configs.stage import StageConfig, StageContext
from downstream.records import write_json
from downstream.tasks.documentation_part import DocumentationPart
from downstream.tasks.jsonl import JsonlTask
from downstream.tasks.rows import SIDES, TaskData

# A task config has ``load(locate, seed) -> TaskData``, ``check(locate)`` and ``locations()``.
Task = Annotated[DocumentationPart | JsonlTask, Field(discriminator="name")]


class TaskStage(StageConfig):
    """Rows of a labelled task: train, dev and test, labels, held-out groups, and a card."""

    kind: Literal["task"] = "task"
    task: Task

    def run(self, context: StageContext) -> str:
        """Write the task folder; its fingerprint covers rows, labels and split."""
        data = self.task.load(context.locate, context.seed)
        fingerprint = data.save(context.folder)
        write_json(context.folder / "card.json", card(self.task.name, data))
        return fingerprint

    def check(self, context: StageContext) -> None:
        """DataError if what the task reads is not there."""
        if all(context.is_made(location) for location in self.task.locations()):
            self.task.check(context.locate)


def card(name: str, data: TaskData) -> dict[str, Any]:
    """What a reader wants to know of a task before believing a score on it."""
    from downstream.tasks.reference import reference_scores

    return {
        "task": name,
        "labels": list(data.labels),
        "rows": {side: len(data.sides[side]) for side in SIDES},
        "rows_by_label": {
            side: dict(sorted(Counter(row.label for row in data.sides[side]).items()))
            for side in SIDES
        },
        "groups": {side: len({row.group for row in data.sides[side]}) for side in SIDES},
        "median_characters": median(len(row.text) for row in data.sides["train"]),
        "notes": dict(data.notes),
        "references": reference_scores(data),
    }
