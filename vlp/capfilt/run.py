"""`vlp capfilt score` and `vlp capfilt run`: score the shards, select (paper, section 3.3), and report."""

import re
from dataclasses import asdict
from pathlib import Path

import torch

from vlp.capfilt import STOPPED
from vlp.capfilt.rules import parse_rules
from vlp.capfilt.score import ScoreCounts, ScoreSettings, score_shard, table_identity
from vlp.capfilt.scorers import as_list, load_scorers
from vlp.capfilt.selection import SelectCounts, select
from vlp.capfilt.shard_queue import ShardQueue
from vlp.config import CapFiltConfig
from vlp.data.score_tables import is_finished, table_path
from vlp.data.shard_index import expand_shards
from vlp.distributed import join_processes, run_on_main
from vlp.errors import UserError
from vlp.files import prepare_output, remove_leftovers
from vlp.log import ReportProgress, no_progress
from vlp.report.capfilt_page import write_capfilt_report
from vlp.training.stop_signals import stop_on_signals


def score_shards(config: CapFiltConfig, part: str = "", failures: str = "") -> ScoreCounts:
    """Score the shards, shared with the other processes of the launcher, and show progress.

    Args:
        part: see `parse_part`; the run takes every `parts`-th shard.
        failures: path of the list of shards that were given up; "" is `failures_path`.

    Returns:
        The counts of all processes.

    Raises:
        UserError: the config is wrong, no shard matches, or a name does not lead to a model.
        WorkError: shards were given up, a process is gone, or the run was stopped by a signal. If only the first
            process raises, the others exit with the same code.
    """
    with stop_on_signals(STOPPED):
        device = join_processes()
        shards, failures_list = find_shards(config, part, failures)
        queue = ShardQueue(shards, failures_list)
        scorer = ShardScorer(config, device)
        return queue.process(scorer.score, scorer.is_finished)


class ShardScorer:
    """Scores shards with models that are loaded once; each process of a launcher and each actor of Ray has one."""

    def __init__(self, config: CapFiltConfig, device: torch.device):
        """Load the models.

        Raises:
            UserError: a name does not lead to a model.
        """
        self.name = config.name
        self.scorers = load_scorers(config.captioner, config.filter, config.precision, device, config.compile)
        self.settings = ScoreSettings(
            config.decoding, config.num_captions, config.seed, config.batch_size, config.max_bad_share, config.name
        )
        self.identity = table_identity(self.scorers, self.settings)

    def is_finished(self, shard: str) -> bool:
        """Whether the shard has a table that scoring it would not change."""
        return is_finished(shard, self.identity, self.name)

    def score(self, shard: str, progress: ReportProgress = no_progress) -> ScoreCounts:
        """Score a shard, see `score_shard`."""
        remove_leftovers(table_path(shard, self.name))
        return score_shard(shard, self.scorers, self.settings, progress)


def find_shards(config: CapFiltConfig, part: str = "", failures: str = "") -> tuple[list[str], Path]:
    """The shards of a part of the run, and the path of its list of failures. All processes call it.

    Raises:
        UserError: the config names no shards or no filter, no shard matches, or there is no such part.
    """
    all_shards = run_on_main(lambda: _find_shards(config))
    number, parts = parse_part(part)
    return all_shards[number - 1 :: parts], Path(failures or failures_path(all_shards, config.name, part))


def _find_shards(config: CapFiltConfig) -> list[str]:
    for name in ("shards", "filter"):
        if not as_list(getattr(config, name)):
            raise UserError(f"CapFilt needs {name}; set it in the config or on the command line.")
    return list(dict.fromkeys(expand_shards(config.shards)))


def parse_part(text: str) -> tuple[int, int]:
    """`3/16` -> (3, 16), the third of sixteen parts; "" -> (1, 1), everything.

    Raises:
        UserError: the text has another form, or there is no such part.
    """
    if not text:
        return 1, 1
    matched = re.fullmatch(r"(\d+)/(\d+)", text)
    number, parts = (int(matched[1]), int(matched[2])) if matched else (0, 0)
    if not 1 <= number <= parts:
        raise UserError(f"--part takes NUMBER/PARTS, from 1/16 to 16/16 for sixteen parts, not {text!r}.")
    return number, parts


def failures_path(shards: list[str], name: str, part: str = "") -> Path:
    """The list of shards that were given up: next to the first shard, one list per part."""
    part = f"-{part.replace('/', '-of-')}" if part else ""
    return Path(shards[0]).parent / f"{name}-failures{part}.jsonl"


def run_capfilt(config: CapFiltConfig) -> dict:
    """Score with all processes; then the first process selects and writes OUTPUT/report.html.

    Returns:
        The counts of both steps.

    Raises:
        UserError, WorkError: what `score_shards` and `select` raise.
    """
    join_processes()
    run_on_main(lambda: _check_selection(config))
    scored = score_shards(config)
    with stop_on_signals(STOPPED):
        selected = run_on_main(lambda: asdict(_select_and_report(config)))
    return {"scored": asdict(scored), "selected": selected}


def _check_selection(config: CapFiltConfig) -> None:
    """Raise what `select` would raise before hours of scoring."""
    if not config.output:
        raise UserError("CapFilt needs output; set it to a folder for the new shards.")
    parse_rules(config.rules)
    prepare_output(config.output)
    if config.human:
        expand_shards(config.human)


def _select_and_report(config: CapFiltConfig) -> SelectCounts:
    remove_leftovers(Path(config.output))
    tables = [str(table_path(shard, config.name)) for shard in dict.fromkeys(expand_shards(config.shards))]
    counts = select(tables, config.rules, config.output, human=config.human or None)
    write_capfilt_report(tables, f"{config.output}/report.html", config.output, seed=config.seed)
    return counts
