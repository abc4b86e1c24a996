"""The report's figures, each drawn from the facts alone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from downstream.reporting.figure import COLOURS, STYLE, Plot, finish, new_figure
from downstream.reporting.gap_plots import draw_gap
from downstream.reporting.gather import Curve, Facts
from downstream.reporting.verdict import NAMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes


_FEW = 3
"""Fewer arms are compared more easily bar by bar."""


def draw(facts: Facts) -> list[Plot]:
    """Every figure that the facts have data for, in the report's order."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        plots = [_scores(facts), _differences(facts)]
        if facts.evaluation["language_model"] is not None:
            plots += [_gain_and_forgetting(facts), _trade(facts)]
        if facts.gap is not None:
            plots += draw_gap(facts.gap)
        if any(curve.metrics for curve in facts.curves):
            plots.append(_curves(facts))
        return [plot for plot in plots if plot is not None]


def _scores(facts: Facts) -> Plot:
    evaluation = facts.evaluation
    primary, arms = evaluation["primary"], list(evaluation["arms"])
    figure = new_figure(0.42 * len(arms) + 1.3)
    axes = figure.subplots()
    for place, arm in enumerate(arms):
        values = evaluation["arms"][arm]
        seeds = [cell["test"][primary] for cell in values["cells"]]
        mean, sd = values["mean"][primary], values["sd"][primary]
        axes.errorbar(mean, place, xerr=sd, color="#222222", capsize=3, fmt="|", markersize=11)
        colour = COLOURS[place % len(COLOURS)]
        axes.plot(seeds, [place] * len(seeds), "o", color=colour, alpha=0.75, markersize=5)
    reference = evaluation["task"]["references"]["tfidf_logistic_regression"]["test"][primary]
    axes.axvline(reference, color="#777777", linestyle=":", linewidth=1)
    axes.annotate(
        "TF-IDF + LR",
        (reference, len(arms) - 0.45),
        xytext=(3, 0),
        textcoords="offset points",
        fontsize=8,
        color="#555555",
    )
    _rows(axes, arms)
    axes.set_xlabel(f"{NAMES[primary]} on test")
    caption = "One dot a seed; the bar is mean ± standard deviation over seeds."
    return finish("scores", caption, figure)


def _differences(facts: Facts) -> Plot | None:
    evaluation = facts.evaluation
    primary = evaluation["primary"]
    differences = evaluation["differences"][primary]
    if not differences:
        return None
    figure = new_figure(0.42 * len(differences) + 1.3)
    axes = figure.subplots()
    axes.axvline(0, color="#777777", linewidth=1)
    for place, one in enumerate(differences.values()):
        filled = one["significant"]
        axes.plot([one["low"], one["high"]], [place, place], color="#222222", linewidth=1.6)
        axes.plot(
            one["difference"],
            place,
            "o",
            markersize=7,
            markeredgecolor="#222222",
            markerfacecolor="#222222" if filled else "white",
        )
    _rows(axes, list(differences))
    axes.set_xlabel(f"difference to {evaluation['baseline']} in {NAMES[primary]}")
    level = round(100 * evaluation["confidence"])
    caption = (
        f"Paired differences with {level} % intervals. Filled: significant after Holm's "
        "correction; hollow: not significant."
    )
    return finish("differences", caption, figure)


def _gain_and_forgetting(facts: Facts) -> Plot:
    measured = facts.evaluation["language_model"]
    names = list(dict.fromkeys((measured["gain_on"], measured["forgetting_on"])))
    arms = [arm for arm in measured["arms"] if arm != facts.evaluation["baseline"]]
    figure = new_figure(0.55 * len(arms) + 1.4)
    axes = figure.subplots()
    axes.axvline(0, color="#777777", linewidth=1)
    for index, name in enumerate(names):
        found = [measured["sets"][name]["arms"][arm] for arm in arms]
        places = [place + (index - (len(names) - 1) / 2) * 0.3 for place in range(len(arms))]
        changes = [one["change"] for one in found]
        reach = [
            [one["change"] - one["low"] for one in found],
            [one["high"] - one["change"] for one in found],
        ]
        colour = COLOURS[index]
        axes.barh(places, changes, height=0.27, xerr=reach, color=colour, capsize=2, label=name)
    _rows(axes, arms)
    axes.set_xlabel(
        f"change of held-out loss against {facts.evaluation['baseline']}, nats a target"
    )
    axes.legend(title="held-out text", loc="best")
    caption = (
        f"Left is better. {measured['gain_on']} to the left: gain; "
        f"{measured['forgetting_on']} to the right: forgetting. Whiskers: intervals over rows."
    )
    return finish("language_model", caption, figure)


