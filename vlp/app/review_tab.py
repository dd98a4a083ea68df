"""The tab Review CapFilt: a rule with live counts, images with all their texts, labels by keyboard, a suggestion."""

from typing import Any

from vlp.app.pieces import LIVE, QUIET, html, waiting
from vlp.app.review_actions import ORDERS, ReviewActions, threshold_in, with_threshold
from vlp.capfilt.review import Review
from vlp.capfilt.review_tables import LOWER_IS_BETTER, SCORES
from vlp.errors import UserError

RULE = "itm >= 0.5"
KEPT_RULE = "(rule) => window.vlpKeptRule(rule)"  # from before a reload
KEYS = (
    '<p class="vlp-keys"><kbd>A</kbd> accept <kbd>R</kbd> reject <kbd>→</kbd> next <kbd>←</kbd> back '
    "<kbd>↑</kbd> <kbd>↓</kbd> another text of the image <kbd>U</kbd> take the verdict back</p>"
)


def add_review_tab(page: Any, review: Review) -> None:
    """Add the tab to `page`, the gr.Blocks that is being built."""
    import gradio as gr

    actions, scores = ReviewActions(review), review.tables.scores()
    if not scores:
        raise UserError("No text of the tables has a score; run `vlp capfilt score` with a filter first.")
    with gr.Tab("Review CapFilt", id="review"):
        html("<h2>Review CapFilt</h2>")
        with gr.Row(equal_height=False):
            with gr.Column(scale=1, min_width=350):
                rule, sliders, counts, select = _rule_controls(actions, scores)
                kind, score, second, source = _order_controls(list(scores), list(review.tables.totals))
                again = gr.Button("Back to the first row without a label", size="sm", elem_id="vlp-again")
            with gr.Column(scale=2, min_width=400):
                error, progress = html(elem_id="vlp-error"), html(elem_id="vlp-progress")
                card = html(elem_id="vlp-review-card")
                buttons = _buttons()
                html(KEYS)
                listing = html()
        shown = gr.Textbox(visible="hidden", elem_id="vlp-shown", label="Row on the page")
        order = [kind, score, second, source, rule]
        view = [card, progress, shown]
        _react_to_rule(actions, rule, sliders, [counts, select])
        _react_to_review(actions, buttons, shown, order, view, error)

        def start(*given: str) -> tuple[str, ...]:
            row_order = actions.row_order(*given)
            return (*actions.start(row_order, given[-1]), actions.list_command(row_order, given[-1]), "")

        def follow(at: str, *given: str) -> Any:
            return actions.follow(at, actions.row_order(*given), given[-1]) or gr.skip()

        for control in (kind, score, second, source):
            control.input(start, order, [*view, listing, error], **QUIET)
        rule.change(follow, [shown, *order], [*view, listing], **LIVE)
        again.click(start, order, [*view, listing, error], **QUIET)
        _suggestion(actions, list(scores), list(review.tables.totals), rule, sliders, [counts, select])
        page.load(start, order, [*view, listing, error], **QUIET)
        restored = page.load(None, rule, rule, js=KEPT_RULE, **QUIET)
        restored.then(actions.counts, rule, [counts, select], **QUIET)
        restored.then(lambda text: _positions(text, sliders), rule, list(sliders.values()), **QUIET)


def _rule_controls(
    actions: ReviewActions, scores: dict[str, tuple[float, float]]
) -> tuple[Any, dict[str, Any], Any, Any]:
    """The rule box, a slider for each score, and the places of the counts and the command."""
    import gradio as gr

    first = RULE if "itm" in scores else with_threshold("", next(iter(scores)), 0)
    rule = gr.Textbox(first, label="Rule: the texts to keep", lines=2, max_length=4000, elem_id="vlp-rule")
    sliders = {}
    for name, (low, high) in scores.items():
        low, high = (0.0, 1.0) if name == "itm" else (_round(low), _round(high))
        sign = "at most" if name in LOWER_IS_BETTER else "at least"
        value = threshold_in(first, name)
        start = (high if name in LOWER_IS_BETTER else low) if value is None else value
        sliders[name] = gr.Slider(
            low, max(high, low + 0.001), start, step=0.001, label=f"{name} {sign}", elem_id=f"vlp-slider-{name}"
        )
    return rule, sliders, html(elem_id="vlp-counts"), html()


def _order_controls(scores: list[str], sources: list[str]) -> tuple[Any, Any, Any, Any]:
    import gradio as gr

    kinds = [name for name in ORDERS if len(scores) > 1 or ORDERS[name] != "disagreement"]
    kind = gr.Dropdown(kinds, value=kinds[0], label="Order of the rows", elem_id="vlp-order", filterable=False)
    with gr.Row():
        score = gr.Dropdown(scores, value=scores[0], label="Score", filterable=False, min_width=90)
        second = gr.Dropdown(scores, value=scores[-1], label="Second score", filterable=False, min_width=90)
        source = gr.Dropdown(["all", *sources], value="all", label="Source", filterable=False, min_width=90)
    return kind, score, second, source


