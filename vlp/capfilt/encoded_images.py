"""Encodes a batch of images once with a BLIP model, for all captions, matches and likelihoods."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.config import DecodingConfig
from vlp.data.tokenizer import CaptionTokenizer
from vlp.data.transforms import clean_caption
from vlp.model import Model
from vlp.model.captions import start_captions
from vlp.models.image_memory import ImageMemory
from vlp.models.text_rows import Side
from vlp.models.untrained import EMBEDDING, MATCHING, require_trained
from vlp.transfers import on_its_way, to_device

TOGETHER = 1024  # texts per forward pass if the image memory need not be copied
COPIED = 128  # texts per forward pass if every text needs a copy of its image's memory
TOKENS_AT_ONCE = 1024  # tokens whose logits over the whole vocabulary are in memory


@dataclass
class TextScores:
    """A model's scores of texts, each [texts] on the CPU; None for scores that were not requested.

    Attributes:
        tokens: int64, the length of the whole text in tokens; the model reads only the first 33.
        itm: float32, the probability that text and image match.
        itc: float32, the cosine of the embeddings.
        nll: float32, the mean negative log-likelihood of the tokens after the prompt and of the end token, in nats.
    """

    tokens: Tensor
    itm: Tensor | None = None
    itc: Tensor | None = None
    nll: Tensor | None = None


class SplitTexts:
    """Texts as word ids, made once for all models with equal tokenizers."""

    def __init__(self, texts: list[str]):
        self.texts = texts
        self.made: dict[tuple[str, str], list[list[int]]] = {}

    def words(self, tokenizer: CaptionTokenizer, prompt: str = "") -> list[list[int]]:
        """The word ids of each text, as they follow a prompt: some tokenizers split the first word differently then."""
        key = tokenizer.identity, prompt
        if key not in self.made:
            self.made[key] = (
                tokenizer.word_ids_after(prompt, self.texts)
                if prompt
                else tokenizer.word_ids([clean_caption(text) for text in self.texts])
            )
        return self.made[key]


class EncodedImages:
    """A batch of images, encoded by one model, that can be captioned and scored against texts."""

    def __init__(self, model: Model, images: Tensor):
        """Encode images uint8 [images, 3, size, size] of the model's size."""
        self.model = model
        self.tokens = model.encode_images(images)  # [images, tokens, width]
        self.memories: dict[Side, ImageMemory] = {}

    def start_captions(
        self, decoding: DecodingConfig, keys: list[str], seed: int, number: int
    ) -> Callable[[], list[list[str]]]:
        """Start to make `number` captions per image; the function returned waits for them.

        Sampling depends on the seed, the image's key and the caption's number.
        """
        made = start_captions(self.model, self._memory("decoder"), decoding, keys, seed, number)
        return lambda: [[caption.text for caption in captions] for captions in made()]

    def start_scores(
        self, texts: SplitTexts, rows: list[int], match: bool, prompt: str | None
    ) -> Callable[[], TextScores]:
        """Start to score texts against their images; the function returned waits for the scores, nothing before does.

        Args:
            rows: the image of each text, ascending.
            match: whether to compute `itm` and `itc`.
            prompt: the prompt for `nll`; None does not compute it.
        """
        tokenizer, device = self.model.tokenizer, self.model.device
        words = texts.words(tokenizer)
        lengths, images = torch.tensor([len(ids) for ids in words], dtype=torch.int64), torch.tensor(rows)
        names = (["itm", "itc"] if match else []) + (["nll"] if prompt is not None else [])
        scores = {name: torch.empty(len(words), device=device) for name in names}
        if match:
            vectors = self._image_vectors()
        after_prompt = texts.words(tokenizer, prompt or "")
        for chosen, index in self._parts(lengths, images):
            there = to_device(chosen, device)
            index = index if index is None else to_device(index, device)
            if match:
                ids, mask = self._padded(words, chosen)
                scores["itm"][there] = self._match(ids, mask, index)
                own = vectors[to_device(images[chosen], device)]
                scores["itc"][there] = (own * self._embed(ids, mask)).sum(dim=-1)
            if prompt is not None:
                those = [after_prompt[i] for i in chosen.tolist()]
                scores["nll"][there] = self._negative_log_likelihood(those, index, prompt)
        coming = {name: on_its_way(values) for name, values in scores.items()}
        return lambda: TextScores(lengths, **{name: values() for name, values in coming.items()})

    def _padded(self, words: list[list[int]], chosen: Tensor) -> tuple[Tensor, Tensor]:
        ids, mask = self.model.tokenizer.pad([words[i] for i in chosen.tolist()], self.model.text_tokens)
        return to_device(ids, self.model.device), to_device(mask, self.model.device)

    def _parts(self, lengths: Tensor, images: Tensor) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Split texts into forward passes: their numbers, int64 [n], and their `image_index` (see `TextTower.match`).

        If all images have equally many texts, one pass uses the image memory as it is. Otherwise texts of similar
        length share a pass, each with a copy of its image's memory.
        """
        even = torch.arange(len(self.tokens)).repeat_interleave(len(images) // len(self.tokens))
        if len(images) <= TOGETHER and torch.equal(even, images):
            yield torch.arange(len(images)), None
            return
        for chosen in lengths.argsort(stable=True).split(COPIED):
            yield chosen, images[chosen]

    def _image_vectors(self) -> Tensor:
        require_trained(self.model.config, EMBEDDING, "embed images and texts")
        with self.model.inference():
            return self.model.two_towers.embed_image_tokens(self.tokens)

    def _match(self, ids: Tensor, mask: Tensor, index: Tensor | None) -> Tensor:
        require_trained(self.model.config, MATCHING, "match images and texts")
        ids = self._beginning_with(self.model.tokenizer.enc_id, ids)
        with self.model.inference():
            logits = self.model.blip.match_logits(ids, mask, self._memory("encoder"), index)
        return logits.float().softmax(dim=-1)[:, 1]

    def _embed(self, ids: Tensor, mask: Tensor) -> Tensor:
        with self.model.inference():
            return self.model.two_towers.embed_texts(self._beginning_with(self.model.tokenizer.cls_id, ids), mask)

    def _negative_log_likelihood(self, words: list[list[int]], index: Tensor | None, prompt: str) -> Tensor:
        """Mean over each text's tokens after the prompt and its end token; `words` as ids; [texts]."""
        ids, mask = self.model.tokenizer.pad(words, self.model.text_tokens)
        start = torch.tensor(self.model.tokenizer.prompt_ids(prompt)).expand(len(ids), -1)
        whole = torch.cat([start, ids[:, 1:]], dim=1)[:, : self.model.config.text_tower.positions + 1]
        read, following = whole[:, :-1], whole[:, 1:]
        counted = torch.cat([torch.zeros_like(start[:, 1:], dtype=torch.bool), mask[:, 1:]], dim=1)
        counted = counted[:, : read.shape[1]]  # [texts, tokens - 1], of the tokens from the second on
        # The host finds these places, because it would wait for a GPU to do so.
        places, targets = counted.flatten().nonzero()[:, 0], following[counted]
        texts, counts = places // read.shape[1], counted.sum(dim=1)
        read, places, targets, texts, counts = (
            to_device(one, self.model.device) for one in (read, places, targets, texts, counts)
        )
        with self.model.inference():
            # Padding comes last, so the causal mask hides it from all tokens.
            hidden = self.model.blip.text_tower.decode(read, None, self._memory("decoder"), index)
            losses = [
                F.cross_entropy(self.model.blip.word_logits(some).float(), right, reduction="none")
                for some, right in zip(
                    hidden.flatten(0, 1).index_select(0, places).split(TOKENS_AT_ONCE),
                    targets.split(TOKENS_AT_ONCE),
                    strict=True,
                )
            ]
        return torch.zeros(len(ids), device=read.device).index_add(0, texts, torch.cat(losses)) / counts

    def _memory(self, side: Side) -> ImageMemory:
        side = "encoder" if self.model.blip.text_tower.shares_memory else side
        if side not in self.memories:
            self.memories[side] = self.model.project(self.tokens, side)
        return self.memories[side]

    @staticmethod
    def _beginning_with(first: int, ids: Tensor) -> Tensor:
        return torch.cat([torch.full_like(ids[:, :1], first), ids[:, 1:]], dim=1)
