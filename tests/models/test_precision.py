"""The number format that is chosen where the user leaves the choice."""

import torch

from vlp.models.precision import compute_dtype


def test_a_gpu_that_only_emulates_bf16_computes_in_float32(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert compute_dtype("auto", gpu) is None and compute_dtype("bf16", gpu) is torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert compute_dtype("auto", gpu) is torch.bfloat16
