"""The model of the page: all its work runs in one thread, one call after another."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

from vlp.config_model import ModelConfig
from vlp.model import Model
from vlp.models.constant_weights import constant_weights
from vlp.models.untrained import CAPTIONING, EMBEDDING, MATCHING

Result = TypeVar("Result")


class ModelThread:
    """A model that many sessions share.

    Memory stays the same for any number of sessions: one call runs at a time, and PyTorch keeps one pool of threads.
    The weights are packed once.

    Attributes:
        model: use it only inside `call`, but for its configuration and tokenizer.
        name: of its folder, for commands.
        can: what it can do.
    """

    def __init__(self, model: Model, name: str):
        """Start the thread."""
        self.model, self.name, self.can = model, name, Abilities(model.config)
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[Model], Result]) -> Result:
        """What `work` returns or raises."""
        done: Future[Result] = Future()

        def run() -> None:
            try:
                done.set_result(work(self.model))
            except BaseException as error:
                done.set_exception(error)

        self._work.put(run)
        return done.result()

    def close(self) -> None:
        """End the thread after its present call."""
        self._work.put(None)
        self._thread.join()

    @constant_weights()
    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()


class Abilities:
    """What a model can do on the page.

    Attributes:
        embed: search and choose among labels.
        match: match images and texts by ITM, and show attention.
        caption: generate captions.
        answer: answer questions.
        classes: has classes of its own.
    """

    def __init__(self, config: ModelConfig):
        """Read it from the model's configuration."""
        plain = not config.finetuned_for
        self.classes = config.network == "classifier"
        self.embed = plain and not self.classes and not set(EMBEDDING) & set(config.untrained)
        blip = plain and config.network == "blip"
        self.match = self.embed and blip and not set(MATCHING) & set(config.untrained)
        self.caption = blip and not set(CAPTIONING) & set(config.untrained)
        self.answer = config.finetuned_for == "vqa"

    def any(self) -> bool:
        """Whether it can do anything with a single image."""
        return self.classes or self.embed or self.caption or self.answer
