"""The demo's time estimates: they scale with the work and learn from finished stages."""

from dataclasses import asdict, replace

import pytest

from vlp.demo.estimate import Clock, Speeds, measure_speeds, stage_seconds
from vlp.demo.stages import FULL, QUICK, DemoSizes

SPEEDS = Speeds(
    scene=0.001,
    training=2.0,
    pretrain_step=0.2,
    captioner_step=0.1,
    filter_step=0.15,
    scored_image=0.02,
    selection=5.0,
    evaluated_image=0.05,
)


def test_estimates_are_amounts_times_speeds():
    seconds = stage_seconds(SPEEDS, FULL)
    assert seconds["data"] == pytest.approx(21.5)
    assert seconds["noisy"] == seconds["bootstrapped"] == pytest.approx(2 + FULL.pretrain_steps * 0.2)
    finetunings = 2 + FULL.captioner_steps * 0.1, 2 + FULL.filter_steps * 0.15
    assert (seconds["captioner"], seconds["filter"]) == pytest.approx(finetunings)
    assert seconds["capfilt"] == pytest.approx(16_000 * 0.02 + 5)
    assert seconds["scores"] == pytest.approx(2 * 500 * 0.05)


@pytest.mark.parametrize("sizes", [FULL, QUICK])
def test_a_machine_of_half_the_speed_takes_twice_as_long(sizes):
    slow = Speeds(**{name: 2 * value for name, value in asdict(SPEEDS).items()})
    for name, seconds in stage_seconds(slow, sizes).items():
        assert seconds == pytest.approx(2 * stage_seconds(SPEEDS, sizes)[name])


def test_the_clock_learns_from_finished_stages():
    estimates = stage_seconds(SPEEDS, FULL)
    clock = Clock(estimates, {}, [])
    assert clock.left_in_all() == pytest.approx(sum(estimates.values()))
    clock.add("data", 30.0, finished=True)  # too short to learn from
    assert clock.left("captioner") == estimates["captioner"]
    clock.add("noisy", 50.0, finished=False)  # interrupted
    assert clock.left("noisy") == pytest.approx(estimates["noisy"] - 50)
    clock.add("noisy", 2 * estimates["noisy"] - 50, finished=True)
    assert clock.left("noisy") == 0
    assert clock.left("bootstrapped") == pytest.approx(2 * estimates["noisy"])
    slower = (30 + 2 * estimates["noisy"]) / (estimates["data"] + estimates["noisy"])
    assert clock.left("filter") == pytest.approx(slower * estimates["filter"])
    for name in estimates:
        clock.add(name, 1.0, finished=True)
    assert clock.left_in_all() == 0


def test_a_miniature_measures_every_part(tmp_path):
    sizes = DemoSizes(
        64, 48, 16, 6, 3, 3, 2, batch_size=16, filter_batch_size=16, image_size=32, width=32, layers=2, heads=2
    )
    speeds = asdict(measure_speeds(tmp_path, sizes, seed=0))
    assert all(0 < value < 60 for value in speeds.values())
    assert speeds == asdict(replace(SPEEDS, **speeds))
