"""What all figures share: panels without a frame, and SVG as text for a page."""

import io
from collections.abc import Sequence

from markupsafe import Markup

from vlp.extras import extra

with extra("report"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def remove_frame(panel: Axes, sides: Sequence[str] = ("top", "right")) -> None:
    """Remove these sides of a panel's frame."""
    panel.spines[list(sides)].set_visible(False)


def as_svg(figure: Figure, label: str = "") -> str:
    """The figure as an `<svg>` element, transparent and without a date; `label` tells screen readers what it shows."""
    data = io.StringIO()
    figure.savefig(data, format="svg", transparent=True, metadata={"Date": None})
    svg = data.getvalue()[data.getvalue().index("<svg") :]
    return svg.replace("<svg ", str(Markup('<svg role="img" aria-label="{}" ').format(label)), 1) if label else svg
