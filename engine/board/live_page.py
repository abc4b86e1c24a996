"""One self-contained page on a stage that runs, from the files that it writes itself."""

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.board.curves import HEIGHT, WIDTH, Chart, Curve, Growing, draw

if TYPE_CHECKING:
    from jinja2 import Template

REFRESH_SECONDS = 15
_SHOWN = 8
"""Of the newest warnings, starts and restarts."""
_MOST_READ = 16384


@dataclass(frozen=True, slots=True)
class Standing:
    """How the stage stands.

    Attributes:
        state: ``running``, ``stopped``, ``failed`` or ``trained``.
        why: what ended it; empty while it runs.
        eta: how long it will take, in words; empty where that is not known.
        written: the time, UTC.
    """

    state: str
    step: int
    steps: int
    written: str
    why: str = ""
    eta: str = ""


@dataclass
class Story:
    """What the stage's files have told so far."""

    folder: Path
    settings: Mapping[str, Any]
    last: dict[str, Any] = field(default_factory=dict)
    _loss: dict[str, Curve] = field(default_factory=dict)
    _speed: dict[str, Curve] = field(default_factory=dict)
    _held_out: dict[str, Curve] = field(default_factory=dict)
    _forgetting: dict[str, Curve] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ("metrics", "validation", "forgetting")
        self._files = {name: Growing(self.folder / f"{name}.jsonl") for name in names}

    def read(self) -> None:
        """Take in what is new; OSError or ValueError from a file that is damaged."""
        for line in self._new("metrics", self._loss, self._speed):
            self.last = line
            _add(self._loss, "loss", line["step"], line.get("loss"))
            _add(self._speed, "tokens a second", line["step"], line.get("tokens_per_second"))
        for line in self._new("validation", self._held_out):
            for name, found in line["sets"].items():
                _add(self._held_out, name, line["step"], found["loss"])
                if "average" in found:
                    average = found["average"]["loss"]
                    _add(self._held_out, f"{name}, average", line["step"], average)
        for line in self._new("forgetting", self._forgetting):
            for name in ("change", "low", "high"):
                _add(self._forgetting, name, line["step"], line[name])

    def _new(self, name: str, *curves: dict[str, Curve]) -> list[dict[str, Any]]:
        anew, lines = self._files[name].read()
        if anew:
            for each in curves:
                each.clear()
        return lines

    def charts(self) -> list[Chart]:
        """Those that have something on them."""
        drawn = (
            draw("Training loss", self._loss),
            draw("Held-out loss", self._held_out),
            draw("Forgetting: change of the held-out loss, and its bounds", self._forgetting),
            draw("Tokens a second", self._speed),
        )
        return [chart for chart in drawn if chart is not None]

    def page(self, standing: Standing) -> str:
        """The page, as HTML."""
        return _template().render(
            name=self.folder.name,
            run=self.folder.parent.name,
            now=standing,
            last=self.last,
            charts=self.charts(),
            settings=self.settings,
            skipped=_objects(self.folder / "skipped.jsonl"),
            starts=_objects(self.folder / "starts.jsonl"),
            restarts=_objects(self.folder.parent / "restarts.jsonl"),
            checkpoint=_newest_checkpoint(self.folder / "checkpoints"),
            warnings=_ends(self.folder / "logs" / "warnings.log"),
            refresh=REFRESH_SECONDS,
            width=WIDTH,
            height=HEIGHT,
            shown=_SHOWN,
        )


@functools.cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    return environment.from_string(_TEMPLATE)


def _add(curves: dict[str, Curve], name: str, step: int, value: float | None) -> None:
    curves.setdefault(name, Curve()).add(step, value)


