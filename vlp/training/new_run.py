"""What a new run writes before its first step, which is removed again if it fails before that."""

from contextlib import suppress
from pathlib import Path

from vlp.config import RunConfig
from vlp.config_reader import save_config
from vlp.files import remove

BEFORE_FIRST_STEP = ("config.yaml", "tensorboard", "tracker.json", "wandb", "mlruns")  # with what the trackers write


class NewRun:
    """The run folder of a run that takes its first step in this process, so that its files are of this start alone.

    A folder that held anything before, such as that of a resumed run, is left as it is, and so is one in which another
    process has started a run meanwhile. Only the first process writes and removes.
    """

    def __init__(self, output: Path):
        """Look at the folder, before anything is written into it."""
        self.output, self.config = output, output / "config.yaml"
        self.existed = output.exists()
        self.is_ours = not self.existed or (output.is_dir() and not any(output.iterdir()))
        self.saved = _identity(self.config)

    def save_config(self, config: RunConfig) -> None:
        """Write OUTPUT/config.yaml."""
        self.is_ours = self.is_ours and not self.config.exists()
        save_config(config, self.config)
        self.saved = _identity(self.config)

    def remove(self) -> None:
        """Remove what was written, so that the corrected command finds no folder in its way."""
        if not self.is_ours or not self.output.is_dir() or _identity(self.config) != self.saved:
            return
        for name in BEFORE_FIRST_STEP:
            remove(self.output / name)
        if not self.existed:
            with suppress(OSError):  # somebody else has put a file there
                self.output.rmdir()


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from one that replaces it; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
