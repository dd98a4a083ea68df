"""Classification: zero-shot by texts of classes, ranked by ITC and re-ranked by ITM, or by a classifier's head."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vlp.data.class_names import check_template, fill_template
from vlp.data.images import ImageLike, as_list
from vlp.data.transforms import clean_caption
from vlp.errors import UserError
from vlp.models.classifier import Classifier
from vlp.models.constant_weights import constant_weights

if TYPE_CHECKING:
    from vlp.model.model import Model

TEXTS_AT_ONCE = 256  # that meet images in one call


class Classification(NamedTuple):
    """The classes of images.

    Attributes:
        ranking: int64 [images, classes], the numbers of the classes, best first.
        probabilities: float32 [images, classes], of each class by its number; a row sums to 1.
    """

    ranking: Tensor
    probabilities: Tensor


@dataclass
class ClassTexts:
    """The texts that stand for classes.

    Attributes:
        texts: those of class 0, then those of class 1, and so on; equally many of each class.
        text_vectors: float32 [texts, embed_dim], of unit length.
        vectors: float32 [classes, embed_dim], of unit length: the normalized mean of the vectors of a class's texts.
    """

    texts: list[str]
    text_vectors: Tensor
    vectors: Tensor


@constant_weights()
def classify_images(
    model: "Model",
    images: ImageLike | Sequence[ImageLike],
    labels: Sequence[str],
    templates: Sequence[str] = (),
    rerank: int = 0,
    batch_size: int = 32,
) -> Classification:
    """Rank labels for images.

    Args:
        images: one or several.
        labels: texts, such as "a dog", or class names that `templates` make texts of; none for a classifier.
        templates, rerank: see `embed_classes` and `classify_tokens`; not for a classifier.

    Raises:
        UserError: there are no labels, a template has no place for them, or an image is unreadable; or a classifier
            gets labels.
    """
    classify, count = image_classifier(model, labels, templates, rerank)
    images = as_list(images)
    parts = [Classification(torch.empty(0, count, dtype=torch.int64), torch.empty(0, count))]
    for start in range(0, len(images), batch_size):
        parts.append(classify(model.encode_images(model.load_images(images[start : start + batch_size]))))
    return Classification(*map(torch.cat, zip(*parts, strict=True)))


def image_classifier(
    model: "Model", labels: Sequence[str], templates: Sequence[str] = (), rerank: int = 0, batch_size: int = 128
) -> tuple[Callable[[Tensor], Classification], int]:
    """What classifies image tokens, [images, tokens, width], and the number of classes: a head, or texts of classes.

    Args:
        labels, templates, rerank: as in `classify_images`.

    Raises:
        UserError: as in `classify_images`.
    """
    if isinstance(model.network, Classifier):
        if labels or templates or rerank:
            raise UserError(
                "The model is a classifier and has its own classes; leave labels, templates and rerank out."
            )
        return lambda tokens: classify_by_head(model, tokens), len(model.config.classes)
    classes = embed_classes(model, labels, templates, batch_size)
    return lambda tokens: classify_tokens(model, tokens, classes, rerank), len(labels)


def classify_by_head(model: "Model", image_tokens: Tensor) -> Classification:
    """Rank a classifier's own classes for encoded images, [images, tokens, width]."""
    assert isinstance(model.network, Classifier)
    with model.inference():
        logits = model.network.class_logits(image_tokens).float().cpu()  # [images, classes]
    return Classification(logits.argsort(dim=1, descending=True, stable=True), logits.softmax(dim=1))


