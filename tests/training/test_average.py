"""Averaged weights follow the formula, are what a run saves, and leave training as it is."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from vlp.log import read_log
from vlp.training.average import AveragedWeights
from vlp.training.checkpoint import checkpoints
from vlp.training.loop import train


def test_the_average_follows_weights_and_running_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    model[2].requires_grad_(False)
    averaged = AveragedWeights(model, 0.4)
    expected = {name: one.clone() for name, one in averaged.average.items()}
    assert expected.keys() == {"0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"}
    for step, decay in ((1, 2 / 11), (2, 3 / 12), (30, 0.4)):  # the third one is past the start
        with torch.no_grad():
            for name in expected:
                model.state_dict()[name].normal_()
                expected[name] = decay * expected[name] + (1 - decay) * model.state_dict()[name]
        averaged.update(step)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    with averaged.in_model():
        inside = model.state_dict()
        assert all(torch.allclose(inside[name], expected[name]) for name in expected)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())


def test_a_run_saves_the_average_and_trains_as_without_it(run_config, scenes):
    more = ["steps=4", "checkpoint_every=0", "evaluate_every=2", f"validation='{scenes}/00004.tar'"]
    plain, averaged = run_config("plain", *more), run_config("averaged", *more, "optim.average=0.9")
    train(plain)
    train(averaged)
    records = [
        [(one["step"], one["loss"]) for one in read_log(f"{config.output}/log.jsonl") if "loss" in one]
        for config in (plain, averaged)
    ]
    assert records[0] == records[1]
    (checkpoint,) = checkpoints(Path(averaged.output))
    average = load_file(checkpoint / "average.safetensors")
    saved = load_file(f"{averaged.output}/model/model.safetensors")
    other = load_file(f"{plain.output}/model/model.safetensors")
    assert all(torch.equal(saved[name], one) for name, one in average.items())
    assert not torch.equal(saved["itm_head.weight"], other["itm_head.weight"])
