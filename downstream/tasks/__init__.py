"""Labelled tasks, and the stage that makes one. To add one: write its file, name it in stage."""

from downstream.tasks.documentation_part import DocumentationPart
from downstream.tasks.jsonl import JsonlTask
from downstream.tasks.rows import LabelledRow, TaskData
from downstream.tasks.stage import Task, TaskStage

__all__ = ["DocumentationPart", "JsonlTask", "LabelledRow", "Task", "TaskData", "TaskStage"]
