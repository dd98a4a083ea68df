"""Supervised classification: cross-entropy of a linear head on the image encoder, with smoothed and mixed labels."""

from typing import Any

import torch
from torch.nn import functional as F

from vlp.config import RunConfig
from vlp.data.examples_classification import LabelBatch
from vlp.models.classifier import Classifier
from vlp.tasks.mixing import BatchMixing
from vlp.tasks.task import Task, TaskOutput


class ClassificationTask(Task):
    """Cross-entropy against target probabilities: smoothed (Szegedy et al. 2016) and, of mixed images, mixed."""

    model: Classifier

    def __init__(self, config: RunConfig, model: Classifier, tokenizer: Any = None):
        super().__init__()
        self.model = model
        settings, classes = config.classification, len(model.config.classes)
        self.smoothing = config.objective.label_smoothing
        mixes = settings.mixup > 0 or settings.cutmix > 0
        self.mixing = BatchMixing(settings, classes, self.smoothing, config.seed) if mixes else None

    def start_step(self, step: int, epoch: float, progress: float = 0.0) -> None:
        """Decide how the images of this step are mixed."""
        if self.mixing:
            self.mixing.start_step(step, epoch)

    def forward(self, batch: LabelBatch) -> TaskOutput:
        """The loss `classification` and the metric `accuracy` of a batch.

        Accuracy counts an image as right if its class, of mixed images that with the larger part, has the largest
        logit. Every process has a batch of the same size, so the mean over processes is that of the global batch.
        """
        encoder = self.model.image_encoder
        if self.mixing and self.training:
            images, targets, labels = self.mixing(batch.images, batch.labels)
            images = encoder.normalize(images)
        else:
            images, targets, labels = batch.images, batch.labels, batch.labels
        logits = self.model.class_logits(self.model.encode_images(images)).float()  # [batch, classes]
        smoothing = self.smoothing if targets.ndim == 1 else 0.0  # those of mixed images are smoothed already
        loss = F.cross_entropy(logits, targets, label_smoothing=smoothing)
        with torch.no_grad():
            right = (logits.argmax(dim=1) == labels).float().mean()
        return TaskOutput({"classification": loss}, {"accuracy": right})
