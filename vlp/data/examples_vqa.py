"""What VQA finetuning learns from: questions about an image, with all their answers and how many people gave them."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.data.bad_samples import FilteredSampleError
from vlp.data.batch import DeviceBatch
from vlp.data.chunk import Chunk
from vlp.data.questions import NO_ANSWERED_QUESTION, Question, read_questions
from vlp.data.shards import Sample
from vlp.data.tokenizer import CaptionTokenizer
from vlp.data.transforms import clean_caption


@dataclass
class QuestionBatch(DeviceBatch):
    """Images with questions, and each question's distinct answers.

    Attributes:
        question_ids, question_mask: int64 and bool [questions, tokens]; ids begin with [ENC].
        image_index: int64 [questions], the image of each; None where all images have equally many questions, which are
            adjacent and in the order of the images.
        answer_ids, answer_mask: int64 and bool [answers, tokens]; ids begin with [DEC].
        question_index: int64 [answers], the question of each.
        weights: float32 [answers], the share of annotators who gave the answer, times the question's weight.
        predicted: the tokens of all answers but [DEC], for the host.
    """

    question_ids: Tensor
    question_mask: Tensor
    image_index: Tensor | None
    answer_ids: Tensor
    answer_mask: Tensor
    question_index: Tensor
    weights: Tensor
    predicted: int


class QuestionExamples:
    """Questions with their answers; several of an image share its encoding."""

    images = 1
    texts = 1
    label = None

    def __init__(self, tokenizer: CaptionTokenizer, max_tokens: int = 35, questions: int = 1):
        """Nothing is read yet.

        Args:
            max_tokens: longer questions and answers are cut.
            questions: at most so many questions of an image are drawn in a visit.
        """
        self.tokenizer, self.max_tokens, self.questions = tokenizer, max_tokens, questions

    def draw(self, sample: Sample, rng: random.Random) -> list[Question]:
        """Some of the questions that have an answer.

        Raises:
            FilteredSampleError: there is none.
            BadSampleError: the questions in the sample's JSON are damaged.
        """
        answered = [one for one in read_questions(sample.info) if one.answers and clean_caption(one.text)]
        if not answered:
            raise FilteredSampleError(NO_ANSWERED_QUESTION)
        return rng.sample(answered, min(len(answered), self.questions))

    def batch(self, chunk: Chunk) -> QuestionBatch:
        """The batch of a chunk; see `QuestionBatch`."""
        drawn: list[list[Question]] = chunk.drawn
        questions = [question for of_image in drawn for question in of_image]
        ids, mask = self.tokenizer.encode([clean_caption(one.text) for one in questions], self.max_tokens, "[ENC]")
        counts = torch.tensor([len(of_image) for of_image in drawn])
        same = bool((counts == counts[0]).all())
        shares = [one.shares() for one in questions]
        answers = [answer for of_question in shares for answer in of_question]
        weights = [one.weight * share for one, found in zip(questions, shares, strict=True) for share in found.values()]
        answer_ids, answer_mask = self.tokenizer.encode(answers, self.max_tokens, "[DEC]")
        return QuestionBatch(
            chunk.images,
            chunk.keys,
            ids,
            mask,
            None if same else torch.arange(len(drawn)).repeat_interleave(counts),
            answer_ids,
            answer_mask,
            torch.arange(len(questions)).repeat_interleave(torch.tensor([len(one) for one in shares])),
            torch.tensor(weights),
            int(answer_mask[:, 1:].sum()),
        )
