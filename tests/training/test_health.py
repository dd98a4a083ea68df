"""The ITM watch gives advice once when matching is stuck, and never otherwise."""

import math
from dataclasses import replace

import pytest

from vlp.training.health import PATIENCE, WINDOW, PlateauWatch, plateau_level
from vlp.training.loop import train


def _steps_with_advice(watch: PlateauWatch, level: float, last: int = 2000, every: int = 20) -> list[int]:
    return [step for step in range(every, last + 1, every) if watch.observe(step, level)]


def test_the_plateau_is_the_entropy_of_one_match_in_three() -> None:
    entropy = -sum(share * math.log(share) for share in (1 / 3, 2 / 3))
    assert math.isclose(plateau_level(), entropy)
    assert round(plateau_level(), 4) == 0.6365


def test_a_stuck_run_gets_advice_once_after_the_patience() -> None:
    assert _steps_with_advice(PlateauWatch(warmup_steps=0), 0.6365) == [PATIENCE]


def test_a_long_warm_up_delays_the_advice() -> None:
    assert _steps_with_advice(PlateauWatch(warmup_steps=1000), 0.64) == [1000 + WINDOW]


def test_learning_and_divergence_are_not_plateaus() -> None:
    for level in (0.1, 0.6, 0.65, 0.7, 5.0):
        assert _steps_with_advice(PlateauWatch(warmup_steps=0), level) == []


def test_only_the_window_counts() -> None:
    watch = PlateauWatch(warmup_steps=0)
    said = [step for step in range(20, 1501, 20) if watch.observe(step, 0.3 if step <= 900 else plateau_level())]
    assert len(said) == 1
    assert 900 + WINDOW - 20 <= said[0] <= 900 + WINDOW


def test_a_run_that_left_the_plateau_early_gets_no_advice() -> None:
    watch = PlateauWatch(warmup_steps=0)
    assert not any(watch.observe(step, plateau_level() if step <= 300 else 0.4) for step in range(20, 1501, 20))


def test_the_advice_names_the_level_and_a_setting() -> None:
    watch = PlateauWatch(warmup_steps=0)
    (advice,) = [text for step in range(20, 601, 20) if (text := watch.observe(step, 0.6370))]
    assert "0.6370" in advice and "optim.learning_rate" in advice


@pytest.mark.parametrize(
    ("settings", "advised"),
    [
        (["task=retrieval"], True),
        (["task=retrieval", "steps=2"], False),
        (["task=captioning"], False),
        (["task=retrieval", "best_by=t2i_r1", "evaluate_every=50"], False),
    ],
)
def test_a_filter_that_sees_its_pairs_too_often_gets_advice(run_config, scenes, capsys, settings, advised) -> None:
    small = (
        "model.text_tower.layers=1",
        "model.image_encoder.layers=1",
        f"data.sources=[{{shards: {scenes}/00000.tar}}]",
    )
    config = run_config("run", *small, "steps=51", *settings)  # of 8 in 20 scenes
    config = replace(config, validation=f"{scenes}/*.tar" if config.best_by else "", log_every=100)
    train(config)
    said = " ".join(capsys.readouterr().out.split())
    assert ("sees every pair 20 times" in said) == advised
