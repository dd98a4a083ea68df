"""Draws the loss curves of runs from their log.jsonl, as SVG."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlp.extras import extra
from vlp.log import read_log
from vlp.report.figures import as_svg, remove_frame

with extra("report"):
    from matplotlib import rc_context
    from matplotlib.figure import Figure

TITLES = {"itc": "ITC", "itm": "ITM", "lm": "LM"}
INK = "#7a8190"  # readable on light and on dark pages
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def loss_curves(
    logs: Mapping[str, str | Path], names: tuple[str, ...] = ("itc", "itm", "lm"), plateau: float = 0.6365
) -> str:
    """An SVG with one panel per loss and one line per run.

    Args:
        logs: the path of log.jsonl by the run's name. A panel leaves out runs that lack its loss.
        plateau: ITM of a model that always answers "no match", a dotted line; higher without altered texts than with.
    """
    runs = {name: read_log(path) for name, path in logs.items()}
    with rc_context(STYLE):
        figure = Figure(figsize=(4 * len(names), 2.9))  # not pyplot's, which would choose a backend for the process
        panels = figure.subplots(1, len(names), squeeze=False)
        for panel, name in zip(panels[0], names, strict=True):
            for run, records in runs.items():
                points = [(one["step"], one[name]) for one in records if name in one]
                if points:
                    panel.plot(*zip(*points, strict=True), label=run, linewidth=1.8)
            if name == "itm":
                panel.axhline(plateau, linestyle=":", linewidth=1, color=INK)
            panel.set_title(TITLES.get(name, name), loc="left")
            panel.set_xlabel("step")
            remove_frame(panel)
        panels[0][-1].legend(frameon=False)
        figure.tight_layout()
        return as_svg(figure)
