"""Fills page templates, and embeds images in pages."""

import base64
from importlib.resources import files

from jinja2 import Environment, StrictUndefined


def render(template: str, package: str = "vlp.report", **values: object) -> str:
    """Fill a template of a package. All names of the template must be given; values other than Markup are escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda value: "–" if value is None or value != value else f"{100 * value:.1f}%"
    environment.filters["points"] = lambda value: f"{100 * value:+.1f}"
    environment.filters["number"] = lambda value, digits=3: "–" if value is None else f"{value:,.{digits}f}"
    return environment.from_string((files(package) / template).read_text("utf-8")).render(**values)


def data_uri(picture: bytes, kind: str) -> str:
    """An encoded image ("png" or "jpeg") as a data URI."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
