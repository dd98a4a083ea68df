"""ITC and ITM: the objectives that pretraining and retrieval finetuning share."""

import math

import torch
from torch import Tensor, nn

from vlp.config import ObjectiveConfig
from vlp.data.loader import Batch
from vlp.distributed import all_sum, gather, gather_texts, gather_with_gradient, rank, world_size
from vlp.losses import contrastive_loss, contrastive_targets, draw_hard_negatives, matching_loss
from vlp.models.blip import Blip
from vlp.models.med import ImageMemory
from vlp.models.momentum import FeatureQueue, MomentumTwin

TEMPERATURE_RANGE = (0.001, 0.5)


class Alignment(nn.Module):
    """The momentum twin, the queue, and the two losses that need them (paper, section 3.2).

    Every rank holds the rows of its own samples against the columns of all ranks, so losses averaged over ranks are
    those of one process with the whole batch.
    """

    def __init__(self, objective: ObjectiveConfig, model: Blip, enc_id: int, seed: int):
        super().__init__()
        self.objective = objective
        self.enc_id = enc_id
        self.seed = seed
        self.twin = MomentumTwin(model)
        self.queue = FeatureQueue(objective.queue_size, model.config.embed_dim)
        self.alpha = 0.0
        self.draws = 0

    def start_step(self, model: Blip, step: int, epoch: float) -> None:
        """Before the first forward of an optimiser step: move the twin, ramp alpha, bound the temperature."""
        if step > 0:
            self.twin.follow(model, self.objective.momentum)
        ramp = self.objective.alpha_ramp_epochs
        self.alpha = self.objective.alpha * (min(1.0, epoch / ramp) if ramp > 0 else 1.0)
        self.draws = step * 1_000_003  # accumulation steps count on from here
        with torch.no_grad():
            model.log_temperature.clamp_(*map(math.log, TEMPERATURE_RANGE))

    def forward(
        self, model: Blip, batch: Batch, image_tokens: Tensor, memory: ImageMemory, same_image: bool
    ) -> dict[str, Tensor]:
        """The losses `itc` and `itm`, weighted, and the measurements `_itm`, `_itm_accuracy` and `_temperature`.

        Args:
            model: the online model.
            batch: ids begin with [CLS].
            image_tokens: [batch, tokens, width] of the batch's images.
            memory: their image memory for matching.
            same_image: whether all captions of an image count as its positives (retrieval), not the batch's pair alone.
        """
        images = model.embed_image_tokens(image_tokens)  # [local, embed_dim]
        texts = model.embed_texts(batch.text_ids, batch.text_mask)
        itc, to_text, to_image = self._contrast(model, batch, images, texts, same_image)
        logits, counted = self._match(model, batch, image_tokens, memory, to_text, to_image)
        labels = (torch.arange(len(logits), device=logits.device) < len(batch.text_ids)).long()  # positives come first
        total, right, pairs = matching_loss(logits, labels, counted)
        pairs = all_sum(pairs).clamp(min=1)
        itm = total * world_size() / pairs
        return {
            "itc": self.objective.itc_weight * itc,
            "itm": self.objective.itm_weight * itm,
            "_itm": itm.detach(),
            "_itm_accuracy": right * world_size() / pairs,
            "_temperature": model.temperature.detach(),
        }

    def _contrast(
        self, model: Blip, batch: Batch, images: Tensor, texts: Tensor, same_image: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """ITC, and its similarities of local rows to the global batch [local, global], image to text and back."""
        local = len(images)
        twin_images, twin_texts = self.twin.embed(batch.images, batch.text_ids, batch.text_mask)
        all_images, all_texts, hashes = gather(twin_images), gather(twin_texts), gather(batch.image_hashes)
        columns_images = torch.cat([all_images, self.queue.images])  # [global + queue, embed_dim]
        columns_texts = torch.cat([all_texts, self.queue.texts])
        present = torch.cat([torch.ones_like(hashes, dtype=torch.bool), self.queue.filled])
        own = torch.arange(local, device=hashes.device) + rank() * local
        positives = torch.arange(len(present), device=hashes.device) == own[:, None]  # [local, global + queue]
        if same_image:
            positives = batch.image_hashes[:, None] == torch.cat([hashes, self.queue.image_hashes])
        positives = positives & present

        def side(rows: Tensor, twin_rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
            similarities = (rows @ columns.T / model.temperature).masked_fill(~present, float("-inf"))
            with torch.no_grad():
                twin = (twin_rows @ columns.T / model.temperature).masked_fill(~present, float("-inf"))
                targets = contrastive_targets(twin, positives, self.alpha)
            return contrastive_loss(similarities, targets), similarities[:, : len(hashes)].detach()

        with torch.autocast(images.device.type, enabled=False):
            image_loss, to_text = side(images, twin_images, columns_texts)
            text_loss, to_image = side(texts, twin_texts, columns_images)
        self.queue.push(all_images, all_texts, hashes)
        return (image_loss + text_loss) / 2, to_text, to_image

    def _match(
        self,
        model: Blip,
        batch: Batch,
        image_tokens: Tensor,
        memory: ImageMemory,
        to_text: Tensor,
        to_image: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """ITM logits [3 local, 2] (own pairs, a hard text for each image, a hard image for each text), which count."""
        local = len(batch.text_ids)
        forbidden = self._equal_pairs(batch)
        hard_text, has_text = draw_hard_negatives(to_text, forbidden, self._noise(to_text))
        hard_image, has_image = draw_hard_negatives(to_image, forbidden, self._noise(to_image))

        ids, mask = batch.text_ids.clone(), batch.text_mask
        ids[:, 0] = self.enc_id
        all_ids, all_mask = gather_texts(ids, mask)
        length = all_ids.shape[1]  # longest of all ranks
        ids, mask = all_ids[rank() * local :][:local], all_mask[rank() * local :][:local]

        # Own and hard text of an image stand together, so both meet its memory without a copy of it.
        with_own = torch.stack([ids, all_ids[hard_text]], dim=1).view(2 * local, length)
        with_own_mask = torch.stack([mask, all_mask[hard_text]], dim=1).view(2 * local, length)
        own_image = model.match_logits(with_own, with_own_mask, memory).view(local, 2, 2)  # [images, text, class]
        if world_size() == 1:
            other = memory.select(hard_image)
        else:  # images of other ranks: their tokens travel, and gradients travel back
            other = model.text_tower.project_image(gather_with_gradient(image_tokens)[hard_image])
        other_image = model.match_logits(ids, mask, other)
        logits = torch.cat([own_image[:, 0], own_image[:, 1], other_image])
        return logits, torch.cat([torch.ones_like(has_text), has_text, has_image])

    def _equal_pairs(self, batch: Batch) -> Tensor:
        """bool [local, global]: True where two samples have one image or one caption, so neither is a negative."""
        texts, images = gather(batch.text_hashes), gather(batch.image_hashes)
        return (batch.text_hashes[:, None] == texts) | (batch.image_hashes[:, None] == images)

    def _noise(self, similarities: Tensor) -> Tensor:
        """Uniform noise [local, global], the same for a pair however many ranks there are."""
        local, everyone = similarities.shape
        self.draws += 1
        generator = torch.Generator(similarities.device).manual_seed(self.seed * 1_000_000_007 + self.draws)
        noise = torch.rand(everyone, everyone, generator=generator, device=similarities.device)
        return noise[rank() * local :][:local]
