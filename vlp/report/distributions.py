"""Draws histograms and threshold curves as SVG for white pages, one color per source."""

from typing import Any

from vlp.extras import extra
from vlp.report.figures import as_svg, remove_frame
from vlp.report.score_statistics import Histogram, Kept

with extra("report"):
    from matplotlib import rc_context
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

COLORS = {"web": "#c8500a", "human": "#00805d", "synthetic": "#1f5fa8", "images": "#5a6472"}
INK, LINE = "#3c424d", "#c9cdd4"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vlp",  # equal numbers give equal SVGs
    "font.family": "sans-serif",
    "font.size": 9.5,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "axes.edgecolor": LINE,
}


def histogram_svg(histogram: Histogram, label: str, ticks: dict[float, str] | None = None) -> str:
    """An SVG of a histogram; each source is normalized by its number of texts.

    Args:
        label: label of the horizontal axis.
        ticks: positions and labels on it, instead of numbers.
    """
    with rc_context(STYLE):
        figure, panel = _panel(label)
        for name, counts in histogram.counts.items():
            width = (histogram.high - histogram.low) / len(counts)
            edges = [histogram.low + width * number for number in range(len(counts) + 1)]
            shares = [count / sum(counts) for count in counts]
            panel.stairs(shares, edges, fill=True, color=COLORS[name], alpha=0.14)
            panel.stairs(shares, edges, color=COLORS[name], linewidth=1.4)
        panel.set_ylim(0)
        if ticks:
            panel.set_xticks(list(ticks), list(ticks.values()))
        return _svg(figure)


def kept_svg(kept: Kept, label: str) -> str:
    """An SVG of the share of each source's texts that a threshold keeps."""
    with rc_context(STYLE):
        figure, panel = _panel(label)
        for name, counts in kept.counts.items():
            if counts[0]:
                shares = [count / counts[0] for count in counts]
                panel.plot(kept.thresholds, shares, color=COLORS[name], linewidth=1.8)
        panel.set_ylim(0, 1.02)
        return _svg(figure)


def _panel(label: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.2, 2.5))  # not pyplot's, which would choose a backend for the process
    panel = figure.subplots()
    remove_frame(panel, ("top", "right", "left"))
    panel.tick_params(length=0)
    panel.grid(axis="y", color=LINE, linewidth=0.5)
    panel.set_axisbelow(True)
    panel.set_xlabel(label)
    panel.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
    panel.margins(x=0.01)
    return figure, panel


def _svg(figure: Figure) -> str:
    figure.tight_layout()
    return as_svg(figure)
