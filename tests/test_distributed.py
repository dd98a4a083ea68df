"""Gathering, exchanging and summing over gloo processes, compared with a single process."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tests.processes import run_ranks
from vlp import distributed
from vlp.errors import UserError, WorkError


def _fail(item: str) -> None:
    if item != "a":
        raise UserError(f"{item} is wrong.")


def _raise(error: BaseException) -> None:
    raise error


def _error_of(call: Callable[[], object]) -> str:
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def _in_two(rank: int, meeting_point: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    rows = torch.arange(6.0).view(2, 3) + 10 * rank
    leaf = rows.clone().requires_grad_()
    length = 3 + 2 * rank
    ids, mask = distributed.gather_texts(torch.full((2, length), rank + 1), torch.ones(2, length, dtype=torch.bool))
    found = {
        "place": (distributed.rank(), distributed.world_size(), distributed.is_main()),
        "gathered": distributed.gather(leaf),
        "whole numbers": distributed.gather(torch.tensor([rank, 2**40 + rank])),
        "ids": ids,
        "mask": mask,
        "sum": distributed.all_sum(rows),
        "rows": rows,
        "shared": distributed.share_out(lambda item: (item, rank), [10, 20, 30, 40, 50]),
        "error": _error_of(lambda: distributed.share_out(_fail, ["a", "b", "c"])),
    }
    found["on main"] = distributed.run_on_main(lambda: {"rank": distributed.rank(), "score": 0.1})
    found["largest"] = distributed.largest(3 - rank)
    for error in (UserError("wrong"), WorkError("failed"), KeyboardInterrupt()):
        try:
            distributed.run_on_main(lambda error=error: _raise(error))
        except BaseException as raised:
            found[type(error).__name__], found[f"{type(error).__name__} at"] = repr(raised), time.time()
    distributed.barrier()
    torch.save(found, f"{results}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("two")
    run_ranks(_in_two, str(folder / "meet"), str(folder / "found"))
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(2)]


def test_every_process_knows_its_place(found: list[dict]) -> None:
    assert [one["place"] for one in found] == [(0, 2, True), (1, 2, False)]


def test_work_is_shared_and_errors_are_raised_by_all(found: list[dict]) -> None:
    for one in found:
        assert one["shared"] == [(10, 0), (20, 1), (30, 0), (40, 1), (50, 0)]
        assert one["error"] == "b is wrong."


def test_work_of_the_first_process_reaches_all(found: list[dict]) -> None:
    assert [one["on main"] for one in found] == [{"rank": 0, "score": 0.1}] * 2


def test_errors_of_the_first_process_end_the_others_silently_with_the_same_code(found: list[dict]) -> None:
    names = ("UserError", "WorkError", "KeyboardInterrupt")
    assert [found[0][name] for name in names] == ["UserError('wrong')", "WorkError('failed')", "KeyboardInterrupt()"]
    assert [found[1][name] for name in names] == ["SystemExit(2)", "SystemExit(1)", "SystemExit(1)"]


def test_the_first_process_raises_before_the_others_exit(found: list[dict]) -> None:
    """A launcher ends all processes when one exits, and would replace the error by that of the stop."""
    for name in ("UserError", "WorkError", "KeyboardInterrupt"):
        assert found[0][f"{name} at"] < found[1][f"{name} at"]


def test_largest_is_over_processes(found: list[dict]) -> None:
    assert [one["largest"] for one in found] == [3, 3]


def test_several_processes_of_accelerate_on_cpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UserError, match="torchrun --nproc_per_node"):
        distributed.join_processes()


def test_gather_is_in_rank_order_without_gradient(found: list[dict]) -> None:
    expected = torch.cat([one["rows"] for one in found])
    for one in found:
        assert torch.equal(one["gathered"], expected)
        assert not one["gathered"].requires_grad
        assert one["whole numbers"].tolist() == [0, 2**40, 1, 2**40 + 1]


def test_texts_are_padded_to_the_longest(found: list[dict]) -> None:
    for one in found:
        assert one["ids"].shape == one["mask"].shape == (4, 5)
        assert one["mask"].dtype == torch.bool
        assert one["mask"].sum(1).tolist() == [3, 3, 5, 5]
        assert one["ids"][one["mask"]].tolist() == [1] * 6 + [2] * 10


def test_sum_is_over_processes(found: list[dict]) -> None:
    for one in found:
        assert torch.equal(one["sum"], found[0]["rows"] + found[1]["rows"])


ROWS = 4  # of each process
DRAWN = {
    "each its own": lambda rank, processes: rank * ROWS + torch.tensor([2, 0, 3, 1]),
    "each the next one's, backwards": lambda rank, processes: (
        (rank + 1) % processes * ROWS + torch.arange(ROWS).flip(0)
    ),
    "one row by all, and twice": lambda rank, processes: torch.tensor([5, 5, ROWS * processes - 1 - rank, 5]),
    "none of the first": lambda rank, processes: ROWS + (7 * torch.arange(9) + rank) % (ROWS * (processes - 1)),
    "mixed": lambda rank, processes: torch.randint(
        ROWS * processes, (11,), generator=torch.Generator().manual_seed(rank)
    ),
}


def _rows_of(rank: int) -> torch.Tensor:
    return torch.randn(ROWS, 2, 3, generator=torch.Generator().manual_seed(10 + rank))


def _weights_of(rank: int, drawn: torch.Tensor) -> torch.Tensor:
    """A loss of its own for every row of every process: its gradient."""
    return torch.randn(len(drawn), 2, 3, generator=torch.Generator().manual_seed(20 + rank))


def _exchange(rank: int, processes: int, meeting_point: str, results: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=processes)
    sent = []
    original = dist.all_to_all_single

    def spy(arrived: torch.Tensor, leaving: torch.Tensor, *splits: list[int]) -> None:
        sent.append((leaving.dtype, len(leaving)))
        original(arrived, leaving, *splits)

    dist.all_to_all_single = spy
    found = {}
    for name, draw in DRAWN.items():
        for travelling in (torch.float32, torch.bfloat16):
            sent.clear()
            leaf = _rows_of(rank).requires_grad_()
            drawn = draw(rank, processes)
            got = distributed.exchange_rows(leaf, drawn, travelling)
            (got * _weights_of(rank, drawn)).sum().backward()
            found[name, travelling] = got.detach(), leaf.grad, list(sent)
    torch.save(found, f"{results}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 3])
def exchanged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    folder: Path = tmp_path_factory.mktemp("exchange")
    arguments = (request.param, str(folder / "meet"), str(folder / "found"))
    run_ranks(_exchange, *arguments, count=request.param)
    return [torch.load(folder / f"found-{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("name", DRAWN)
def test_exchanged_rows_and_gradients_equal_those_of_one_process(exchanged: list[dict], name: str) -> None:
    processes = len(exchanged)
    everyone = torch.cat([_rows_of(rank) for rank in range(processes)]).requires_grad_()
    drawn = [DRAWN[name](rank, processes) for rank in range(processes)]
    for rank, one in enumerate(exchanged):
        (everyone[drawn[rank]] * _weights_of(rank, drawn[rank])).sum().backward()
        assert torch.equal(one[name, torch.float32][0], everyone[drawn[rank]])
    gradients = torch.cat([one[name, torch.float32][1] for one in exchanged])
    torch.testing.assert_close(gradients, everyone.grad)
    for rank, one in enumerate(exchanged):  # sent: the rows that were asked for, and a gradient for each row received
        asked = sum(int((numbers // ROWS == rank).sum()) for numbers in drawn)
        assert one[name, torch.float32][2] == [(torch.float32, asked), (torch.float32, len(drawn[rank]))]


@pytest.mark.parametrize("name", DRAWN)
def test_rows_sent_in_half_precision_are_rounded_once_and_summed_in_full(exchanged: list[dict], name: str) -> None:
    processes = len(exchanged)
    expected = torch.zeros(processes * ROWS, 2, 3)
    for rank, one in enumerate(exchanged):
        got, gradient, sent = one[name, torch.bfloat16]
        drawn = DRAWN[name](rank, processes)
        assert torch.equal(got, one[name, torch.float32][0].bfloat16().float())
        assert gradient.dtype == torch.float32 and {dtype for dtype, _ in sent} == {torch.bfloat16}
        expected.index_add_(0, drawn, _weights_of(rank, drawn).bfloat16().float())
    torch.testing.assert_close(torch.cat([one[name, torch.bfloat16][1] for one in exchanged]), expected)


def test_one_process_changes_nothing() -> None:
    leaf = torch.ones(2, 3, requires_grad=True)
    assert torch.equal(
        distributed.exchange_rows(2 * leaf, torch.tensor([1, 1, 0]), torch.float32), 2 * torch.ones(3, 3)
    )
    assert torch.equal(distributed.gather(leaf), leaf)
    assert not distributed.gather(leaf).requires_grad
    ids, mask = torch.ones(2, 4, dtype=torch.long), torch.ones(2, 4, dtype=torch.bool)
    assert distributed.gather_texts(ids, mask) == (ids, mask)
    total = distributed.all_sum(leaf)
    assert torch.equal(total, leaf) and total.data_ptr() != leaf.data_ptr()
    distributed.barrier()
    assert distributed.is_main() and distributed.rank() == 0 and distributed.world_size() == 1
