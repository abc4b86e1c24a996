"""Figures of how far corpora lie apart: measures over all pairs, the long tail, the clusters."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from downstream.reporting.figure import COLOURS, Plot, finish, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Measure:
    """How one measure is drawn.

    Attributes:
        title: above its table.
        near: a large value means that corpora are alike.
        bounded: its scale ends at 1, whatever was found.
    """

    title: str
    near: bool = False
    bounded: bool = True


MEASURES = {
    "vocabulary_overlap": Measure("frequent words in common", near=True),
    "divergence_words": Measure("divergence of words"),
    "divergence_tokens": Measure("divergence of tokens"),
    "divergence_pairs": Measure("divergence of token pairs"),
    "divergence_triples": Measure("divergence of token triples"),
    "context_shift": Measure("shift of contexts", bounded=False),
    "unseen_words": Measure("distinct words unseen"),
    "unseen_tokens": Measure("running words unseen", bounded=False),
    "covered": Measure("documents covered", near=True),
}


def draw_gap(gap: Mapping[str, Any]) -> list[Plot]:
    """All figures that a gap stage's ``results.json`` has data for."""
    plots = [_pairs(gap["matrices"]), _long_tail(gap["corpora"])]
    if gap["clusters"] is not None:
        plots.append(_clusters(gap["clusters"], list(gap["corpora"])))
    return plots


def _pairs(matrices: Mapping[str, Any]) -> Plot:
    names, found = matrices["corpora"], matrices["measures"]
    shown = [name for name in MEASURES if name in found]
    lines = -(-len(shown) // COLUMNS)
    figure = new_figure(lines * (0.45 + 0.34 * len(names)) + 0.5)
    grid = figure.subplots(lines, COLUMNS, squeeze=False)
    for axes in grid.flat[len(shown) :]:
        axes.set_visible(False)
    for place, name in enumerate(shown):
        axes = grid.flat[place]
        table = np.array(found[name], np.float64)  # None becomes nan
        _table(axes, table, MEASURES[name])
        axes.set_title(MEASURES[name].title)
        axes.set_yticks(range(len(names)), names if place % COLUMNS == 0 else [])
        below = place + COLUMNS >= len(shown)
        axes.set_xticks(range(len(names)), names if below else [], rotation=30, ha="right")
    caption = (
        "All pairs of corpora; the darker, the farther apart. On the diagonal a corpus's own two "
        "halves: what chance alone gives. Unseen: words of the row that the column never has; "
        "covered: documents of the row whose kind the column has too."
    )
    return finish("gap_pairs", caption, figure)


def _table(axes: "Axes", values: NDArray[np.float64], measure: Measure) -> None:
    """Values in cells, on a scale from white to dark blue."""
    known = values[~np.isnan(values)]
    most = 1.0 if measure.bounded else max(float(known.max(initial=0)), 1e-3)
    axes.imshow(
        1 - values if measure.near else values,
        cmap="Blues",
        vmin=0,
        vmax=most,
        aspect="auto",
    )
    for (row, column), value in np.ndenumerate(values):
        dark = (1 - value if measure.near else value / most) > 0.55
        axes.text(
            column,
            row,
            "–" if np.isnan(value) else f"{value:.{2 if measure.bounded else 3}f}",
            ha="center",
            va="center",
            fontsize=8 if len(values) <= 6 else 6,
            color="white" if dark else "#222222",
        )
    axes.tick_params(length=0, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _long_tail(corpora: Mapping[str, Mapping[str, Any]]) -> Plot:
    figure = new_figure(2.7)
    panels = figure.subplots(1, 2)
    bands = max((one["long_tail"]["bands"] for one in corpora.values()), key=len)
    labels = [_band(band["from"], band["to"]) for band in bands]
    kinds = (("share_of_words", "distinct words"), ("share_of_tokens", "running words"))
    for axes, (key, title) in zip(panels, kinds, strict=True):
        for index, (name, corpus) in enumerate(corpora.items()):
            heights = [100 * band[key] for band in corpus["long_tail"]["bands"]]
            heights += [0.0] * (len(bands) - len(heights))
            colour = COLOURS[index % len(COLOURS)]
            edges = np.arange(len(bands) + 1) - 0.5
            axes.stairs(heights, edges, color=colour, label=name, linewidth=1.4)
        axes.set_title(f"share of {title}, %")
        axes.set_xticks(range(len(bands)), labels, rotation=60, ha="right", fontsize=7)
        axes.set_xlabel("how often a word is seen")
        axes.set_ylim(bottom=0)
    panels[0].legend(fontsize=8)
    caption = (
        "The long tail. Left: how much of the vocabulary is words seen so often; right: how much "
        "of the text is."
    )
    return finish("long_tail", caption, figure)


def _band(low: int, high: int) -> str:
    return _short(low) if low == high else f"{_short(low)}–{_short(high)}"


def _short(number: int) -> str:
    """11 -> 11, 2001 -> 2k: a band's label says about where it lies."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number // size}{letter}"
    return str(number)


def _clusters(clusters: Mapping[str, Any], names: Sequence[str]) -> Plot:
    rows = clusters["clusters"]
    shares = np.array([[row["shares"][name] for row in rows] for name in names])
    figure = new_figure(0.34 * len(names) + 1.1)
    axes = figure.subplots()
    image = axes.imshow(100 * shares, cmap="Blues", vmin=0, aspect="auto")
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks(range(len(rows)), [str(number) for number in range(1, len(rows) + 1)])
    axes.set_xlabel("cluster of documents")
    axes.tick_params(length=0, labelsize=8)
    for spine in axes.spines.values():
        spine.set_visible(False)
    figure.colorbar(image, ax=axes, label="% of documents", pad=0.01)
    caption = (
        "What the corpora are about: each one's documents over the clusters. White: a kind of "
        "document that the corpus has none of. The table names the clusters by their words."
    )
    return finish("clusters", caption, figure)
