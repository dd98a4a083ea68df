"""The tab Search: images by a text or a picture, their details, and where the words of a text look on them."""

from typing import Any

from vlp.app.model_thread import ModelThread
from vlp.app.pieces import LIVE, QUIET, html, note, waiting
from vlp.app.search_actions import SearchActions
from vlp.app.search_view import ON_LOAD
from vlp.app.uploads import Upload, read_upload
from vlp.index import ImageIndex
from vlp.index.search import RERANK

TOP, MOST = 12, 60  # images that are shown
SHOW = "() => document.getElementById('vlp-opened')?.scrollIntoView({block: 'nearest'})"
TO_HITS = "() => document.getElementById('vlp-hits')?.scrollIntoView({block: 'nearest'})"


def add_search_tab(page: Any, index: ImageIndex, model: ModelThread, named: str = "") -> None:
    """Add the tab to `page`, the gr.Blocks that is being built; arguments as in `SearchActions`."""
    import gradio as gr

    actions = SearchActions(index, model, named)
    with gr.Tab("Search", id="search"):
        html(f"<h2>Search</h2><p class='vlp-note'>{len(index):,} images</p>")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=320):
                text = gr.Textbox(label="Text", max_length=500, submit_btn="Search", elem_id="vlp-query")
                file = gr.File(label="Or a picture, which finds similar ones", elem_id="vlp-query-file", height=150)
                preview = html(elem_id="vlp-query-shown")
                top = gr.Slider(1, MOST, TOP, step=1, label="Images to show", elem_id="vlp-top")
                most = RERANK if model.can.match else 0
                rerank = gr.Slider(
                    0,
                    2 * RERANK,
                    most,
                    step=1,
                    label="Best images re-ranked by ITM",
                    visible=bool(most),
                    elem_id="vlp-rerank",
                )
                command = html(elem_id="vlp-search-command")
            with gr.Column(scale=2, min_width=400):
                hits = html(note("Type a text, or upload a picture."), elem_id="vlp-hits", js_on_load=ON_LOAD)
        number, found = gr.State(-1), [hits, command]
        similar, opened = _details(actions, text, number)
        _react_to_queries(actions, (text, file, preview), [top, rerank], (similar, number), found)

        def chosen(event: gr.EventData) -> int:
            number = event._data.get("number") if isinstance(event._data, dict) else None
            return number if isinstance(number, int) else -1

        event = hits.click(chosen, None, number, **QUIET).then(opened[0], [number, text], opened[1], **QUIET)
        event.then(None, None, None, js=SHOW, api_visibility="private")


def _react_to_queries(
    actions: SearchActions, query: tuple[Any, ...], sliders: list[Any], similar: tuple[Any, Any], found: list[Any]
) -> None:
    """The last of a text, an upload and a chosen image is the query; the sliders repeat it with other numbers."""
    import gradio as gr

    text, file, preview = query
    upload, like = gr.State(None), gr.State(-1)  # -1: no chosen image

    def typed(words: str, picture: Upload | None, *controls: float) -> tuple[Any, ...]:
        if not words.strip():  # the picture is searched for again
            return *actions.search(words, picture, *controls), -1, gr.skip(), gr.skip(), gr.skip()
        return *actions.search(words, None, *controls), -1, None, None, ""

    def uploaded(path: str | None, words: str, *controls: float) -> tuple[Any, ...]:
        picture, shown = read_upload(path)
        result = ("", "") if path and picture is None else actions.search(words, picture, *controls)
        return *result, -1, picture, shown

    def chose(number: int, top: float) -> tuple[Any, ...]:
        return *actions.similar(number, top), number

    def again(words: str, picture: Upload | None, number: int, *controls: float) -> tuple[str, str]:
        return actions.search(words, picture, *controls) if number < 0 else actions.similar(number, controls[0])

    shows = waiting(found[0])
    text.submit(typed, [text, upload, *sliders], [*found, like, file, upload, preview], **shows)
    for event in (file.upload, file.clear):
        event(uploaded, [file, text, *sliders], [*found, like, upload, preview], **shows)
    button, number = similar
    done = button.click(chose, [number, sliders[0]], [*found, like], **shows)
    done.then(None, None, None, js=TO_HITS, api_visibility="private")
    for slider in sliders:
        slider.input(again, [text, upload, like, *sliders], found, **{**LIVE, **shows})


def _details(actions: SearchActions, query: Any, number: Any) -> tuple[Any, Any]:
    """What a chosen image shows; returns the button for similar images, and what opens an image with its outputs."""
    import gradio as gr

    with gr.Column(visible=False, elem_id="vlp-opened") as panel:
        html("<h3>Image</h3>")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=320):
                about = html(elem_id="vlp-about")
                similar = gr.Button("Find similar images", size="sm", elem_id="vlp-similar")
            with gr.Column(scale=1, min_width=320):
                text = gr.Textbox(label="Text whose attention to show", max_length=500, elem_id="vlp-attention-text")
                word = gr.Radio([], label="Word", elem_id="vlp-word")
                picture, command = html(elem_id="vlp-attention"), html()

    def open_image(at: int, typed: str) -> tuple[Any, ...]:
        words = actions.words(typed)
        return gr.Column(visible=True), actions.details(at), typed, gr.Radio(words, value=None), "", ""

    def draw(at: int, typed: str, chosen: str | None) -> tuple[Any, ...]:
        return actions.attention(at, typed, chosen)

    text.input(lambda typed: gr.Radio(actions.words(typed), value=None), text, word, **QUIET)
    word.input(draw, [number, text, word], [picture, command], **waiting(picture))
    return similar, (open_image, [panel, about, text, word, picture, command])
