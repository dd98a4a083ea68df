"""What processes of one run share: plain torch.distributed, and nothing at all when there is one process."""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vlp.errors import UserError, WorkError

Item, Result = TypeVar("Item"), TypeVar("Result")
PATIENCE = timedelta(days=7)  # how long a process waits for the slowest


def restarts() -> int:
    """How often the launcher has started the processes of this run again (`--max_restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def join_processes() -> torch.device:
    """Meet the other processes that a launcher started, where there are any; returns this one's device.

    The launcher keeps its store when it starts processes again, and in it the addresses of the dead. So those started
    again meet under a prefix of their own.
    """
    from accelerate import PartialState  # takes a second

    cuda = torch.cuda.is_available()
    if restarts() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and not dist.is_initialized():
        store, number, processes = next(dist.rendezvous("env://", timeout=PATIENCE))
        store = dist.PrefixStore(f"start-{restarts()}", store)
        backend = "nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=processes, timeout=PATIENCE)
    return PartialState(cpu=not cuda, timeout=PATIENCE).device


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.barrier()


def gather(tensor: Tensor) -> Tensor:
    """All processes' [rows, ...], of equal shape, one after another in rank order. No gradient."""
    if world_size() == 1:
        return tensor.detach()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


class _ExchangeRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, wanted: Tensor, travelling: torch.dtype) -> Tensor:
        # The host must know how many rows go where, so it waits for the device, for these few numbers alone.
        everyone = gather(wanted).cpu().view(world_size(), -1).sort(dim=1).values  # [who asks, wanted]
        owners = everyone // len(rows)
        counts = torch.stack([(owners == owner).sum(dim=1) for owner in range(world_size())])  # [owner, who asks]
        context.asked = (everyone[owners == rank()] - rank() * len(rows)).to(rows.device)  # by who asks
        context.sent, context.received = counts[rank()].tolist(), counts[:, rank()].tolist()
        context.order = wanted.argsort(stable=True)  # they arrive by owner
        context.travelling, context.rows = travelling, len(rows)
        arrived = _send(rows.to(travelling).index_select(0, context.asked), context.sent, context.received)
        return arrived.index_select(0, context.order.argsort()).to(rows.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        said = gradient.to(context.travelling).index_select(0, context.order)
        arrived = _send(said, context.received, context.sent).to(gradient.dtype)
        total = gradient.new_zeros(context.rows, *gradient.shape[1:])
        return total.index_add_(0, context.asked, arrived), None, None


def _send(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Send the first `sent[0]` rows to process 0 and so on; returns theirs, `received[0]` of process 0 first."""
    arrived = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(arrived, rows, received, sent)
    return arrived


def exchange_rows(rows: Tensor, wanted: Tensor, travelling: torch.dtype) -> Tensor:
    """Some of the rows of all processes; only they are sent, and only their gradients are sent back.

    Args:
        rows: [rows, ...], of equal shape on all processes.
        wanted: int64 [wanted], equally many on all processes; row r of process p is p * rows + r. Repeats are allowed.
        travelling: the dtype in which rows and gradients are sent. Gradients of a row that several processes want are
            summed in the dtype of `rows`.

    Returns:
        [wanted, ...] in the dtype of `rows`; a row's gradient is the sum of what all processes' losses say of it.
    """
    return rows[wanted] if world_size() == 1 else _ExchangeRows.apply(rows, wanted, travelling)


def gather_texts(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """All processes' texts, padded to the longest: int64 and bool [texts, tokens] -> [all texts, longest]."""
    if world_size() == 1:
        return ids, mask
    longest = torch.tensor(ids.shape[1], device=ids.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    more = int(longest) - ids.shape[1]
    ids = torch.nn.functional.pad(ids, (0, more))  # the mask hides whatever stands here
    mask = torch.nn.functional.pad(mask.to(torch.uint8), (0, more))
    return gather(ids), gather(mask).bool()


def gather_objects(value: Any) -> list[Any]:
    """Every process's value, in rank order; for small things."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def share_out(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """`work` of every item, each done by one process; all processes get all results, which must be small.

    Raises:
        UserError, WorkError: the work of an item failed so; all processes raise the error of the first such item.
    """
    mine: list[Any] = []
    for item in items[rank() :: world_size()]:
        try:
            mine.append(work(item))
        except (UserError, WorkError) as error:
            mine.append(error)
    results: list[Any] = [None] * len(items)
    for process, part in enumerate(gather_objects(mine)):
        results[process :: world_size()] = part
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def all_sum(tensor: Tensor) -> Tensor:
    """The sum over processes, without a gradient."""
    total = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total
