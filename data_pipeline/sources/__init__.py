"""Where documents come from. A source is one file here and its name in the union."""

from typing import Annotated

from pydantic import Field

from data_pipeline.sources.installed_documentation import InstalledDocumentation
from data_pipeline.sources.jsonl import JsonlSource
from data_pipeline.sources.source import DocumentSource, Locate, Part, Rejected, SourceFile
from data_pipeline.sources.text import TextSource

Source = Annotated[
    JsonlSource | TextSource | InstalledDocumentation,
    Field(discriminator="name"),
]

__all__ = [
    "DocumentSource",
    "InstalledDocumentation",
    "JsonlSource",
    "Locate",
    "Part",
    "Rejected",
    "Source",
    "SourceFile",
    "TextSource",
]