def _buttons() -> dict[str, Any]:
    import gradio as gr

    with gr.Row(elem_id="vlp-buttons"):
        return {
            "back": gr.Button("← Back", size="sm", min_width=70, elem_id="vlp-back"),
            "accept": gr.Button("Accept", variant="primary", size="sm", min_width=70, elem_id="vlp-accept"),
            "reject": gr.Button("Reject", size="sm", min_width=70, elem_id="vlp-reject"),
            "undo": gr.Button("Take back", size="sm", min_width=70, elem_id="vlp-undo"),
            "next": gr.Button("Next →", size="sm", min_width=70, elem_id="vlp-next"),
            "up": gr.Button("Text ↑", size="sm", min_width=70, elem_id="vlp-up"),
            "down": gr.Button("Text ↓", size="sm", min_width=70, elem_id="vlp-down"),
        }


def _react_to_rule(actions: ReviewActions, rule: Any, sliders: dict[str, Any], outputs: list[Any]) -> None:
    """Moving a slider changes the rule, and a typed rule moves the sliders; the counts follow both."""
    for name, slider in sliders.items():

        def moved(value: float, text: str, name: str = name) -> tuple[str, ...]:
            changed = with_threshold(text, name, value)
            return (changed, *actions.counts(changed))

        slider.input(moved, [slider, rule], [rule, *outputs], **LIVE)

    # Pasted text and numbers from sliders are changes, too. Sliders follow only what was typed: if they followed what
    # another slider wrote, they would jump back while one moves it.
    rule.change(actions.counts, rule, outputs, **LIVE)
    rule.blur(lambda text: _positions(text, sliders), rule, list(sliders.values()), **LIVE)


def _positions(rule: str, sliders: dict[str, Any]) -> Any:
    """The sliders' values for a rule; that of a score without a number leaves nothing out."""
    moved = []
    for name, slider in sliders.items():
        value, widest = threshold_in(rule, name), slider.maximum if name in LOWER_IS_BETTER else slider.minimum
        moved.append(widest if value is None else value)
    return moved if len(moved) > 1 else moved[0]


def _react_to_review(
    actions: ReviewActions, buttons: dict[str, Any], shown: Any, order: list[Any], view: list[Any], error: Any
) -> None:
    """The buttons, which the keys press. The browser sends back the row that it shows, so no unseen row is labeled."""
    import gradio as gr

    def labeled(verdict: str) -> Any:
        def act(request: gr.Request, at: str, *given: str) -> tuple[str, ...]:
            user = getattr(request, "username", None)
            return actions.label(verdict, at, actions.row_order(*given), given[-1], user)

        return act

    def stepped(step: int, what: Any) -> Any:
        return lambda at, *given: ("", *what(at, step, actions.row_order(*given), given[-1]))

    reactions = {
        "accept": labeled("accept"),
        "reject": labeled("reject"),
        "undo": labeled(""),
        "next": stepped(1, actions.move),
        "back": stepped(-1, actions.move),
        "down": stepped(1, actions.choose),
        "up": stepped(-1, actions.choose),
    }
    for name, act in reactions.items():
        buttons[name].click(act, [shown, *order], [error, *view], **QUIET)


def _suggestion(
    actions: ReviewActions,
    scores: list[str],
    sources: list[str],
    rule: Any,
    sliders: dict[str, Any],
    outputs: list[Any],
) -> None:
    """The threshold that the labels suggest, and their export."""
    import gradio as gr

    html("<h3>Threshold from the labels</h3>")
    with gr.Row(equal_height=False):
        score = gr.Dropdown(
            [name for name in scores if name in SCORES] or scores, label="Score of the threshold", filterable=False
        )
        source = gr.Dropdown(["all", *sources], value="all", label="For the texts of", filterable=False)
        precision = gr.Slider(0.5, 1, 0.9, step=0.01, label="Wanted precision", elem_id="vlp-precision")
    with gr.Row():
        ask = gr.Button("Suggest a threshold", elem_id="vlp-suggest", size="sm", min_width=150)
        use = gr.Button("Use the suggested rule", elem_id="vlp-use", size="sm", min_width=150)
    result, found = html(elem_id="vlp-suggestion"), gr.Textbox(visible="hidden", label="Suggested rule")
    command = html()
    ask.click(actions.suggest, [score, precision, source], [result, found, command], **waiting(result))

    def used(text: str, present: str) -> tuple[Any, ...]:
        chosen = text or present
        return (chosen, *actions.counts(chosen))

    moved = use.click(used, [found, rule], [rule, *outputs], **QUIET)
    moved.then(lambda text: _positions(text, sliders), rule, list(sliders.values()), **QUIET)
    html("<h3>Export</h3>")
    with gr.Row(equal_height=False):
        name = gr.Textbox(
            "reviewed", label="Name of a new folder beside the labels", max_length=100, elem_id="vlp-name"
        )
        write = gr.Button("Export the labels", elem_id="vlp-export", size="sm", min_width=150)
    wrote, commands = html(elem_id="vlp-exported"), html()
    write.click(actions.export, name, [wrote, commands], **waiting(wrote))


def _round(value: float) -> float:
    return round(float(value), 3)
