"""Fills a template of this folder and writes a page whole."""

import base64
import os
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from vlp.errors import WorkError


def render(template: str, package: str = "vlp.report", **values: object) -> str:
    """Fill a template of a package. Every name must be given; everything but Markup is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["percent"] = lambda value: "–" if value is None or value != value else f"{100 * value:.1f}%"
    environment.filters["points"] = lambda value: f"{100 * value:+.1f}"
    environment.filters["number"] = lambda value, digits=3: "–" if value is None else f"{value:,.{digits}f}"
    return environment.from_string((files(package) / template).read_text("utf-8")).render(**values)


def write_page(page: str, path: str | Path) -> None:
    """Write a page under another name, then rename it; its folder is made where there is none.

    Raises:
        WorkError: it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(page, "utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise WorkError(f"{path} cannot be written: {error.strerror}; make room, or name another place.") from None


def data_uri(picture: bytes, kind: str) -> str:
    """An encoded picture ("png", "jpeg") as an address that needs no file."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"
