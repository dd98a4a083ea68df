"""Dialogs about images: the rounds in a sample's JSON, and the text that pairs an answer with its history.

The text of an answer is `[ENC] question answer [SEP] ... question answer [SEP]`, with the rounds before it in order.
"""

from dataclasses import dataclass, field
from typing import Any

from vlp.data.bad_samples import BadSampleError, FilteredSampleError
from vlp.data.tokenizer import CaptionTokenizer
from vlp.data.transforms import clean_caption

DIALOG_TOKENS = 256  # the longest text; ten rounds of VisDial have about 120 tokens
CAPTION_TOKENS = 40  # the longest caption
NO_DIALOG = "no dialog"  # the reason of a filtered sample
BAD_DIALOG = "bad dialog"


@dataclass
class Round:
    """A question about an image.

    Attributes:
        answer: None where it is not known.
        options: the answers to choose from, of which there may be none.
        right: the number of the true one among the options; None where it is not known.
        relevance: of each option, 0 to 1; None where people did not rate them.
    """

    question: str
    answer: str | None = None
    options: list[str] = field(default_factory=list)
    right: int | None = None
    relevance: list[float] | None = None


@dataclass
class Dialog:
    """The caption of an image and the questions about it, in order."""

    caption: str
    rounds: list[Round]


def read_dialog(info: dict[str, Any]) -> Dialog:
    """The dialog in the JSON of a sample: `caption`, and `dialog` with question, answer, options, gt_index, relevance.

    Raises:
        FilteredSampleError: there is none.
        BadSampleError: it is damaged.
    """
    rounds = info.get("dialog")
    if not rounds:
        raise FilteredSampleError(NO_DIALOG)
    caption = info.get("caption")
    if not isinstance(rounds, list) or not isinstance(caption, str):
        raise BadSampleError(BAD_DIALOG)
    return Dialog(caption, [_read_round(one) for one in rounds])


def _read_round(values: Any) -> Round:
    """A round; raises BadSampleError if it is damaged."""
    if not isinstance(values, dict):
        raise BadSampleError(BAD_DIALOG)
    question, answer, right = values.get("question"), values.get("answer"), values.get("gt_index")
    options, relevance = values.get("options") or [], values.get("relevance")
    texts = [question, *([] if answer is None else [answer]), *(options if isinstance(options, list) else [None])]
    usable = all(isinstance(one, str) for one in texts)
    usable &= right is None or (isinstance(right, int) and 0 <= right < len(options))
    usable &= relevance is None or (
        isinstance(relevance, list)
        and len(relevance) == len(options)
        and all(isinstance(one, (int, float)) for one in relevance)
    )
    if not usable:
        raise BadSampleError(BAD_DIALOG)
    return Round(str(question), answer, options, right, relevance)


class DialogWords:
    """The word ids of answers with their histories."""

    def __init__(self, tokenizer: CaptionTokenizer, max_tokens: int = DIALOG_TOKENS):
        """`max_tokens` limits a text with its special tokens; longer ones lose the beginning of their history."""
        self.tokenizer, self.most = tokenizer, max_tokens - 2

    def history(self, rounds: list[Round], number: int) -> list[int]:
        """The ids before the answer of round `number` (from 0): earlier rounds, each with [SEP], and the question."""
        ids: list[int] = []
        for one in rounds[:number]:
            ids += [*self.words(f"{one.question} {one.answer or ''}"), self.tokenizer.sep_id]
        return ids + self.words(rounds[number].question)

    def answer(self, history: list[int], answer: str) -> list[int]:
        """The ids of an answer after its history, without the first and the last token, at most `max_tokens - 2`."""
        return [*history, *self.words(answer)][-self.most :]

    def words(self, text: str) -> list[int]:
        """The word ids of a cleaned text."""
        return self.tokenizer.word_ids([clean_caption(text)])[0]
