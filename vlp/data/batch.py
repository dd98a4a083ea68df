"""What the loaders give out: batches of images with their tokenized captions."""

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from vlp.data.sample_dataset import Chunk, stable_hash
from vlp.data.tokenizer import CaptionTokenizer
from vlp.data.transforms import prompted_caption


@dataclass
class Batch:
    """What a training step reads.

    Attributes:
        images: uint8 [batch, 3, size, size].
        text_ids, text_mask: int64 and bool [batch, tokens]; ids begin with [CLS].
        text_hashes: int64 [batch]; equal where the cleaned captions are equal.
        image_hashes: int64 [batch]; equal where shard and key are equal.
        keys, texts: of each sample, for people.
    """

    images: Tensor
    text_ids: Tensor
    text_mask: Tensor
    text_hashes: Tensor
    image_hashes: Tensor
    keys: list[str]
    texts: list[str]

    def to(self, device: torch.device) -> "Batch":
        """The batch with its tensors on a device."""
        values = {one.name: getattr(self, one.name) for one in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})


@dataclass
class EvaluationBatch:
    """Images uint8 [batch, 3, size, size] with all their captions, keys and JSON facts, in the shards' order."""

    images: Tensor
    captions: list[list[str]]
    keys: list[str]
    infos: list[dict]


def make_batch(chunk: Chunk, tokenizer: CaptionTokenizer, prompt: str, max_tokens: int) -> Batch:
    """The training batch of a chunk whose samples have one caption each."""
    texts = [prompted_caption(prompt, captions[0]) for captions in chunk.captions]
    ids, mask = tokenizer.encode(texts, max_tokens)
    text_hashes = torch.tensor([stable_hash(text) for text in texts])
    return Batch(chunk.images, ids, mask, text_hashes, torch.tensor(chunk.image_hashes), chunk.keys, texts)
