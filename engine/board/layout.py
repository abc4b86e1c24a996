"""The page "How is it going" of TensorBoard's custom scalars: charts of what there is."""

import re
from collections.abc import Iterable

TITLE = "How is it going"

_CHARTS: dict[str, tuple[str, ...]] = {
    "learning: loss in training and held out": ("1 learning/loss", "1 learning/held-out loss/"),
    "learning: accuracy": ("1 learning/accuracy", "1 learning/held-out accuracy/"),
    "learning: probes": ("1 learning/probe ",),
    "learning: fine-tuned, dev macro-F1": ("1 learning/dev macro-F1",),
    "speed: tokens a second": ("3 speed/tokens a second",),
    "speed: seconds a step, and waiting for data": ("3 speed/seconds a step",),
    "speed: MFU": ("3 speed/MFU",),
    "health: norms of gradient and update": ("4 health/gradient norm", "4 health/update norm"),
    "health: learning rate": ("4 health/learning rate",),
    "health: memory, GiB": ("4 health/memory/",),
    "health: skipped steps and restarts": ("4 health/skipped steps", "4 health/restarts"),
    "health: loss scale": ("4 health/loss scale",),
    "mixture: share asked and observed": ("5 sources/share, ",),
    "sources: loss": ("5 sources/loss/",),
}
_AFTER = "learning: probes"
_VALUE, _LOW, _HIGH = (f"2 forgetting/{name}/" for name in ("change", "low", "high"))

Layout = dict[str, dict[str, tuple[str, list[str]]]]


def layout(tags: Iterable[str]) -> Layout:
    """The charts that the tags fill, as torch's ``custom_scalars`` takes them.

    Curves are named by patterns, so that those of later stages join them; the band of what is
    forgotten by its three tags, since a margin chart takes nothing else.
    """
    known = sorted(tags)
    charts: dict[str, tuple[str, list[str]]] = {}
    for title, beginnings in _CHARTS.items():
        there = [start for start in beginnings if any(tag.startswith(start) for tag in known)]
        if there:
            charts[title] = ("Multiline", [f"^{re.escape(start)}" for start in there])
        if title == _AFTER:
            charts |= _bands(known)
    return {TITLE: charts} if charts else {}


def _bands(tags: Iterable[str]) -> dict[str, tuple[str, list[str]]]:
    """What is forgotten of each set, within the band of its noise if there is one."""
    known = set(tags)
    charts: dict[str, tuple[str, list[str]]] = {}
    for tag in sorted(known):
        if not tag.startswith(_VALUE):
            continue
        name = tag.removeprefix(_VALUE)
        band = [tag, _LOW + name, _HIGH + name]
        whole = known.issuperset(band)
        title = f"forgetting: {name}, with the band of noise" if whole else f"forgetting: {name}"
        charts[title] = ("Margin", band) if whole else ("Multiline", [f"^{re.escape(tag)}$"])
    return charts
