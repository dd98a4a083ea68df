"""Config files and overrides that are wrong: one sentence names the file or the key, and nothing is written."""

import pytest

from tests.end_to_end.bad_input import refused, run, tidy
from vlp.config_reader import save_config

BOMB = "\n".join(["a0: &a0 {x: 1}", *(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}" for i in range(1, 12))])

FILES = {
    "missing": None,
    "empty": b"",
    "binary": bytes(range(256)) * 40,
    "UTF-16": "steps: 3".encode("utf-16"),
    "list": b"- 1\n- 2\n",
    "number": b"3\n",
    "false": b"false\n",
    "cut": b"data: {sources: [",
    "tabs": b"optim:\n\tlearning_rate: 1\n",
    "duplicate keys": b"steps: 3\nsteps: 4\n",
    "unknown tag": b"steps: !!python/object/apply:os.system ['true']\n",
    "odd date": b"seed: 2024-13-45\n",
    "alias of itself": b"data: &a {sources: [*a]}\n",
    "bomb of merges": BOMB.encode(),
    "deep": b"output: " + b"[" * 5000 + b"]" * 5000,
    "two documents": b"steps: 1\n---\nsteps: 2\n",
    "keys that are no texts": b"{1: 2, null: 3}\n",
    "5 MB": b"# " + b"x" * 5_000_000,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("command", ["pretrain", "config", "capfilt run"])
def test_a_config_file_that_cannot_be_used_is_named(name, command, tmp_path):
    path = tmp_path / "odd.yaml"
    if FILES[name] is not None:
        path.write_bytes(FILES[name])
    outcome = run(*command.split(), path, f"output={tmp_path}/run")
    if name == "empty" and command == "config":
        assert outcome.code == 0
    else:
        refused(outcome)
        assert len(outcome.err) < 1000
    assert not (tmp_path / "run").exists()
    tidy(tmp_path)


@pytest.mark.parametrize("path", ["", "/proc", "/dev/zero", "x" * 5000, "/etc/passwd/run.yaml"])
def test_a_config_path_that_leads_nowhere_is_named(path):
    refused(run("pretrain", path), path[:20])


# An override, and what the sentence must hold.
OVERRIDES = [
    ("optim.learning_rate=nan", "optim.learning_rate"),
    ("optim.learning_rate=-1", "optim.learning_rate"),
    ("optim.learning_rate=.inf", "optim.learning_rate"),
    ("optim.learning_rate=", "optim.learning_rate"),
    ("optim.betas=[0.9]", "optim.betas"),
    ("optim.betas=0.9", "optim.betas"),
    ("optim.betas=[0.9, 1.0]", "optim.betas[1]"),
    ("optim.decay=stepwise", "optim.decay"),
    ("batch_size=0", "batch_size"),
    ("batch_size=-1", "batch_size"),
    ("batch_size=1e3", "batch_size"),
    ("batch_size=null", "batch_size"),
    ("batch_size=true", "batch_size"),
    ("batch_size=99999999999", "batch_size"),
    ("accumulation=0", "accumulation"),
    ("accumulation=3", "accumulation"),
    ("steps=0", "steps"),
    ("steps=-5", "steps"),
    ("epochs=nan", "epochs"),
    ("epochs=3", "epochs"),
    ("seed=-1", "seed"),
    ("precision=fp8", "precision"),
    ("precision=fp16", "fp16"),
    ("task=vqa", "task"),
    ("task=captioning", "captioning"),
    ("output=", "output"),
    ("tokenizer=", "tokenizer"),
    ("tokenizer=/nonexistent", "/nonexistent"),
    ("start_from=/nonexistent", "/nonexistent"),
    ("image_size=64", "image_size"),
    ("data.workers=-1", "data.workers"),
    ("data.max_tokens=0", "data.max_tokens"),
    ("data.max_tokens=1", "data.max_tokens"),
    ("data.max_tokens=1000", "data.max_tokens"),
    ("data.max_bad_share=2", "data.max_bad_share"),
    ("data.shuffle_buffer=-1", "data.shuffle_buffer"),
    ("data.sources=[]", "data.sources"),
    ("data.sources=null", "data.sources"),
    ("data.sources=a.tar", "data.sources"),
    ("data.sources=[{}]", "shard"),
    ("data.sources=[{shards: []}]", "shard"),
    ("data.sources=[{shards: [3]}]", "data.sources[0].shards"),
    ("data.sources=[{shards: no/*.tar}]", "no/*.tar"),
    ("data.sources=[{shards: a.tar, weight: nan}]", "data.sources[0].weight"),
    ("data.sources=[{shards: a.tar, weight: -1}]", "data.sources[0].weight"),
    ("data.sources=[{shards: a.tar, wait: 1}]", "data.sources[0].wait"),
    ("data.augment.crop_min=0", "crop_min"),
    ("data.augment.crop_max=2", "crop_max"),
    ("data.augment.probability=2", "probability"),
    ("data.augment.magnitude=11", "magnitude"),
    ("model.image_encoder.image_size=0", "image_size"),
    ("model.image_encoder.image_size=30", "image_size"),
    ("model.image_encoder.patch_size=0", "patch_size"),
    ("model.image_encoder.heads=0", "heads"),
    ("model.image_encoder.heads=3", "heads"),
    ("model.image_encoder.layers=-1", "layers"),
    ("model.image_encoder.drop_path=1", "drop_path"),
    ("model.image_encoder.name=resnet", "resnet"),
    ("model.image_encoder.name=timm:nothing", "nothing"),
    ("model.image_encoder.activation=relu", "activation"),
    ("model.text_tower.heads=5", "heads"),
    ("model.text_tower.dropout=2", "dropout"),
    ("model.text_tower.positions=0", "positions"),
    ("model.text_tower.vocabulary=7", "vocabulary"),
    ("model.text_tower.sharing=none", "sharing"),
    ("model.text_tower.norm_eps=0", "norm_eps"),
    ("model.embed_dim=0", "embed_dim"),
    ("objective.queue_size=-1", "queue_size"),
    ("objective.momentum=2", "momentum"),
    ("objective.temperature=0", "temperature"),
    ("objective.itm_weight=-1", "itm_weight"),
    ("objective.lm_weight=nan", "lm_weight"),
    ("objective.label_smoothing=1", "label_smoothing"),
    ("validation=no/*.tar", "no/*.tar"),
    ("evaluate_every=-1", "evaluate_every"),
    ("model=3", "model"),
    ("model.image_encoder.image_size.x=3", "image_size"),
    ("sed=3", "sed"),
    ("seed", "seed"),
    ("=3", "=3"),
    ("", "''"),
    ("a.b.c.d=3", "a"),
]


@pytest.mark.parametrize(("override", "says"), OVERRIDES, ids=[override for override, _ in OVERRIDES])
def test_a_setting_that_cannot_be_is_named_before_the_run(override, says, tmp_path, run_config):
    save_config(run_config("run", "steps=2"), tmp_path / "run.yaml")
    refused(run("pretrain", tmp_path / "run.yaml", override), says)
    left = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert left == ["run.yaml"]
    tidy(tmp_path)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("decoding.top_p=0", "decoding.top_p"),
        ("decoding.temperature=nan", "decoding.temperature"),
        ("decoding.beams=-1", "decoding.beams"),
        ("decoding.max_length=0", "decoding.max_length"),
        ("num_captions=0", "num_captions"),
        ("batch_size=0", "batch_size"),
        ("name=a/b", "name"),
        ("name=", "name"),
        ("rules=", "rules"),
        ("rules=itm >", "rules"),
        ("shards=no/*.tar", "no/*.tar"),
        ("human=no/*.tar", "no/*.tar"),
        ("filter=/nonexistent", "/nonexistent"),
        ("captioner=/nonexistent", "/nonexistent"),
        ("filter=open_clip:nothing,at-all", "nothing"),
        ("captioner=hf:/nonexistent", "/nonexistent"),
        ("rounds.count=-1", "rounds.count"),
        ("rounds={count: 1}", "rounds.pretrain"),
        ("rounds={count: 1, pretrain: no.yaml}", "no.yaml"),
        ("rounds={count: 1, pretrain: {task: captioning}}", "rounds.pretrain"),
        ("rounds={count: 1, pretrain: [1]}", "rounds.pretrain"),
    ],
)
def test_a_setting_of_capfilt_that_cannot_be_is_named(override, says, tmp_path, scenes, models):
    given = [
        f"shards={scenes}/00000.tar",
        f"filter={models[1]}",
        f"output={tmp_path}/out",
        f"name={tmp_path.name[-9:]}",
    ]
    (tmp_path / "c.yaml").write_text("precision: fp32\n")
    refused(run("capfilt", "run", tmp_path / "c.yaml", *given, override), says)
    assert not (tmp_path / "out").exists()
    tidy(tmp_path)
