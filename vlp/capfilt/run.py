"""CapFilt whole: score the shards, then select (paper, section 3.3)."""

from dataclasses import asdict
from datetime import timedelta

from accelerate import PartialState

from vlp.capfilt.score import Progress, ScoreCounts, score_shards
from vlp.capfilt.select import select
from vlp.config import CapFiltConfig
from vlp.errors import UserError

PATIENCE = timedelta(days=7)  # how long a process waits for the slowest


def score(config: CapFiltConfig, progress: Progress | None = None, cpu: bool = False) -> ScoreCounts:
    """Score this process's share of the shards; `accelerate launch` decides how many processes there are."""
    for name in ("shards", "filter"):
        if not getattr(config, name):
            raise UserError(f"CapFilt needs {name}: set it in the config or on the command line.")
    state = PartialState(cpu=cpu, timeout=PATIENCE)
    return score_shards(
        config.shards,
        config.captioner,
        config.filter,
        config.decoding,
        config.batch_size,
        config.seed,
        config.precision,
        config.max_bad_share,
        (state.process_index, state.num_processes),
        state.device,
        progress,
    )


def run_capfilt(config: CapFiltConfig, progress: Progress | None = None) -> dict:
    """Score, wait for the other processes, and let one of them select. Returns both counts."""
    if not config.output:
        raise UserError("CapFilt needs output: the folder for the new shards.")
    scored = score(config, progress)
    state = PartialState()
    state.wait_for_everyone()
    selected = None
    if state.is_main_process:
        selected = asdict(select(config.shards, config.output, config.human or None, config.threshold))
    return {"scored": asdict(scored), "selected": selected}
