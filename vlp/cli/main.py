"""The command line. Commands import heavy modules when they run, so that `--help` is fast."""

import io
import logging
import multiprocessing
import os
import sys
from typing import Annotated, Any

import typer

from vlp.cli.app import app as page
from vlp.cli.app import runs
from vlp.cli.attention import attention
from vlp.cli.bench import bench
from vlp.cli.capfilt import capfilt_app
from vlp.cli.classify import classify
from vlp.cli.config import config
from vlp.cli.data import data_app
from vlp.cli.demo import demo
from vlp.cli.evaluate import evaluate_app
from vlp.cli.failures import OneLineFormatter, can_print, explain, one_line, silence_stdout
from vlp.cli.index import index, search
from vlp.cli.training import finetune, pretrain, tokenizer
from vlp.cli.use import answer, caption, compare, convert, match

INTERRUPTED = 130  # typer's exit code after Ctrl-C
UsageError: Any = typer.BadParameter.__base__  # click's class, or that of the copy of click in newer versions of typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="BLIP-style pretraining and CapFilt on image-text shards.",
)
for command in (
    demo,
    config,
    tokenizer,
    convert,
    pretrain,
    finetune,
    caption,
    answer,
    index,
    search,
    match,
    classify,
    compare,
    attention,
    bench,
    runs,
):
    app.command()(command)
app.command("app")(page)
for name, group in (("data", data_app), ("capfilt", capfilt_app), ("evaluate", evaluate_app)):
    app.add_typer(group, name=name)


@app.callback()
def options(debug: Annotated[bool, typer.Option(help="Show tracebacks and every log line.")] = False) -> None:
    """BLIP-style vision-language pretraining from image-text shards, and CapFilt to clean them."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("vlp").setLevel(logging.DEBUG if debug else logging.INFO)


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 the work failed, 2 the call was wrong."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive in forked workers
    if multiprocessing.get_all_start_methods()[0] == "forkserver":  # the default since Python 3.14
        multiprocessing.set_forkserver_preload(["vlp.data.sample_dataset"])  # once instead of in each worker
    _prepare_streams()
    debug = "--debug" in sys.argv
    try:
        code = app(standalone_mode=False) or 0
        sys.stdout.flush()
    except UsageError as error:
        code = _show_usage_error(error)
    except typer.Abort:
        code = INTERRUPTED
    except BrokenPipeError:  # the reader of the output, such as `head`, has closed it
        silence_stdout()
        code = 1
    except Exception as error:
        if debug:
            raise
        code, sentence = explain(error)
        print(f"vlp: {one_line(sentence)}", file=sys.stderr)
        if not can_print():
            silence_stdout()
    if code == INTERRUPTED:
        print("vlp: Interrupted; rerun the command to continue.", file=sys.stderr)
        code = 1
    sys.exit(code)


def _prepare_streams() -> None:
    """Allow any text on any terminal, and replace closed streams by the null device."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open until the process ends)
        elif isinstance(getattr(sys, name), io.TextIOWrapper):
            getattr(sys, name).reconfigure(errors="backslashreplace")


def _show_usage_error(error: Any) -> int:
    """Print what is wrong with the command line in one sentence, or the help if there were no arguments."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        where = f"; see `{error.ctx.command_path} --help`" if error.ctx else ""
        print(f"vlp: {one_line(error.format_message().rstrip('.'))}{where}.", file=sys.stderr)
    return 2
