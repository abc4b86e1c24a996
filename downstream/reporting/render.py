"""Facts, sentences and figures as one HTML page, Markdown and JSON."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from downstream.records import write_bytes, write_json, write_text
from downstream.reporting.figure import Plot
from downstream.reporting.gather import Facts
from downstream.reporting.plots import draw
from downstream.reporting.verdict import NAMES, judgement, p_value, verdict

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "index.html"


@dataclass(frozen=True, slots=True)
class Report:
    """A report's files, ready to be written."""

    facts: Facts
    sentences: Sequence[str]
    plots: Sequence[Plot]

    @classmethod
    def of(cls, facts: Facts) -> "Report":
        """Put into words and drawn."""
        return cls(facts, verdict(facts), draw(facts))

    def write(self, folder: Path) -> list[Path]:
        """Write all files into a folder; the page comes last."""
        paths = []
        for plot in self.plots:
            paths.append(folder / f"{plot.name}.png")
            write_bytes(paths[-1], plot.png)
        data = {"verdict": list(self.sentences), **self.facts.to_json()}
        write_json(folder / "report.json", data)
        write_text(folder / "report.md", self._rendered("report.md.jinja"))
        write_text(folder / PAGE, self._rendered("report.html.jinja"))
        return [*paths, *(folder / name for name in ("report.json", "report.md", PAGE))]

    def _rendered(self, template: str) -> str:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

        environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=".html" in template,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "signed": _signed,
            "three": _three,
            "whole": _whole,
            "duration": duration,
            "p_value": p_value,
            "judgement": judgement,
            "data_url": _data_url,
        }
        plots = {plot.name: plot for plot in self.plots}
        return environment.get_template(template).render(
            facts=self.facts,
            evaluation=self.facts.evaluation,
            task=self.facts.evaluation["task"],
            verdict=self.sentences,
            plots=plots,
            metric_names=NAMES,
        )


def duration(seconds: float) -> str:
    """``8.1 s``, ``3 min 20 s`` or ``2 h 05 min``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def _three(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _whole(value: Any) -> str:
    return f"{round(value):,}".replace(",", "\u202f")


def _data_url(plot: Plot) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(plot.svg).decode()
