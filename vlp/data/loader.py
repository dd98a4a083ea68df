"""The loader of training batches: indexed for files, streamed for addresses with a scheme."""

from collections.abc import Generator
from typing import Any, Protocol

from vlp.config import DataConfig
from vlp.data.examples import Examples
from vlp.data.indexed_loader import IndexedLoader
from vlp.data.streamed_loader import StreamedLoader
from vlp.errors import UserError
from vlp.remote import is_remote


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

    def load_states(self, states: list[dict]) -> None:
        """Resume from the states of all processes, in their order; there may have been another number of them."""
        ...

    def __iter__(self) -> Generator[Any, None, None]: ...


def training_loader(
    data: DataConfig,
    image_size: int,
    examples: Examples,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    seed: int = 0,
) -> TrainingLoader:
    """The loader that `data.reading` asks for; see the docstring of each loader for its errors.

    Args:
        examples: what the task learns from a sample.
        batch_size: samples of a batch over all processes; a multiple of `world`.
    """
    loader = StreamedLoader if is_streamed(data) else IndexedLoader
    return loader(data, image_size, examples, batch_size, rank, world, seed)


def is_streamed(data: DataConfig) -> bool:
    """Whether the sources are read in sequence: as `data.reading` says, or if one of them is no local file.

    Raises:
        UserError: `data.reading` is indexed, and a source can only be read in sequence.
    """
    patterns = [pattern for source in data.sources for pattern in _patterns(source.shards)]
    datasets = [source.dataset for source in data.sources if source.dataset]
    if data.reading == "indexed":
        for name in [*datasets, *(pattern for pattern in patterns if pattern.startswith("pipe:"))]:
            raise UserError(f"{name} cannot be read by data.reading: indexed; set data.reading to auto.")
    if data.reading != "auto":
        return data.reading == "streamed"
    return bool(datasets) or any(map(is_remote, patterns))


def _patterns(shards: str | list[str]) -> list[str]:
    return [shards] if isinstance(shards, str) else shards
