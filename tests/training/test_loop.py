"""The loop: what a run leaves behind, accumulation, finetuning, validation, and refusals."""

import json
import time
from pathlib import Path

import pytest

from vlp.config_reader import load_config
from vlp.errors import UserError, WorkError
from vlp.log import read_log
from vlp.model import load_model
from vlp.training.checkpoint import checkpoints
from vlp.training.loop import train

LOSSES = ("itc", "itm", "lm", "loss")


def losses(config) -> dict[int, dict[str, float]]:
    records = read_log(f"{config.output}/log.jsonl")
    return {one["step"]: {name: one[name] for name in LOSSES if name in one} for one in records}


def assert_equal(one, two, tolerance=1e-5):
    assert one.keys() == two.keys()
    for step in one:
        assert one[step] == pytest.approx(two[step], rel=tolerance), step


def test_a_run_leaves_a_model_logs_and_its_config(run_config, capsys):
    config = run_config("run", "steps=4", "checkpoint_every=2", "keep_checkpoints=1")
    results = train(config)
    model = load_model(f"{config.output}/model")
    assert len(model.caption([_image()], max_length=8)) == 1
    records = read_log(f"{config.output}/log.jsonl")
    names = {"itc", "itm", "lm", "itm_accuracy", "temperature", "learning_rate", "pairs_per_second", "data_wait_share"}
    assert names <= set(records[-1])
    assert [one["step"] for one in records] == [1, 2, 3, 4]
    assert load_config(type(config), f"{config.output}/config.yaml").data == config.data
    assert [path.name for path in checkpoints(Path(config.output))] == ["step-00000004"]
    assert results["step"] == 4
    assert "step 4/4" in capsys.readouterr().out
    with pytest.raises(UserError, match="exists already"):
        train(config)
    assert train(config, resume=True) == json.loads(json.dumps(results))


def _image():
    from PIL import Image

    return Image.new("RGB", (40, 40), "red")


def test_accumulation_changes_nothing_in_captioning(run_config):
    one = run_config("one", "task=captioning", "steps=6")
    two = run_config("two", "task=captioning", "steps=6", "accumulation=2")
    train(one)
    train(two)
    for step, record in losses(one).items():  # parts differ in their number of words, so a little
        assert record["lm"] == pytest.approx(losses(two)[step]["lm"], rel=0.02)


def test_finetuning_starts_from_the_model(run_config):
    first = run_config("first", "steps=2")
    train(first)
    for task, loss in (("captioning", "lm"), ("retrieval", "itm")):
        second = run_config(task, f"task={task}", f"start_from={first.output}/model", "steps=2", "optim.warmup_steps=0")
        train(second)
        assert set(losses(second)[2]) == {"loss", loss} | ({"itc"} if task == "retrieval" else set())
    assert load_model(f"{second.output}/model").config == load_model(f"{first.output}/model").config


def test_validation_scores_are_logged(run_config, scenes):
    config = run_config("run", "steps=4", "evaluate_every=2", f"validation='{scenes}/00004.tar'", "log_every=4")
    results = train(config)
    assert "t2i_r1" in results
    assert [one["step"] for one in read_log(f"{config.output}/log.jsonl") if "t2i_r1" in one] == [2]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["steps=0"], "steps and epochs are 0; set one of them"),
        (["epochs=2"], "steps is 10 and epochs is 2; set epochs=0 or steps=0"),
        (["accumulation=3"], "multiple of accumulation"),
        (["output=''"], "output is empty"),
        (["tokenizer=''"], "tokenizer"),
        (["model.text_tower.vocabulary=7"], "vocabulary"),
        (["precision=fp16"], "fp16 needs a GPU"),
        (["start_from=nowhere"], "not a model folder"),
        (["model.image_encoder.patch_size=7"], "multiple of"),
        (["data.sources=[]"], r"data\.sources"),
    ],
)
def test_wrong_configs_are_refused_in_a_sentence(run_config, overrides, says):
    with pytest.raises(UserError, match=says):
        train(run_config("run", *overrides))


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("[gloo/transport/tcp/unbound_buffer.cc:84] Timed out waiting 1800000ms for recv", "did not answer for 30 min"),
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", r"A data worker ended .*\(signal: Killed\)"),
        ("[gloo/transport/tcp/pair.cc:545] Read error: Connection reset by peer", "Another process of the run ended"),
    ],
)
def test_a_lost_process_ends_a_run_with_one_sentence(run_config, monkeypatch, error, sentence):
    def lose(*_arguments):
        raise RuntimeError(error)

    monkeypatch.setattr("vlp.training.run.largest", lose)
    with pytest.raises(WorkError, match=sentence):
        train(run_config("run"))


def test_training_seconds_leave_validation_out_and_scorers_add_measures(run_config, scenes):
    validated = []

    def score(model) -> dict[str, float]:
        time.sleep(0.2)
        validated.append(model.image_size)
        return {"mine": float(len(validated))}

    config = run_config("run", "steps=4", "evaluate_every=1", f"validation='{scenes}/00004.tar'", "checkpoint_every=2")
    started = time.monotonic()
    results = train(config, scorers=[score])
    seconds = time.monotonic() - started
    records = read_log(f"{config.output}/log.jsonl")
    assert [one["mine"] for one in records if "mine" in one] == [1, 2, 3] and results["mine"] == 4
    times = [one["training_seconds"] for one in records]
    assert times == sorted(times) and times[0] > 0 and times[-1] < seconds - 4 * 0.2
    longer = run_config("run", "steps=5", "evaluate_every=1", f"validation='{scenes}/00004.tar'", "checkpoint_every=2")
    assert train(longer, resume=True)["training_seconds"] > times[-1]
