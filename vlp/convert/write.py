"""Writing our networks as `transformers` folders, which its own classes load without missing or unexpected weights."""

from pathlib import Path
from typing import Any, Literal

from vlp.config_model import ModelConfig
from vlp.config_reader import to_dict
from vlp.convert.blip import transformers_table
from vlp.convert.decoding import OURS, generation_settings
from vlp.convert.files import no_progress_bars
from vlp.convert.tables import group_names, to_their_names
from vlp.data.tokenizer import CaptionTokenizer
from vlp.errors import UserError
from vlp.files import prepare_output, writing_folder
from vlp.model_folder import SavedModel
from vlp.models.finetuned import require
from vlp.models.network import as_blip

Kind = Literal["captioning", "retrieval", "vqa"]
CLASSES = {
    "captioning": "BlipForConditionalGeneration",
    "retrieval": "BlipForImageTextRetrieval",
    "vqa": "BlipForQuestionAnswering",
}


def write_transformers(model: SavedModel, folder: str | Path, kind: Kind) -> list[str]:
    """Write a folder that the `transformers` class for `kind` and `BlipProcessor` load with `from_pretrained`.

    Decoding settings go to generation_config.json as far as `transformers` has them, and whole to config.json.

    Returns:
        The parts of the model that the class does not have.

    Raises:
        UserError: the folder exists, or `transformers` has no BLIP with the model's architecture.
    """
    import transformers

    prepare_output(folder)
    blip = as_blip(model.network, f"become transformers' {CLASSES[kind]}")
    tokenizer = model.tokenizer
    assert tokenizer is not None  # only classifiers have none
    _check_kind(blip.config, kind)
    weights_of_ours = blip.state_dict()
    config = _their_config(blip.config, tokenizer)
    theirs = getattr(transformers, CLASSES[kind])(config).eval()
    weights, used = to_their_names(transformers_table(kind, blip.config), weights_of_ours)
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    tied = ("cls.predictions.decoder.weight", "cls.predictions.decoder.bias")
    missing = [name for name in missing if not name.endswith(tied)]
    if missing or unexpected:
        problems = ", ".join([*missing, *unexpected][:5])
        raise UserError(f"transformers' {CLASSES[kind]} cannot represent this model; these weights differ: {problems}.")
    theirs.tie_weights()
    if kind == "captioning":
        setattr(config, OURS, to_dict(model.decoding))
        theirs.generation_config.update(**generation_settings(model.decoding))
    size = {"height": config.vision_config.image_size, "width": config.vision_config.image_size}
    encoder = blip.config.image_encoder
    images = transformers.BlipImageProcessor(size=size, image_mean=encoder.mean, image_std=encoder.deviation)
    with writing_folder(folder) as temporary:
        tokenizer.write_files(temporary)
        words = transformers.AutoTokenizer.from_pretrained(str(temporary))
        with no_progress_bars():
            theirs.save_pretrained(temporary)
        transformers.BlipProcessor(images, words).save_pretrained(temporary)
    return group_names(name for name in weights_of_ours if name not in used)


def _check_kind(config: ModelConfig, kind: Kind) -> None:
    """Check that a network has the parts of a kind.

    Raises:
        UserError: it was finetuned for something else, or its decoder has a shape that `transformers` does not have.
    """
    if kind == "vqa":
        require(config, "vqa", "be converted to BlipForQuestionAnswering")
        if config.text_tower.width != config.image_encoder.width:
            raise UserError(
                "transformers' BlipForQuestionAnswering needs image and text of one width, not "
                f"{config.image_encoder.width} and {config.text_tower.width}."
            )
    elif config.finetuned_for:
        raise UserError(f"This model was finetuned for {config.finetuned_for}; it cannot become a {CLASSES[kind]}.")


def _their_config(config: ModelConfig, tokenizer: CaptionTokenizer) -> Any:
    """The BlipConfig of one of our networks."""
    from transformers import BlipConfig

    image, text = config.image_encoder, config.text_tower
    if image.pre_norm or image.name != "vit":
        raise UserError("transformers' BLIP only has a plain ViT as its image encoder; this model has another one.")
    return BlipConfig(
        text_config={
            "vocab_size": text.vocabulary,
            "hidden_size": text.width,
            "encoder_hidden_size": image.width,
            "intermediate_size": text.feed_forward,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "max_position_embeddings": text.positions,
            "layer_norm_eps": text.norm_eps,
            "bos_token_id": tokenizer.dec_id,
            "pad_token_id": tokenizer.pad_id,
            "sep_token_id": tokenizer.sep_id,
            "eos_token_id": tokenizer.sep_id,
        },
        vision_config={
            "hidden_size": image.width,
            "intermediate_size": image.feed_forward or 4 * image.width,
            "num_hidden_layers": image.layers,
            "num_attention_heads": image.heads,
            "image_size": image.image_size,
            "patch_size": image.patch_size,
            "layer_norm_eps": image.norm_eps,
            "hidden_act": image.activation,
        },
        image_text_hidden_size=config.embed_dim,
        projection_dim=config.embed_dim,
    )
