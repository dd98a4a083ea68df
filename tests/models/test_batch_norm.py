"""Batch normalization in a run of two processes: model, twin and queue are equal in both after every step."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.processes import finish, run_ranks, start
from vlp.config import RunConfig
from vlp.models.batch_norm import average_running_statistics, statistics_kept
from vlp.tasks.contrastive import in_chunks
from vlp.training import loop, run


def _run(config: RunConfig, results: str) -> None:
    tasks, build_task = [], run.build_task

    def build(*arguments: object) -> torch.nn.Module:
        tasks.append(build_task(*arguments))
        return tasks[0]

    run.build_task = build
    loop.train(config)
    torch.save(tasks[0].state_dict(), f"{results}-{dist.get_rank()}.pt")


RESNET = "model.image_encoder={name: timm:resnet10t, image_size: 32, width: 512}"
CVT = (
    "model.image_encoder={name: cvt, image_size: 32, patch_size: 4, width: 24, stages: "
    "[{width: 16, layers: 2}, {width: 24, layers: 2, heads: 2, reduction: 2}]}"
)


@pytest.mark.parametrize(("task", "image"), [("pretrain", RESNET), ("captioning", RESNET), ("pretrain", CVT)])
def test_two_processes_keep_one_statistic(run_config, tmp_path, task, image):
    config = run_config("run", image, "steps=3", f"task={task}")
    assert finish(start(_run, config, str(tmp_path / "found"), count=2)) == [0, 0]
    one, two = (torch.load(tmp_path / f"found-{rank}.pt") for rank in range(2))
    statistics = [name for name in one if "running" in name]
    assert len(statistics) >= 20 * (2 if task == "pretrain" else 1)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name
    for name in statistics:
        initial = torch.full_like(one[name], float(name.endswith("var")))
        assert not torch.allclose(one[name], initial, atol=1e-3), name


def _average(rank: int, meeting_point: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    without = torch.nn.BatchNorm1d(2, track_running_stats=False)
    model = torch.nn.ModuleList([torch.nn.BatchNorm1d(3), torch.nn.BatchNorm2d(2).bfloat16(), without])
    model.register_buffer("queue", torch.tensor([float(rank)]))
    for norm in model[:2]:
        norm.running_mean.fill_(rank + 1)
        norm.running_var.copy_(torch.arange(norm.num_features) + 10 * rank)
    average_running_statistics(model)
    torch.save(model.state_dict(), f"{results}-{rank}.pt")
    dist.destroy_process_group()


def test_means_over_processes_leave_other_buffers_alone(tmp_path: Path):
    run_ranks(_average, str(tmp_path / "meet"), str(tmp_path / "found"))
    for rank in range(2):
        found = torch.load(tmp_path / f"found-{rank}.pt")
        assert found["0.running_mean"].tolist() == [1.5] * 3 and found["0.running_var"].tolist() == [5, 6, 7]
        assert found["1.running_mean"].tolist() == [1.5] * 2 and found["1.running_var"].tolist() == [5, 6]
        assert found["queue"].tolist() == [rank]


@pytest.mark.parametrize("checkpointing", ["true", "false"])
def test_every_micro_batch_counts_once_and_validation_never(run_config, monkeypatch, checkpointing):
    """With accumulation, and with activation checkpointing, which computes every block twice."""
    tasks, build_task = [], run.build_task
    monkeypatch.setattr(run, "build_task", lambda *given: tasks.append(build_task(*given)) or tasks[-1])
    settings = ("steps=2", "accumulation=2", f"activation_checkpointing={checkpointing}", "log_every=1")
    loop.train(run_config("run", CVT, *settings))
    (task,) = tasks
    counts = [one for name, one in task.model.named_buffers() if name.endswith("num_batches_tracked")]
    assert len(counts) == 3 * 4 and {int(one) for one in counts} == {2 * 2}
    # The twin follows at the start of a step, and does not count what it sees itself.
    twins = [one for name, one in task.alignment.twin.named_buffers() if name.endswith("num_batches_tracked")]
    assert len(twins) == 3 * 4 and {int(one) for one in twins} == {2}


def test_a_repeated_pass_normalizes_by_its_batch_and_keeps_the_statistics():
    norm = torch.nn.BatchNorm2d(3).train()
    images = torch.randn(4, 3, 5, 5)
    first = norm(images)
    before = {name: one.clone() for name, one in norm.state_dict().items()}
    with statistics_kept(norm):
        assert torch.equal(norm(images), first)
    torch.testing.assert_close(norm.state_dict(), before, rtol=0, atol=0)
    norm(images)
    assert int(norm.num_batches_tracked) == 2 and not torch.equal(norm.running_mean, before["running_mean"])


def test_gradient_caching_counts_every_chunk_once():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    in_chunks(network, network, 2, torch.randn(6, 3, 2, 2)).sum().backward()
    assert int(network[1].num_batches_tracked) == 3
