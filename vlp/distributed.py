"""Communication between the processes of one run, by torch.distributed. With one process every call is local."""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, NoReturn, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from vlp.errors import UserError, WorkError

COLLECTIVE_TIMEOUT = 30.0  # minutes that a process waits for the others before the run fails
POLL = 0.05  # seconds
LINGER = 5.0  # seconds that the first process waits for others that do not read a result
FAILURES = "failed processes"  # the key of their number in the store

Item = TypeVar("Item")
Result = TypeVar("Result")


def restarts() -> int:
    """How often the launcher has restarted the processes of this run (`--max_restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def join_processes(timeout: float = COLLECTIVE_TIMEOUT) -> torch.device:
    """Connect to the other processes that the launcher started, if any; returns the device of this one.

    Args:
        timeout: minutes after which a collective operation that hangs raises an error. The first call decides.

    Raises:
        UserError: `accelerate launch` was asked for several processes on CPUs, where it starts only one.
    """
    from accelerate import PartialState  # takes a second

    if os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_PORT" in os.environ and not _launched_in_parallel():
        raise UserError(
            "`accelerate launch` starts only one process on CPUs; "
            "use `torchrun --nproc_per_node N -m vlp ...` to start several."
        )
    cuda = torch.cuda.is_available()
    patience = timedelta(minutes=timeout)
    if restarts() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" and not dist.is_initialized():
        # The launcher keeps its store, which still holds the addresses of the dead processes, across restarts.
        # A prefix keeps the restarted processes from reading them.
        store, number, processes = next(dist.rendezvous("env://", timeout=patience))
        store = dist.PrefixStore(f"start-{restarts()}", store)
        backend = "nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=processes, timeout=patience)
    device = cast(torch.device, PartialState(cpu=not cuda, timeout=patience).device)
    shared_store()  # now, while all processes are here
    return device


def launched() -> bool:
    """Whether a launcher (torchrun, accelerate) started this process, so that it calls `join_processes`."""
    return "MASTER_PORT" in os.environ or _launched_in_parallel()


def _launched_in_parallel() -> bool:
    return any(name in os.environ for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"))


@cache
def shared_store() -> dist.Store:
    """A key-value store that the first process serves to all. All processes make the first call, at the same time."""
    if world_size() == 1:
        return dist.HashStore()
    host = os.environ.get("MASTER_ADDR", "localhost")
    served = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False) if is_main() else None  # 0: any free port
    (port, *_) = gather_objects(served.port if served else 0)
    return served or dist.TCPStore(host, port, is_master=False, wait_for_workers=False)


@cache
def _main_calls() -> count:
    return count()


def run_on_main(work: Callable[[], Result], while_waiting: Callable[[], None] = lambda: None) -> Result:
    """Run `work` in the first process; every process returns its result. The others wait, however long it takes.

    They poll a store instead of waiting in a collective operation, so that no timeout applies and signals are handled.

    Args:
        work: returns something that JSON can hold.
        while_waiting: called by the waiting processes every `POLL` seconds.

    Raises:
        Exception: in the first process, what `work` raised. The other processes exit with the same code and print
            nothing, so that the error is shown once.
        WorkError: the first process died.
    """
    if world_size() == 1:
        return work()
    store, key = shared_store(), f"run on main {next(_main_calls())}"
    if is_main():
        outcome = {"exit code": 1}
        try:
            outcome = {"result": work()}
        except UserError:
            outcome = {"exit code": 2}
            raise
        finally:
            store.set(key, json.dumps(outcome))
            _wait_for_readers(store, key)
        return json.loads(json.dumps(outcome["result"]))
    try:
        while not store.check([key]):
            while_waiting()
            time.sleep(POLL)
        outcome = json.loads(store.get(key))
        store.add(f"{key} read", 1)
    except dist.DistError:
        raise WorkError("The first process of the run ended; see its error message.") from None
    if "exit code" in outcome:
        _exit_quietly(outcome["exit code"])
    return outcome["result"]


@contextmanager
def failing_together() -> Iterator[None]:
    """End all processes of the run when one of them raises an error: it raises that, so that the error is shown once.

    The others exit with its code at their next call of `end_with_others` or `meet`.
    """
    try:
        yield
    except BaseException as error:
        if world_size() == 1 or isinstance(error, SystemExit):
            raise
        code = 2 if isinstance(error, UserError) else 1
        if _count_failure(code) > 1:  # another process shows its error, often the same one
            _exit_quietly(code)
        if is_main():
            time.sleep(10 * POLL)  # the others read from its store why they end
        raise


def _count_failure(code: int) -> int:
    """The number of processes that have failed, this one included; 2 if the first process is gone."""
    try:
        number = shared_store().add(FAILURES, 1)
        if number == 1:
            shared_store().set(f"{FAILURES}: exit code", str(code))
        return number
    except dist.DistError:
        return 2


def end_with_others() -> None:
    """Exit if another process has failed inside `failing_together`; for the time between two pieces of work.

    Raises:
        SystemExit: another process failed, which shows the error.
    """
    if world_size() == 1:
        return
    try:
        failed = shared_store().add(FAILURES, 0)
        code = int(shared_store().get(f"{FAILURES}: exit code")) if failed else 0
    except dist.DistError:
        failed, code = 1, 1
    if failed:
        _exit_quietly(code)


def _exit_quietly(code: int) -> NoReturn:
    time.sleep(20 * POLL)  # the launcher ends all processes when one exits, also one that is about to show its error
    raise SystemExit(code)


def meet(while_waiting: Callable[[], None] = lambda: None) -> None:
    """Wait until all processes call this, however long it takes: no timeout applies, unlike in a collective operation.

    Raises:
        SystemExit: another process failed.
    """
    if world_size() == 1:
        return
    store, key = shared_store(), f"meeting {next(_meetings())}"
    store.add(key, 1)
    while store.add(key, 0) < world_size():
        end_with_others()
        while_waiting()
        time.sleep(POLL)


@cache
def _meetings() -> count:
    return count()


@contextmanager
def shared_count(report: Callable[[int], None], spread: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function that counts finished items; `report` is told those of all processes, in the first one.

    At the end the processes meet. In between, the function exits where another process has failed.

    Args:
        report: is called with the items that were finished since its last call.
        spread: whether all processes count; otherwise this one is alone.
    """
    if not spread or world_size() == 1:
        yield report
        return
    store, key, reported = shared_store(), f"count {next(_meetings())}", 0

    def show() -> None:
        nonlocal reported
        if is_main():
            total = store.add(key, 0)
            report(total - reported)
            reported = total

    def add(items: int) -> None:
        end_with_others()
        store.add(key, items)
        show()

    yield add
    meet(show)
    show()


