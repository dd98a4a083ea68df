"""Training examples of retrieval that know wrong texts of an image, such as those that reviewers rejected."""

import random
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from vlp.data.bad_samples import BadSampleError
from vlp.data.batch import Batch
from vlp.data.chunk import Chunk
from vlp.data.examples import CaptionExamples
from vlp.data.shards import Sample
from vlp.data.tokenizer import CaptionTokenizer
from vlp.data.transforms import clean_caption, prompted_caption

WRONG_TEXTS = "wrong_texts"  # of a sample's JSON: texts that do not describe the image


class DrawnTexts(NamedTuple):
    """Texts of an image for one visit: right and wrong ones."""

    right: list[str]
    wrong: list[str]


class MatchingExamples(CaptionExamples):
    """Captions of each image, and wrong texts of those that have some.

    An image without a caption is used, too: its first wrong text takes the place of the caption, and the batch says so.
    """

    def __init__(self, tokenizer: CaptionTokenizer, max_tokens: int, prompt: str, texts: int, wrong: int):
        """`wrong` is the most wrong texts of an image in a visit, at least 1; the others are as in the base class."""
        super().__init__(tokenizer, max_tokens, prompt, texts)
        self.wrong = wrong

    def draw(self, sample: Sample, rng: random.Random) -> Any:
        """`DrawnTexts`; the right ones are those of a visit without wrong texts.

        Raises:
            FilteredSampleError: the sample has no text.
            BadSampleError: its wrong texts are no list of texts.
        """
        wrong = _wrong_texts(sample)
        if wrong and not any(map(clean_caption, sample.captions)):
            return DrawnTexts([], rng.sample(wrong, min(len(wrong), self.wrong)))
        right = super().draw(sample, rng)
        return DrawnTexts(right, rng.sample(wrong, min(len(wrong), self.wrong)))

    def batch(self, chunk: Chunk) -> Batch:
        """As the base class, with the wrong texts. Texts drawn from score tables come without."""
        drawn = [one if isinstance(one, DrawnTexts) else DrawnTexts(one, []) for one in chunk.drawn]
        batch = super().batch(replace(chunk, drawn=[one.right or one.wrong[:1] for one in drawn]))
        further = [one.wrong[0 if one.right else 1 :] for one in drawn]  # beside those in the places of captions
        texts = [prompted_caption(self.prompt, text) for of_image in further for text in of_image]
        if texts:
            batch.wrong_ids, batch.wrong_mask = self.tokenizer.encode(texts, self.max_tokens, first="[ENC]")
            counts = torch.tensor([len(of_image) for of_image in further])
            batch.wrong_images = torch.arange(len(counts)).repeat_interleave(counts)
        batch.captioned = torch.tensor([bool(one.right) for one in drawn])
        return batch


def _wrong_texts(sample: Sample) -> list[str]:
    """The distinct wrong texts that have words and equal no caption."""
    texts = sample.info.get(WRONG_TEXTS) or []
    if not isinstance(texts, list) or not all(isinstance(one, str) for one in texts):
        raise BadSampleError(f"bad {WRONG_TEXTS}")
    known = set(map(clean_caption, sample.captions))
    return list({clean_caption(one): one for one in texts if clean_caption(one) not in {"", *known}}.values())
