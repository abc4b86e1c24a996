"""Where documents come from. A source is one file here and its name in the union."""

from typing import Annotated

from pydantic import Field

from data_pipeline.sources.arrow import ArrowSource
from data_pipeline.sources.datasets_library import DatasetsSource
from data_pipeline.sources.delimited import CsvSource
from data_pipeline.sources.fields import Fields
from data_pipeline.sources.file_source import FileSource, RecordSource
from data_pipeline.sources.files import SourceFile
from data_pipeline.sources.installed_documentation import InstalledDocumentation
from data_pipeline.sources.jsonl import JsonlSource
from data_pipeline.sources.parquet import ParquetSource
from data_pipeline.sources.source import DocumentSource, Locate, Part, Rejected
from data_pipeline.sources.text import TextSource

Source = Annotated[
    JsonlSource
    | TextSource
    | CsvSource
    | ParquetSource
    | ArrowSource
    | DatasetsSource
    | InstalledDocumentation,
    Field(discriminator="name"),
]

__all__ = [
    "ArrowSource",
    "CsvSource",
    "DatasetsSource",
    "DocumentSource",
    "Fields",
    "FileSource",
    "InstalledDocumentation",
    "JsonlSource",
    "Locate",
    "ParquetSource",
    "Part",
    "RecordSource",
    "Rejected",
    "Source",
    "SourceFile",
    "TextSource",
]
