"""What the report's figures have in common: style, size, and the forms they are saved in."""

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which most kinds of colour blindness can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#444444")
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.hashsalt": "onward",
}


@dataclass(frozen=True, slots=True)
class Plot:
    """One figure in both forms.

    Attributes:
        name: file name without suffix.
        caption: what it shows and how to read it.
        png: 160 dots an inch.
        svg: for the page.
    """

    name: str
    caption: str
    png: bytes
    svg: bytes


def new_figure(height: float) -> "Figure":
    """An empty one, as wide as the page; height in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(7.2, height), layout="constrained")


def finish(name: str, caption: str, figure: "Figure") -> Plot:
    """Save it in both forms; the same figure gives the same bytes."""
    png, svg = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=160, metadata={"Software": None})
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return Plot(name, caption, png.getvalue(), svg.getvalue())
