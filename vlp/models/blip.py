"""One BLIP model: an image encoder, the text tower and the heads. No losses, no tokenizer."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import ModelConfig
from vlp.models.image_encoders.encoder import WHOLE, ImageEncoder, ImageView
from vlp.models.image_memory import DecodingCache, ImageMemory
from vlp.models.language_head import LanguageHead
from vlp.models.text_tower import TextTower
from vlp.models.two_towers import embed_summaries, resize_images


class Blip(nn.Module):
    """Image encoder, text tower, projections, matching head and language head (paper, section 3.1).

    The ids of a text begin with the special token of their use: [CLS] for `embed_texts`, [ENC] for `match_logits`,
    [DEC] for `caption_logits`.
    """

    def __init__(self, config: ModelConfig, temperature: float = 0.07):
        super().__init__()
        self.image_encoder = ImageEncoder(config.image_encoder)
        self.config = replace(config, image_encoder=self.image_encoder.config)
        self.text_tower = TextTower(config.text_tower, self.image_encoder.width, config.finetuned_for)
        self.image_projection = nn.Linear(self.image_encoder.width, config.embed_dim)
        self.text_projection = nn.Linear(config.text_tower.width, config.embed_dim)
        self.itm_head = nn.Linear(config.text_tower.width, 2)
        if config.finetuned_for == "nlvr2":
            width = config.text_tower.width
            self.pair_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))
        self.language_head = LanguageHead(config.text_tower)
        self.caption_projection: nn.Linear | None = None  # of caption states, in a memory of image and caption
        if config.finetuned_for == "visdial" and config.text_tower.width != self.image_encoder.width:
            self.caption_projection = nn.Linear(config.text_tower.width, self.image_encoder.width)
        # Learned as a logarithm, so that an optimizer step changes it by a small share of its value.
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())

    @property
    def temperature(self) -> Tensor:
        """The scalar that divides ITC's cosines."""
        return self.log_temperature.exp()

    def encode_images(self, images: Tensor, view: ImageView = WHOLE) -> Tensor:
        """Images [batch, 3, size, size] (uint8, or normalized float) -> image tokens [batch, tokens, width].

        Args:
            view: what of the images is encoded.
        """
        return self.image_encoder(images, *view)

    def embed_image_tokens(self, image_tokens: Tensor, frames: int = 1) -> Tensor:
        """Image tokens [images, tokens, width] -> float32 unit vectors [images, embed_dim] for ITC.

        Args:
            frames: of a video, whose tokens follow each other. Like BLIP, the projections of the frames' class tokens
                are averaged before the vector is normalized.
        """
        return embed_summaries(self.image_projection, image_tokens, frames)

    def embed_texts(self, ids: Tensor, mask: Tensor, count: int | None = None) -> Tensor:
        """Texts [texts, tokens] -> float32 unit vectors [texts, embed_dim] for ITC; `count` as in `TextTower.match`."""
        return F.normalize(self.text_projection(self.text_tower.encode(ids, mask, count)[:, 0]).float(), dim=-1)

    def match_logits(
        self,
        ids: Tensor,
        mask: Tensor,
        memory: ImageMemory,
        image_index: Tensor | None = None,
        count: int | None = None,
    ) -> Tensor:
        """ITM logits [texts, 2], where class 1 is "match". Arguments as in `TextTower.match`."""
        return self.itm_head(self.text_tower.match(ids, mask, memory, image_index, count)[:, 0])

    def pair_memory(self, images: Tensor) -> ImageMemory:
        """The memory of pairs of images [pairs, 2, 3, size, size], with a row for each pair."""
        tokens = self.encode_images(images.flatten(0, 1)).unflatten(0, (-1, 2))  # [pairs, 2, tokens, width]
        return self.text_tower.project_image(tokens)

    def pair_logits(self, ids: Tensor, mask: Tensor, memory: ImageMemory, image_index: Tensor | None = None) -> Tensor:
        """Logits [texts, 2] of sentences about pairs, where class 1 is "true"; ids begin with [ENC].

        Args:
            memory, image_index: as in `TextTower.match`; the memory is that of `pair_memory`.
        """
        return self.pair_head(self.text_tower.match(ids, mask, memory, image_index)[:, 0])

    def question_memory(
        self, ids: Tensor, mask: Tensor, memory: ImageMemory, image_index: Tensor | None = None
    ) -> ImageMemory:
        """The states of questions about images, as the memory that the answer decoder reads (paper, section 5.3).

        Args:
            ids, mask, memory, image_index: as in `TextTower.match`; ids begin with [ENC].

        Returns:
            A memory with a row for each question, and the mask of the questions.
        """
        states = self.text_tower.match(ids, mask, memory, image_index)  # [questions, tokens, width]
        return self.text_tower.project_image(states, "decoder", mask)

    def dialog_memory(self, image_tokens: Tensor, ids: Tensor, mask: Tensor, padded: bool = True) -> ImageMemory:
        """Images and their captions as one memory, for texts of dialogs (paper, section 5.5).

        Args:
            image_tokens: [images, tokens, image width].
            ids, mask: int64 and bool [images, caption tokens], the captions; ids begin with [CLS].
            padded: False promises that no caption is padded, so that cross-attention needs no mask.
        """
        states = self.text_tower.encode(ids, mask)  # [images, caption tokens, width]
        if self.caption_projection is not None:
            states = self.caption_projection(states)
        together = torch.cat([image_tokens, states.to(image_tokens.dtype)], dim=1)
        seen = torch.cat([mask.new_ones(image_tokens.shape[:2]), mask], dim=1) if padded else None
        return self.text_tower.project_image(together, "encoder", seen)

    def caption_logits(
        self,
        ids: Tensor,
        mask: Tensor | None,
        memory: ImageMemory,
        image_index: Tensor | None = None,
        cache: DecodingCache | None = None,
    ) -> Tensor:
        """Next-token logits [texts, tokens, vocabulary]. Arguments as in `TextTower.decode`."""
        return self.word_logits(self.text_tower.decode(ids, mask, memory, image_index, cache))

    def word_logits(self, hidden: Tensor) -> Tensor:
        """Decoder states [..., width] -> vocabulary logits [..., vocabulary]."""
        return self.language_head(hidden, self.text_tower.embeddings.side("decoder").words.weight)

    def word_loss(self, hidden: Tensor, targets: Tensor, smoothing: float, weights: Tensor | None = None) -> Tensor:
        """Summed LM loss of decoder states [rows, width] against target ids int64 [rows]; see `language_loss`."""
        words = self.text_tower.embeddings.side("decoder").words.weight
        return self.language_head.loss(hidden, words, targets, smoothing, weights)

    def resize_images(self, image_size: int) -> None:
        """Change the size of the images that the model takes, in pixels; position embeddings are interpolated."""
        resize_images(self, image_size)

    def checkpoint_activations(self) -> None:
        """Recompute blocks in the backward pass, which saves memory for about a third more compute."""
        self.image_encoder.checkpoint_activations()
        self.text_tower.checkpointing = True

    def encoder_only_parts(self) -> list[nn.Module]:
        """The modules that captioning does not use."""
        return [self.image_projection, self.text_projection, self.itm_head, *self._parts_of("encoder")]

    def decoder_only_parts(self) -> list[nn.Module]:
        """The modules that retrieval does not use."""
        return [self.language_head, *self._parts_of("decoder")]

    def _parts_of(self, side: str) -> list[nn.Module]:
        return [module for name, module in self.text_tower.named_modules() if name.rpartition(".")[2] == side]
