"""Pretraining: ITC, ITM and LM together (BLIP, section 3.2)."""

from functools import partial

import torch

from vlp.config import RunConfig
from vlp.data.batch import Batch
from vlp.data.tokenizer import CaptionTokenizer
from vlp.distributed import rank
from vlp.losses.matching import uniform_noise
from vlp.models.blip import Blip
from vlp.tasks.alignment import Alignment
from vlp.tasks.image_schedule import check_views, image_view
from vlp.tasks.language import caption_loss, caption_use
from vlp.tasks.task import Task, TaskOutput


class PretrainTask(Task):
    """ITC, ITM and LM on the same batch; each image is encoded and projected once for all its texts.

    The text tower computes ITM and LM together, see `TextTower.run`.
    """

    def __init__(self, config: RunConfig, model: Blip, tokenizer: CaptionTokenizer):
        super().__init__()
        self.objective = config.objective
        self.dec_id = tokenizer.dec_id
        self.model = model
        check_views(config.objective, model.image_encoder)
        self.view = image_view(config.objective, 0.0)
        self.alignment = Alignment(config, model, tokenizer)

    def start_step(self, step: int, epoch: float, progress: float = 0.0) -> None:
        """Update the momentum twin and the settings that change during training."""
        self.view = image_view(self.objective, progress)
        self.alignment.start_step(self.model, step, epoch, progress)

    def forward(self, batch: Batch) -> TaskOutput:
        """The losses `itc`, `itm` and `lm` of a batch, and the metrics of ITM."""
        model = self.model
        view = self.view
        if view.keep < 1:  # which patches stay depends on the step and the sample, not on the process
            numbers = torch.arange(len(batch.images), device=batch.images.device) + rank() * len(batch.images)
            view = view._replace(noise=partial(uniform_noise, self.alignment.next_seed(), numbers))
        image_tokens = model.encode_images(batch.images, view)  # [batch, tokens, width]
        drawn = self.alignment.contrast(model, batch, image_tokens, same_image=False, view=view)
        memory = model.text_tower.project_image(image_tokens, "encoder")
        for_decoding = memory
        if not model.text_tower.shares_memory:
            for_decoding = model.text_tower.project_image(image_tokens, "decoder")
        captions = caption_use(batch, for_decoding, self.dec_id)
        aligned, (states,) = self.alignment.match(model, batch, drawn, image_tokens, memory, [captions])
        lm = caption_loss(model, batch, states, self.objective.label_smoothing)
        return TaskOutput({**aligned.losses, "lm": lm}, aligned.metrics)
