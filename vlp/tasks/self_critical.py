"""Self-critical training of a captioner (Rennie et al. 2017): raise the CIDEr-D of the captions that it samples."""

from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor

from vlp.config import DecodingConfig, RunConfig
from vlp.data.examples_references import ReferenceBatch
from vlp.data.tokenizer import CaptionTokenizer
from vlp.distributed import all_sum, world_size
from vlp.generation.caption_step import CaptionStepper
from vlp.generation.decode import Generated, start_generating
from vlp.generation.token_rules import TokenRules
from vlp.models.blip import Blip
from vlp.models.image_memory import ImageMemory
from vlp.tasks.caption_reward import CaptionReward, training_frequencies
from vlp.tasks.language import freeze
from vlp.tasks.task import Task, TaskOutput


class SelfCriticalTask(Task):
    """REINFORCE on sampled captions; the baseline of each is the mean reward of the other samples of its image.

    That baseline, of Luo (2020, "A better variant of self-critical sequence training"), needs no greedy caption.
    """

    def __init__(self, config: RunConfig, model: Blip, tokenizer: CaptionTokenizer):
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.prompt = tokenizer.prompt_ids(config.objective.prompt)
        self.samples = config.objective.reward_samples
        self.max_tokens = config.data.max_tokens
        # Samples come from the model's own distribution, which the gradient assumes.
        sampling = DecodingConfig(beams=0, min_length=0, max_length=self.max_tokens, top_p=1.0)
        self.rules = TokenRules(sampling, tokenizer.sep_id)
        self.reward = CaptionReward(training_frequencies(config.data, Path(config.output)))
        self.run_seed, self.seed, self.compiled = config.seed, 0, config.compile
        freeze(model.encoder_only_parts())
        model.log_temperature.requires_grad_(False)

    def start_step(self, step: int, epoch: float, progress: float = 0.0) -> None:
        """A resumed run samples the same captions: the samples depend on the step, not on earlier ones."""
        self.seed = self.run_seed + 1_000_003 * step

    def forward(self, batch: ReferenceBatch) -> TaskOutput:
        """The loss `reward` of a batch, and the mean `reward` of its samples (CIDEr-D, 0 to 10)."""
        tower = self.model.text_tower
        memory = tower.project_image(self.model.encode_images(batch.images), "decoder")
        groups = self._sample(memory, batch.keys)
        rewards = self._rewards(groups, batch.references).to(batch.images.device)  # [images, samples]
        others = (rewards.sum(dim=1, keepdim=True) - rewards) / (self.samples - 1)
        ids, mask = self._pad([one for group in groups for one in group], batch.images.device)
        hidden = tower.decode(ids[:, :-1], mask[:, :-1], memory)  # [images x samples, tokens - 1, width]
        counted = mask[:, 1:].clone()
        counted[:, : len(self.prompt) - 1] = False
        words = all_sum(counted.sum().float()).clamp(min=1)
        advantages = (rewards - others).flatten()[:, None].expand_as(counted)
        total = self.model.word_loss(hidden[counted], ids[:, 1:][counted], 0.0, advantages[counted])
        return TaskOutput({"reward": total * world_size() / words}, {"mean_reward": rewards.mean()})

    def _sample(self, memory: ImageMemory, keys: list[str]) -> list[list[Generated]]:
        """Captions of each image, without gradient and dropout."""
        device, training = memory.keys[0].device, self.model.training
        self.model.eval()
        # Blocks are compiled for training; the growing cache would compile further programs.
        stance = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        try:
            stepper = CaptionStepper(self.model, memory, self.max_tokens)
            with stance:
                return start_generating(stepper, self.prompt, self.rules, keys, self.seed, self.samples, device)()
        finally:
            self.model.train(training)
            # PyTorch before 2.11 would reuse casts of weights that were made without gradient, and train none of them.
            torch.clear_autocast_cache()

    def _rewards(self, groups: list[list[Generated]], references: list[list[str]]) -> Tensor:
        """float32 [images, samples]."""
        texts = [[self.tokenizer.decode(one.ids) for one in group] for group in groups]
        ended = [[one.ids[-1:] == [self.tokenizer.sep_id] for one in group] for group in groups]
        return torch.tensor(self.reward.rewards(texts, ended, references), dtype=torch.float32)

    def _pad(self, captions: list[Generated], device: torch.device) -> tuple[Tensor, Tensor]:
        """ids int64 and mask bool [captions, tokens]: the prompt and the sampled tokens, [SEP] included."""
        rows = [[*self.prompt, *one.ids] for one in captions]
        length = max(map(len, rows))
        padded = torch.tensor([row + [self.tokenizer.pad_id] * (length - len(row)) for row in rows], device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return padded, torch.arange(length, device=device) < lengths[:, None]
