"""The page: a tab for everything there is to show."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from vlp.app.inputs import AppInputs
from vlp.app.review_tab import add_review_tab, html
from vlp.app.runs_tab import add_runs_tab
from vlp.capfilt.review import Review
from vlp.errors import UserError
from vlp.extras import extra

if TYPE_CHECKING:
    import gradio as gr

TITLE = "vlp"


def style() -> str:
    """The style sheet of the page."""
    return (files("vlp.app") / "page.css").read_text("utf-8")


def script() -> str:
    """The page's head: the keys of the review, and the buttons that copy."""
    return f"<script>{(files('vlp.app') / 'page.js').read_text('utf-8')}</script>"


@contextmanager
def open_page(inputs: AppInputs) -> Iterator["gr.Blocks"]:
    """Build the page; its labels and files are closed at the end.

    To add a tab, write `add_NAME_tab` in `vlp/app/NAME_tab.py`, give `AppInputs` what it shows, and add a line here.

    Raises:
        UserError: there is nothing to show, or what a tab raises.
    """
    with extra("app"):
        import gradio as gr
    review = Review(inputs.tables, inputs.labels, inputs.also) if inputs.tables else None
    tabs: list[Callable[[Any], None]] = []
    if review is not None:
        tabs.append(lambda page: add_review_tab(page, review))
    if inputs.runs:
        tabs.append(lambda page: add_runs_tab(page, inputs.runs))
    if not tabs:
        raise UserError("There is nothing to show; name --tables or --runs, or use --demo after `vlp demo`.")
    try:
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 600)) as page:
            html("<h1>vlp</h1>")
            with gr.Tabs():
                for add in tabs:
                    add(page)
        yield page
    finally:
        if review is not None:
            review.close()
