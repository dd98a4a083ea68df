"""CapFilt whole: score the shards, select (paper, section 3.3), and report."""

from dataclasses import asdict
from pathlib import Path

from vlp.capfilt.rules import parse_rules
from vlp.capfilt.score import ScoreCounts, ScoreSettings, ShardCounts, score_shard, table_identity
from vlp.capfilt.scorers import as_list, load_scorers
from vlp.capfilt.selection import select
from vlp.capfilt.shard_queue import parse_part, start_list, work_off
from vlp.config import CapFiltConfig
from vlp.data.score_tables import is_finished, table_path
from vlp.data.shard_index import expand_shards
from vlp.distributed import is_main, join_processes
from vlp.errors import UserError
from vlp.files import prepare_output, remove_leftovers
from vlp.log import ReportProgress
from vlp.report.capfilt_page import write_capfilt_report


def score(config: CapFiltConfig, part: str = "", failures: str = "") -> ScoreCounts:
    """Score the shards, together with the other processes that `accelerate launch` started, showing progress.

    Args:
        part: as in `parse_part`; of the shards in order, this run takes every so many-th.
        failures: where the list of shards goes that fail three times; "" is beside the tables (`failures_path`).

    Returns:
        The counts of all processes in the first of them, in each other its own.

    Raises:
        UserError: the config is wrong, no shard matches, or a name does not lead to a model.
        WorkError: shards were given up, or a process died.
    """
    for name in ("shards", "filter"):
        if not as_list(getattr(config, name)):
            raise UserError(f"CapFilt needs {name}: set it in the config or on the command line.")
    number, parts = parse_part(part)
    every = list(dict.fromkeys(expand_shards(config.shards)))
    shards = every[number - 1 :: parts]
    tables = {shard: table_path(shard, config.name) for shard in shards}
    listed = Path(failures) if failures else failures_path(every, config.name, part)
    device = join_processes()
    start_list(listed)
    scorers = load_scorers(config.captioner, config.filter, config.precision, device, config.compile)
    settings = ScoreSettings(
        config.decoding, config.num_captions, config.seed, config.batch_size, config.max_bad_share, config.name
    )
    identity = table_identity(scorers, settings)

    def score_one(shard: str, progress: ReportProgress) -> ShardCounts:
        remove_leftovers(tables[shard])
        return score_shard(shard, scorers, settings, progress)

    return work_off(shards, score_one, lambda shard: is_finished(shard, identity, config.name), listed)


def failures_path(shards: list[str], name: str, part: str = "") -> Path:
    """Where the list of shards that were given up goes: beside the first of all, and apart for each part."""
    part = f"-{part.replace('/', '-of-')}" if part else ""
    return Path(shards[0]).parent / f"{name}-failures{part}.jsonl"


def run_capfilt(config: CapFiltConfig) -> dict:
    """Score; when all processes are done, the first one selects and writes OUTPUT/report.html.

    Returns:
        The counts of both in the first process, {} in the others.
    """
    if not config.output:
        raise UserError("CapFilt needs output: the folder for the new shards.")
    parse_rules(config.rules)
    prepare_output(config.output)  # what select would refuse is refused before hours of scoring
    if config.human:
        expand_shards(config.human)
    scored = score(config)
    if not is_main():
        return {}
    remove_leftovers(Path(config.output))
    tables = [str(table_path(shard, config.name)) for shard in dict.fromkeys(expand_shards(config.shards))]
    selected = select(tables, config.rules, config.output, human=config.human or None)
    write_capfilt_report(tables, f"{config.output}/report.html", config.output, seed=config.seed)
    return {"scored": asdict(scored), "selected": asdict(selected)}
