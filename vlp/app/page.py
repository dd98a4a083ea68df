"""The page: a tab for everything there is to show."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from vlp.app.inputs import AppInputs
from vlp.app.pieces import html
from vlp.app.review_tab import add_review_tab
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
    """The page's head: the keys of the review, what outlives a reload, and the buttons that copy."""
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
    with ExitStack() as stack:
        tabs = _tabs(inputs, stack)
        if not tabs:
            raise UserError(
                "There is nothing to show; name --index, --model, --tables or --runs, or use --demo after `vlp demo`."
            )
        with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
            html("<h1>vlp</h1>")
            with gr.Tabs():
                for add in tabs:
                    add(page)
        yield page


def _tabs(inputs: AppInputs, stack: ExitStack) -> list[Callable[[Any], None]]:
    """What adds each tab to the page that is being built."""
    tabs: list[Callable[[Any], None]] = []
    if inputs.index or inputs.model:
        from vlp.app.models import open_models
        from vlp.app.search_tab import add_search_tab
        from vlp.app.try_tab import add_try_tab

        index, model = open_models(inputs, stack)
        if index is not None:
            tabs.append(partial(add_search_tab, index=index, model=model, named=inputs.model))
        if model.can.any():
            tabs.append(partial(add_try_tab, model=model))
    if inputs.tables:
        review = Review(inputs.tables, inputs.labels, inputs.also)
        stack.callback(review.close)
        tabs.append(partial(add_review_tab, review=review))
    if inputs.runs:
        tabs.append(partial(add_runs_tab, folders=inputs.runs))
    return tabs
