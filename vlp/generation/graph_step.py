"""Decoding steps as CUDA graphs: on a GPU, starting the kernels of a step one by one takes longer than they run."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor

from vlp.generation.caption_step import CaptionStepper
from vlp.generation.decode import Stepper
from vlp.models.blip import Blip
from vlp.models.constant_weights import kept
from vlp.models.image_memory import FixedCache, ImageMemory

Record = Callable[[Callable[[], None]], Callable[[], None]]  # of a step: may run it; returns what runs it again
MOST_GRAPHS = 4  # kept at a time; each holds an image memory
KIND = "decoding"


def caption_stepper(blip: Blip, memory: ImageMemory, max_length: int) -> Stepper:
    """The `Stepper` of a BLIP model that is fastest where its weights are: with CUDA graphs on a GPU.

    A graph reads the weights where they are when it is recorded, so it serves the batches of one `constant_weights`
    block, and outside of a block there is none.

    Args:
        memory, max_length: as in `CaptionStepper`.
    """
    if memory.keys[0].device.type != "cuda" or memory.mask is not None or kept() is None:
        return CaptionStepper(blip, memory, max_length)
    return GraphStepper(blip, memory, max_length)


class GraphStepper:
    """A `CaptionStepper` that replays one recorded step for every token after the prompt.

    Its rows stay where they are until the last text is finished: those of finished groups go on unread.
    """

    def __init__(self, blip: Blip, memory: ImageMemory, max_length: int, record: Record | None = None):
        """Arguments as in `CaptionStepper`; `record` makes a graph of work (default: `record_graph`)."""
        self.blip, self.memory, self.max_length = blip, memory, max_length
        self.record = record or record_graph
        self.step_of: RecordedStep | None = None
        self.places: Tensor | None = None  # int64 [rows], where each row of the caller is; None: as they came

    def step(self, new: Tensor) -> Tensor:
        """New tokens int64 [rows, new] -> logits [rows, vocabulary] of each row's next token."""
        if self.step_of is None:
            self.step_of = _recorded_step(self.blip, self.memory, len(new), self.max_length, self.record)
            return self.step_of.start(self.memory, new)
        logits = self.step_of.continue_with(new, self.places)
        return logits if self.places is None else logits.index_select(0, self.places)

    def select(self, rows: Tensor, groups: Tensor | None) -> None:
        """As in `Stepper`: rows move within their groups, and groups leave."""
        assert self.step_of is not None
        before = torch.arange(self.step_of.rows, device=rows.device)
        places = before if self.places is None else self.places
        sources, targets = places[rows], places
        if groups is not None:
            size = len(rows) // len(groups)
            targets = places.view(-1, size)[groups].flatten()
            self.places = targets
        self.step_of.cache.select(before.index_copy(0, targets, sources))


class RecordedStep:
    """One decoding step for fixed numbers of rows, images and tokens, recorded once.

    Attributes:
        rows: of the batch.
        cache: the self-attention cache that the step reads and extends.
    """

    def __init__(self, blip: Blip, memory: ImageMemory, rows: int, max_length: int, record: Record):
        """Record a step for batches like that of `memory`; further arguments as in `GraphStepper`."""
        config, like = blip.config.text_tower, memory.keys[0]
        self.blip, self.rows = blip, rows
        self.memory = ImageMemory([layer.clone() for layer in memory.layers])
        self.cache = FixedCache(config.layers, rows, max_length, like)
        self.new = torch.zeros(rows, 1, dtype=torch.int64, device=like.device)
        self.place = self.cache.next  # of the token that the recorded step reads
        self.logits = like
        with torch.cuda.device(like.device) if like.device.type == "cuda" else nullcontext():
            self.replay = record(self._step)

    def start(self, memory: ImageMemory, prompt: Tensor) -> Tensor:
        """Take the images of another batch and a prompt int64 [rows, tokens]; returns the logits that follow it.

        The steps of the batch before have all been started, and a GPU does its work in order. So none of them reads the
        new images, even if the host has not yet asked for their tokens.
        """
        for mine, theirs in zip(self.memory.layers, memory.layers, strict=True):
            mine.copy_(theirs)
        self.cache.states.zero_()  # a NaN in what another batch left would outweigh the mask
        tokens = prompt.shape[1]
        self.cache.next = torch.arange(tokens, device=prompt.device)
        logits = self._decode(prompt)
        self.cache.next = self.place.fill_(tokens)
        return logits

    def continue_with(self, new: Tensor, places: Tensor | None) -> Tensor:
        """A token int64 [n, 1] of each row, or of those at int64 [n] -> logits of all rows, until the next call."""
        if places is None:
            self.new.copy_(new)
        else:
            self.new.index_copy_(0, places, new)
        self.replay()
        return self.logits

    def _step(self) -> None:
        self.logits = self._decode(self.new)
        self.cache.next.add_(1)

    def _decode(self, new: Tensor) -> Tensor:
        with torch.compiler.set_stance("force_eager"):  # a graph gains nothing from compiled blocks
            hidden = self.blip.text_tower.decode(new, None, self.memory, cache=self.cache)  # [rows, new, width]
        return self.blip.word_logits(hidden[:, -1])


def record_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Run work on the GPU, then record it as a CUDA graph; returns what replays it."""
    here, aside = torch.cuda.current_stream(), _recording_stream(torch.cuda.current_device())
    graph = torch.cuda.CUDAGraph()
    aside.wait_stream(here)
    # Autocast would keep its copies of weights, and a graph would read them when they are gone.
    dtype, enabled = torch.get_autocast_dtype("cuda"), torch.is_autocast_enabled("cuda")
    with torch.cuda.stream(aside), torch.autocast("cuda", dtype, enabled, cache_enabled=False):
        work()  # kernels are chosen at their first call, which cannot be recorded
        aside.synchronize()
        graph.capture_begin(capture_error_mode="thread_local")  # other threads may use the GPU meanwhile
        try:
            work()
        finally:
            graph.capture_end()
    here.wait_stream(aside)
    return graph.replay


@cache
def _recording_stream(device: int) -> torch.cuda.Stream:
    """One for all recordings on a device: libraries and the allocator keep memory apart for each stream."""
    return torch.cuda.Stream(device)


def _recorded_step(blip: Blip, memory: ImageMemory, rows: int, max_length: int, record: Record) -> RecordedStep:
    """A step for such a batch: one that the `constant_weights` block keeps, or a new one."""
    like = memory.keys[0]
    autocast = torch.is_autocast_enabled(like.device.type)
    steps = kept()
    if steps is None:
        steps = {}
    key = (KIND, id(blip), rows, like.shape, like.dtype, like.device, max_length, autocast, record)
    if key not in steps:
        graphs = [one for one in steps if one[0] == KIND]
        for oldest in graphs[: len(graphs) - MOST_GRAPHS + 1]:
            del steps[oldest]
        steps[key] = RecordedStep(blip, memory, rows, max_length, record)
    return steps[key]
