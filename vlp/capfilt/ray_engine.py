"""`vlp capfilt score --engine ray`: Ray's actors hold the models and score shards, on one machine or on a cluster."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from vlp.capfilt import STOPPED
from vlp.capfilt.crash_markers import remove_markers
from vlp.capfilt.ray_actor import ScoredShard, Scorer, ShardActor
from vlp.capfilt.run import ShardScorer, find_shards
from vlp.capfilt.score import ScoreCounts
from vlp.capfilt.shard_queue import ATTEMPTS, CRASHES, Failure, report_failures
from vlp.capfilt.shared_progress import SharedProgress
from vlp.config import CapFiltConfig
from vlp.errors import UserError, WorkError
from vlp.extras import extra
from vlp.log import Progress
from vlp.training.stop_signals import SIGNALS, StopRequest, stop_on_signals, stopped

LOADS = 5  # actors in a row, or more where more run, that die before they have loaded the models: the run ends
LOST_NODES = 5  # nodes that a shard may lose; a shard can bring down a whole machine
CORES = 4  # for an actor on CPUs, where the nodes have as many
OBJECT_STORE = 100 * 2**20  # bytes; results are small
POLL = 1.0  # seconds between two looks at signals and at the bar
PATIENCE = 60.0  # seconds without any actor before a warning

log = logging.getLogger("vlp")


@dataclass
class RayOptions:
    """Where and how actors run.

    Attributes:
        address: the cluster's address, "auto" for the one of this machine; "" takes RAY_ADDRESS, or starts Ray here.
        cpus: CPU cores for each actor; 0 chooses.
        gpus: GPUs for each actor; None: one if the cluster has any now. Set it if GPU nodes start on demand.
    """

    address: str = ""
    cpus: int = 0
    gpus: int | None = None


def score_shards_on_ray(config: CapFiltConfig, options: RayOptions, part: str = "", failures: str = "") -> ScoreCounts:
    """Score the shards on Ray and show progress. Tables, counts and failures are those of `score_shards`.

    All nodes must have vlp, and must see shards and models under the same paths.

    Raises:
        UserError: the config is wrong, Ray is not installed or cannot be reached, or this is one of several processes
            of a launcher.
        WorkError: shards were given up, or the run was stopped by a signal.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("--engine ray starts its own processes; start it without torchrun or accelerate launch.")
    with extra("ray"):
        import ray
    shards, failures_path = find_shards(config, part, failures)
    with stop_on_signals(STOPPED) as stop, connected_to_ray(ray, options, stop) as resources:
        device = torch.device("cuda" if resources["num_gpus"] else "cpu")
        return RayQueue(ray, shards, partial(ShardScorer, config, device), resources, failures_path, stop).process()


@contextmanager
def connected_to_ray(ray: Any, options: RayOptions, stop: StopRequest) -> Iterator[dict[str, int]]:
    """Connect to a cluster, or start Ray on this machine; gives the resources of each actor, see `RayQueue`.

    Raises:
        UserError: the cluster cannot be reached.
    """
    address = options.address or os.environ.get("RAY_ADDRESS") or "local"
    _check_address(address)
    local = {"include_dashboard": False, "object_store_memory": OBJECT_STORE} if address == "local" else {}
    stop.finish_step = True  # from here on a signal only sets a flag: Ray's code may not be interrupted anywhere
    try:
        with _environment(RAY_USAGE_STATS_ENABLED="0"), _keep_signal_handlers():
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(f"Ray at {address} cannot be reached: {' '.join(str(error).split())[:200]}") from error
    try:
        yield _resources(ray, options)
    finally:
        ray.shutdown()  # ends the actors, and Ray itself where this process started it


def _check_address(address: str) -> None:
    """Raise a UserError if nothing answers at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"Ray at {address} cannot be reached ({error}); is the address right?") from error


def _resources(ray: Any, options: RayOptions) -> dict[str, int]:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = options.gpus if options.gpus is not None else int(any(node.get("GPU", 0) >= 1 for node in nodes))
    largest = int(max([node.get("CPU", 0) for node in nodes], default=0))
    cpus = options.cpus or (1 if gpus else min(CORES, largest) or CORES)
    return {"num_cpus": cpus, "num_gpus": gpus}


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables for the processes that start in the block, unless the user has set them."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Put the handlers of this process back after the block."""
    handlers = {one: signal.getsignal(one) for one in SIGNALS}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for one, handler in handlers.items():
                signal.signal(one, handler)


@dataclass
class _Shard:
    path: str
    attempts: int = 0  # that ended with an error
    crashed_on: list[str] = field(default_factory=list)  # ids of nodes


@dataclass
class _Worker:
    """An actor. Its node is "" until it has loaded the models: Ray may still wait for a node that has room."""

    actor: Any
    node: str = ""