def _trade(facts: Facts) -> Plot | None:
    """Gain against forgetting, a dot an arm; None where they are not two sets and several arms."""
    from matplotlib.patheffects import withStroke

    measured = facts.evaluation["language_model"]
    gain, forgetting = measured["gain_on"], measured["forgetting_on"]
    arms = [arm for arm in measured["arms"] if arm != facts.evaluation["baseline"]]
    if gain == forgetting or len(arms) < _FEW:
        return None
    figure = new_figure(4.6)
    axes = figure.subplots()
    axes.axhline(0, color="#bbbbbb", linewidth=0.8)
    axes.axvline(0, color="#bbbbbb", linewidth=0.8)
    places = []
    for index, arm in enumerate(arms):
        lost, won = (measured["sets"][name]["arms"][arm] for name in (forgetting, gain))
        x, y = lost["change"], -won["change"]
        axes.errorbar(
            x,
            y,
            xerr=[[max(0, x - lost["low"])], [max(0, lost["high"] - x)]],
            yerr=[[max(0, won["high"] + y)], [max(0, -y - won["low"])]],
            fmt="o",
            color=COLOURS[index % len(COLOURS)],
            markersize=5,
            linewidth=0.8,
            alpha=0.85,
        )
        places.append((x, y))
    figure.draw_without_rendering()
    for arm, place, lift in zip(arms, places, _lifts(axes, places), strict=True):
        axes.annotate(
            arm,
            place,
            xytext=(8, lift),
            textcoords="offset points",
            fontsize=8,
            va="center",
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.5},
        )
    axes.set_xlabel(f"forgetting: rise of the loss on {forgetting}, nats a target")
    axes.set_ylabel(f"gain: fall of the loss on {gain}, nats a target")
    axes.margins(x=0.15)
    caption = (
        f"Higher is more gained on {gain}, further left is less forgotten of {forgetting}, both "
        f"against {facts.evaluation['baseline']}. Whiskers: intervals over rows."
    )
    return finish("trade", caption, figure)


def _lifts(axes: "Axes", places: Sequence[tuple[float, float]]) -> list[float]:
    """How far above its dot each label stands, in points, so that none covers another."""
    height, width = 9.5, 75.0
    scale = 72 / axes.figure.dpi
    taken: list[tuple[float, float]] = []
    lifts = [0.0] * len(places)
    for index in sorted(range(len(places)), key=lambda index: places[index][1]):
        x, y = (float(value) * scale for value in axes.transData.transform(places[index]))
        at = y
        while any(abs(x - other) < width and abs(at - line) < height for other, line in taken):
            at += 1.0
        taken.append((x, at))
        lifts[index] = at - y
    return lifts


def _curves(facts: Facts) -> Plot:
    drawn = [curve for curve in facts.curves if curve.metrics]
    columns = min(2, len(drawn))
    lines = -(-len(drawn) // columns)
    figure = new_figure(2.5 * lines + 0.3)
    grid = figure.subplots(lines, columns, squeeze=False)
    for axes, curve in zip(grid.flat, drawn, strict=False):
        _draw_curve(axes, curve)
    for axes in list(grid.flat)[len(drawn) :]:
        axes.set_visible(False)
    caption = "Training loss between two logged steps, and held-out loss by set (dots)."
    return finish("curves", caption, figure)


def _draw_curve(axes: "Axes", curve: Curve) -> None:
    trained = [line for line in curve.metrics if line["loss"] is not None]
    _line(axes, trained, [line["loss"] for line in trained], "training", "-", "#999999")
    names = list(curve.validation[0]["sets"]) if curve.validation else []
    for index, name in enumerate(names):
        values = [line["sets"][name]["loss"] for line in curve.validation]
        _line(axes, curve.validation, values, f"{name}, held out", "o-", COLOURS[index])
    axes.set_title(curve.stage)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a target")
    axes.legend(fontsize=8)


def _line(
    axes: "Axes",
    lines: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    label: str,
    style: Literal["-", "o-"],
    colour: str,
) -> None:
    steps = [line["step"] for line in lines]
    axes.plot(steps, values, style, color=colour, label=label, markersize=3.5, linewidth=1.3)


def _rows(axes: "Axes", names: Sequence[str]) -> None:
    """Arms from top to bottom."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
