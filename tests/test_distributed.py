"""Gathering and summing over two gloo processes, against what one process has."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from vlp import distributed


def _in_two(rank: int, meeting_point: str, results: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    rows = torch.arange(6.0).view(2, 3) + 10 * rank
    leaf = rows.clone().requires_grad_()
    # Each process's loss weighs all rows differently, so a row's gradient must be the sum of both weights.
    weights = torch.arange(12.0).view(4, 3) * (rank + 1)
    (distributed.gather_with_gradient(leaf) * weights).sum().backward()
    length = 3 + 2 * rank
    ids, mask = distributed.gather_texts(torch.full((2, length), rank + 1), torch.ones(2, length, dtype=torch.bool))
    found = {
        "place": (distributed.rank(), distributed.world_size(), distributed.is_main()),
        "gathered": distributed.gather(leaf),
        "whole numbers": distributed.gather(torch.tensor([rank, 2**40 + rank])),
        "gradient": leaf.grad,
        "ids": ids,
        "mask": mask,
        "sum": distributed.all_sum(rows),
        "rows": rows,
    }
    distributed.barrier()
    torch.save(found, f"{results}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("two")
    multiprocessing.spawn(_in_two, (str(folder / "meet"), str(folder / "found")), nprocs=2)
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)]


def test_every_process_knows_its_place(found: list[dict]) -> None:
    assert [one["place"] for one in found] == [(0, 2, True), (1, 2, False)]


def test_gather_is_in_rank_order_without_gradient(found: list[dict]) -> None:
    expected = torch.cat([one["rows"] for one in found])
    for one in found:
        assert torch.equal(one["gathered"], expected)
        assert not one["gathered"].requires_grad
        assert one["whole numbers"].tolist() == [0, 2**40, 1, 2**40 + 1]


def test_gathered_rows_get_the_gradients_of_all_processes(found: list[dict]) -> None:
    both = torch.arange(12.0).view(4, 3) * 3
    assert torch.equal(torch.cat([one["gradient"] for one in found]), both)


def test_texts_are_padded_to_the_longest(found: list[dict]) -> None:
    for one in found:
        assert one["ids"].shape == one["mask"].shape == (4, 5)
        assert one["mask"].dtype == torch.bool
        assert one["mask"].sum(1).tolist() == [3, 3, 5, 5]
        assert one["ids"][one["mask"]].tolist() == [1] * 6 + [2] * 10


def test_sum_is_over_processes(found: list[dict]) -> None:
    for one in found:
        assert torch.equal(one["sum"], found[0]["rows"] + found[1]["rows"])


def test_one_process_changes_nothing() -> None:
    leaf = torch.ones(2, 3, requires_grad=True)
    assert distributed.gather_with_gradient(leaf) is leaf
    assert torch.equal(distributed.gather(leaf), leaf)
    assert not distributed.gather(leaf).requires_grad
    ids, mask = torch.ones(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool)
    assert distributed.gather_texts(ids, mask) == (ids, mask)
    total = distributed.all_sum(leaf)
    assert torch.equal(total, leaf) and total.data_ptr() != leaf.data_ptr()
    distributed.barrier()
    assert distributed.is_main() and distributed.rank() == 0 and distributed.world_size() == 1
