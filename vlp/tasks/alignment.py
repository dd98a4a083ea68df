"""ITC and ITM, the losses that pretraining and retrieval finetuning share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vlp.config import RunConfig
from vlp.data.batch import Batch
from vlp.data.tokenizer import CaptionTokenizer
from vlp.distributed import all_sum, exchange_rows, gather, gather_texts, rank, world_size
from vlp.losses.exchange import gather_with_gradient
from vlp.losses.matching import matching_loss
from vlp.models.blip import Blip
from vlp.models.image_encoders.encoder import WHOLE, ImageView
from vlp.models.image_memory import ImageMemory
from vlp.models.momentum import FeatureQueue, MomentumTwin
from vlp.models.precision import product_dtype
from vlp.models.text_rows import TextUse
from vlp.tasks.altered_texts import alter_texts, read_texts, text_bank, word_starts
from vlp.tasks.itc import Columns, Draw, Rows, contrast
from vlp.tasks.task import TaskOutput
from vlp.tasks.text_table import TextTable, text_table
from vlp.transfers import on_its_way

Negatives = tuple[Tensor, Tensor]  # int64 [texts], numbers in the batch of all processes; bool [texts], if any
TEMPERATURE_RANGE = (0.001, 0.5)
SPARE = 1.75  # times the rows of ITM's texts that are computed at most, so that no step waits for the device


@dataclass
class Judged:
    """Pairs of texts and images of which ITM says whether they match.

    Attributes:
        matches: bool [texts].
        counted: bool [texts], False for pairs that are left out.
        altered: whether the texts are altered captions.
    """

    use: TextUse
    matches: Tensor
    counted: Tensor
    altered: bool = False


@dataclass
class Drawn:
    """What ITC gives to ITM.

    Attributes:
        itc: the loss.
        texts: ids and mask of the texts of all processes, in their tables; ids begin with [ENC].
        with_own: ids and mask [2 texts, tokens], each text and then the hard text of its image.
        count: of their tokens, see `token_count`; None where lengths are unknown.
        has_text: bool [texts], whether there is a hard text.
        hard_images: of each text.
    """

    itc: Tensor
    table: TextTable
    texts: tuple[Tensor, Tensor]
    with_own: tuple[Tensor, Tensor]
    count: Callable[[], int] | None
    has_text: Tensor
    hard_images: Negatives


class Alignment(nn.Module):
    """The momentum twin, the queues, and the two losses that need them (paper, section 3.2).

    With several texts of an image (`data.texts_per_image`), the image is encoded and projected once. In ITC all its
    texts are its positives; a loss is the mean over images plus the mean over texts. In ITM each text is paired with
    its image, with another image, and its image with another text. The queues of images and of texts hold the hash of
    each one's image. Without queue and soft targets there is no twin, see `ObjectiveConfig`.

    Each process compares the rows of its own samples with the columns of all processes, so the mean of the losses over
    processes is the loss of one process with the whole batch.
    """

    starts_word: Tensor  # bool [vocabulary], see `word_starts`

    def __init__(self, config: RunConfig, model: Blip, tokenizer: CaptionTokenizer):
        super().__init__()
        self.objective = config.objective
        self.texts_per_image = config.data.texts_per_image
        self.enc_id = tokenizer.enc_id
        self.first_word = len(tokenizer.prompt_ids(config.objective.prompt))  # behind [ENC] and the prompt
        self.register_buffer("starts_word", word_starts(tokenizer), persistent=False)
        self.seed = config.seed
        self.twin = MomentumTwin(model) if self.objective.queue_size or self.objective.alpha else None
        self.image_queue = FeatureQueue(self.objective.queue_size, model.config.embed_dim)
        self.text_queue = FeatureQueue(self.objective.queue_size, model.config.embed_dim)
        self.alpha, self.hardness = 0.0, 1.0
        self.draws = 0

    def start_step(self, model: Blip, step: int, epoch: float, progress: float) -> None:
        """Before the first forward pass of an optimizer step: move the twin, ramp alpha and the hardness of negatives,
        and bound the temperature.
        """
        if self.twin is not None and step > 0:
            self.twin.follow(model, self.objective.momentum)
        ramp = self.objective.alpha_ramp_epochs
        self.alpha = self.objective.alpha * (min(1.0, epoch / ramp) if ramp > 0 else 1.0)
        rise = self.objective.hardness_ramp
        self.hardness = min(1.0, progress / rise) if rise > 0 else 1.0
        self.draws = step * 1_000_003  # incremented by every draw of the step
        with torch.no_grad():
            model.log_temperature.clamp_(*map(math.log, TEMPERATURE_RANGE))

    def next_seed(self) -> int:
        """The seed of the next random draw, the same in all processes."""
        self.draws += 1
        return self.seed * 1_000_000_007 + self.draws

    def contrast(
        self, model: Blip, batch: Batch, image_tokens: Tensor, same_image: bool, view: ImageView = WHOLE
    ) -> Drawn:
        """The ITC loss of a batch, and its hard negatives for ITM.

        Args:
            model: the online model.
            batch: ids begin with [CLS].
            image_tokens: [batch, tokens, width] of the batch's images.
            same_image: whether all captions of an image are its positives (retrieval), or only those of this visit.
            view: what of the images was encoded. The twin sees the same: its targets describe what this view shows,
                and it costs the same share of the time.
        """
        table = text_table(batch, self.texts_per_image)
        itc, hard_texts, hard_images = self._contrast(model, batch, table, image_tokens, same_image, view)
        ids, mask = batch.text_ids.clone(), batch.text_mask
        ids[:, 0].fill_(self.enc_id)
        texts = gather_texts(table.spread(ids), table.spread(mask))
        mine = table.places + rank() * len(table.filled)
        # The own and the hard text of an image are adjacent, so both use its memory without a copy.
        with_own = [torch.stack([one[mine], one[hard_texts[0]]], dim=1).flatten(0, 1) for one in texts]
        count = None if batch.lengths is None else token_count(with_own[1], batch.lengths)
        return Drawn(itc, table, texts, (with_own[0], with_own[1]), count, hard_texts[1], hard_images)

    def match(
        self,
        model: Blip,
        batch: Batch,
        drawn: Drawn,
        image_tokens: Tensor,
        memory: ImageMemory,
        beside: Sequence[TextUse] = (),
    ) -> tuple[TaskOutput, list[Tensor]]:
        """The losses `itc` and `itm`, and the metrics `itm_accuracy` (of pairs in the batch) and `temperature`.

        With `objective.altered_texts`, ITM also tells altered captions from true ones, whose metric is
        `altered_accuracy`. With `objective.wrong_texts`, it also tells the wrong texts of an image from true ones; an
        image without a caption has no part in ITC but as a negative of others.

        Args:
            model, batch, image_tokens: as in `contrast`.
            drawn: from `contrast`. To project the images after it gives a GPU work while the host waits for a number.
            memory: the image memory of the batch, for matching.
            beside: texts of other losses, which the text tower reads together with those of ITM.

        Returns:
            The losses and metrics, and the states of `beside`.
        """
        judged = self._true_and_hard(model, batch, drawn, image_tokens, memory)
        # What meets the own images is adjacent: the last one may meet a memory of its own.
        if self.objective.altered_texts:
            ids, mask, exists = self._alter(batch, drawn.table, drawn.texts)
            judged.insert(1, Judged(TextUse(ids, mask, "encoder", memory), torch.zeros_like(exists), exists, True))
        if batch.wrong_ids is not None and batch.wrong_mask is not None:
            counted = torch.ones_like(batch.wrong_mask[:, 0])
            use = TextUse(batch.wrong_ids, batch.wrong_mask, "encoder", memory, batch.wrong_images)
            judged.insert(1, Judged(use, torch.zeros_like(counted), counted))
        states = model.text_tower.run([*beside, *(one.use for one in judged)])
        logits = [model.itm_head(one[:, 0]) for one in states[len(beside) :]]
        itm, metrics = _matching(judged, logits)
        metrics["temperature"] = model.temperature.detach()
        return TaskOutput({"itc": drawn.itc, "itm": itm}, metrics), states[: len(beside)]

    def _contrast(
        self, model: Blip, batch: Batch, table: TextTable, image_tokens: Tensor, same_image: bool, view: ImageView
    ) -> tuple[Tensor, Negatives, Negatives]:
        """The ITC loss, a hard text for the image of each text, and a hard image for each text."""
        each = self.texts_per_image
        images = model.embed_image_tokens(image_tokens)  # [images, embed_dim]
        texts = model.embed_texts(batch.text_ids, batch.text_mask, batch.tokens())  # [texts, embed_dim]
        twin_images, twin_texts = self._twin_features(batch, view, images, texts)
        all_images, all_texts = gather_with_gradient(twin_images), gather_with_gradient(table.spread(twin_texts))
        image_hashes, text_hashes = gather(batch.image_hashes), gather(table.spread(batch.text_hashes))
        filled = self._filled(table)  # [all images x each]
        numbers = torch.arange(len(all_images), device=images.device)
        own = numbers[rank() * len(images) :][: len(images)]
        text_places = table.places + rank() * len(table.filled)

        image_weights, text_weights = _row_weights(batch, table)
        image_rows = Rows(
            images, twin_images, own, own, batch.image_hashes, text_hashes.view(-1, each)[own], image_weights
        )
        text_rows = Rows(
            texts,
            twin_texts,
            text_places,
            own[table.images],
            batch.image_hashes[table.images],
            batch.text_hashes[:, None],
            text_weights,
        )
        text_columns = _columns(
            self.text_queue,
            all_texts,
            filled,
            numbers.repeat_interleave(each),
            image_hashes.repeat_interleave(each),
            text_hashes[:, None],
        )
        image_columns = _columns(
            self.image_queue,
            all_images,
            torch.ones_like(numbers, dtype=torch.bool),
            numbers,
            image_hashes,
            text_hashes.view(-1, each),
        )

        def side(rows: Rows, columns: Columns, negatives: int) -> tuple[Tensor, Tensor, Tensor]:
            draw = Draw(self.next_seed(), negatives, self.hardness)
            return contrast(rows, columns, model.temperature, self.alpha, same_image, draw)

        with torch.autocast(images.device.type, enabled=False):
            image_loss, hard_texts, has_text = side(image_rows, text_columns, each)
            text_loss, hard_images, has_image = side(text_rows, image_columns, 1)
        if each > 1:  # processes may have different numbers of texts
            count = torch.full_like(text_loss, len(texts))
            text_loss = text_loss * (count * world_size() / all_sum(count))
        self.image_queue.push(all_images, image_hashes)
        self.text_queue.push(all_texts, image_hashes.repeat_interleave(each), filled if each > 1 else None)
        of_texts = hard_texts.flatten()[table.places], has_text.flatten()[table.places]
        return (image_loss + text_loss) / 2, of_texts, (hard_images.flatten(), has_image.flatten())

    def _twin_features(self, batch: Batch, view: ImageView, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """The twin's features of images and texts; without a twin the model's, which are given."""
        if self.twin is None:
            return images, texts
        return self.twin.embed(batch.images, batch.text_ids, batch.text_mask, view, batch.tokens())

    def _true_and_hard(
        self, model: Blip, batch: Batch, drawn: Drawn, image_tokens: Tensor, memory: ImageMemory
    ) -> list[Judged]:
        """What ITM reads: each image with its text and with its hard text, then each text with its hard image."""
        table, (hard_image, has_image) = drawn.table, drawn.hard_images
        others, index = memory, hard_image
        if world_size() > 1:
            # Tokens of the drawn images and their gradients are sent in the dtype of the products that use them, which
            # halves the bytes in bf16. The tokens lose nothing, because each product rounds them anyway. A gradient,
            # the sum of such products over layers, is rounded once more.
            sent = exchange_rows(image_tokens, self._places(hard_image, table), product_dtype(image_tokens))
            others = model.text_tower.project_image(sent if table.is_full else sent[table.places])
            index = None
        (ids, mask), count = drawn.with_own, None if drawn.count is None else drawn.count()
        true = torch.ones_like(drawn.has_text)
        matches = true if batch.captioned is None else batch.captioned[table.images]
        own_index = None if batch.image_index is None else batch.image_index.repeat_interleave(2)
        return [
            Judged(
                TextUse(ids, mask, "encoder", memory, own_index, count=count),
                torch.stack([matches, torch.zeros_like(true)], dim=1).flatten(),
                torch.stack([true, drawn.has_text], dim=1).flatten(),
            ),
            Judged(
                TextUse(ids[::2], mask[::2], "encoder", others, index, count=batch.tokens()),
                torch.zeros_like(true),
                has_image,
            ),
        ]

    def _filled(self, table: TextTable) -> Tensor:
        """Whether there is a text in each place of the tables of all processes, bool [all images x places]."""
        if self.texts_per_image == 1:
            return torch.ones(len(table.filled) * world_size(), dtype=torch.bool, device=table.filled.device)
        return gather(table.filled.to(torch.uint8)).bool()

    def _alter(self, batch: Batch, table: TextTable, texts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Altered captions of each image, made of its captions in turn.

        Args:
            texts: ids and mask of all processes, in their tables.

        Returns:
            ids, mask: int64 and bool [images x altered, tokens].
            exists: bool [images x altered], False where no alteration was found.
        """
        each, count = self.texts_per_image, self.objective.altered_texts
        everyone = read_texts(*texts, self.starts_word, self.first_word)
        bank = text_bank(everyone, len(self.starts_word), self._filled(table))
        altered = torch.arange(count, device=table.images.device)
        images = torch.arange(len(batch.images), device=altered.device) + rank() * len(batch.images)
        own = table.filled.view(-1, each).sum(dim=1, keepdim=True)  # captions of each image
        rows = (images[:, None] * each + altered % own).flatten()
        numbers = (images[:, None] * count + altered).flatten()
        captions = images[:, None] * each + torch.arange(each, device=images.device)
        return alter_texts(bank, rows, numbers, self.next_seed(), captions.repeat_interleave(count, dim=0))

    def _places(self, hard_image: Tensor, table: TextTable) -> Tensor:
        """The hard image of each place of the table, int64 [places]; in empty ones the first image of this process."""
        if table.is_full:
            return hard_image
        wanted = torch.full_like(table.source, rank() * (len(table.filled) // self.texts_per_image))
        wanted[table.places] = hard_image
        return wanted


def token_count(mask: Tensor, lengths: list[int]) -> Callable[[], int]:
    """The number of tokens of the own and the hard texts, or more: only the device knows which texts were drawn.

    If the host waited for the number, it would have little time to start the many short kernels that follow, and the
    device would wait for it in turn. Unless texts are too different, rows for the longest text each cost less.

    Args:
        mask: bool [texts, tokens].
        lengths: of the own texts, which are half of them.
    """
    own = sum(lengths)
    longest = max(lengths) if world_size() == 1 else mask.shape[1]  # others' texts are known by their padding only
    most = own + len(lengths) * longest
    if mask.device.type == "cuda" and most <= SPARE * 2 * own:
        return lambda: most
    number = on_its_way(mask.sum())
    return lambda: int(number())


def _matching(judged: list[Judged], logits: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The ITM loss over all pairs, from logits [texts, 2] of each kind, and its metrics."""
    kinds = [matching_loss(some, one.matches.long(), one.counted) for one, some in zip(judged, logits, strict=True)]
    total = torch.stack([total for total, _, _ in kinds]).sum()
    metrics, everyone = {}, torch.zeros_like(total)
    for name, altered in (("itm_accuracy", False), ("altered_accuracy", True)):
        chosen = [kind for one, kind in zip(judged, kinds, strict=True) if one.altered == altered]
        if chosen:
            pairs = all_sum(torch.stack([pairs for _, _, pairs in chosen]).sum())
            right = torch.stack([right for _, right, _ in chosen]).sum()
            metrics[name] = right * world_size() / pairs.clamp(min=1)
            everyone = everyone + pairs
    return total * world_size() / everyone.clamp(min=1), metrics


def _row_weights(batch: Batch, table: TextTable) -> tuple[Tensor | None, Tensor | None]:
    """The weights of images and of texts in ITC: 0 where the text is a wrong one, else equal, with mean 1 over all."""
    if batch.captioned is None:
        return None, None
    kept = [one.float() for one in (batch.captioned, batch.captioned[table.images])]
    counts = [count for one in kept for count in (torch.full_like(one[0], len(one)), one.sum())]
    images, kept_images, texts, kept_texts = all_sum(torch.stack(counts)).unbind()
    return kept[0] * (images / kept_images.clamp(min=1)), kept[1] * (texts / kept_texts.clamp(min=1))


def _columns(
    queue: FeatureQueue, features: Tensor, present: Tensor, images: Tensor, image_hashes: Tensor, text_hashes: Tensor
) -> Columns:
    """The columns of a batch, then those of a queue; arguments as the attributes of `Columns`, of the batch alone."""
    return Columns(
        torch.cat([features, queue.features]),
        torch.cat([present, queue.filled]),
        torch.cat([images, torch.full_like(queue.image_hashes, -1)]),
        torch.cat([image_hashes, queue.image_hashes]),
        text_hashes,
    )
