"""What finetuning adds to a pretrained network: `extend` makes the network of a task, with its weights."""

import re
from collections.abc import Callable
from dataclasses import replace

from vlp.config import TaskName
from vlp.config_model import FinetunedFor, ModelConfig, NetworkName
from vlp.errors import UserError
from vlp.models.blip import Blip
from vlp.models.network import KINDS, Network, as_blip, as_clip, require_network

# The settings of each task's network, from those of a pretrained one.
CHANGES: dict[FinetunedFor, Callable[[ModelConfig], ModelConfig]] = {
    "nlvr2": lambda config: config,
    "vqa": lambda config: replace(config, text_tower=replace(config.text_tower, sharing="nothing")),
    "visdial": lambda config: config,
}

# Of tasks that do not train a BLIP.
NETWORKS: dict[TaskName, NetworkName] = {"contrastive": "clip", "classification": "classifier"}
ONE_OF_PAIR = re.compile(r"(cross_attention\.\w+\.(?:query|key_value|out))\.[01]")  # in NLVR2's cross-attention


def network_of(task: TaskName) -> FinetunedFor:
    """The `finetuned_for` of the network that a task trains; "" where it is that of pretraining."""
    for name in CHANGES:
        if name == task:
            return name
    return ""


def check_network(config: ModelConfig, task: TaskName) -> None:
    """Check that the network of a new model is the one that a task trains.

    Raises:
        UserError: it is not.
    """
    wanted = NETWORKS.get(task, "blip")
    if config.network != wanted:
        raise UserError(f"task {task} trains {KINDS[wanted]}; set model.network: {wanted}.")


def network_for(network: Network, task: TaskName) -> Network:
    """The network that a task trains, from the one that a run starts from; see `as_clip` and `extend`.

    Raises:
        UserError: the task cannot train that network.
    """
    if task == "contrastive":
        return as_clip(network)
    return extend(as_blip(network, f"be trained by task {task}"), network_of(task))


def extend(blip: Blip, task: FinetunedFor) -> Blip:
    """The network that finetuning on a task trains, from a pretrained network.

    Its weights are copies of the pretrained ones; where encoder and decoder part, both start from what they shared.
    Weights that the pretrained network does not have are new, such as the decoder's cross-attention to question states
    if image and text have different widths. `blip` is not changed.

    Args:
        blip: a pretrained network, or one that was finetuned for the same task, which is returned.
        task: "" for tasks that train the network of pretraining, which is returned.

    Raises:
        UserError: the network was finetuned for another task.
    """
    if blip.config.finetuned_for == task:
        return blip
    if blip.config.finetuned_for:
        raise UserError(
            f"The model was finetuned for {blip.config.finetuned_for} and cannot be finetuned for "
            f"{task or 'another task'}; start from a pretrained model."
        )
    extended = Blip(replace(CHANGES[task](blip.config), finetuned_for=task))
    pretrained, state = blip.state_dict(), extended.state_dict()
    for name, weight in state.items():
        source = next((one for one in _sources(name) if one in pretrained), "")
        if source and pretrained[source].shape == weight.shape:
            weight.copy_(pretrained[source])
    return extended.to(blip.log_temperature.device).train(blip.training)


def require(config: ModelConfig, task: FinetunedFor, use: str) -> None:
    """Check that a model was finetuned for a task.

    Args:
        use: what the caller asked for, such as "answer questions".

    Raises:
        UserError: it was not.
    """
    require_network(config, "blip", use)
    if config.finetuned_for != task:
        state = f"was finetuned for {config.finetuned_for}" if config.finetuned_for else f"was not finetuned for {task}"
        recipe = task.replace("_", "-")
        raise UserError(
            f"The model {state}, so it cannot {use}; finetune a pretrained model first: "
            f"vlp finetune configs/{recipe}.yaml start_from=MODEL."
        )


def refuse_finetuned(config: ModelConfig, use: str) -> None:
    """Check that a model was not finetuned for a task whose network does what pretraining trained no longer.

    Args:
        use: what the caller asked for, such as "caption images".

    Raises:
        UserError: it was finetuned for questions, pairs or dialogs.
    """
    if config.finetuned_for:
        raise UserError(
            f"The model was finetuned for {config.finetuned_for}, so it cannot {use}; use a pretrained model, or one "
            "that was finetuned for retrieval or captioning."
        )


def _sources(name: str) -> list[str]:
    """The pretrained weights that a weight may start from, the best first."""
    name = ONE_OF_PAIR.sub(r"\1", name)
    return [name, *(name.replace(f".{side}.", ".shared.") for side in ("encoder", "decoder") if f".{side}." in name)]
