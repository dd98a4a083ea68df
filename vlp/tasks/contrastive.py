"""CLIP training: images and texts are told apart by their embeddings alone, with the softmax or the sigmoid loss.

Several ways to make it cheaper are settings of `objective`: a locked tower (LiT, Zhai et al. 2022), patch dropout
(FLIP, Li et al. 2023), several texts for each encoded image, and gradient caching (Gao et al. 2021).
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlp.config import RunConfig
from vlp.data.examples_contrastive import ContrastiveBatch
from vlp.data.tokenizer import CaptionTokenizer
from vlp.losses.info_nce import info_nce
from vlp.losses.sigmoid import sigmoid_loss
from vlp.models.batch_norm import checkpoint_contexts
from vlp.models.clip import Clip
from vlp.tasks.image_schedule import check_views, image_view
from vlp.tasks.task import Task, TaskOutput

LOWEST_TEMPERATURE = 0.01  # CLIP never multiplies cosines by more than 100


class ContrastiveTask(Task):
    """The contrastive loss of one batch, over the images and texts of all processes."""

    def __init__(self, config: RunConfig, model: Clip, tokenizer: CaptionTokenizer | None = None):
        """`tokenizer` is not used; every task takes one."""
        super().__init__()
        self.model = model
        self.objective = config.objective
        check_views(config.objective, model.image_encoder)
        self.view = image_view(config.objective, 0.0)
        if self.locked is not None:
            self.locked.requires_grad_(False)
        if config.objective.contrastive == "softmax":
            model.logit_bias.requires_grad_(False)

    @property
    def locked(self) -> nn.Module | None:
        """The tower that is not trained. As an attribute it would be in checkpoints twice."""
        return {"": None, "image": self.model.image_encoder, "text": self.model.text_tower}[self.objective.locked]

    def start_step(self, step: int, epoch: float, progress: float = 0.0) -> None:
        """Bound the temperature from below, and decide what the step sees of its images."""
        self.view = image_view(self.objective, progress)
        with torch.no_grad():
            self.model.log_temperature.clamp_(min=math.log(LOWEST_TEMPERATURE))

    def forward(self, batch: ContrastiveBatch) -> TaskOutput:
        """The loss `itc` of a batch, and the metrics `temperature` and, for the sigmoid loss, `bias`."""
        model, chunk = self.model, self.objective.gradient_cache
        if self.locked is not None:
            self.locked.eval()  # here, because validation between steps sets the mode of the whole model
        texts_per_image = len(batch.text_ids) // len(batch.images)
        images = in_chunks(model, self._embed_images, chunk, batch.images)
        texts = in_chunks(model, self._embed_texts, chunk * texts_per_image, batch.text_ids, batch.text_mask)
        metrics = {"temperature": model.temperature.detach()}
        with torch.autocast(images.device.type, enabled=False):
            if self.objective.contrastive == "softmax":
                loss = info_nce(images, texts, model.temperature)
            else:
                loss = sigmoid_loss(images, texts, model.temperature, model.logit_bias)
                metrics["bias"] = model.logit_bias.detach()
        return TaskOutput({"itc": loss}, metrics)

    def _embed_images(self, images: Tensor) -> Tensor:
        """Images [images, 3, size, size] -> float32 unit vectors [images, embed_dim], without the dropped patches."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.locked is not self.model.image_encoder):
            tokens = self.model.image_encoder(images, *self.view)
        return self.model.embed_image_tokens(tokens)

    def _embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Texts [texts, tokens] -> float32 unit vectors [texts, embed_dim]."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.locked is not self.model.text_tower):
            states = self.model.encode_texts(ids, mask)
        return self.model.embed_text_states(states)


def in_chunks(network: nn.Module, encode: Callable[..., Tensor], chunk: int, *inputs: Tensor) -> Tensor:
    """Encode a batch, with gradient caching if it has several chunks.

    Gradient caching encodes all chunks without keeping activations. Once the loss has given the gradients of the
    vectors, the backward pass encodes chunk after chunk again, with the same random numbers, and propagates the
    gradients of each before it comes to the next. So memory holds the activations of one chunk.

    Args:
        network: what encodes; its batch normalization counts every chunk once.
        encode: rows of the inputs -> vectors [rows, embed_dim].
        chunk: rows of a chunk; 0: all.
    """
    if not chunk or len(inputs[0]) <= chunk:
        return encode(*inputs)
    parts = zip(*(one.split(chunk) for one in inputs), strict=True)
    contexts = partial(checkpoint_contexts, network)
    return torch.cat([checkpoint(encode, *part, use_reentrant=False, context_fn=contexts) for part in parts])
