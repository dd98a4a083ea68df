"""`vlp capfilt score` and `vlp capfilt run`: score the shards, select (paper, section 3.3), and report."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vlp.capfilt import STOPPED
from vlp.capfilt.pipeline import ScoreSettings
from vlp.capfilt.rules import parse_rules
from vlp.capfilt.score import ScoreCounts, score_shard, table_identity
from vlp.capfilt.scorers import as_list, load_scorers
from vlp.capfilt.selection import SelectCounts, select
from vlp.capfilt.shard_queue import ShardQueue
from vlp.config import CapFiltConfig
from vlp.data.find_tables import shard_id, shard_of
from vlp.data.score_tables import is_current, table_path, table_paths, table_settings
from vlp.data.shard_index import expand_shards
from vlp.distributed import join_processes, run_on_main
from vlp.errors import UserError, WorkError
from vlp.files import prepare_output, remove_leftovers, scratch_folder
from vlp.log import ReportProgress, no_progress
from vlp.object_store import READ_ONLY
from vlp.remote import is_remote
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
        self.name, self.tables = config.name, config.tables
        self.scorers = load_scorers(config.captioner, config.filter, config.precision, device, config.compile)
        self.settings = ScoreSettings(
            config.decoding,
            config.num_captions,
            config.seed,
            config.batch_size,
            config.max_bad_share,
            config.name,
            config.tables,
        )
        self.identity = table_identity(self.scorers, self.settings)

    def is_finished(self, shard: str) -> bool:
        """Whether the shard has a table that scoring it would not change.

        Raises:
            WorkError: its table belongs to another shard.
        """
        table = table_path(shard, self.name, self.tables)
        stored = table_settings(table)
        _check_owner(shard, table, stored)
        return is_current(shard, self.identity, stored)

    def score(self, shard: str, progress: ReportProgress = no_progress) -> ScoreCounts:
        """Score a shard, see `score_shard`."""
        remove_leftovers(table_path(shard, self.name, self.tables))
        return score_shard(shard, self.scorers, self.settings, progress)


def find_shards(config: CapFiltConfig, part: str = "", failures: str = "") -> tuple[list[str], Path]:
    """The shards of a part of the run, and the path of its list of failures. All processes call it.

    Raises:
        UserError: the config names no shards or no filter, no shard matches, there is no such part, two shards would
            share a table, or the tables' folder has tables of other shards or is read-only.
    """
    all_shards, first_table = run_on_main(lambda: _find_shards(config))
    number, parts = parse_part(part)
    return all_shards[number - 1 :: parts], Path(failures or failures_path(first_table, config.name, part))


def _find_shards(config: CapFiltConfig) -> tuple[list[str], str]:
    """All shards, and the path or URL of the first one's table."""
    for name in ("shards", "filter"):
        if not as_list(getattr(config, name)):
            raise UserError(f"CapFilt needs {name}; set it in the config or on the command line.")
    shards = list(dict.fromkeys(expand_shards(config.shards)))
    table = table_paths(shards, config.name, config.tables)[shards[0]]
    if table.startswith(READ_ONLY):
        raise UserError(f"{table} cannot be written; set tables (--tables) to a folder or its URL.")
    try:
        _check_owner(shards[0], table, table_settings(table))
    except WorkError as error:
        raise UserError(str(error)) from None
    return shards, table


def _check_owner(shard: str, table: str, stored: dict[str, Any] | None) -> None:
    """Raise a WorkError if a table, whose settings are `stored`, belongs to another shard that still exists."""
    owner = (stored or {}).get("path", shard)
    if shard_id(owner) != shard_id(shard) and shard_of(table, owner) == owner:
        raise WorkError(f"{table} is the score table of {owner}, not of {shard}; set another folder or name of tables.")


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


def failures_path(first_table: str, name: str, part: str = "") -> Path:
    """The list of shards that were given up, one list per part: next to the first table, or, if that is remote, in the
    current folder."""
    part = f"-{part.replace('/', '-of-')}" if part else ""
    folder = Path() if is_remote(first_table) else Path(first_table).parent
    return folder / f"{name}-failures{part}.jsonl"


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
    prepare_output(config.output, remote=True)
    if config.human:
        expand_shards(config.human)


def _select_and_report(config: CapFiltConfig) -> SelectCounts:
    remove_leftovers(config.output)
    shards = list(dict.fromkeys(expand_shards(config.shards)))
    tables = list(table_paths(shards, config.name, config.tables).values())
    counts = select(tables, config.rules, config.output, human=config.human or None)
    report = f"{config.output.rstrip('/')}/report.html"
    if is_remote(config.output):  # a table of the selected texts is read instead of the new shards
        with scratch_folder(f"{report}.selected") as scratch:
            selected = str(scratch / "selected.parquet")
            select(tables, config.rules, table=selected, quiet=True)
            write_capfilt_report(tables, report, selected, seed=config.seed)
    else:
        write_capfilt_report(tables, report, config.output, seed=config.seed)
    return counts
