"""The momentum twin, which computes ITC's soft targets, and queues of its past features (He et al. 2020; ALBEF)."""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from vlp.models.blip import Blip
from vlp.models.image_encoders.encoder import WHOLE, ImageView
from vlp.models.text_layers import Shareable


class MomentumTwin(nn.Module):
    """A slowly moving copy of the parts that ITC uses: image encoder, text encoder and projections."""

    def __init__(self, model: Blip):
        super().__init__()
        self.image_encoder = copy.deepcopy(model.image_encoder)
        self.text_tower = copy.deepcopy(model.text_tower)
        self.image_projection = copy.deepcopy(model.image_projection)
        self.text_projection = copy.deepcopy(model.text_projection)
        for layer in self.text_tower.layers:  # ITC reads text without an image
            del layer.cross_attention
        for module in list(self.text_tower.modules()):
            if isinstance(module, Shareable) and "decoder" in module:
                del module["decoder"]
        self.requires_grad_(False)

    @torch.no_grad()
    def follow(self, model: Blip, momentum: float) -> None:
        """twin = momentum * twin + (1 - momentum) * model for weights; buffers are copied.

        Buffers hold the running statistics of batch normalization, which are averages already. They start far from
        the statistics of any weights, so a second average would stay wrong for hundreds of steps.
        """
        online = dict(model.named_parameters())
        names, mine = zip(*self.named_parameters(), strict=True)
        get_ema_multi_avg_fn(momentum)(list(mine), [online[name] for name in names], 0)
        buffers = dict(model.named_buffers())
        for name, buffer in self.named_buffers():
            buffer.copy_(buffers[name])

    @torch.no_grad()
    def embed(
        self, images: Tensor, ids: Tensor, mask: Tensor, view: ImageView = WHOLE, count: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Unit vectors of images [images, embed_dim] and of texts [texts, embed_dim], float32. ids begin with [CLS].

        Args:
            view: what of the images is encoded.
            count: as in `TextTower.match`.
        """
        self.eval()  # dropout would make the targets noisier
        image = self.image_projection(self.image_encoder(images, *view)[:, 0])
        text = self.text_projection(self.text_tower.encode(ids, mask, count)[:, 0])
        return F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)


class FeatureQueue(nn.Module):
    """The last `size` of the twin's features of images or texts, further negatives of ITC. It starts empty."""

    features: Tensor  # float32 [size, embed_dim]
    image_hashes: Tensor  # int64 [size]
    filled: Tensor  # bool [size], False where there is no feature yet
    next: Tensor  # int64 [], the row that the next feature takes

    def __init__(self, size: int, embed_dim: int):
        super().__init__()
        self.size = size
        self.register_buffer("features", torch.zeros(size, embed_dim))
        self.register_buffer("image_hashes", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros(size, dtype=torch.bool))
        self.register_buffer("next", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def push(self, features: Tensor, image_hashes: Tensor, present: Tensor | None = None) -> None:
        """Add features in place of the oldest.

        Args:
            features: [batch, embed_dim].
            image_hashes: int64 [batch], of the image of each feature.
            present: bool [batch], False for features that are not added; None: all are.
        """
        if self.size == 0:
            return
        absent: Tensor | int = 0
        if present is not None:  # those that are not added come first; the host does not wait for their number
            order = present.to(torch.uint8).argsort(stable=True)
            features, image_hashes, present = features[order], image_hashes[order], present[order][-self.size :]
            absent = (~present).sum()
        features, image_hashes = features[-self.size :], image_hashes[-self.size :]
        rows = (self.next - absent + torch.arange(len(features), device=features.device)) % self.size
        filled = torch.ones_like(rows, dtype=torch.bool)
        if present is not None:  # their rows, all distinct, keep what they hold
            features = torch.where(present[:, None], features, self.features[rows])
            image_hashes = torch.where(present, image_hashes, self.image_hashes[rows])
            filled = present | self.filled[rows]
        self.features[rows] = features
        self.image_hashes[rows] = image_hashes
        self.filled[rows] = filled
        self.next.copy_((self.next + len(features) - absent) % self.size)
