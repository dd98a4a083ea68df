"""`vlp evaluate`: score a model on data. Each task has a file of its own."""

import typer

from vlp.cli.evaluate_all import all_tasks
from vlp.cli.evaluate_answers import answers
from vlp.cli.evaluate_captioning import captioning
from vlp.cli.evaluate_captions import captions
from vlp.cli.evaluate_classification import classification, linear_probe
from vlp.cli.evaluate_matching import matching
from vlp.cli.evaluate_nlvr2 import nlvr2
from vlp.cli.evaluate_retrieval import retrieval
from vlp.cli.evaluate_video import video_qa, video_retrieval
from vlp.cli.evaluate_visdial import visdial
from vlp.cli.evaluate_vqa import vqa

evaluate_app = typer.Typer(no_args_is_help=True, help="Score a model on data.")
for command in (
    retrieval,
    captioning,
    captions,
    matching,
    classification,
    linear_probe,
    nlvr2,
    visdial,
    video_retrieval,
    video_qa,
    vqa,
    answers,
):
    evaluate_app.command(command.__name__.replace("_", "-"))(command)
evaluate_app.command("all")(all_tasks)
