"""Self-critical training: its reward and gradient against plain computations, and that it raises the reward."""

import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vlp.caption_metrics.ngrams import count_ngrams
from vlp.caption_metrics.ptb_tokenizer import tokenize_captions
from vlp.caption_metrics.scores import caption_scores
from vlp.data.loader import training_loader
from vlp.data.shards import iterate_samples
from vlp.errors import UserError
from vlp.log import read_log
from vlp.tasks import build_examples, build_task
from vlp.tasks.caption_reward import CaptionReward, training_frequencies
from vlp.training.loop import train
from vlp.training.model_setup import build_model

SETTINGS = ["task=self_critical", "data.max_tokens=12", "objective.reward_samples=3", "objective.prompt=a large"]


@pytest.fixture
def made(run_config):
    """A function that builds the task and the first batches of a config."""

    def make(*overrides, count=1):
        config = run_config("run", *SETTINGS, *overrides)
        torch.manual_seed(0)
        model, tokenizer, _ = build_model(config)
        loader = training_loader(config.data, 32, build_examples(config, tokenizer), config.batch_size, seed=1)
        return build_task(config, model, tokenizer), list(itertools.islice(loader, count))

    return make


def test_the_gradient_equals_that_of_one_caption_at_a_time(made):
    task, (batch,) = made()
    task.start_step(3, 0.0)
    model, tokenizer = task.model, task.tokenizer
    losses, metrics = task(batch)
    losses["reward"].backward()
    names = [name for name, value in model.named_parameters() if value.requires_grad]
    gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.requires_grad}
    model.zero_grad()

    memory = model.text_tower.project_image(model.encode_images(batch.images), "decoder")
    groups = task._sample(memory, batch.keys)
    total, words, seen = torch.zeros(()), 0, []
    for image, (group, references) in enumerate(zip(groups, batch.references, strict=True)):
        ended = [one.ids[-1] == tokenizer.sep_id for one in group]
        rewards = task.reward.rewards([[tokenizer.decode(one.ids) for one in group]], [ended], [references])[0]
        seen += rewards
        alone = model.text_tower.project_image(model.encode_images(batch.images[image : image + 1]), "decoder")
        for number, one in enumerate(group):
            ids = torch.tensor([[*task.prompt, *one.ids]])
            log_p = model.caption_logits(ids[:, :-1], None, alone)[0, len(task.prompt) - 1 :].log_softmax(-1)
            baseline = sum(rewards[:number] + rewards[number + 1 :]) / (len(rewards) - 1)
            total = total - (rewards[number] - baseline) * log_p[torch.arange(len(one.ids)), one.ids].sum()
            words += len(one.ids)
    (total / words).backward()
    torch.testing.assert_close(losses["reward"], total / words)
    assert metrics["mean_reward"].item() == pytest.approx(sum(seen) / len(seen))
    expected = {name: dict(model.named_parameters())[name].grad for name in names}
    torch.testing.assert_close(gradients, expected, rtol=1e-3, atol=1e-5)


def test_training_does_not_use_casts_that_sampling_made_without_gradient(made, monkeypatch):
    """PyTorch before 2.11 would; later ones keep them apart."""
    task, (batch,) = made()
    calls, decode, clear = [], task.model.text_tower.decode, torch.clear_autocast_cache
    monkeypatch.setattr(torch, "clear_autocast_cache", lambda: calls.append("clear") or clear())
    monkeypatch.setattr(
        task.model.text_tower,
        "decode",
        lambda *arguments, **named: calls.append(torch.is_grad_enabled()) or decode(*arguments, **named),
    )
    with torch.autocast("cpu", torch.bfloat16):
        task(batch)
    calls = calls[: calls.index(True)]  # before the first pass with gradient
    assert False in calls and "clear" in calls[len(calls) - calls[::-1].index(False) :]


def test_samples_depend_on_the_step_alone(made):
    task, (batch,) = made()

    def sample(step):
        task.start_step(step, 0.0)
        memory = task.model.text_tower.project_image(task.model.encode_images(batch.images), "decoder")
        return [[one.ids for one in group] for group in task._sample(memory, batch.keys)]

    first = sample(1)
    assert sample(2) != first and sample(1) == first
    assert all(len(group) == 3 and all(len(ids) <= 12 - 3 for ids in group) for group in first)
    assert task.model.training


def test_every_trained_weight_gets_a_gradient(made):
    task, batches = made(count=2)
    for step, batch in enumerate(batches):
        task.start_step(step, 0.0)
        task(batch).losses["reward"].backward()
    assert not [name for name, value in task.named_parameters() if value.requires_grad and value.grad is None]


def test_the_reward_is_cider_with_the_training_references(run_config, scenes):
    config = run_config("run", *SETTINGS)
    texts = [sample.captions for sample in iterate_samples(f"{scenes}/*.tar")]
    reward = CaptionReward(training_frequencies(config.data, Path(config.output)))
    saved = json.loads((Path(config.output) / "references.json").read_text())
    assert saved["images"] == len(texts)
    assert training_frequencies(config.data, Path(config.output)).frequencies == dict(map(_ngram, saved["frequencies"]))
    captions = [one[0] for one in texts]
    shifted = captions[1:] + captions[:1]
    (rewards,) = zip(*reward.rewards([[one] for one in shifted], [[True]] * len(texts), texts), strict=True)
    ends = [[f"{one}  xend" for one in tokenize_captions(group)] for group in texts]  # a word at the end of each
    plain = caption_scores([f"{one} xend" for one in tokenize_captions(shifted)], ends).metrics
    assert sum(rewards) / len(rewards) == pytest.approx(plain["CIDEr"], abs=1e-6)
    cut, whole = reward.rewards([[captions[0]] * 2], [[False, True]], texts[:1])[0]
    assert cut < whole and count_ngrams("").words == 0


def _ngram(entry):
    return tuple(entry[0].split(" ")), entry[1]


def test_the_reward_of_a_captioner_rises(run_config):
    shared = ["batch_size=24", "optim={learning_rate: 3e-3, warmup_steps: 2, decay: cosine}"]
    train(run_config("captioner", *shared, "task=captioning", "steps=40", "log_every=0"))
    start = run_config("captioner").output + "/model"
    shared[1] = "optim={learning_rate: 1e-3, warmup_steps: 2, decay: constant}"
    config = run_config("critical", "task=self_critical", *shared, f"start_from={start}", "tokenizer=''", "model={}")
    train(replace(config, steps=15))
    rewards = [one["mean_reward"] for one in read_log(f"{config.output}/log.jsonl")]
    assert sum(rewards[-3:]) > 1.3 * sum(rewards[:3])
    assert (Path(config.output) / "model" / "config.json").exists()


def test_sources_without_shards_are_refused(run_config, tmp_path):
    config = run_config("run", *SETTINGS, f"data.sources=[{{dataset: {tmp_path}}}]")
    with pytest.raises(UserError, match="vlp data import hf"):
        training_frequencies(config.data, tmp_path)
