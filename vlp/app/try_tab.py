"""The tab Try: what the model says about an uploaded picture or a frame of a video."""

from dataclasses import replace
from typing import Any

from vlp.app.model_thread import ModelThread
from vlp.app.pieces import LIVE, QUIET, html, note, waiting
from vlp.app.try_actions import LONGEST, TryActions
from vlp.app.uploads import VIDEO_FRAMES, Upload, read_upload, shown_html
from vlp.errors import UserError


def add_try_tab(page: Any, model: ModelThread) -> None:
    """Add the tab to `page`, the gr.Blocks that is being built; it has the parts that the model can do."""
    import gradio as gr

    actions, can = TryActions(model), model.can
    with gr.Tab("Try", id="try"):
        html("<h2>Try the model</h2>")
        upload = gr.State(None)
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=320):
                _picture(upload)
            with gr.Column(scale=2, min_width=400):
                if can.caption:
                    _captions(actions, upload)
                if can.answer:
                    _ask(actions.answer, upload, "Answers", "Questions, one a line", "Answer", "answer")
                if can.match:
                    _ask(actions.match, upload, "Match with a text", "Texts, one a line", "Match", "match")
                if can.embed or can.classes:
                    _labels(actions, upload)


def _picture(upload: Any) -> None:
    """The upload and its picture; of a video, a slider for the frame."""
    import gradio as gr

    file = gr.File(label="A picture or a video", elem_id="vlp-try-file", height=150)
    frame = gr.Slider(
        0,
        VIDEO_FRAMES,
        VIDEO_FRAMES // 2,
        step=1,
        label="Frame of the video; 0 is all of it",
        visible=False,
        elem_id="vlp-frame",
    )
    shown = html(elem_id="vlp-try-shown")

    def uploaded(path: str | None) -> tuple[Any, ...]:
        given, picture = read_upload(path)
        moving = given is not None and given.is_video
        return given, picture, gr.Slider(visible=moving, value=given.frame if given and moving else 0)

    def moved(given: Upload | None, number: float) -> tuple[Any, ...]:
        if given is None or not given.is_video:
            return given, gr.skip()
        chosen = replace(given, frame=min(max(int(number), 0), VIDEO_FRAMES))
        try:
            return chosen, shown_html(chosen)
        except UserError as error:
            return given, note(str(error), "error")

    for event in (file.upload, file.clear):
        event(uploaded, file, [upload, shown, frame], **QUIET)
    frame.input(moved, [upload, frame], [upload, shown], **LIVE)


def _captions(actions: TryActions, upload: Any) -> None:
    import gradio as gr

    html("<h3>Captions</h3>")
    with gr.Row(equal_height=False):
        beams = gr.Slider(0, 8, 3, step=1, label="Beams; 0: none", elem_id="vlp-beams")
        samples = gr.Slider(0, 8, 3, step=1, label="Samples", elem_id="vlp-samples")
        seed = gr.Slider(0, 99, 0, step=1, label="Seed of the samples", elem_id="vlp-seed")
    run = gr.Button("Caption", elem_id="vlp-caption", size="sm", variant="primary")
    outputs = [html(elem_id="vlp-captions"), html(elem_id="vlp-caption-commands")]
    run.click(actions.captions, [upload, beams, samples, seed], outputs, **waiting(outputs[0]))
    _clear_with(upload, outputs)


def _ask(action: Any, upload: Any, title: str, label: str, button: str, name: str) -> None:
    """A box of lines, a button, and what the model says to each line."""
    import gradio as gr

    html(f"<h3>{title}</h3>")
    lines = gr.Textbox(label=label, lines=2, max_length=LONGEST, elem_id=f"vlp-{name}-lines")
    run = gr.Button(button, elem_id=f"vlp-{name}", size="sm", variant="primary")
    outputs = [html(elem_id=f"vlp-{name}-result"), html(elem_id=f"vlp-{name}-command")]
    run.click(action, [upload, lines], outputs, **waiting(outputs[0]))
    _clear_with(upload, outputs)


def _labels(actions: TryActions, upload: Any) -> None:
    import gradio as gr

    own = actions.can.classes
    html(f"<h3>{'Class' if own else 'Labels without training'}</h3>")
    labels = gr.Textbox(label="Labels, with commas", max_length=LONGEST, elem_id="vlp-labels", visible=not own)
    rerank = gr.Slider(
        0, 50, 0, step=1, label="Labels re-ranked by ITM", elem_id="vlp-label-rerank", visible=actions.can.match
    )
    run = gr.Button("Classify" if own else "Choose", elem_id="vlp-classify", size="sm", variant="primary")
    outputs = [html(elem_id="vlp-classify-result"), html()]
    run.click(actions.classify, [upload, labels, rerank], outputs, **waiting(outputs[0]))
    _clear_with(upload, outputs)


def _clear_with(upload: Any, outputs: list[Any]) -> None:
    """Clear results when the picture or the frame changes: beside another picture they would be wrong."""
    upload.change(lambda: ("",) * len(outputs), None, outputs, **QUIET)
