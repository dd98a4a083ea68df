"""T2T-ViT and the hybrid ViT pretrain, with everything that touches their weights: twin, checkpointing, saving."""

from pathlib import Path

import pytest
import torch

import vlp
from vlp.models.image_encoders.layers import sine_positions
from vlp.training import loop, run

T2T = "model.image_encoder={name: t2t, image_size: 32, width: 32, heads: 2, performer: true}"
HYBRID = "model.image_encoder={name: hybrid, image_size: 32, patch_size: 8, width: 32, heads: 2, stem: [1, 1]}"


@pytest.mark.parametrize("image", [T2T, HYBRID])
def test_a_family_pretrains_and_is_saved(run_config, monkeypatch, image):
    tasks, build_task = [], run.build_task
    monkeypatch.setattr(run, "build_task", lambda *given: tasks.append(build_task(*given)) or tasks[-1])
    settings = ("model.image_encoder.layers=2", "steps=3", "accumulation=2", "activation_checkpointing=true")
    config = run_config("run", image, *settings)
    results = loop.train(config)
    assert torch.tensor(results["loss"]).isfinite()
    trained = tasks[0].model.image_encoder
    twin = dict(tasks[0].alignment.twin.image_encoder.named_parameters())
    for name, weight in trained.named_parameters():
        assert torch.equal(weight, twin[name]) != weight.requires_grad, name  # the twin lags behind what is trained
    model = vlp.load_model(Path(config.output) / "model")
    loaded = model.blip.image_encoder
    torch.testing.assert_close(loaded.state_dict(), trained.state_dict(), rtol=0, atol=0)
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(images), trained.eval()(images), rtol=1e-4, atol=1e-4)
    if image is T2T:
        assert torch.equal(loaded.tower.pos_embed, sine_positions(5, 32))
