"""The loader of training batches: indexed for files, streamed for addresses with a scheme."""

from collections.abc import Generator
from typing import Protocol

from vlp.config import DataConfig
from vlp.data.batch import Batch
from vlp.data.indexed_loader import IndexedLoader
from vlp.data.tokenizer import CaptionTokenizer


class TrainingLoader(Protocol):
    """Endless training batches of one process.

    Any number of processes sees the same global batches; a resume continues at the sample.
    """

    @property
    def epoch_size(self) -> int:
        """Samples of an epoch, over all processes."""
        ...

    @property
    def bad_counts(self) -> dict[str, int]:
        """Bad samples by reason."""
        ...

    @property
    def filtered_counts(self) -> dict[str, int]:
        """Filtered samples by reason."""
        ...

    def state(self) -> dict:
        """The position to resume from, and what was skipped up to it."""
        ...

    def load_state(self, state: dict) -> None:
        """Resume from a state."""
        ...

    def __iter__(self) -> Generator[Batch, None, None]: ...


def training_loader(
    data: DataConfig,
    image_size: int,
    tokenizer: CaptionTokenizer,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
    prompt: str = "",
) -> TrainingLoader:
    """The loader that `data.reading` asks for; see the docstring of each loader for its errors.

    Args:
        batch_size: samples of a batch over all processes; a multiple of `world`.
        prompt: words put before every caption.
    """
    return IndexedLoader(data, image_size, tokenizer, batch_size, rank, world, seed, prompt)
