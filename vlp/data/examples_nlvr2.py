"""NLVR2's training examples: two images and a sentence that is true or false of them."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from vlp.data.bad_samples import BadSampleError, FilteredSampleError
from vlp.data.batch import DeviceBatch
from vlp.data.chunk import Chunk
from vlp.data.pairs import is_pair
from vlp.data.shards import Sample
from vlp.data.tokenizer import CaptionTokenizer
from vlp.data.transforms import clean_caption

NO_LABEL = "no label"


@dataclass
class Nlvr2Batch(DeviceBatch):
    """Pairs of images, uint8 [batch, 2, 3, size, size], with a sentence each.

    Attributes:
        text_ids, text_mask: int64 and bool [batch, tokens]; ids begin with [ENC].
        labels: int64 [batch], 1 where the sentence is true.
    """

    text_ids: Tensor
    text_mask: Tensor
    labels: Tensor


class Nlvr2Examples:
    """The sentence and the label of each sample."""

    images = 2
    texts = 1
    label = None

    def __init__(self, tokenizer: CaptionTokenizer, max_tokens: int):
        """Longer sentences are cut at `max_tokens`."""
        self.tokenizer, self.max_tokens = tokenizer, max_tokens

    def draw(self, sample: Sample, rng: random.Random) -> tuple[str, bool]:
        """The sentence, and whether it is true.

        Raises:
            FilteredSampleError: there is no label, as in the test splits.
            BadSampleError: there is no pair, sentence or boolean label.
        """
        sentence = pair_sentence(sample.info)
        label = sample.info.get("label")
        if label is None:
            raise FilteredSampleError(NO_LABEL)
        if not isinstance(label, bool):
            raise BadSampleError("bad label")
        return sentence, label

    def batch(self, chunk: Chunk) -> Nlvr2Batch:
        """Pairs of images with tokenized sentences and labels."""
        sentences = [sentence for sentence, _ in chunk.drawn]
        ids, mask = self.tokenizer.encode(sentences, self.max_tokens, first="[ENC]")
        labels = torch.tensor([int(label) for _, label in chunk.drawn])
        return Nlvr2Batch(chunk.images, chunk.keys, ids, mask, labels)


def pair_sentence(info: dict) -> str:
    """The cleaned sentence of a pair, from the JSON of its sample.

    Raises:
        BadSampleError: the sample is no pair, or has no sentence.
    """
    if not is_pair(info):
        raise BadSampleError("no pair of images")
    sentence = info.get("sentence")
    cleaned = clean_caption(sentence) if isinstance(sentence, str) else ""
    if not cleaned:
        raise BadSampleError("no sentence")
    return cleaned
