"""`vlp evaluate answers`: a file of answers against the annotators' answers, without a model."""

from typing import Annotated

import typer

from vlp.cli.evaluation_options import Dataset, Out
from vlp.cli.options import Json


def answers(
    results: Annotated[str, typer.Argument(help="Answers in VQA's format for results: [{question_id, answer}].")],
    shards: Annotated[list[str], typer.Argument(help="Shards of the questions: paths, globs, brace patterns or URLs.")],
    dataset: Dataset = "",
    out: Out = None,
    as_json: Json = False,
) -> None:
    """VQA's accuracy of existing answers. Example: vlp evaluate answers results.json 'data/vqa-val/*.tar'"""
    import json

    from vlp.cli.options import print_values
    from vlp.evaluation.results import save_results, to_json
    from vlp.evaluation.vqa_answers import score_answers

    scored = score_answers(results, shards)
    scored.dataset = dataset or scored.dataset
    if out:
        save_results(scored, out, results)
    if as_json:
        print(json.dumps(to_json(scored, results)))
    else:
        print_values(scored.metrics, False)
