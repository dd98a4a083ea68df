"""Answers of dialogs, ranked by a model that was finetuned on dialogs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vlp.data.dialogs import CAPTION_TOKENS, DIALOG_TOKENS, Dialog, DialogWords, Round
from vlp.data.images import ImageLike
from vlp.data.transforms import clean_caption
from vlp.errors import UserError
from vlp.models.constant_weights import constant_weights
from vlp.models.finetuned import require
from vlp.models.image_memory import ImageMemory

if TYPE_CHECKING:
    from vlp.model.model import Model

TEXTS_AT_ONCE = 100  # texts that are matched with one image in one call; these are long


class RankedAnswer(NamedTuple):
    """An answer to the last question of a dialog, and the probability that it is the true one."""

    text: str
    itm: float


@constant_weights()
def rank_dialog_answers(
    model: "Model",
    image: ImageLike,
    caption: str,
    history: Sequence[tuple[str, str]],
    question: str,
    answers: Sequence[str],
) -> list[RankedAnswer]:
    """The answers to a question, the most probable first (BLIP, section 5.5).

    Args:
        caption: of the image; part of what the dialog is about.
        history: the questions before this one, with their answers.

    Raises:
        UserError: the model was not finetuned on dialogs, there is no answer, or the image is unreadable.
    """
    require(model.config, "visdial", "rank the answers of dialogs")
    if not answers:
        raise UserError("There are no answers to rank; give at least one.")
    rounds = [*(Round(*one) for one in history), Round(question, options=list(answers))]
    (scores,) = score_options(model, model.encode_images(model.load_images([image])), Dialog(caption, rounds)).values()
    ranked = sorted(zip(answers, scores, strict=True), key=lambda pair: -pair[1])
    return [RankedAnswer(text, torch.tensor(score).sigmoid().item()) for text, score in ranked]


def score_options(model: "Model", image_tokens: Tensor, dialog: Dialog) -> dict[int, list[float]]:
    """The scores of the options of every round that has some: the log-odds of "match", higher is better.

    The memory of image and caption is made once and never repeated: all texts of the dialog form one long row of
    queries. Equal texts are computed once, so they have equal scores.

    Args:
        image_tokens: [1, tokens, width] of the image.

    Returns:
        A score for each option, by the number of the round (from 0).
    """
    words = DialogWords(model.tokenizer, min(DIALOG_TOKENS, model.config.text_tower.positions // 8 * 8))
    numbers: dict[tuple[int, ...], int] = {}  # of the different texts
    places: dict[int, list[int]] = {}  # of the options of each round, the number of their text
    for number, one in enumerate(dialog.rounds):
        if one.options:
            history = words.history(dialog.rounds, number)
            texts = [tuple(words.answer(history, option)) for option in one.options]
            places[number] = [numbers.setdefault(text, len(numbers)) for text in texts]
    if not numbers:
        return {}
    scores = _score_texts(model, _memory(model, image_tokens, dialog.caption), list(map(list, numbers)))
    return {number: [scores[place] for place in here] for number, here in places.items()}


def _memory(model: "Model", image_tokens: Tensor, caption: str) -> ImageMemory:
    """The memory of one image and its caption, without padding."""
    most = min(CAPTION_TOKENS, model.config.text_tower.positions)
    ids, mask = model.tokenizer.encode([clean_caption(caption)], most, multiple=1)
    with model.inference():
        return model.blip.dialog_memory(image_tokens, ids.to(model.device), mask.to(model.device), padded=False)


def _score_texts(model: "Model", memory: ImageMemory, texts: list[list[int]]) -> list[float]:
    """The log-odds of "match" of texts, given as word ids, against the memory of one image.

    The last product is in float64: logits in bf16 would make ties of many of a hundred answers.
    """
    head = model.blip.itm_head
    weight = (head.weight[1] - head.weight[0]).detach().double()
    bias = (head.bias[1] - head.bias[0]).detach().double()
    scores = torch.zeros(len(texts), dtype=torch.float64)
    lengths = torch.tensor([len(text) for text in texts])
    for part in lengths.argsort(stable=True).split(TEXTS_AT_ONCE):  # texts of similar length together
        ids, mask = model.tokenizer.pad([texts[row] for row in part.tolist()], int(lengths[part].max()) + 2, "[ENC]")
        with model.inference():
            states = model.blip.text_tower.match(ids.to(model.device), mask.to(model.device), memory)
        scores[part] = (states[:, 0].double() @ weight + bias).cpu()
    return scores.tolist()
