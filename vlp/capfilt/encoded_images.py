"""A batch of images in one BLIP model: encoded once, and projected once, for all captions, matches and likelihoods."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.config import DecodingConfig
from vlp.data.transforms import clean_caption
from vlp.model import Model
from vlp.models.text_tower import ImageMemory, Side

TOGETHER = 1024  # texts that go through the tower at once, where no memory is copied for them
COPIED = 128  # the same, where every text has a copy of its image's memory
WORDS = 1024  # whose logits over the whole vocabulary are held at once


@dataclass
class TextScores:
    """What a model says of texts, each [texts] on the CPU; None where it was not asked.

    Attributes:
        tokens: int64, words in the model's tokenizer: of the whole text, though the model reads only the first 33.
        itm: float32, the probability of a match.
        itc: float32, the cosine of the embeddings.
        nll: float32, the mean negative log-likelihood of the tokens after the prompt, the end included, in nats.
    """

    tokens: Tensor
    itm: Tensor | None = None
    itc: Tensor | None = None
    nll: Tensor | None = None


class EncodedImages:
    """What a model keeps of a batch of images while their texts are made and scored."""

    def __init__(self, model: Model, images: Tensor):
        """Encode images uint8 [images, 3, size, size] of the model's size."""
        self.model = model
        self.tokens = model.encode_images(images)  # [images, tokens, width]
        self.memories: dict[Side, ImageMemory] = {}

    def captions(self, decoding: DecodingConfig, keys: list[str], seed: int, number: int) -> list[list[str]]:
        """`number` captions an image; a sampled one depends on the seed, the image's key and its own number."""
        made = self.model.caption_tokens(self.tokens, decoding, keys, seed, number, self._memory("decoder"))
        return [[caption.text for caption in captions] for captions in made]

    def score(self, texts: list[str], rows: list[int], match: bool, prompt: str | None) -> TextScores:
        """Score texts against their images; every text is tokenized once.

        Args:
            rows: the image of each text, in order.
            match: whether the model is a filter.
            prompt: what a captioner's captions begin with; None when the model is no captioner.
        """
        tokenizer = self.model.tokenizer
        words = tokenizer.word_ids([clean_caption(text) for text in texts])
        lengths, images = torch.tensor([len(ids) for ids in words], dtype=torch.int64), torch.tensor(rows)
        scores = TextScores(lengths)
        if match:
            scores.itm, scores.itc = torch.empty(len(texts)), torch.empty(len(texts))
            vectors = self.model.embed_tokens(self.tokens)
        if prompt is not None:
            scores.nll = torch.empty(len(texts))
        for chosen, index in self._parts(lengths, images):
            ids, mask = tokenizer.pad([words[i] for i in chosen.tolist()], self.model.text_tokens)
            ids, mask = ids.to(self.model.device), mask.to(self.model.device)
            index = index if index is None else index.to(self.model.device)
            if match:
                scores.itm[chosen] = self._match(ids, mask, index)
                scores.itc[chosen] = (vectors[images[chosen]] * self._embed(ids, mask)).sum(dim=-1)
            if prompt is not None:
                scores.nll[chosen] = self._negative_log_likelihood(ids, mask, index, prompt)
        return scores

    def _parts(self, lengths: Tensor, images: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Which texts go together, int64 [n], and their `image_index` (see `TextTower.match`).

        All of them, where each image has equally many: its memory then serves them as it lies. Else those of a length,
        each with a copy of the memory.
        """
        even = torch.arange(len(self.tokens)).repeat_interleave(len(images) // len(self.tokens))
        if len(images) <= TOGETHER and torch.equal(even, images):
            yield torch.arange(len(images)), None
            return
        for chosen in lengths.argsort(stable=True).split(COPIED):
            yield chosen, images[chosen]

    def _match(self, ids: Tensor, mask: Tensor, index: Tensor | None) -> Tensor:
        ids = self._beginning_with(self.model.tokenizer.enc_id, ids)
        return self.model.match_logits(ids, mask, self._memory("encoder"), index).softmax(dim=-1)[:, 1]

    def _embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        with self.model.inference():
            return self.model.blip.embed_texts(self._beginning_with(self.model.tokenizer.cls_id, ids), mask).cpu()

    def _negative_log_likelihood(self, ids: Tensor, mask: Tensor, index: Tensor | None, prompt: str) -> Tensor:
        """Mean over each text's words and its end token, which the model sees given all before it; [texts]."""
        start = torch.tensor(self.model.tokenizer.prompt_ids(prompt), device=ids.device).expand(len(ids), -1)
        whole = torch.cat([start, ids[:, 1:]], dim=1)[:, : self.model.config.text_tower.positions + 1]
        counted = torch.cat([torch.zeros_like(start[:, 1:], dtype=torch.bool), mask[:, 1:]], dim=1)
        counted = counted[:, : whole.shape[1] - 1]  # [texts, tokens - 1], of the tokens from the second on
        with self.model.inference():
            # Padding stands last, where the causal mask hides it from every word.
            hidden = self.model.blip.text_tower.decode(whole[:, :-1], None, self._memory("decoder"), index)[counted]
            targets = whole[:, 1:][counted]
            losses = [
                F.cross_entropy(self.model.blip.word_logits(some).float(), right, reduction="none")
                for some, right in zip(hidden.split(WORDS), targets.split(WORDS), strict=True)
            ]
        texts = counted.nonzero()[:, 0]
        sums = torch.zeros(len(ids), device=ids.device).index_add(0, texts, torch.cat(losses))
        return (sums / counted.sum(dim=1)).cpu()

    def _memory(self, side: Side) -> ImageMemory:
        side = "encoder" if self.model.blip.text_tower.shares_memory else side
        if side not in self.memories:
            self.memories[side] = self.model.project(self.tokens, side)
        return self.memories[side]

    @staticmethod
    def _beginning_with(first: int, ids: Tensor) -> Tensor:
        return torch.cat([torch.full_like(ids[:, :1], first), ids[:, 1:]], dim=1)
