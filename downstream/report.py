"""The report stage, and the report of any finished run again from its saved results."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from configs.errors import DataError
from configs.stage import StageConfig, StageContext, split_location
from downstream.records import digest_of_files


class ReportStage(StageConfig):
    """Everything that the run found, on one page that needs no other file."""

    kind: Literal["report"] = "report"
    evaluate: str = Field(description="location of an evaluation stage's folder")
    gap: str | None = Field(None, description="location of a gap stage's folder")
    pretraining: tuple[str, ...] = Field((), description="pretraining stages, for curves and costs")

    def run(self, context: StageContext) -> str:
        """Write index.html, report.md, report.json and the plots; returns their digest."""
        return digest_of_files(self.write(context.folder, context.locate))

    def write(self, folder: Path, locate: Callable[[str], Path]) -> list[Path]:
        """Write the report of the run that ``folder`` stands in; returns its files."""
        from downstream.reporting.gather import ReportSources, gather
        from downstream.reporting.render import Report

        sources = ReportSources(
            run=folder.parent,
            evaluate=locate(self.evaluate),
            gap=locate(self.gap) if self.gap is not None else None,
            pretraining=[locate(location) for location in self.pretraining],
        )
        return Report.of(gather(sources)).write(folder)


def make_report(run_folder: Path) -> Path:
    """The report of a run from its saved results, as its recipe asks; returns the page.

    A recipe without a report stage gets one over its last evaluation and all that stands before.

    Raises:
        DataError: not a run folder, or the run has no finished evaluation.
    """
    from downstream.reporting.render import PAGE

    stages = _stages(run_folder)
    name, config = _report_stage(stages, run_folder)
    folder = run_folder / name
    config.write(folder, lambda location: _locate(run_folder, location))
    return folder / PAGE


def _locate(run_folder: Path, location: str) -> Path:
    """``stage:NAME/rest`` in a run folder, whatever its status files say."""
    name, rest = split_location(location)
    path = Path(location) if name is None else run_folder / name / rest
    if not path.exists():
        msg = f"report: {location}: nothing at {path}; run that stage first"
        raise DataError(msg)
    return path


def _stages(run_folder: Path) -> Mapping[str, Any]:
    import yaml

    recipe = run_folder / "recipe.yaml"
    if not recipe.exists():
        msg = f"{run_folder}: not a run folder: it has no recipe.yaml"
        raise DataError(msg)
    stages: Mapping[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))["stages"]
    return stages


def _report_stage(stages: Mapping[str, Any], run_folder: Path) -> tuple[str, ReportStage]:
    for name, stage in stages.items():
        if stage["kind"] == "report":
            return name, ReportStage.model_validate(stage)

    def of_kind(kind: str) -> list[str]:
        return [f"stage:{name}" for name, stage in stages.items() if stage["kind"] == kind]

    if not of_kind("evaluate"):
        msg = f"{run_folder}: its recipe has no evaluate stage, so there is nothing to report"
        raise DataError(msg)
    return "report", ReportStage(
        evaluate=of_kind("evaluate")[-1],
        gap=next(iter(of_kind("gap")), None),
        pretraining=tuple(of_kind("pretrain")),
    )
