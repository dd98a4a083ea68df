"""Every command in one app. Heavy imports stand inside the commands, so that --help is quick."""

import logging
import sys
from typing import Annotated

import typer

from vlp.cli.bench import bench
from vlp.cli.capfilt import capfilt_app
from vlp.cli.data import data_app
from vlp.cli.demo import demo
from vlp.cli.evaluate import evaluate_app
from vlp.cli.training import finetune, pretrain, tokenizer
from vlp.cli.use import caption, convert, match, search
from vlp.errors import UserError, WorkError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="BLIP-style pretraining and CapFilt on image-text shards.",
)
for command in (demo, tokenizer, convert, pretrain, finetune, caption, search, match, bench):
    app.command()(command)
for name, group in (("data", data_app), ("capfilt", capfilt_app), ("evaluate", evaluate_app)):
    app.add_typer(group, name=name)


@app.callback()
def options(debug: Annotated[bool, typer.Option(help="Show tracebacks and every log line.")] = False) -> None:
    """BLIP-style vision-language pretraining from image-text shards, and CapFilt to clean them."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("vlp").setLevel(logging.DEBUG if debug else logging.INFO)


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 the work failed, 2 the call was wrong."""
    try:
        app()
    except (UserError, WorkError) as error:
        if "--debug" in sys.argv:
            raise
        print(f"vlp: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
