"""Captioning finetuning, which trains the captioner: only LM, after a prompt that is not predicted."""

from vlp.config import RunConfig
from vlp.data.batch import Batch
from vlp.data.tokenizer import CaptionTokenizer
from vlp.models.blip import Blip
from vlp.tasks.language import caption_loss, caption_use, freeze
from vlp.tasks.task import Task, TaskOutput


class CaptioningTask(Task):
    """LM on one batch. The loader puts `objective.prompt` before each caption."""

    def __init__(self, config: RunConfig, model: Blip, tokenizer: CaptionTokenizer):
        super().__init__()
        self.model = model
        self.dec_id = tokenizer.dec_id
        self.smoothing = config.objective.label_smoothing
        self.prompt_length = len(tokenizer.prompt_ids(config.objective.prompt)) - 1  # without [DEC]
        freeze(model.encoder_only_parts())
        model.log_temperature.requires_grad_(False)

    def forward(self, batch: Batch) -> TaskOutput:
        """The loss `lm` of a batch."""
        memory = self.model.text_tower.project_image(self.model.encode_images(batch.images), "decoder")
        (states,) = self.model.text_tower.run([caption_use(batch, memory, self.dec_id)])
        lm = caption_loss(self.model, batch, states, self.smoothing, self.prompt_length)
        return TaskOutput({"lm": lm}, {})
