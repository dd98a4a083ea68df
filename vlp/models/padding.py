"""Text towers that skip padding."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor, nn

from vlp.models.clip_text import ClipTextLayer, ClipTextTower
from vlp.models.flat_attention import HEAD_DIMS, FlatTexts, has_kernels, place_memory, place_texts
from vlp.models.text_rows import FlatGroup, Layout, TextUse, layout_of, side_spans
from vlp.models.text_tower import TextTower

HALF = (torch.bfloat16, torch.float16)


class UnpaddedTextTower(TextTower):
    """A text tower that removes the padding before its first layer and puts zeros back after the last one.

    On a GPU, attention skips padding, too, and reads image memories where they are (see `flat_attention.py`). Elsewhere
    attention sees padded texts.
    """

    def _layouts(self, uses: Sequence[TextUse]) -> list[Layout]:
        if self._is_flat(uses):
            counts = [use.ids.numel() if use.count is None else use.count for use in uses]
            every = [layout_of(use.mask, count, worthwhile=None) for use, count in zip(uses, counts, strict=True)]
            return [one for one in every if one is not None]
        unpadded = [layout_of(use.mask, use.count) if use.cache is None else None for use in uses]
        return [one or Layout.padded(use.ids) for one, use in zip(unpadded, uses, strict=True)]

    def _is_flat(self, uses: Sequence[TextUse]) -> bool:
        """Whether attention skips the padding of these texts, too."""
        known = all(use.mask is not None and use.cache is None for use in uses)
        known = known and any(use.count is not None for use in uses)
        single = all(use.memory is None or (use.memory.mask is None and use.memory.layers[0].ndim == 5) for use in uses)
        return known and single and self._has_kernels(uses[0].ids.device)

    def _has_kernels(self, device: torch.device) -> bool:
        autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
        dtype = autocast or next(self.parameters()).dtype
        head_dim = self.config.width // self.config.heads
        return dtype in HALF and head_dim in HEAD_DIMS and has_kernels(device)

    def _stored(self, both: Tensor) -> Tensor:
        # In training, only kernels read them that take any strides.
        return both if torch.is_grad_enabled() and self._has_kernels(both.device) else super()._stored(both)

    def _flat(self, uses: Sequence[TextUse], layouts: list[Layout]) -> list[FlatGroup] | None:
        if not self._is_flat(uses):
            return None
        spans = [(0, len(uses)), *((first, end) for _, first, end in side_spans([use.side for use in uses]))]
        shape, device = (len(spans), 2, len(self.layers)), uses[0].ids.device
        seeds = torch.randint(2**62, shape, device=device)  # of the dropout of attention weights
        parts = [list(zip(uses, layouts, strict=True))[slice(*span)] for span in spans]
        return [self._flat_group(part, *own) for part, own in zip(parts, seeds, strict=True)]

    def _flat_group(self, part: list[tuple[TextUse, Layout]], seeds: Tensor, memory_seeds: Tensor) -> FlatGroup:
        """Adjacent uses; seeds int64 [layers], of self-attention and of cross-attention."""
        memories = []
        for _, together in groupby(part, key=lambda one: id(one[0].memory)):
            these = list(together)
            memory = these[0][0].memory
            if memory is not None:
                images = torch.cat([_images(use, len(memory)) for use, _ in these])
                memories.append(place_memory(self._place(these, memory_seeds), memory, images))
        return FlatGroup(self._place(part, seeds), memories)

    def _place(self, part: list[tuple[TextUse, Layout]], seeds: Tensor) -> FlatTexts:
        masks = [use.mask for use, _ in part if use.mask is not None]
        causal = [use.side == "decoder" or self.config.causal for use, _ in part]
        return place_texts(masks, [layout.rows for _, layout in part], causal, seeds)


def _images(use: TextUse, images: int) -> Tensor:
    """The image of each text, int64 [texts]."""
    if use.image_index is not None:
        return use.image_index
    return torch.arange(images, device=use.ids.device).repeat_interleave(len(use.ids) // images)


class UnpaddedClipTextTower(ClipTextTower):
    """CLIP's text tower without padding, as `UnpaddedTextTower`."""

    def encode(self, ids: Tensor, mask: Tensor) -> Tensor:
        """As in `ClipTextTower`; the states of padding are zero."""
        unpadded = layout_of(mask)
        if unpadded is None:
            return super().encode(ids, mask)
        x = self.embed(ids)
        bias = self.bias(x, mask)
        return unpadded.put_back(self.norm(self.run_layers(unpadded.remove_padding(x), bias, unpadded)))


class UnpaddedClipTextLayer(ClipTextLayer):
    """A layer that can take rows without padding; only attention sees the padded texts."""

    def forward(self, x: Tensor, bias: Tensor | None, unpadded: Layout | None = None) -> Tensor:
        """As in `ClipTextLayer`, with x [kept, width] where `unpadded` is given."""
        if unpadded is None:
            return super().forward(x, bias)
        y = self.attend(unpadded.put_back(self.project(x)), bias)
        return self.feed_forward(self.add(x, unpadded.remove_padding(y)))


UNPADDED: dict[type[nn.Module], type[nn.Module]] = {
    TextTower: UnpaddedTextTower,
    ClipTextLayer: UnpaddedClipTextLayer,
    ClipTextTower: UnpaddedClipTextTower,
}


def skip_padding(network: nn.Module) -> None:
    """Let the text towers of a network skip padding, in place: their classes change to those of `UNPADDED`.

    `optimise_for_cpu` does this, too. On a GPU, only texts whose tokens the host has counted lose their padding.
    """
    for module in network.modules():
        if unpadded := UNPADDED.get(type(module)):
            module.__class__ = unpadded
