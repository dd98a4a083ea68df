"""CapFilt whole: score the shards, then select (paper, section 3.3)."""

from collections import Counter
from dataclasses import asdict
from datetime import timedelta

import torch
from accelerate import PartialState

from vlp.capfilt.rules import parse_rules
from vlp.capfilt.score import ScoreCounts, score_shards
from vlp.capfilt.select import select
from vlp.config import CapFiltConfig
from vlp.data.score_tables import table_path
from vlp.data.shards import expand_shards, index_shard, prepare_output
from vlp.distributed import gather_objects
from vlp.errors import UserError
from vlp.log import Progress

PATIENCE = timedelta(days=7)  # how long a process waits for the slowest


def score(config: CapFiltConfig) -> ScoreCounts:
    """Score this process's share of the shards, showing progress; `accelerate launch` decides how many there are.

    Returns:
        The counts of all processes together, in each of them.
    """
    for name in ("shards", "filter"):
        if not getattr(config, name):
            raise UserError(f"CapFilt needs {name}: set it in the config or on the command line.")
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)
    part = (state.process_index, state.num_processes)
    total = sum(len(index_shard(shard).keys) for shard in expand_shards(config.shards)[part[0] :: part[1]])
    with Progress("images", total, quiet=not state.is_main_process) as progress:
        mine = score_shards(
            config.shards,
            config.captioner,
            config.filter,
            config.decoding,
            config.batch_size,
            config.seed,
            config.precision,
            config.max_bad_share,
            part,
            state.device,
            progress.add,
            config.num_captions,
            config.name,
        )
    return _together(gather_objects(mine))


def _together(parts: list[ScoreCounts]) -> ScoreCounts:
    """The counts of all processes."""
    bad = sum((Counter(part.bad) for part in parts), Counter())
    names = ("shards", "skipped_shards", "images", "texts")
    return ScoreCounts(**{name: sum(getattr(part, name) for part in parts) for name in names}, bad=dict(bad))


def run_capfilt(config: CapFiltConfig) -> dict:
    """Score, wait for the other processes, and let one of them select. Returns both counts."""
    if not config.output:
        raise UserError("CapFilt needs output: the folder for the new shards.")
    parse_rules(config.rules)
    prepare_output(config.output)  # what select would refuse is refused before hours of scoring
    if config.human:
        expand_shards(config.human)
    scored = score(config)
    state = PartialState()
    state.wait_for_everyone()
    selected = None
    if state.is_main_process:
        tables = [str(table_path(shard, config.name)) for shard in expand_shards(config.shards)]
        selected = asdict(select(tables, config.rules, config.output, human=config.human or None))
    return {"scored": asdict(scored), "selected": selected}
