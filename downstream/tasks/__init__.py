"""Tasks. To add one: write its file, then name it here.

A task config has ``load(locate, seed) -> TaskData``, ``check(locate)`` and ``locations()``.
"""

from typing import Annotated

from pydantic import Field

from downstream.tasks.documentation_part import DocumentationPart
from downstream.tasks.jsonl import JsonlTask
from downstream.tasks.rows import LabelledRow, TaskData

Task = Annotated[DocumentationPart | JsonlTask, Field(discriminator="name")]

__all__ = ["DocumentationPart", "JsonlTask", "LabelledRow", "Task", "TaskData"]
