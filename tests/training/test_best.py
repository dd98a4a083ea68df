"""A run keeps the model of its best validation, and ends when validation gets no better, also after a resume."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.training.test_resume import Died, assert_same_run, die_at
from vlp.errors import UserError
from vlp.training.best import BestScore
from vlp.training.loop import train
from vlp.training.record_window import RecordWindow

ORIGINAL = RecordWindow.add_step


def test_the_best_is_the_first_of_equal_ones_and_patience_counts_from_it(tmp_path):
    best = BestScore(tmp_path, "r", 2)
    assert not best.ends_run
    for step, score, is_best, ends in ((1, float("nan"), True, False), (2, 0.5, True, False), (3, 0.5, False, False)):
        assert (best.observe(step, {"r": score}), best.ends_run) == (is_best, ends)
    assert not best.observe(4, {"r": 0.1}) and best.ends_run
    assert (best.best_at(1), best.best_at(4), best.best_at(0)) == (1, 2, None)


@pytest.fixture
def scored(monkeypatch):
    """Validation that returns given scores by the step of the run, instead of measuring them."""
    by_step = {2: 0.1, 4: 0.6, 6: 0.3, 8: 0.6, 10: 0.9}

    def score(run, limit=None):
        return {"r": by_step.get(run.step, 0.0)}

    monkeypatch.setattr("vlp.training.loop._validate", score)


@pytest.mark.parametrize("dies_at", [0, 6, 8])  # 6 and 8: before and after the checkpoint of step 6
def test_a_run_ends_early_and_keeps_its_best_model(run_config, scenes, scored, monkeypatch, dies_at):
    common = [f"validation='{scenes}/00004.tar'", "evaluate_every=2", "checkpoint_every=3", "optim.average=0.5"]
    whole = run_config("whole", *common, "best_by=r", "stop_after=2")
    results = train(whole)
    assert (results["best_step"], results["r"], results["step"]) == (4, 0.6, 8)
    output = Path(whole.output)
    saved, best = (load_file(output / name / "model.safetensors") for name in ("model", "best/step-00000004"))
    assert saved.keys() == best.keys() and all(torch.equal(saved[name], best[name]) for name in saved)
    assert [path.name for path in (output / "best").iterdir()] == ["step-00000004"]
    assert "| best_step | 4 |" in (output / "model" / "README.md").read_text()
    if dies_at:
        part = run_config("part", *common, "best_by=r", "stop_after=2")
        die_at(monkeypatch, dies_at)
        with pytest.raises(Died):
            train(part)
        monkeypatch.setattr("vlp.training.record_window.RecordWindow.add_step", ORIGINAL)
        resumed = train(part, resume=True)
        assert (resumed["best_step"], resumed["r"]) == (4, 0.6)
        assert_same_run(whole, part)
        with pytest.raises(UserError, match="evaluate_every"):
            train(run_config("part", *common, "best_by=r", "stop_after=2", "evaluate_every=1"), resume=True)


def test_only_scores_of_which_higher_is_better_are_offered(tmp_path):
    scores = {"r1": 1.0, "t2i_mean_rank": 3.5, "images": 8, "skipped": 0, "skipped: bad json": 0, "mrr": 0.5}
    with pytest.raises(UserError, match=r"choose from mrr, r1\.$"):
        BestScore(tmp_path, "r", 0).check(scores)
    BestScore(tmp_path, "r1", 0).check(scores)


def test_the_last_model_can_be_the_best(run_config, scenes, scored):
    config = run_config("run", f"validation='{scenes}/00004.tar'", "evaluate_every=2", "best_by=r")
    results = train(config)
    assert (results["best_step"], results["r"]) == (10, 0.9)
    assert json.loads((Path(config.output) / "results.json").read_text()) == results


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["stop_after=2"], "stop_after needs best_by"),
        (["best_by=r"], "best_by needs evaluate_every"),
        (
            ["best_by=t2i_mean_rank", "evaluate_every=2", "validation='{scenes}/00004.tar'"],
            "best_by is t2i_mean_rank, of which lower is better",
        ),
        (
            ["best_by=loss", "evaluate_every=2", "validation='{scenes}/00004.tar'"],
            "best_by is loss, which validation does not measure; choose from .*t2i_r1",
        ),
    ],
)
def test_wrong_settings_are_refused_before_the_first_step(run_config, scenes, overrides, says):
    with pytest.raises(UserError, match=says):
        train(run_config("run", *(one.replace("{scenes}", str(scenes)) for one in overrides)))
    assert not list(Path(run_config("run").output).glob("checkpoints/*"))
