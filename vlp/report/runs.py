"""Reads the logs and scores of run folders, and draws their curves over one another."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from vlp.errors import UserError
from vlp.extras import extra
from vlp.log import read_log
from vlp.report.curves import STYLE, TITLES
from vlp.report.figures import as_svg, remove_frame

with extra("report"):
    from matplotlib import rc_context
    from matplotlib.figure import Figure

INK = "#59616e"  # 4.5:1 and more on white and on pale gray
DARKER = {**STYLE, **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)}
LINES = ("#1f6feb", "#c2410c", "#15803d", "#9333ea", "#b91c1c", "#0e7490", "#854d0e", "#475569")
DASHES = ("-", "--", "-.", ":")
SCORE_FILES = ("scores.json", "results.json")
POSITION = ("step", "epoch")  # of a record, not curves
MOST_POINTS = 1000  # of a line


@dataclass
class RunLogs:
    """The logs of runs.

    Attributes:
        records: the records of log.jsonl by the run's name.
        scores: the numbers of `SCORE_FILES` by the run's name.
        folders: the run's folder, by its name.
    """

    records: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    folders: dict[str, str] = field(default_factory=dict)

    def series(self) -> list[str]:
        """The names of all numbers that some record has."""
        names = dict.fromkeys(
            name for records in self.records.values() for one in records for name in one if _is_number(one[name])
        )
        return [name for name in names if name not in POSITION]


def read_runs(folders: Sequence[str]) -> RunLogs:
    """Read run folders; a run is called by the last parts of its path that tell it from the others.

    Raises:
        UserError: a folder has no log.jsonl that can be read.
    """
    logs = RunLogs()
    paths = [Path(one).absolute() for one in folders]
    for path, name in zip(paths, _short_names(paths), strict=True):
        try:
            logs.records[name] = read_log(path / "log.jsonl")
        except (OSError, UnicodeDecodeError):
            raise UserError(f"{path} has no log.jsonl that can be read; name folders of runs.") from None
        logs.scores[name] = {key: value for file in SCORE_FILES for key, value in _numbers(path / file).items()}
        logs.folders[name] = str(path)
    return logs


def series_svg(logs: RunLogs, names: Sequence[str], smooth: int = 1) -> str:
    """An SVG with a panel for each series and a line for each run that has it.

    Args:
        smooth: how many records a point averages.
    """
    columns = min(len(names), 2)
    rows = math.ceil(len(names) / columns)
    with rc_context(DARKER):
        figure = Figure(figsize=(5.2 * columns, 3.1 * rows + 0.5))
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        drawn: dict[str, Any] = {}
        for panel, name in zip(panels, names, strict=False):
            for number, (run, records) in enumerate(logs.records.items()):
                steps, values = _line(records, name, smooth)
                if len(steps):
                    style = DASHES[number // len(LINES) % len(DASHES)]
                    (drawn[run],) = panel.plot(
                        steps, values, color=LINES[number % len(LINES)], linestyle=style, linewidth=1.7
                    )
            panel.set_title(TITLES.get(name, name.replace("_", " ")), loc="left")
            panel.set_xlabel("step")
            remove_frame(panel)
        for panel in panels[len(names) :]:
            panel.set_visible(False)
        figure.tight_layout(rect=(0, 0, 1, 1 - 0.35 / (3.1 * rows + 0.5) * math.ceil(max(len(drawn), 1) / 5)))
        if drawn:
            figure.legend(drawn.values(), drawn.keys(), loc="upper left", ncols=5, frameon=False)
        return as_svg(figure, f"{', '.join(names)} of {', '.join(logs.records)} against the step")


def scores_html(logs: RunLogs) -> str:
    """A table with a row for each score and a column for each run that has any."""
    runs = [name for name, values in logs.scores.items() if values]
    names = dict.fromkeys(name for run in runs for name in logs.scores[run])
    if not names:
        return ""
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(run) for run in runs)
    rows = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            name, Markup("").join(Markup("<td>{}</td>").format(_number(logs.scores[run].get(name))) for run in runs)
        )
        for name in names
    )
    return str(
        Markup(
            '<div class="vlp-wide" tabindex="0" role="region" aria-label="Scores of the runs">'
            '<table class="vlp-counts">'
            "<thead><tr><td></td>{}</tr></thead><tbody>{}</tbody></table></div>"
        ).format(head, rows)
    )


def _line(records: list[dict[str, Any]], name: str, smooth: int) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of a series, averaged and thinned to `MOST_POINTS`."""
    points = [(one["step"], one[name]) for one in records if _is_number(one.get(name)) and _is_number(one.get("step"))]
    if not points:
        return np.array([]), np.array([])
    steps, values = np.array(points, np.float64).T
    window = max(1, min(smooth, len(values)))
    sums = np.cumsum(np.concatenate([[0.0], values]))
    starts = np.maximum(np.arange(1, len(values) + 1) - window, 0)
    means = (sums[1:] - sums[starts]) / (np.arange(1, len(values) + 1) - starts)
    every = max(1, len(steps) // MOST_POINTS)
    return steps[::every], means[::every]


def _short_names(paths: list[Path]) -> list[str]:
    """The last parts of paths, as many as tell each from the others."""
    for parts in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(paths):
            return names
    return list(map(str, paths))


def _numbers(path: Path) -> dict[str, float]:
    """The numbers of a JSON object; none if there is no such file."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return {name: value for name, value in values.items() if _is_number(value)} if isinstance(values, dict) else {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: float | None) -> str:
    if value is None or isinstance(value, int):
        return "–" if value is None else f"{value:,}"
    return f"{value:.4f}" if abs(value) >= 0.001 or not value else f"{value:.2e}"
