"""What all tabs share: places for HTML, sentences, commands to copy, and how events behave."""

import shlex
from collections.abc import Iterable
from typing import Any

from markupsafe import Markup

QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
LIVE: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}  # of controls that one drags


def waiting(place: Any) -> dict[str, Any]:
    """How events of the model behave: until the result is there, its place shows the seconds and who is ahead."""
    return {**QUIET, "show_progress": "minimal", "show_progress_on": place}


def html(value: str = "", **settings: Any) -> Any:
    """A place for HTML, in the page's own style."""
    import gradio as gr

    return gr.HTML(value, apply_default_css=False, **settings)


def note(text: str, kind: str = "info") -> str:
    """A sentence; kind "error" is announced by screen readers."""
    role = "alert" if kind == "error" else "status"
    return str(Markup('<p class="vlp-note vlp-{}" role="{}">{}</p>').format(kind, role, text)) if text else ""


def wide(drawing: str, label: str) -> str:
    """A drawing that scrolls in a narrow window; `label` names the place for screen readers."""
    start = Markup('<div class="vlp-wide" tabindex="0" role="region" aria-label="{}">').format(label)
    return f"{start}{drawing}</div>"


def quoted(texts: Iterable[str]) -> str:
    """Texts as the last arguments of a command, after `--` where one would be an option."""
    given = list(texts)
    dashes = ["--"] if any(one.startswith("-") for one in given) else []
    return " ".join([*dashes, *map(shlex.quote, given)])


def command_html(command: str, label: str) -> str:
    """A command line with a button that copies it."""
    return str(
        Markup(
            '<div class="vlp-command"><span class="vlp-label">{}</span><code tabindex="0">{}</code>'
            '<button type="button" class="vlp-copy" aria-label="Copy the command: {}">Copy</button></div>'
        ).format(label, command, label)
    )
