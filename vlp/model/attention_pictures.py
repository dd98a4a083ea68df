"""Pictures of where a model looks: `vlp attention`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from torch import Tensor

from vlp.data.bad_samples import BadSampleError
from vlp.data.image_decoding import decode_image
from vlp.data.transforms import seen_part
from vlp.errors import UserError
from vlp.files import write_text, writing
from vlp.model.attention import layer_number, rollout_maps, similarity_maps, word_maps
from vlp.report.attention import LabelledMap, MapGroup, attention_page, attention_sheet

if TYPE_CHECKING:
    from vlp.model.model import Model

Kind = Literal["words", "similarity", "rollout"]
TITLES: dict[Kind, str] = {
    "words": "Where each word looks",
    "similarity": "What resembles the text",
    "rollout": "What reaches the summary of the image",
}


def draw_attention(
    model: "Model", image: str, texts: Sequence[str], out: str, kind: Kind | None = None, layer: int = 0
) -> list[MapGroup]:
    """Write maps over an image as a PNG sheet or as an HTML page, by the ending of `out`; returns what it shows.

    Args:
        texts: none for "rollout".
        kind: "words" for `word_maps`, "similarity" for `similarity_maps`, "rollout" for `rollout_maps`. None means
            words for a BLIP model and similarity for others.
        layer: as in `word_maps`.

    Raises:
        UserError: `out` has another ending, or as in the function that makes the maps.
        WorkError: it cannot be written.
    """
    ending = Path(out).suffix.lower()
    if ending not in (".png", ".html"):
        raise UserError(f"{out} must end with .png for a sheet or with .html for a page.")
    if kind is None:
        kind = "words" if model.config.network == "blip" else "similarity"
    if bool(texts) == (kind == "rollout"):
        raise UserError("Attention rollout takes no text." if texts else f"Give a text to show its {kind}.")
    if layer and kind != "words":
        raise UserError(f"Only the maps of words take a layer, not {kind}.")
    groups = _groups(model, image, texts, kind, layer)
    try:
        # A map covers what the model sees, which may be a part of the image.
        picture = seen_part(decode_image(Path(image).read_bytes()), model.config.image_encoder.resize)
    except BadSampleError as error:
        raise UserError(f"{image} cannot be used as an image: {error.reason}.") from None
    if ending == ".html":
        write_text(out, attention_page(TITLES[kind], _about(model, kind, layer), picture, groups))
        return groups
    with writing(out) as temporary:
        temporary.write_bytes(attention_sheet(picture, groups))
    return groups


def _groups(model: "Model", image: str, texts: Sequence[str], kind: Kind, layer: int) -> list[MapGroup]:
    if kind == "rollout":
        (found,) = rollout_maps(model, image)
        return [MapGroup("", "", [], [_labelled("rollout", found, found.sum().item())])]
    if kind == "similarity":
        found = similarity_maps(model, image, texts)
        return [MapGroup(one.text, "", [], [_labelled("cosine", one.map, one.itc)]) for one in found]
    groups = []
    for one in word_maps(model, image, texts, layer):
        words = [_from_zero(word, row) for word, row in zip(one.words, one.maps, strict=True)]
        others = [_from_zero("whole text", one.sentence), _from_zero("[ENC]", one.start), _from_zero("[SEP]", one.end)]
        groups.append(MapGroup(one.text, f"match {one.itm:.3f}", words, others))
    return groups


def _about(model: "Model", kind: Kind, layer: int) -> str:
    if kind == "rollout":
        return (
            "Attention rollout over all layers of the image encoder. The number is the share of the patches in the "
            "summary; the rest is its own."
        )
    if kind == "similarity":
        return (
            "The cosine of each patch of the image and the text. Each map has its own scale. The number is the cosine "
            "of the whole image and the text."
        )
    return (
        f"Grad-CAM on the cross-attention of layer {layer_number(model, layer) + 1} of the text tower, for the match "
        "of image and text. Each map has its own scale. The number is the sum of the map: how much the word's "
        "attention to the image raises the score of the match."
    )


def _from_zero(label: str, values: Tensor) -> LabelledMap:
    return LabelledMap(label, values.sum().item(), values.numpy(), 0.0, values.max().item())


def _labelled(label: str, values: Tensor, strength: float) -> LabelledMap:
    return LabelledMap(label, strength, values.numpy(), values.min().item(), values.max().item())
