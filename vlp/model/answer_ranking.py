"""Answers by ranking: the likeliest of a list of answers, by the likelihood of the answer decoder."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from vlp.data.images import ImageLike
from vlp.errors import UserError
from vlp.model.answers import question_batches
from vlp.model.video import QUESTION_FRAMES
from vlp.models.blip import Blip
from vlp.models.constant_weights import constant_weights
from vlp.models.finetuned import require
from vlp.models.image_memory import ImageMemory

if TYPE_CHECKING:
    from vlp.model.model import Model

TEXTS_AT_ONCE = 2048  # answers in one pass of the decoder
TOKENS_AT_ONCE = 1024  # tokens whose logits over the whole vocabulary are in memory


class LikelyAnswer(NamedTuple):
    """An answer of the list, and the log-probability of its tokens and of the end token (their sum, in nats)."""

    text: str
    log_probability: float


class AnswerList:
    """A tokenized list of answers."""

    def __init__(self, model: "Model", answers: Sequence[str]):
        """Tokenize answers; equal ones count once.

        Raises:
            UserError: the list is empty.
        """
        self.texts = list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))
        if not self.texts:
            raise UserError("The list of answers is empty.")
        ids, mask = model.tokenizer.encode(self.texts, model.text_tokens, "[DEC]")
        self.ids, self.mask = ids.to(model.device), mask.to(model.device)  # [answers, tokens]


@constant_weights()
def rank_answers(
    model: "Model",
    images: list[ImageLike],
    questions: str | Sequence[str],
    answers: Sequence[str],
    k: int = 128,
    batch_size: int = 32,
    frames: int = QUESTION_FRAMES,
) -> list[list[LikelyAnswer]]:
    """The k likeliest answers of a list to each question, the best first (BLIP, section 5.3).

    Args:
        images, questions: equally many, or one image for all questions.
        k: the probability of its first token chooses so many answers; only their whole likelihood is computed.
        frames: of each video.

    Raises:
        UserError: the model was not finetuned for VQA, the numbers of images and questions differ, an image is
            unreadable, or there are no answers.
    """
    require(model.config, "vqa", "rank answers")
    listed = AnswerList(model, answers)
    ranked: list[list[LikelyAnswer]] = []
    for memory in question_batches(model, images, questions, batch_size, frames):
        ranked += rank_memory(model, memory, listed, k)
    return ranked


def rank_memory(model: "Model", memory: ImageMemory, answers: AnswerList, k: int = 128) -> list[list[LikelyAnswer]]:
    """`rank_answers` for the questions of a memory from `question_memory`."""
    k = min(k, len(answers.texts))
    at_once = max(1, TEXTS_AT_ONCE // k)  # questions
    found: list[list[LikelyAnswer]] = []
    with model.inference():
        for first in range(0, len(memory), at_once):
            rows = torch.arange(first, min(first + at_once, len(memory)), device=model.device)
            here = memory.select(rows) if len(rows) < len(memory) else memory
            chosen = _likely_starts(model.blip, here, answers.ids, k)  # [questions, k]
            scores = _log_likelihoods(model.blip, here, answers.ids[chosen], answers.mask[chosen])  # [questions, k]
            scores, order = scores.sort(dim=1, descending=True, stable=True)
            for numbers, values in zip(chosen.gather(1, order).tolist(), scores.tolist(), strict=True):
                pairs = zip(numbers, values, strict=True)
                found.append([LikelyAnswer(answers.texts[number], value) for number, value in pairs])
    return found


def _likely_starts(blip: Blip, memory: ImageMemory, ids: Tensor, k: int) -> Tensor:
    """The k answers whose first tokens are likeliest for each question: int64 [questions, k], in the list's order."""
    start = ids[:1, :1].expand(len(memory), 1)  # [DEC]
    logits = blip.caption_logits(start, None, memory)[:, 0].float()  # [questions, vocabulary]
    return logits[:, ids[:, 1]].sort(dim=1, descending=True, stable=True).indices[:, :k].sort(dim=1).values


def _log_likelihoods(blip: Blip, memory: ImageMemory, ids: Tensor, mask: Tensor) -> Tensor:
    """The summed log-probabilities of answers' tokens after the first, float32 [questions, k].

    Args:
        ids, mask: [questions, k, tokens]. The answers of a question are adjacent, so its states are never copied.
    """
    questions, k, _ = ids.shape
    ids, mask = ids.flatten(0, 1), mask.flatten(0, 1)
    longest = int(mask.sum(dim=1).max())
    ids, mask = ids[:, :longest], mask[:, :longest]  # [questions x k, tokens]
    hidden = blip.text_tower.decode(ids[:, :-1], mask[:, :-1], memory)
    counted = mask[:, 1:]
    states, targets = hidden[counted], ids[:, 1:][counted]  # [counted, width], [counted]
    found = [
        blip.word_logits(some).float().log_softmax(dim=-1).gather(1, right[:, None])[:, 0]
        for some, right in zip(states.split(TOKENS_AT_ONCE), targets.split(TOKENS_AT_ONCE), strict=True)
    ]
    rows = counted.nonzero()[:, 0]  # the answer of each token
    sums = torch.zeros(questions * k, device=ids.device).index_add(0, rows, torch.cat(found))
    return sums.view(questions, k)
