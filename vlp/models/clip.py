"""CLIP: an image encoder and a text tower that meet only in their embeddings (Radford et al. 2021)."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vlp.config_model import ModelConfig
from vlp.models.clip_text import ClipTextTower
from vlp.models.image_encoders.encoder import ImageEncoder
from vlp.models.text_tower import TextTower
from vlp.models.two_towers import embed_summaries, resize_images


class Clip(nn.Module):
    """Two towers and their projections. The methods that `Blip` has too mean the same as there.

    Attributes:
        log_temperature: logarithm of the scalar that divides the cosines. CLIP's `logit_scale` is its negative.
        logit_bias: added to the divided cosines by the sigmoid loss (SigLIP, Zhai et al. 2023, section 3.2); 0 for
            models that are trained by softmax.
    """

    def __init__(self, config: ModelConfig, temperature: float = 0.07):
        super().__init__()
        text, self.image_encoder = config.text_tower, ImageEncoder(config.image_encoder)
        self.config = replace(config, image_encoder=self.image_encoder.config)
        self.text_tower = ClipTextTower(text) if text.name == "clip" else TextTower(text, None)
        biases = config.image_projection_bias, config.text_projection_bias
        self.image_projection = nn.Linear(self.image_encoder.width, config.embed_dim, bias=biases[0])
        self.text_projection = nn.Linear(text.width, config.embed_dim, bias=biases[1])
        for projection in (self.image_projection, self.text_projection):
            nn.init.normal_(projection.weight, std=projection.in_features**-0.5)  # as in CLIP
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.logit_bias = nn.Parameter(torch.zeros(()))

    @property
    def temperature(self) -> Tensor:
        """The scalar that divides the cosines."""
        return self.log_temperature.exp()

    def encode_images(self, images: Tensor) -> Tensor:
        """Images [batch, 3, size, size] (uint8, or normalized float) -> image tokens [batch, tokens, width]."""
        return self.image_encoder(images)

    def embed_image_tokens(self, image_tokens: Tensor, frames: int = 1) -> Tensor:
        """Image tokens [images, tokens, width] -> float32 unit vectors [images, embed_dim]; see `embed_summaries`."""
        return embed_summaries(self.image_projection, image_tokens, frames)

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Texts [texts, tokens] -> float32 unit vectors [texts, embed_dim]. The ids begin with [CLS]."""
        return self.embed_text_states(self.encode_texts(ids, mask))

    def encode_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Texts [texts, tokens] -> [texts, width], the state of the first token, or of the last with `pooling: end`."""
        states = self.text_tower.encode(ids, mask)  # [texts, tokens, width]
        if self.config.text_tower.pooling == "class":
            return states[:, 0]
        return states[torch.arange(len(states), device=states.device), mask.sum(dim=1) - 1]

    def embed_text_states(self, states: Tensor) -> Tensor:
        """States [texts, width] of `encode_texts` -> float32 unit vectors [texts, embed_dim]."""
        return F.normalize(self.text_projection(states).float(), dim=-1)

    def resize_images(self, image_size: int) -> None:
        """Change the size of the images that the model takes, in pixels; position embeddings are interpolated."""
        resize_images(self, image_size)

    def checkpoint_activations(self) -> None:
        """Recompute blocks in the backward pass, which saves memory for about a third more compute."""
        self.image_encoder.checkpoint_activations()
        self.text_tower.checkpointing = True
