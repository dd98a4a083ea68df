"""The benchmark beside open_clip's trainer: it reads their log, and its table has medians and the losses' spread."""

from clip_training import RECORD, Turn, table

LINE = (
    "2026-01-01,00:00:00 | INFO | Train Epoch: 0 [ 64/960 (7%)] Data (t): 0.212 Batch (t): 1.600, 40.0000/s, "
    "40.0000/s/gpu LR: 0.000025 Logit Scale: 14.285 Contrastive_loss: 4.2000 (4.3000) Loss: 4.1589 (4.2500)"
)


def test_their_log_gives_seconds_and_the_loss_of_the_step():
    assert RECORD.findall(LINE) == [("1.600", "4.1589")]


def test_the_table_has_medians_over_turns():
    speeds = {"vlp": [30.0, 90.0, 60.0], "open_clip": [40.0, 39.0, 41.0]}
    turns = [
        Turn(trainer, "fp32", seed, speed, 4.0 + 0.1 * seed)
        for trainer, list_of_speeds in speeds.items()
        for seed, speed in enumerate(list_of_speeds)
    ]
    last = table(turns).splitlines()[-1]
    assert last == "| fp32 | 60.0 | 40.0 | 1.50 | 4.100 ± 0.100 | 4.100 ± 0.100 |"
