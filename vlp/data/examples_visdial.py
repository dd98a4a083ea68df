"""What dialog finetuning learns from: rounds of a dialog, each with its true answer and false ones."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.data.bad_samples import FilteredSampleError
from vlp.data.batch import DeviceBatch
from vlp.data.chunk import Chunk
from vlp.data.dialogs import CAPTION_TOKENS, NO_DIALOG, DialogWords, read_dialog
from vlp.data.shards import Sample
from vlp.data.tokenizer import CaptionTokenizer
from vlp.data.transforms import clean_caption


@dataclass
class DrawnRound:
    """A question with its history as word ids, the true answer, and false answers: all cleaned, all different."""

    history: list[int]
    answer: str
    false: list[str]


@dataclass
class DrawnDialog:
    """What a visit of a dialog teaches: the cleaned caption and some rounds, always equally many."""

    caption: str
    rounds: list[DrawnRound]


@dataclass
class DialogBatch(DeviceBatch):
    """Images with their captions, and texts that end in a true or a false answer.

    Attributes:
        caption_ids, caption_mask: int64 and bool [batch, tokens]; ids begin with [CLS].
        text_ids, text_mask: int64 and bool [texts, tokens]; ids begin with [ENC]. All images have equally many texts,
            which are adjacent and in the order of the images.
        labels: int64 [texts], 1 where the answer is true.
        counted: bool [texts], False for a text that only fills a place.
    """

    caption_ids: Tensor
    caption_mask: Tensor
    text_ids: Tensor
    text_mask: Tensor
    labels: Tensor
    counted: Tensor


class DialogExamples:
    """Rounds of dialogs with their true answers and false ones."""

    images = 1
    texts = 1
    label = None

    def __init__(self, tokenizer: CaptionTokenizer, max_tokens: int, rounds: int, false_answers: int):
        """Nothing is read yet.

        Args:
            max_tokens: longer texts lose the beginning of their history.
            rounds: how many rounds of a dialog are drawn in a visit; a shorter dialog has some of them twice.
            false_answers: how many for each round: of its options, or else of other samples of the batch.
        """
        self.tokenizer, self.dialogs = tokenizer, DialogWords(tokenizer, max_tokens)
        self.max_tokens, self.rounds, self.false_answers = max_tokens, rounds, false_answers

    def draw(self, sample: Sample, rng: random.Random) -> DrawnDialog:
        """Rounds with an answer, and false answers from their options.

        Raises:
            FilteredSampleError: the sample has no dialog, or no answer in it.
            BadSampleError: its dialog is damaged.
        """
        dialog = read_dialog(sample.info)
        numbers = [number for number, one in enumerate(dialog.rounds) if one.answer is not None]
        if not numbers:
            raise FilteredSampleError(NO_DIALOG)
        drawn: list[int] = []
        while len(drawn) < self.rounds:
            drawn += rng.sample(numbers, min(len(numbers), self.rounds - len(drawn)))
        rounds = []
        for number in sorted(drawn):
            one = dialog.rounds[number]
            answer = clean_caption(one.answer or "")
            others = [text for text in dict.fromkeys(map(clean_caption, one.options)) if text != answer]
            false = rng.sample(others, min(len(others), self.false_answers))
            rounds.append(DrawnRound(self.dialogs.history(dialog.rounds, number), answer, false))
        return DrawnDialog(clean_caption(dialog.caption), rounds)

    def batch(self, chunk: Chunk) -> DialogBatch:
        """The batch of a chunk; see `DialogBatch`."""
        dialogs: list[DrawnDialog] = chunk.drawn
        texts, labels, counted = [], [], []
        for place, dialog in enumerate(dialogs):
            for one in dialog.rounds:
                answers = [one.answer, *one.false]
                answers += _other_answers(dialogs, place, answers)[: 1 + self.false_answers - len(answers)]
                missing = 1 + self.false_answers - len(answers)
                texts += [self.dialogs.answer(one.history, text) for text in [*answers, *missing * [one.answer]]]
                labels += [1] + self.false_answers * [0]
                counted += len(answers) * [True] + missing * [False]
        caption_ids, caption_mask = self.tokenizer.encode([one.caption for one in dialogs], CAPTION_TOKENS)
        ids, mask = self.tokenizer.pad(texts, self.max_tokens, "[ENC]")
        return DialogBatch(
            chunk.images,
            chunk.keys,
            caption_ids,
            caption_mask,
            ids,
            mask,
            torch.tensor(labels),
            torch.tensor(counted),
        )


def _other_answers(dialogs: list[DrawnDialog], place: int, taken: list[str]) -> list[str]:
    """Answers of the other dialogs of a batch, beginning with the next one, without those that are taken."""
    others = dialogs[place + 1 :] + dialogs[:place]
    return [text for text in dict.fromkeys(one.answer for other in others for one in other.rounds) if text not in taken]
