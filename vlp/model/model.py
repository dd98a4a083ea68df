"""A model with its tokenizer: captions, embeddings and matches, and the steps that evaluations are made of."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlp.config import DecodingConfig, Precision
from vlp.config_model import ModelConfig
from vlp.data.images import ImageLike, as_list, load_image
from vlp.data.tokenizer import CaptionTokenizer, FirstToken
from vlp.data.transforms import ImageSize
from vlp.errors import UserError
from vlp.generation.settings import named_overrides, resolve_decoding
from vlp.model.answer_ranking import LikelyAnswer, rank_answers
from vlp.model.answers import answer_questions
from vlp.model.captions import Caption, start_captions
from vlp.model.classify import Classification, classify_images
from vlp.model.dialog import RankedAnswer, rank_dialog_answers
from vlp.model.hub import push_to_hub
from vlp.model.matching import Match, match_images, match_tokens
from vlp.model.pairs import compare_images
from vlp.model.video import FRAMES, QUESTION_FRAMES, encode_all
from vlp.model_folder import save_model
from vlp.models.blip import Blip
from vlp.models.clip import Clip
from vlp.models.constant_weights import constant_weights
from vlp.models.finetuned import refuse_finetuned
from vlp.models.image_memory import ImageMemory
from vlp.models.network import Network, as_blip, as_two_towers, require_network
from vlp.models.precision import compute_dtype
from vlp.models.text_rows import Side
from vlp.models.untrained import EMBEDDING, MATCHING, require_trained

TEXT_TOKENS = 35  # BLIP's limit in retrieval; longer texts are cut. A CLIP reads as many as it has positions.


class Model:
    """A BLIP or CLIP model with its tokenizer and decoding settings, or a classifier.

    A CLIP model only embeds, searches and classifies; a classifier only classifies, by the classes of its training.

    Images are paths, PIL images or tensors [3, size, size] (uint8, or float and already normalized) of the model's
    image size. Paths of videos (mp4, mkv, ...) are images too: `frames` of each are encoded, and their tokens form one
    memory (paper, section 5.6). Results are on the CPU. Up to rounding, they do not depend on the other items of a
    batch.

    Attributes:
        decoding: how the model makes captions unless the caller says otherwise; stored in its folder.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: CaptionTokenizer | None,
        precision: Precision = "auto",
        card: str = "",
        decoding: DecodingConfig | None = None,
    ):
        """Wrap a network. It stays on its device, and is in evaluation mode only during calls.

        Args:
            tokenizer: None for a classifier.
            card: the text of its model card.
            decoding: None means the defaults of `DecodingConfig`.
        """
        self.card = card
        self.decoding = decoding or DecodingConfig()
        self.network = network
        self._tokenizer = tokenizer
        self.config: ModelConfig = network.config
        self.compute_dtype = compute_dtype(precision, self.device)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.network.parameters()).device

    @property
    def tokenizer(self) -> CaptionTokenizer:
        """The tokenizer; raises UserError for a classifier, which has none."""
        as_two_towers(self.network, "read texts")
        assert self._tokenizer is not None
        return self._tokenizer

    @property
    def text_tokens(self) -> int:
        """Tokens of a text that are read; longer texts are cut."""
        longest = self.tokenizer.longest(self.config.text_tower.positions)
        return longest if self.config.network == "clip" else min(TEXT_TOKENS, longest)

    @property
    def two_towers(self) -> Blip | Clip:
        """The network of a model that embeds images and texts; raises UserError for a classifier."""
        return as_two_towers(self.network)

    @property
    def blip(self) -> Blip:
        """The network of a BLIP model.

        Raises:
            UserError: the model is of another kind, such as CLIP.
        """
        return as_blip(self.network)

    def rerank_count(self, asked: int | None, usual: int) -> int:
        """How many candidates to re-rank by ITM: what the caller asked for; None: `usual`, or 0 without ITM.

        Raises:
            UserError: the caller asked for re-ranking, and the model has no ITM.
        """
        if asked:
            require_network(self.config, "blip", "re-rank by ITM")
        return asked if asked is not None else usual if self.config.network == "blip" else 0

    @property
    def image_size(self) -> ImageSize:
        """Height and width of the model's images, in pixels, and how other images are resized to them."""
        return ImageSize.of(self.config.image_encoder)

    @constant_weights()
    def caption(
        self,
        images: ImageLike | Sequence[ImageLike],
        decoding: DecodingConfig | None = None,
        keys: Sequence[str] | None = None,
        seed: int = 0,
        num_captions: int = 1,
        batch_size: int = 32,
        prompts: Sequence[str] | None = None,
        frames: int = FRAMES,
        **settings: Any,
    ) -> list[list[Caption]]:
        """Caption images with the image-grounded text decoder (paper, section 3.2).

        Args:
            images: one or several.
            decoding: None means the model's own settings.
            keys: one per image; a sampled caption depends only on `seed`, the image's key and the caption's number.
                None means an image's path or, if it is not given as a path, its position.
            num_captions: captions per image; the image is encoded and projected once for all of them.
            prompts: one per image, instead of the same prompt for all.
            frames: of each video.
            settings: fields of `DecodingConfig` to change, such as `beams=3` or `prompt="a picture of"`.

        Returns:
            A list of `num_captions` captions for each image, without the prompt; beam search returns the best first.

        Raises:
            UserError: an image is unreadable or a setting is out of range.
        """
        decoding = resolve_decoding(decoding or self.decoding, named_overrides(settings))
        images = as_list(images)
        paths = [str(image if isinstance(image, (str, Path)) else number) for number, image in enumerate(images)]
        keys = paths if keys is None else list(keys)
        starts = [decoding.prompt] * len(images) if prompts is None else list(prompts)
        for what, given in (("key", keys), ("prompt", starts)):
            if len(given) != len(images):
                raise UserError(f"caption needs one {what} per image: {len(images)} images, {len(given)} {what}s.")
        captions: list[list[Caption]] = [[]] * len(images)
        for prompt in dict.fromkeys(starts):  # images with the same prompt form batches
            rows = [row for row, start in enumerate(starts) if start == prompt]
            prompted = replace(decoding, prompt=prompt)
            for one in encode_all(self, images, rows, frames, batch_size):
                made = self.caption_tokens(one.tokens, prompted, [keys[row] for row in one.rows], seed, num_captions)
                for row, found in zip(one.rows, made, strict=True):
                    captions[row] = found
        return captions

    def caption_texts(
        self, images: ImageLike | Sequence[ImageLike], decoding: DecodingConfig | None = None, **settings: Any
    ) -> list[str]:
        """The text of the first (with beam search: the best) caption of each image; arguments as in `caption`."""
        return [captions[0].text for captions in self.caption(images, decoding, **settings)]

    def answer(
        self,
        images: ImageLike | Sequence[ImageLike],
        questions: str | Sequence[str],
        decoding: DecodingConfig | None = None,
        batch_size: int = 32,
        frames: int = QUESTION_FRAMES,
        **settings: Any,
    ) -> list[str]:
        """Answer questions about images with a model trained on question answering; see `answer_questions`."""
        return answer_questions(self, as_list(images), questions, decoding, batch_size, frames, **settings)

    def rank_dialog_answers(
        self,
        image: ImageLike,
        caption: str,
        history: Sequence[tuple[str, str]],
        question: str,
        answers: Sequence[str],
    ) -> list[RankedAnswer]:
        """The answers to a question in a dialog, the most probable first; see `vlp.model.dialog`."""
        return rank_dialog_answers(self, image, caption, history, question, answers)

    def compare(
        self,
        left: ImageLike | Sequence[ImageLike],
        right: ImageLike | Sequence[ImageLike],
        sentences: str | Sequence[str],
        batch_size: int = 32,
    ) -> Tensor:
        """How likely sentences are true of pairs of images, by a model finetuned for NLVR2; see `compare_images`."""
        return compare_images(self, as_list(left), as_list(right), sentences, batch_size)

    def classify(
        self,
        images: ImageLike | Sequence[ImageLike],
        labels: Sequence[str] = (),
        templates: Sequence[str] = (),
        rerank: int = 0,
        batch_size: int = 32,
    ) -> Classification:
        """The ranking and the probabilities of labels for each image; see `vlp.model.classify`.

        A classifier ranks its own classes (`config.classes`); other models take any labels, without training for them.
        """
        return classify_images(self, images, labels, templates, rerank, batch_size)

    def rank_answers(
        self,
        images: ImageLike | Sequence[ImageLike],
        questions: str | Sequence[str],
        answers: Sequence[str],
        k: int = 128,
        batch_size: int = 32,
        frames: int = QUESTION_FRAMES,
    ) -> list[list[LikelyAnswer]]:
        """The likeliest answers of a list, the best first; see `vlp.model.answer_ranking.rank_answers`."""
        return rank_answers(self, as_list(images), questions, answers, k, batch_size, frames)

    @constant_weights()
    def embed_images(
        self, images: ImageLike | Sequence[ImageLike], batch_size: int = 32, frames: int = FRAMES
    ) -> Tensor:
        """Unit vectors float32 [images, embed_dim] in the embedding space that images and texts share."""
        images = as_list(images)
        vectors = torch.empty(len(images), self.config.embed_dim)
        for one in encode_all(self, images, range(len(images)), frames, batch_size):
            vectors[one.rows] = self.embed_tokens(one.tokens, one.frames)
        return vectors

    @constant_weights()
    def embed_texts(self, texts: str | Sequence[str], batch_size: int = 128) -> Tensor:
        """Unit vectors float32 [texts, embed_dim] in the embedding space that images and texts share."""
        require_trained(self.config, EMBEDDING, "embed images and texts")
        texts = [texts] if isinstance(texts, str) else list(texts)
        vectors = [torch.empty(0, self.config.embed_dim)]
        for start in range(0, len(texts), batch_size):
            ids, mask = self.text_ids(texts[start : start + batch_size], "[CLS]")
            with self.inference():
                vectors.append(self.two_towers.embed_texts(ids, mask).cpu())
        return torch.cat(vectors)

    def match(
        self,
        images: ImageLike | Sequence[ImageLike],
        texts: str | Sequence[str],
        batch_size: int = 32,
        frames: int = FRAMES,
    ) -> Match:
        """How well each text matches its image.

        Args:
            images, texts: equally many, which are paired in order; or one image or one text, which is paired with all.
            frames: of each video.

        Raises:
            UserError: the numbers of images and texts differ, or an image is unreadable.
        """
        return match_images(self, images, texts, batch_size, frames)

    def save(self, folder: str | Path, card: str = "") -> None:
        """Write the model folder; see `save_model`."""
        save_model(self.network, self._tokenizer, folder, card or self.card, self.decoding)

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Upload the model folder, including its card, to the Hugging Face hub as "owner/model"; returns its URL."""
        return push_to_hub(self, name, private)

    # The methods below take encoded images, for callers with several texts per image.

    def load_images(self, images: Sequence[ImageLike]) -> Tensor:
        """Load images as one batch [images, 3, size, size]: uint8, or float if they are float tensors.

        Raises:
            UserError: an image is unreadable, or a tensor has the wrong shape.
        """
        loaded = [load_image(image, self.image_size) for image in images]
        if len({image.dtype for image in loaded}) > 1:
            raise UserError("Pass all images of a call as uint8 tensors, paths or PIL images, or all as float tensors.")
        return torch.stack(loaded)

    def encode_images(self, images: Tensor) -> Tensor:
        """[images, 3, size, size] -> image tokens [images, tokens, width] on the model's device."""
        with self.inference():
            return self.network.encode_images(images.to(self.device))

    def embed_tokens(self, image_tokens: Tensor, frames: int = 1) -> Tensor:
        """Tokens of images, or of videos with `frames` > 1, [images, tokens, width] -> float32 [images, embed_dim]."""
        require_trained(self.config, EMBEDDING, "embed images and texts")
        with self.inference():
            return self.two_towers.embed_image_tokens(image_tokens, frames).cpu()

    def project(self, image_tokens: Tensor, side: Side = "encoder") -> ImageMemory:
        """The image memory for `match_logits` (side "encoder") or for captions (side "decoder")."""
        with self.inference():
            return self.blip.text_tower.project_image(image_tokens, side)

    def match_logits(self, ids: Tensor, mask: Tensor, memory: ImageMemory, image_index: Tensor | None = None) -> Tensor:
        """ITM logits float32 [texts, 2]; ids begin with [ENC]; `image_index` as in `TextTower.match`."""
        require_trained(self.config, MATCHING, "match images and texts")
        with self.inference():
            return self.blip.match_logits(ids, mask, memory, image_index).float().cpu()

    def match_tokens(
        self,
        image_tokens: Tensor,
        texts: Sequence[str],
        image_index: Tensor | None = None,
        batch_size: int = 128,
        frames: int = 1,
    ) -> Match:
        """How well texts match encoded images; see `vlp.model.matching.match_tokens`."""
        return match_tokens(self, image_tokens, texts, image_index, batch_size, frames)

    @constant_weights()
    def caption_tokens(
        self,
        image_tokens: Tensor,
        decoding: DecodingConfig,
        keys: Sequence[str],
        seed: int = 0,
        num_captions: int = 1,
    ) -> list[list[Caption]]:
        """Caption encoded images [images, tokens, width]; see `caption_memory`."""
        refuse_finetuned(self.config, "caption images")
        return self.caption_memory(self.project(image_tokens, "decoder"), decoding, keys, seed, num_captions)

    @constant_weights()
    def caption_memory(
        self,
        memory: ImageMemory,
        decoding: DecodingConfig,
        keys: Sequence[str],
        seed: int = 0,
        num_captions: int = 1,
    ) -> list[list[Caption]]:
        """Caption the images of a memory for the decoder; arguments as in `start_captions`, result as in `caption`."""
        return start_captions(self, memory, decoding, keys, seed, num_captions)()

    def text_ids(self, texts: Sequence[str], first: FirstToken) -> tuple[Tensor, Tensor]:
        """Clean and tokenize texts: ids int64 and mask bool [texts, tokens]; every row starts with `first`."""
        ids, mask = self.tokenizer.encode(list(map(self.tokenizer.form.clean, texts)), self.text_tokens, first)
        return ids.to(self.device), mask.to(self.device)

    @contextmanager
    def inference(self) -> Iterator[None]:
        """No gradients, no dropout, the model's precision; restores the mode of the network."""
        if training := self.network.training:
            self.network.eval()
        autocast = torch.autocast(self.device.type, self.compute_dtype, enabled=self.compute_dtype is not None)
        try:
            with torch.no_grad(), autocast:
                yield
        finally:
            if training:
                self.network.train()
