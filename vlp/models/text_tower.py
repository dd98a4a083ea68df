"""The text tower: one stack of layers with three uses.

BLIP calls it the multimodal mixture of encoder and decoder (paper, section 3.1): a BERT whose layers also have
cross-attention to an image. `encode` reads text alone, `match` reads text against images in both directions, and
`decode` predicts text from left to right against images. Cross-attention reads only the image's keys and values, which
do not depend on the text, so `project_image` computes them once for all texts.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlp.config_model import FinetunedFor, TextTowerConfig
from vlp.errors import UserError
from vlp.models.attention_bias import padding_bias
from vlp.models.image_memory import DecodingCache, ImageMemory, SelfAttentionCache
from vlp.models.initialise import initialise
from vlp.models.precision import product_dtype
from vlp.models.text_layers import Embeddings, Layer, Shareable, Side, shared_parts


class TextTower(nn.Module):
    """The stack of layers behind ITC, ITM and LM; see the top of this file."""

    def __init__(self, config: TextTowerConfig, image_width: int | None, finetuned_for: FinetunedFor = ""):
        """New weights.

        Args:
            image_width: of the image tokens; None: the tower only encodes text, as in CLIP.
        """
        super().__init__()
        if config.width % config.heads:
            raise UserError(f"model.text_tower.width ({config.width}) must be a multiple of heads ({config.heads}).")
        self.config = config
        self.checkpointing = False
        shared = image_width is None or "embeddings" in shared_parts(config.sharing)
        self.embeddings = Shareable(lambda: Embeddings(config), shared)
        self.layers = nn.ModuleList(Layer(config, image_width, finetuned_for, n) for n in range(config.layers))
        self.finetuned_for = finetuned_for
        initialise(self, config.width)

    def project_image(self, image_tokens: Tensor, side: Side = "encoder", mask: Tensor | None = None) -> ImageMemory:
        """Keys and values of images for all layers, computed once for all the texts that meet them.

        Args:
            image_tokens: [images, tokens, image width]; [pairs, 2, tokens, image width] for the encoder of a network
                that was finetuned for nlvr2, whose memory has a row for each pair.
            side: "encoder" for `match`, "decoder" for `decode`; one memory serves both where cross-attention is
                shared (`shares_memory`).
            mask: bool [images, tokens], False at padding; None where nothing is padding.
        """
        layers = cast(Iterable[Layer], self.layers)
        pairs = [layer.cross_attention.side(side).project(image_tokens) for layer in layers]
        return ImageMemory([key for key, _ in pairs], [value for _, value in pairs], mask)

    @property
    def shares_memory(self) -> bool:
        """Whether `match` and `decode` read the same image memory."""
        return self.finetuned_for != "nlvr2" and "cross_attention" in shared_parts(self.config.sharing)

    def encode(self, ids: Tensor, mask: Tensor, count: int | None = None) -> Tensor:
        """Text alone, in both directions unless the tower is causal.

        ids int64, mask bool (True: token) [texts, tokens] -> [texts, tokens, width]; `count` as in `match`.
        """
        return self._run(ids, mask, "encoder", count=count)

    def match(
        self,
        ids: Tensor,
        mask: Tensor,
        memory: ImageMemory,
        image_index: Tensor | None = None,
        count: int | None = None,
    ) -> Tensor:
        """Text against images, both directions.

        Args:
            ids, mask: int64 and bool [texts, tokens]; True marks a token, False padding.
            memory: from `project_image`.
            image_index: int64 [texts], the image that each text meets. None: every image has the same number of
                texts, which are adjacent and in the order of the images.
            count: of the tokens in `mask`, where the host knows it: then a GPU can skip padding (see `padding.py`).

        Returns:
            [texts, tokens, width].
        """
        return self._run(ids, mask, "encoder", memory, image_index, count=count)

    def decode(
        self,
        ids: Tensor,
        mask: Tensor | None,
        memory: ImageMemory,
        image_index: Tensor | None = None,
        cache: DecodingCache | None = None,
        count: int | None = None,
    ) -> Tensor:
        """Text against images, from left to right.

        Args:
            ids: int64 [texts, tokens]; with a cache only the tokens that it does not hold yet.
            mask: bool [texts, all tokens], including the cached ones; None when nothing is padding.
            memory, image_index, count: as in `match`.
            cache: grows by the new tokens.

        Returns:
            [texts, tokens, width].
        """
        return self._run(ids, mask, "decoder", memory, image_index, cache, count)

    def _run(
        self,
        ids: Tensor,
        mask: Tensor | None,
        side: Side,
        memory: ImageMemory | None = None,
        image_index: Tensor | None = None,
        cache: DecodingCache | None = None,
        count: int | None = None,
    ) -> Tensor:
        x, bias = self._embed(ids, mask, side, cache)
        return self._run_layers(x, side, bias, memory, image_index, cache)

    def _embed(
        self, ids: Tensor, mask: Tensor | None, side: Side, cache: DecodingCache | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Embeddings [texts, tokens, width], and the bias of self-attention in the dtype of its products."""
        cache = cache or SelfAttentionCache(1, 0)  # an empty one: the texts begin here
        tokens = ids.shape[1]
        x = self.embeddings.side(side)(ids, cache.positions(tokens))
        bias = None if mask is None else padding_bias(mask)
        if side == "decoder" or self.config.causal:
            causal = cache.bias(tokens, ids.device)
            if causal is not None:
                bias = causal if bias is None else bias + causal
        return x, None if bias is None else bias.to(product_dtype(x))

    def _run_layers(
        self,
        x: Tensor,
        side: Side,
        bias: Tensor | None,
        memory: ImageMemory | None,
        image_index: Tensor | None,
        cache: DecodingCache | None,
        *more: Any,
    ) -> Tensor:
        """[texts, tokens, width] -> the same shape; `more` are further arguments of each layer."""
        memory_bias = None
        if memory is not None and memory.mask is not None:
            memory_bias = padding_bias(memory.mask).to(product_dtype(x))
        for number, layer in enumerate(self.layers):
            key = memory.keys[number] if memory is not None else None
            value = memory.values[number] if memory is not None else None
            past = cache.layers[number] if cache is not None else None
            arguments = (x, side, bias, key, value, image_index, memory_bias, past, *more)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
        return x