def _ends(path: Path) -> Sequence[str]:
    """The last lines of a file; none if there is no such file."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _MOST_READ))
            return file.read().decode("utf-8", errors="replace").splitlines()[-_SHOWN:]
    except OSError:
        return []


def _objects(path: Path) -> list[dict[str, Any]]:
    """The objects of a short file; a line that a kill cut is left out."""
    found = []
    try:
        for line in path.read_bytes().splitlines():
            try:
                found.append(dict(json.loads(line)))
            except (ValueError, TypeError):
                continue
    except OSError:
        return []
    return found


def _newest_checkpoint(root: Path) -> str:
    """``step-120``; empty if there is none."""
    found = [
        int(path.parent.name.removeprefix("step-"))
        for path in root.glob("step-*/manifest.json")
        if path.parent.name.removeprefix("step-").isdecimal()
    ]
    return f"step-{max(found)}" if found else ""


_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
{% if now.state == "running" %}
<meta http-equiv="refresh" content="{{ refresh }}">
{% endif %}
<title>{{ name }}: {{ now.state }}, step {{ now.step }} of {{ now.steps }}</title>
<style>
  :root { --ink: #1d2330; --soft: #5b6472; --line: #dfe3e8; --tint: #f5f7f9; --page: #fff;
    --c0: #0072b2; --c1: #b85400; --c2: #00795a; --c3: #a3478a; --good: #00694b; --bad: #a33c00; }
  @media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #9aa4b2; --line: #343b46;
    --tint: #1d222a; --page: #14181e; --c0: #56b4e9; --c1: #f0a04b; --c2: #35c79a; --c3: #e29ad0;
    --good: #35c79a; --bad: #ff9d66; } }
  * { box-sizing: border-box; }
  body { margin: 0; background: var(--page); color: var(--ink);
    font: 15px/1.5 system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; }
  main { max-width: 74rem; margin: 0 auto; padding: 1.6rem 1.2rem 3rem; }
  h1 { font-size: 1.5rem; margin: 0; } h2 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
  .soft { color: var(--soft); } .bad { color: var(--bad); }
  .state { font-size: .85rem; font-weight: 600; padding: .1rem .6rem; border-radius: 1rem;
    border: 1px solid currentColor; margin-left: .6rem; vertical-align: .2rem; }
  .running, .trained { color: var(--good); } .stopped { color: var(--soft); }
  .failed { color: var(--bad); }
  .bar { height: .5rem; background: var(--line); border-radius: .25rem; margin: .9rem 0; }
  .bar div { height: 100%; background: var(--c0); border-radius: .25rem; }
  .facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .7rem; }
  .facts div { background: var(--tint); padding: .5rem .8rem; border-radius: .4rem; }
  .facts b { display: block; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
  .charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr));
    gap: 0 1.6rem; }
  svg { width: 100%; height: auto; display: block; }
  svg text { fill: var(--soft); font-size: 11px; }
  polyline { fill: none; stroke-width: 1.6; } .grid { stroke: var(--line); }
  .k0 { stroke: var(--c0); color: var(--c0); } .k1 { stroke: var(--c1); color: var(--c1); }
  .k2 { stroke: var(--c2); color: var(--c2); } .k3 { stroke: var(--c3); color: var(--c3); }
  .key { font-size: .85rem; } .key span { margin-right: 1rem; white-space: nowrap; }
  table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
  td, th { text-align: left; padding: .2rem 1.2rem .2rem 0; border-bottom: 1px solid var(--line);
    vertical-align: top; }
  th { color: var(--soft); font-weight: 600; } pre { white-space: pre-wrap; margin: 0;
    font: .85rem/1.5 ui-monospace, "DejaVu Sans Mono", monospace; overflow-wrap: anywhere; }
  .scroll { overflow-x: auto; } summary { cursor: pointer; color: var(--soft); }
  details { margin-top: 1.6rem; }
</style>
</head>
<body>
<main>
<h1>{{ name }}<span class="state {{ now.state }}">{{ now.state }}</span></h1>
<p class="soft">Run {{ run }}. Written {{ now.written }}
<span id="age" class="bad"></span></p>
{% if now.why %}
<p>{{ now.why }}</p>
{% endif %}
<div class="bar"><div style="width: {{ '%.1f' | format(100 * now.step / now.steps) }}%"></div></div>
<div class="facts">
<div>step<b>{{ "{:,}".format(now.step) }} of {{ "{:,}".format(now.steps) }}</b></div>
{% if now.eta %}
<div>left, about<b>{{ now.eta }}</b></div>
{% endif %}
{% if last.loss is defined and last.loss is not none %}
<div>loss<b>{{ "%.4f" | format(last.loss) }}</b></div>
{% endif %}
{% if last.tokens_per_second is defined and last.tokens_per_second is not none %}
<div>tokens a second<b>{{ "{:,.0f}".format(last.tokens_per_second) }}</b></div>
{% endif %}
{% if last.tokens is defined %}
<div>tokens<b>{{ "{:,}".format(last.tokens) }}</b></div>
{% endif %}
{% if starts %}
<div>ranks<b>{{ starts[-1].ranks }}</b></div>
{% endif %}
<div>newest checkpoint<b>{{ checkpoint or "none yet" }}</b></div>
<div>steps skipped<b>{{ last.skipped | default(skipped | length) }}</b></div>
<div>restarts<b>{{ [starts | length - 1, 0] | max }}</b></div>
</div>
<div class="charts">
{% for chart in charts %}
<section>
<h2>{{ chart.title }}</h2>
<svg viewBox="0 0 {{ width }} {{ height }}" role="img" aria-label="{{ chart.title }}">
{% for y, text in chart.y_ticks %}
<line class="grid" x1="58" x2="{{ width - 10 }}" y1="{{ y }}" y2="{{ y }}"/>
<text x="52" y="{{ y + 4 }}" text-anchor="end">{{ text }}</text>
{% endfor %}
{% for x, text in chart.x_ticks %}
{% set anchor = "start" if loop.first else "end" if loop.last else "middle" %}
<text x="{{ x }}" y="{{ height - 6 }}" text-anchor="{{ anchor }}">{{ text }}</text>
{% endfor %}
{% for line in chart.lines %}
<polyline class="k{{ loop.index0 % 4 }}" points="{{ line.points }}"/>
{% endfor %}
</svg>
<div class="key">
{% for line in chart.lines %}
<span class="k{{ loop.index0 % 4 }}">&#9632; {{ line.name }} {{ line.last_text }}</span>
{% endfor %}
</div>
</section>
{% endfor %}
</div>
{% if warnings %}
<h2>Newest warnings</h2>
{% for line in warnings | reverse %}
<pre>{{ line }}</pre>
{% endfor %}
{% endif %}
{% if skipped %}
<h2>Newest steps that were skipped, of {{ skipped | length }}</h2>
<div class="scroll"><table><tr><th>step</th><th>why</th></tr>
{% for line in skipped[-shown:] | reverse %}
<tr><td>{{ line.step }}</td><td>{{ line.why }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
{% if starts | length > 1 %}
<h2>Starts of this stage</h2>
<div class="scroll"><table>
<tr><th>time</th><th>after step</th><th>ranks</th><th>first host</th></tr>
{% for line in starts[-shown:] | reverse %}
<tr><td>{{ line.time }}</td><td>{{ line.step }}</td><td>{{ line.ranks }}</td>
<td>{{ line.host }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
{% if restarts %}
<h2>Restarts of the run by its supervisor</h2>
<div class="scroll"><table><tr><th>time</th><th>stage</th><th>from step</th><th>because</th></tr>
{% for line in restarts[-shown:] | reverse %}
<tr><td>{{ line.time | default("") }}</td><td>{{ line.stage | default("") }}</td>
<td>{{ line.step if line.step is defined and line.step is not none else "start" }}</td>
<td>{{ line.kind | default("") }}: {{ line.message | default("") }}</td></tr>
{% endfor %}
</table></div>
{% endif %}
<details><summary>Settings</summary><div class="scroll"><table>
{% for key, value in settings.items() %}
<tr><td>{{ key }}</td><td>{{ value }}</td></tr>
{% endfor %}
</table></div></details>
</main>
{% if now.state == "running" %}
<script>
// Clocks of two machines differ by some seconds; minutes mean that nothing is written any more.
const age = Math.round((Date.now() - Date.parse("{{ now.written }}")) / 60000);
if (age >= 5) document.getElementById("age").textContent =
  `: ${age} minutes ago. A long step, or the run has ended without a farewell.`;
</script>
{% endif %}
</body>
</html>
"""
