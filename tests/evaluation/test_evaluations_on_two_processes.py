"""Two processes give the results of one, to the last digit, in every evaluation."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from task_data import write_task_data

from tests.processes import run_ranks
from vlp.evaluation.all_tasks import EVALUATIONS, NEEDS
from vlp.evaluation.find_data import FoundData, find_data
from vlp.evaluation.settings import EvaluationSettings
from vlp.model import Model, load_model
from vlp.models.finetuned import extend

BATCH = 4  # of six samples: two batches


def model_for(task: str, folder: str) -> Model:
    """A tiny model that can do a task; its new weights are the same in every process."""
    model = load_model(folder, precision="fp32")
    torch.manual_seed(0)
    blip = extend(model.blip, NEEDS[task]) if task in NEEDS else model.blip
    return Model(blip, model.tokenizer, "fp32", decoding=model.decoding)


def results_of(data: list[FoundData], folder: str, settings: EvaluationSettings) -> dict[str, list]:
    found = {}
    for one in data:
        results = EVALUATIONS[one.task](model_for(one.task, folder), one, settings)
        found[f"{one.task} {one.dataset}"] = [results.metrics, results.predictions]
    return json.loads(json.dumps(found))


def _process(rank: int, folder: str, data: list[FoundData], model: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = results_of(data, model, EvaluationSettings(BATCH, spread=True, about={"model": "of two"}))
    dist.barrier()
    Path(folder, f"found-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory, scenes, models) -> list[dict]:
    """The results of one process, and those of each of two."""
    folder = tmp_path_factory.mktemp("data")
    write_task_data(folder, scenes)
    data = [one for one in find_data(str(folder)) if one.task in EVALUATIONS]
    place = tmp_path_factory.mktemp("two")
    run_ranks(_process, str(place), data, models[0])
    one = results_of(data, models[0], EvaluationSettings(BATCH, about={"model": "of one"}))  # own cached features
    return [one, *(json.loads((place / f"found-{rank}.json").read_text()) for rank in range(2))]


def test_two_processes_equal_one(found):
    one, *two = found
    assert {name.split()[0] for name in one} == set(EVALUATIONS)
    for name, results in one.items():
        for process in two:
            assert process[name] == results, name
