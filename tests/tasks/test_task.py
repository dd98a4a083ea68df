"""Losses are weighted and summed in one place, and a task's output survives accelerate's conversion under autocast."""

import torch
from accelerate.utils import convert_outputs_to_fp32

from vlp.config import ObjectiveConfig
from vlp.tasks.task import TaskOutput, total_loss


def test_losses_are_weighted_and_metrics_are_left_out():
    objective = ObjectiveConfig(itc_weight=2.0, itm_weight=0.5, lm_weight=3.0)
    itc, lm = torch.tensor(1.5, requires_grad=True), torch.tensor(0.25)
    total = total_loss({"itc": itc, "lm": lm}, objective)
    total.backward()
    assert total.item() == 2 * 1.5 + 3 * 0.25
    assert itc.grad.item() == 2.0


def test_the_conversion_of_autocast_outputs_reaches_every_value():
    half = torch.tensor(1.0, dtype=torch.bfloat16)
    output = convert_outputs_to_fp32(lambda: TaskOutput({"itc": half}, {"itm_accuracy": half}))()
    assert isinstance(output, TaskOutput)
    assert output.losses["itc"].dtype == output.metrics["itm_accuracy"].dtype == torch.float32
