"""`vlp tokenizer`, `vlp pretrain` and `vlp finetune`."""

from collections.abc import Iterator
from typing import Annotated, get_args

import typer

from vlp.cli.options import Overrides, Resume
from vlp.config import PRETRAINING, RunConfig, TaskName
from vlp.config_reader import load_config
from vlp.errors import UserError


def tokenizer(
    shards: Annotated[list[str], typer.Argument()],
    output: Annotated[str, typer.Argument(help="Folder for the tokenizer.")],
    size: Annotated[int, typer.Option(min=12, max=1_000_000, help="Largest number of words.")] = 30_524,
) -> None:
    """Train a WordPiece tokenizer on captions. Example: vlp tokenizer 'data/*.tar' tokenizer --size 4000"""
    from vlp.data.bad_samples import BadSamples
    from vlp.data.shard_index import expand_shards
    from vlp.data.shards import count_samples, iterate_samples
    from vlp.data.tokenizer import train_tokenizer
    from vlp.data.transforms import clean_caption
    from vlp.files import prepare_output
    from vlp.log import Progress

    prepare_output(output)
    paths = expand_shards(shards)
    with Progress("samples", count_samples(paths)) as bar:

        def captions() -> Iterator[str]:
            for sample in iterate_samples(paths, BadSamples(max_share=1.0)):
                bar.add("read captions")
                yield from map(clean_caption, sample.captions)

        made = train_tokenizer(captions(), size)
    made.save(output)
    print(f"Wrote a tokenizer of {len(made)} words to {output}.")


def pretrain(config: str, overrides: Overrides = None, resume: Resume = False) -> None:
    """Pretrain with ITC, ITM and LM, or as CLIP. Example: vlp pretrain configs/pretrain-vit-b16.yaml batch_size=600"""
    _run(config, overrides, resume, set(PRETRAINING))


def finetune(config: str, overrides: Overrides = None, resume: Resume = False) -> None:
    """Finetune a pretrained model for a task. Example: vlp finetune configs/captioning.yaml seed=1"""
    _run(config, overrides, resume, set(get_args(TaskName)) - {"pretrain"})


def _run(path: str, overrides: list[str] | None, resume: bool, tasks: set[str]) -> None:
    config = load_config(RunConfig, path, overrides)
    if config.task not in tasks:
        raise UserError(f"task is {config.task}; this command takes {' or '.join(sorted(tasks))}.")
    from vlp.training.stop_signals import stop_on_signals

    with stop_on_signals():  # also during the imports, which take seconds
        from vlp.training.loop import train

        train(config, resume)