def _wait_for_readers(store: dist.Store, key: str) -> None:
    """Keep the first process, which may be about to exit, and its store alive until the others have read `key`."""
    deadline = time.monotonic() + LINGER
    while store.add(f"{key} read", 0) < world_size() - 1 and time.monotonic() < deadline:
        time.sleep(POLL)


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this is the first process, which writes and prints."""
    return rank() == 0


def barrier() -> None:
    """Wait until every process calls this."""
    if world_size() > 1:
        dist.barrier()


def gather(tensor: Tensor) -> Tensor:
    """Concatenate the [rows, ...] of all processes, equal in shape, in rank order. No gradient."""
    if world_size() == 1:
        return tensor.detach()
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


class _ExchangeRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, wanted: Tensor, travelling: torch.dtype) -> Tensor:
        # The host has to know how many rows go where, so it waits here for the device to produce these few numbers.
        everyone = gather(wanted).cpu().view(world_size(), -1).sort(dim=1).values  # [receiver, wanted]
        owners = everyone // len(rows)
        counts = torch.stack([(owners == owner).sum(dim=1) for owner in range(world_size())])  # [owner, receiver]
        context.asked = (everyone[owners == rank()] - rank() * len(rows)).to(rows.device)  # in order of receivers
        context.sent, context.received = counts[rank()].tolist(), counts[:, rank()].tolist()
        context.order = wanted.argsort(stable=True)  # rows arrive in order of owners
        context.travelling, context.rows = travelling, len(rows)
        arrived = _send(rows.to(travelling).index_select(0, context.asked), context.sent, context.received)
        return arrived.index_select(0, context.order.argsort()).to(rows.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        leaving = gradient.to(context.travelling).index_select(0, context.order)
        arrived = _send(leaving, context.received, context.sent).to(gradient.dtype)
        total = gradient.new_zeros(context.rows, *gradient.shape[1:])
        return total.index_add_(0, context.asked, arrived), None, None


def _send(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Send the first `sent[0]` rows to process 0, the next `sent[1]` to process 1, ...; returns the received rows."""
    arrived = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(arrived, rows, received, sent)
    return arrived


def exchange_rows(rows: Tensor, wanted: Tensor, travelling: torch.dtype) -> Tensor:
    """Fetch selected rows of all processes. Only these rows are sent, and only their gradients are sent back.

    Args:
        rows: [rows, ...], of equal shape on all processes.
        wanted: int64 [wanted], of equal length on all processes; row r of process p is p * rows + r. It may repeat.
        travelling: the dtype in which rows and gradients are sent. The gradients that a row receives from several
            processes are summed in the dtype of `rows`.

    Returns:
        [wanted, ...] in the dtype of `rows`. The gradient of a row is summed over the losses of all processes.
    """
    return rows[wanted] if world_size() == 1 else _ExchangeRows.apply(rows, wanted, travelling)


def gather_texts(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Gather the texts of all processes, padded to the longest: int64 and bool [texts, tokens] -> [all, longest]."""
    if world_size() == 1:
        return ids, mask
    longest = torch.tensor(ids.shape[1], device=ids.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    more = int(longest) - ids.shape[1]
    ids = torch.nn.functional.pad(ids, (0, more))  # masked, so the value does not matter
    mask = torch.nn.functional.pad(mask.to(torch.uint8), (0, more))
    return gather(ids), gather(mask).bool()


def gather_objects(value: Any) -> list[Any]:
    """The values of all processes, in rank order. For small objects."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def share_out(work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Call `work` on every item, each in one process; all processes get all results, which must be small.

    Raises:
        UserError, WorkError: `work` raised it for some item; all processes raise the error of the first such item.
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


def largest(value: int, group: dist.ProcessGroup | None = None) -> int:
    """The largest value of all processes.

    Args:
        group: a gloo group, so that no device takes part; None: the default group, which must be gloo.
    """
    if world_size() == 1:
        return value
    highest = torch.tensor(value)
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=group)
    return int(highest)
