"""What the history is worth in dialogs about scenes: the demo's task is learned and scored once more without it.

    vlp demo demo --seed 0 --tasks visdial
    python scripts/visdial_history.py demo 0

A round is then a dialog of its own: the model sees image, caption and question. It trains on as many rounds, of four
times as many scenes. The result stands in demo/tasks.json as visdial-alone.
"""

import sys
from dataclasses import replace
from functools import partial

from vlp.config import RunConfig
from vlp.demo.tasks import SCENE_TASKS, run_tasks
from vlp.demo.visdial_scenes import ROUNDS, TRAINING_OPTIONS, make_visdial_scenes, visdial_config


def one_round(config: RunConfig) -> RunConfig:
    """The config of the task, with equally many texts in a batch."""
    config = visdial_config(config)
    return replace(config, batch_size=ROUNDS * config.batch_size, data=replace(config.data, texts_per_image=1))


if __name__ == "__main__":
    whole = SCENE_TASKS["visdial"]
    alone = replace(
        whole,
        name="visdial-alone",
        make_data=partial(make_visdial_scenes, history=False),
        make_training_data=partial(make_visdial_scenes, options=TRAINING_OPTIONS, history=False),
        config=one_round,
        train=ROUNDS * whole.train,
        test=ROUNDS * whole.test,
    )
    SCENE_TASKS[alone.name] = alone
    run_tasks(sys.argv[1], alone.name, seed=int(sys.argv[2]))