class RayQueue:
    """The shards of a run, and the actors that score them one at a time.

    More actors are requested than have started, up to twice as many, so that an autoscaling cluster grows and nodes
    that join are used; an actor without work ends, so that the cluster can shrink. An actor that dies is replaced.
    Its shard is retried after the others, and given up after `CRASHES` crashes; a lost node does not count as a crash.
    A shard that fails is tried `ATTEMPTS` times, as in `ShardQueue`.
    """

    def __init__(
        self,
        ray: Any,
        shards: list[str],
        make_scorer: Callable[[], Scorer],
        resources: dict[str, int],
        failures_path: Path,
        stop: StopRequest,
    ):
        """Prepare the run.

        Args:
            ray: the module, connected to a cluster.
            make_scorer: called in each actor; pickled by Ray.
            resources: `num_cpus` and `num_gpus` of each actor.
            failures_path: the list of shards that were given up; a JSON object (shard, error, attempts) per line.
        """
        self.ray, self.failures_path, self.stop = ray, failures_path, stop
        self.waiting, self.shards = deque(map(_Shard, shards)), shards
        # Ray restarts nothing: a new actor takes any free place, and a shard that is retried takes any free actor.
        remote = ray.remote(**resources, max_restarts=0, max_task_retries=0)(ShardActor)
        self.actor = partial(remote.remote, make_scorer, os.getcwd(), list(sys.argv))
        self.slots = _slots(ray, resources)
        self.workers: list[_Worker] = []
        self.calls: dict[Any, tuple[_Worker, _Shard | None]] = {}  # None: the call loads the models
        self.counts, self.failures = ScoreCounts(), list[Failure]()
        self.last_ready, self.failed_loads = time.monotonic(), 0

    def process(self) -> ScoreCounts:
        """Score all shards.

        Raises:
            WorkError: shards were given up, models cannot be loaded, or a signal arrived.
        """
        self.failures_path.unlink(missing_ok=True)
        self.failures_path.parent.mkdir(parents=True, exist_ok=True)
        with Progress("images") as bar:
            self.progress = SharedProgress(dist.HashStore(), bar, self.shards)
            while self.waiting or self._in_progress():
                if self.stop.requested:
                    raise stopped(STOPPED)
                self._start_workers()
                done, _ = self.ray.wait(list(self.calls), timeout=POLL)
                for call in done:
                    self._finish_call(call)
                self.progress.show("score")
                self._warn_if_nothing_runs()
        remove_markers(self.failures_path)  # of a run with --engine processes
        report_failures(self.failures, self.failures_path)
        return self.counts

    def _in_progress(self) -> int:
        return sum(shard is not None for _, shard in self.calls.values())

    def _start_workers(self) -> None:
        ready = sum(bool(worker.node) for worker in self.workers)
        left = len(self.waiting) + self._in_progress()
        while len(self.workers) < min(left, max(self.slots, 2 * ready, 1)):
            worker = _Worker(self.actor())
            self.workers.append(worker)
            self.calls[worker.actor.load.remote()] = worker, None  # waits until Ray has found room for the actor

    def _finish_call(self, call: Any) -> None:
        worker, shard = self.calls.pop(call)
        try:
            result = self.ray.get(call)
        except self.ray.exceptions.RayTaskError as error:  # the call raised an error that ends the run
            raise error.cause from None
        except self.ray.exceptions.RayError as error:  # the actor or its node is gone
            self._drop(worker, shard, error)
            return
        if shard is None:
            worker.node, self.failed_loads = result, 0
        else:
            self._count(shard, result)
        self._give_shard(worker)

    def _drop(self, worker: _Worker, shard: _Shard | None, error: Exception) -> None:
        """Forget a dead actor, and put its shard back; the next call of `_start_workers` makes another actor."""
        self._end(worker)
        if shard:
            log.warning("The process that scored %s ended; the shard is retried after the others.", shard.path)
            shard.crashed_on.append(worker.node)
            self.waiting.append(shard)
            return
        self.failed_loads += 1
        if self.failed_loads >= max(LOADS, 2 * len(self.workers)):
            reason = str(error).strip().splitlines()[-1]
            raise WorkError(f"{self.failed_loads} processes ended before they had loaded the models: {reason}")

    def _end(self, worker: _Worker) -> None:
        self.workers.remove(worker)
        self.ray.kill(worker.actor)

    def _count(self, shard: _Shard, result: ScoredShard) -> None:
        for level, line in result.lines:
            log.log(level, "%s", line)
        if not result.error:
            self.counts.add(result.counts)
            if result.counts.skipped_shards:
                self.progress.leave_out()
            else:
                self.progress.start_shard()
                self.progress.count("score", result.counts.images)
                self.progress.finish_shard(result.counts.images)
            return
        shard.attempts += 1
        log.warning("%s failed, attempt %d of %d: %s", shard.path, shard.attempts, ATTEMPTS, result.error)
        if shard.attempts < ATTEMPTS:
            self.waiting.append(shard)
        else:
            self._give_up(shard, result.error, shard.attempts)

    def _give_shard(self, worker: _Worker) -> None:
        """Give an actor the next shard, or end it."""
        while self.waiting:
            shard = self.waiting.popleft()
            crashes = self._crashes(shard)
            if crashes >= CRASHES or len(shard.crashed_on) >= LOST_NODES:
                self._give_up(shard, "its process crashed", len(shard.crashed_on))
                continue
            self.calls[worker.actor.score.remote(shard.path)] = worker, shard
            return
        self._end(worker)

    def _crashes(self, shard: _Shard) -> int:
        """How often the shard's process crashed while its node lived on."""
        if not shard.crashed_on:
            return 0
        alive = {node["NodeID"] for node in self.ray.nodes() if node["Alive"]}
        return sum(node in alive for node in shard.crashed_on)

    def _give_up(self, shard: _Shard, error: str, attempts: int) -> None:
        self.failures.append(Failure(shard.path, error, attempts))
        self.progress.leave_out()

    def _warn_if_nothing_runs(self) -> None:
        if any(worker.node for worker in self.workers) or not self.workers:
            self.last_ready = time.monotonic()
        elif time.monotonic() - self.last_ready > PATIENCE:
            log.warning("No actor has started for %.0f s; Ray may be waiting for a node with room for one.", PATIENCE)
            self.last_ready = time.monotonic()


def _slots(ray: Any, resources: dict[str, int]) -> int:
    """How many actors the nodes of the cluster can hold."""
    wanted = {"CPU": resources["num_cpus"], "GPU": resources["num_gpus"]}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(kind, 0) // count) for kind, count in wanted.items() if count) for node in nodes)