def embed_classes(
    model: "Model", names: Sequence[str], templates: Sequence[str] = (), batch_size: int = 128
) -> ClassTexts:
    """The texts of classes and their embeddings, by CLIP's protocol (Radford et al. 2021, section 3.1.4).

    Args:
        names: of the classes.
        templates: prompts with {} or {c} for the name, such as "a photo of a {}"; none: the names alone.

    Raises:
        UserError: there are no names, a template has no place for the name, a text has no words, or the model was
            finetuned for a task that does not train its embeddings.
    """
    if model.config.finetuned_for:
        raise UserError(
            f"The model was finetuned for {model.config.finetuned_for}, which leaves its embeddings untrained; "
            "classify with a pretrained model or one that was finetuned for retrieval."
        )
    patterns = [check_template(template) for template in templates] or ["{}"]
    texts = [fill_template(pattern, name) for name in names for pattern in patterns]
    if not texts:
        raise UserError("Classification needs at least one class name or label; only a classifier has its own.")
    wordless = next((text for text in texts if not clean_caption(text)), None)
    if wordless is not None:
        raise UserError(f"The class text {wordless!r} has no words.")
    vectors = model.embed_texts(texts, batch_size)
    means = vectors.view(len(names), len(patterns), -1).mean(dim=1)  # [classes, embed_dim]
    return ClassTexts(texts, vectors, F.normalize(means, dim=-1))


def classify_tokens(model: "Model", image_tokens: Tensor, classes: ClassTexts, rerank: int = 0) -> Classification:
    """Rank classes for encoded images.

    By ITC the probabilities are the softmax of cosine / temperature. `rerank` follows retrieval: the texts nearest to
    an image are matched with it, and a class is scored by its best text: ITM's log-odds of a match plus the cosine.
    Classes with such a text come before all others. They divide the probability that they have by ITC among
    themselves, by the softmax of their scores.

    Args:
        image_tokens: [images, tokens, width].
        rerank: this many of the nearest texts of all classes are matched with each image; 0 disables.
    """
    rerank = model.rerank_count(rerank, 0)
    vectors = model.embed_tokens(image_tokens)  # [images, embed_dim]
    cosines = vectors @ classes.vectors.T  # [images, classes]
    probabilities = (cosines / model.two_towers.temperature.detach().float().cpu()).softmax(dim=1)
    ranking = cosines.argsort(dim=1, descending=True, stable=True)
    k = min(rerank, len(classes.texts))
    if k:
        nearest = (vectors @ classes.text_vectors.T).topk(k, dim=1)  # [images, k]
        found = match_texts(model, image_tokens, nearest.indices, classes.texts) + nearest.values
        class_of_text = nearest.indices // (len(classes.texts) // len(classes.vectors))
        scores = torch.full_like(cosines, float("-inf")).scatter_reduce(1, class_of_text, found, "amax")
        # Classes without a matched text are equal in score and keep their order.
        order = scores.gather(1, ranking).argsort(dim=1, descending=True, stable=True)
        ranking = ranking.gather(1, order)
        matched = scores.isfinite()
        share = (probabilities * matched).sum(dim=1, keepdim=True)
        probabilities = torch.where(matched, scores.softmax(dim=1) * share, probabilities)
    return Classification(ranking, probabilities)


def match_texts(model: "Model", image_tokens: Tensor, candidates: Tensor, texts: Sequence[str]) -> Tensor:
    """ITM's log-odds of a match of some texts for each image.

    Each image's memory is projected once.

    Args:
        image_tokens: [images, tokens, width].
        candidates: int64 [images, candidates], numbers of texts.

    Returns:
        float32 [images, candidates].
    """
    ids, mask = model.text_ids(texts, "[ENC]")
    at_once = max(1, TEXTS_AT_ONCE // candidates.shape[1])  # images; their texts are then matched in one call
    logits = []
    for start in range(0, len(candidates), at_once):
        memory = model.project(image_tokens[start : start + at_once].to(model.device))
        for part in candidates[start : start + at_once].flatten().to(ids.device).split(TEXTS_AT_ONCE):
            length = int(mask[part].sum(dim=1).max())
            logits.append(model.match_logits(ids[part, :length], mask[part, :length], memory))
    pairs = torch.cat(logits).view(*candidates.shape, 2)
    return pairs[..., 1] - pairs[..., 0]
