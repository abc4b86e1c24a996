"""TensorBoard's custom scalars: on one page the questions, and the charts that answer them."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

_PAGES: dict[str, dict[str, tuple[str, ...]]] = {
    "1 Is it learning?": {
        "loss, in training and held out": ("1 learning/loss", "1 learning/held-out loss/"),
        "accuracy, in training and held out": (
            "1 learning/accuracy",
            "1 learning/held-out accuracy/",
        ),
        "of the average: loss held out": ("1 learning/held-out loss of the average/",),
        "probes": ("1 learning/probe ",),
        "fine-tuned: macro-F1 on dev": ("1 learning/dev macro-F1",),
    },
    "2 Is it forgetting?": {
        "actions taken, and what they leave of the rate": (
            "2 forgetting/done/",
            "2 forgetting/rate",
        ),
    },
    "3 Is it fast?": {
        "tokens a second": ("3 speed/tokens a second",),
        "seconds a step, and of them waiting for data": ("3 speed/seconds a step",),
        "MFU": ("3 speed/MFU",),
        "seconds for which a checkpoint holds up training": ("3 speed/checkpoint stall seconds",),
    },
    "4 Is it healthy?": {
        "norms of gradient and update": ("4 health/gradient norm", "4 health/update norm"),
        "learning rate": ("4 health/learning rate",),
        "memory, GiB": ("4 health/memory/",),
        "skipped steps and restarts": ("4 health/skipped steps", "4 health/restarts"),
        "loss scale": ("4 health/loss scale",),
    },
    "5 What does it read?": {
        "share of each source, asked and observed": ("5 sources/share, ",),
        "loss by source": ("5 sources/loss/",),
        "accuracy by source": ("5 sources/accuracy/",),
    },
}
_FORGETTING = "2 Is it forgetting?"
_VALUE, _LOW, _HIGH = (f"2 forgetting/{name}" for name in ("change", "low", "high"))

Chart = tuple[Literal["Multiline", "Margin"], list[str]]
Layout = dict[str, dict[str, Chart]]


def layout(tags: Iterable[str]) -> Layout:
    """The charts that the tags fill: question -> title -> (kind, patterns or tags).

    Curves are named by patterns, so that those of later stages join them; the band of what is
    forgotten by its three tags, since a margin chart takes nothing else.
    """
    known = sorted(tags)
    pages: Layout = {}
    for question, members in _PAGES.items():
        charts: dict[str, Chart] = _bands(known) if question == _FORGETTING else {}
        for title, beginnings in members.items():
            if any(tag.startswith(beginnings) for tag in known):
                # All of them: TensorBoard joins the charts of all runs and drops equal ones.
                charts[title] = ("Multiline", [f"^{re.escape(start)}" for start in beginnings])
        if charts:
            pages[question] = charts
    return pages


def summary_of(charts: Layout) -> "Summary.Value":
    """The charts as an event file holds them; torch's own function would import torch for it."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.custom_scalar import layout_pb2, metadata
    from tensorboard.util.tensor_util import make_tensor_proto

    told = layout_pb2.Layout()
    for category, members in charts.items():
        page = told.category.add(title=category)
        for title, (kind, tags) in members.items():
            chart = page.chart.add(title=title)
            if kind == "Margin":
                value, lower, upper = tags
                chart.margin.series.add(value=value, lower=lower, upper=upper)
            else:
                chart.multiline.tag.extend(tags)
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME)
    return Summary.Value(
        tag=metadata.CONFIG_SUMMARY_TAG,
        metadata=SummaryMetadata(plugin_data=plugin),
        tensor=make_tensor_proto(told.SerializeToString()),
    )


def _bands(tags: Iterable[str]) -> dict[str, Chart]:
    """What is forgotten, whole or of each set, within the band of its noise if there is one."""
    known = set(tags)
    charts: dict[str, Chart] = {}
    for tag in sorted(known):
        of_set = tag.removeprefix(_VALUE)
        if of_set == tag or (of_set and not of_set.startswith("/")):
            continue
        band = [tag, _LOW + of_set, _HIGH + of_set]
        whole = known.issuperset(band)
        name = of_set.removeprefix("/") or "held-out loss against the base's"
        title = f"{name}, with the band of its noise" if whole else name
        charts[title] = ("Margin", band) if whole else ("Multiline", [f"^{re.escape(tag)}$"])
    return charts
