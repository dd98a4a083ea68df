"""The text tower: one stack of layers with three uses.

BLIP calls it the multimodal mixture of encoder and decoder (paper, section 3.1): a BERT whose layers also have
cross-attention to an image. `encode` reads text alone, `match` reads text against images in both directions, and
`decode` predicts text from left to right against images. Cross-attention reads only the image's keys and values, which
do not depend on the text, so `project_image` computes them once for all texts.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vlp.config_model import FinetunedFor, TextTowerConfig
from vlp.errors import UserError
from vlp.models.attention_bias import padding_bias
from vlp.models.image_memory import DecodingCache, ImageMemory, LayerMemory, SelfAttentionCache
from vlp.models.initialise import initialise
from vlp.models.precision import product_dtype
from vlp.models.text_layers import Embeddings, Layer, Shareable, shared_parts
from vlp.models.text_rows import FlatGroup, Layout, Side, TextRows, TextUse, layer_texts, side_spans


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
        image_tokens = image_tokens.to(product_dtype(image_tokens))  # once, not in every layer
        layers = cast(Iterable[Layer], self.layers)
        return ImageMemory(
            [self._stored(layer.cross_attention.side(side).project(image_tokens)) for layer in layers], mask
        )

    def _stored(self, both: Tensor) -> Tensor:
        """Keys and values as a memory keeps them: contiguous, or every text and every new token would copy them."""
        return both.contiguous()

    @property
    def shares_memory(self) -> bool:
        """Whether `match` and `decode` read the same image memory."""
        return self.finetuned_for != "nlvr2" and "cross_attention" in shared_parts(self.config.sharing)

    def encode(self, ids: Tensor, mask: Tensor, count: int | None = None) -> Tensor:
        """Text alone, in both directions unless the tower is causal; arguments as in `TextUse`.

        ids int64, mask bool (True: token) [texts, tokens] -> [texts, tokens, width].
        """
        return self.run([TextUse(ids, mask, "encoder", count=count)])[0]

    def match(
        self,
        ids: Tensor,
        mask: Tensor,
        memory: ImageMemory,
        image_index: Tensor | None = None,
        count: int | None = None,
    ) -> Tensor:
        """Text against images, both directions; [texts, tokens, width]. Arguments as in `TextUse`."""
        return self.run([TextUse(ids, mask, "encoder", memory, image_index, count=count)])[0]

    def decode(
        self,
        ids: Tensor,
        mask: Tensor | None,
        memory: ImageMemory,
        image_index: Tensor | None = None,
        cache: DecodingCache | None = None,
        count: int | None = None,
    ) -> Tensor:
        """Text against images, from left to right; [texts, tokens, width]. Arguments as in `TextUse`."""
        return self.run([TextUse(ids, mask, "decoder", memory, image_index, cache, count)])[0]

    def run(self, uses: Sequence[TextUse]) -> list[Tensor]:
        """The states of several uses, computed together where encoder and decoder share a module.

        Fewer and larger products cost less, most of all where the host can hardly start work as fast as a GPU does it.

        Args:
            uses: those of a side are adjacent; all of them read images, or none.

        Returns:
            [texts, tokens, width] of each use.
        """
        layouts = self._layouts(uses)
        rows = [layout.remove_padding(self._embed(use)) for layout, use in zip(layouts, uses, strict=True)]
        x = torch.cat(rows) if len(rows) > 1 else rows[0]
        x = self._run_layers(x, uses, layouts)
        parts = x.split([layout.rows for layout in layouts]) if len(layouts) > 1 else [x]
        return [layout.put_back(part) for layout, part in zip(layouts, parts, strict=True)]

    def _layouts(self, uses: Sequence[TextUse]) -> list[Layout]:
        """The rows of each use. This tower computes padding, too; see `UnpaddedTextTower`."""
        return [Layout.padded(use.ids) for use in uses]

    def _flat(self, uses: Sequence[TextUse], layouts: list[Layout]) -> list[FlatGroup] | None:
        """What attention without padding needs of all uses, then of those of each side; None: it sees padded texts."""
        return None

    def _embed(self, use: TextUse) -> Tensor:
        """Embeddings [texts, tokens, width]."""
        positions = (use.cache or _NO_CACHE).positions(use.ids.shape[1])
        return self.embeddings.side(use.side)(use.ids, positions)

    def _bias(self, use: TextUse, dtype: torch.dtype) -> Tensor | None:
        """What hides padding and, in a decoder, later tokens from self-attention."""
        bias = None if use.mask is None else padding_bias(use.mask)
        if use.side == "decoder" or self.config.causal:
            causal = (use.cache or _NO_CACHE).bias(use.ids.shape[1], use.ids.device)
            if causal is not None:
                bias = causal if bias is None else bias + causal
        return None if bias is None else bias.to(dtype)

    def _run_layers(self, x: Tensor, uses: Sequence[TextUse], layouts: list[Layout]) -> Tensor:
        """Rows [rows, width] of all uses -> the same shape."""
        flat, dtype, spans = self._flat(uses, layouts), product_dtype(x), side_spans([use.side for use in uses])
        texts = [TextRows(layout) for layout in layouts]
        memories: list[Callable[[int], LayerMemory] | None] = [None] * len(uses)
        if flat is None:
            for number, use in enumerate(uses):
                texts[number].bias = self._bias(use, dtype)
                if use.memory is not None:
                    memories[number] = use.memory.for_texts(use.image_index, dtype)
        for number, layer in enumerate(self.layers):
            here = texts
            if flat is None:
                caches = [None if use.cache is None else use.cache.layers[number] for use in uses]
                here = [
                    TextRows(rows.layout, rows.bias, memory and memory(number), cache)
                    for rows, memory, cache in zip(texts, memories, caches, strict=True)
                ]
            arguments = x, layer_texts(spans, here, flat, number)
            if self.checkpointing and torch.is_grad_enabled():
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
        return x


_NO_CACHE = SelfAttentionCache(1, 0)  # an empty one: the texts begin here
