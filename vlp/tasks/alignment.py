"""ITC and ITM, the losses that pretraining and retrieval finetuning share."""

import math

import torch
from torch import Tensor, nn

from vlp.config import ObjectiveConfig
from vlp.data.batch import Batch
from vlp.distributed import all_sum, exchange_rows, gather, gather_texts, rank, world_size
from vlp.losses.matching import matching_loss
from vlp.models.blip import Blip
from vlp.models.image_memory import ImageMemory
from vlp.models.momentum import FeatureQueue, MomentumTwin
from vlp.models.precision import product_dtype
from vlp.tasks.contrast import Columns, Rows, contrast
from vlp.tasks.task import TaskOutput

Negatives = tuple[Tensor, Tensor]  # columns of the batch int64 [local]; bool [local], whether a row has one
TEMPERATURE_RANGE = (0.001, 0.5)


class Alignment(nn.Module):
    """The momentum twin, the queue, and the two losses that need them (paper, section 3.2).

    Each process compares the rows of its own samples with the columns of all processes, so the mean of the losses over
    processes is the loss of one process with the whole batch.
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
        """Before the first forward pass of an optimizer step: move the twin, ramp alpha, bound the temperature."""
        if step > 0:
            self.twin.follow(model, self.objective.momentum)
        ramp = self.objective.alpha_ramp_epochs
        self.alpha = self.objective.alpha * (min(1.0, epoch / ramp) if ramp > 0 else 1.0)
        self.draws = step * 1_000_003  # incremented by every draw of the step
        with torch.no_grad():
            model.log_temperature.clamp_(*map(math.log, TEMPERATURE_RANGE))

    def forward(
        self, model: Blip, batch: Batch, image_tokens: Tensor, memory: ImageMemory, same_image: bool
    ) -> TaskOutput:
        """The losses `itc` and `itm`, and the metrics `itm_accuracy` and `temperature`.

        Args:
            model: the online model.
            batch: ids begin with [CLS].
            image_tokens: [batch, tokens, width] of the batch's images.
            memory: their image memory for matching.
            same_image: whether all captions of an image are its positives (retrieval), or only the one of its pair.
        """
        itc, hard_texts, hard_images = self._contrast(model, batch, image_tokens, same_image)
        logits, counted = self._match(model, batch, image_tokens, memory, hard_texts, hard_images)
        labels = (torch.arange(len(logits), device=logits.device) < len(batch.text_ids)).long()  # positives come first
        total, right, pairs = matching_loss(logits, labels, counted)
        pairs = all_sum(pairs).clamp(min=1)
        itm = total * world_size() / pairs
        metrics = {"itm_accuracy": right * world_size() / pairs, "temperature": model.temperature.detach()}
        return TaskOutput({"itc": itc, "itm": itm}, metrics)

    def _contrast(
        self, model: Blip, batch: Batch, image_tokens: Tensor, same_image: bool
    ) -> tuple[Tensor, Negatives, Negatives]:
        """The ITC loss, a hard text for each image, and a hard image for each text."""
        images = model.embed_image_tokens(image_tokens)  # [local, embed_dim]
        texts = model.embed_texts(batch.text_ids, batch.text_mask)
        twin_images, twin_texts = self.twin.embed(batch.images, batch.text_ids, batch.text_mask)
        all_images, all_texts = gather(twin_images), gather(twin_texts)
        image_hashes, text_hashes = gather(batch.image_hashes), gather(batch.text_hashes)
        present = torch.cat([torch.ones_like(image_hashes, dtype=torch.bool), self.queue.filled])
        hashes = torch.cat([image_hashes, self.queue.image_hashes])
        own = torch.arange(len(images), device=images.device) + rank() * len(images)

        def side(rows: Tensor, twin: Tensor, columns: Tensor) -> tuple[Tensor, Negatives]:
            self.draws += 1
            loss, drawn, exists = contrast(
                Rows(rows, twin, own, batch.image_hashes, batch.text_hashes),
                Columns(columns, present, hashes, text_hashes),
                model.temperature,
                self.alpha,
                same_image,
                self.seed * 1_000_000_007 + self.draws,
            )
            return loss, (drawn, exists)

        with torch.autocast(images.device.type, enabled=False):
            image_loss, hard_texts = side(images, twin_images, torch.cat([all_texts, self.queue.texts]))
            text_loss, hard_images = side(texts, twin_texts, torch.cat([all_images, self.queue.images]))
        self.queue.push(all_images, all_texts, image_hashes)
        return (image_loss + text_loss) / 2, hard_texts, hard_images

    def _match(
        self,
        model: Blip,
        batch: Batch,
        image_tokens: Tensor,
        memory: ImageMemory,
        hard_texts: Negatives,
        hard_images: Negatives,
    ) -> tuple[Tensor, Tensor]:
        """ITM logits [3 local, 2] and bool [3 local], whether each counts.

        They are those of true pairs, of images with their hard texts, and of texts with their hard images.
        """
        local = len(batch.text_ids)
        (hard_text, has_text), (hard_image, has_image) = hard_texts, hard_images
        ids, mask = batch.text_ids.clone(), batch.text_mask
        ids[:, 0] = self.enc_id
        all_ids, all_mask = gather_texts(ids, mask)
        length = all_ids.shape[1]  # longest of all processes
        ids, mask = all_ids[rank() * local :][:local], all_mask[rank() * local :][:local]

        if world_size() == 1:
            other = memory.select(hard_image)
        else:
            # Tokens of the drawn images and their gradients are sent in the dtype of the products that use them, which
            # halves the bytes in bf16. The tokens lose nothing, because each product rounds them anyway. A gradient,
            # the sum of such products over layers, is rounded once more. This comes before the own images are matched
            # because the host has just waited for the device, for the length of the texts.
            drawn = exchange_rows(image_tokens, hard_image, product_dtype(image_tokens))
            other = model.text_tower.project_image(drawn)

        # The own and the hard text of an image are adjacent, so both use its memory without a copy.
        with_own = torch.stack([ids, all_ids[hard_text]], dim=1).view(2 * local, length)
        with_own_mask = torch.stack([mask, all_mask[hard_text]], dim=1).view(2 * local, length)
        own_image = model.match_logits(with_own, with_own_mask, memory).view(local, 2, 2)  # [images, text, class]
        other_image = model.match_logits(ids, mask, other)
        logits = torch.cat([own_image[:, 0], own_image[:, 1], other_image])
        return logits, torch.cat([torch.ones_like(has_text), has_text, has_image])
