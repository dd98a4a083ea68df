"""Reading other projects' files, from a folder or the hub, without running any code that they contain."""

import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vlp import files
from vlp.errors import UserError

WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin", "*.json", "*.txt", "*.model", "*.jinja")


def find_folder(source: str) -> Path:
    """A local path as it is, or the folder with the downloaded files of a hub name.

    Raises:
        UserError: there is no such path, and the hub has no such model or is out of reach.
    """
    path = Path(source)
    if path.exists():
        return path
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise UserError(f"{source} is not a model folder: there is no such path.")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(source, allow_patterns=list(WEIGHT_FILES)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError):
        raise UserError(
            f"{source} is not a model folder, and no model of that name could be downloaded from the hub."
        ) from None


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Keep transformers from drawing progress bars on stderr."""
    from transformers.utils import logging

    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


def read_json(path: Path) -> dict:
    """Read a JSON object.

    Raises:
        UserError: the file is missing, or does not contain a JSON object.
    """
    if not path.exists():
        raise UserError(f"{path.parent} is not a model folder: it has no {path.name}.")
    return files.read_json(path)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All tensors of a `transformers` folder, from one or several files: safetensors if there are any, else .bin.

    Raises:
        UserError: there are no weights, or a file is broken or incomplete.
    """
    for single, index in (
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    ):
        if (folder / single).is_file():
            names = [single]
        elif (folder / index).is_file():
            names = _indexed_files(folder / index)
        else:
            continue
        weights: dict[str, Tensor] = {}
        for name in names:
            path = folder / Path(name).name  # only the file name: an index must not lead out of the folder
            weights |= read_checkpoint(path)
        return weights
    raise UserError(f"{folder} is not a model folder: it has no model.safetensors and no pytorch_model.bin.")


def _indexed_files(path: Path) -> list[str]:
    """The names of the files among which an index distributes the weights."""
    weights = read_json(path).get("weight_map")
    if not isinstance(weights, dict) or not all(isinstance(name, str) for name in weights.values()):
        raise UserError(f"{path} has no weight_map from tensors to files.")
    return sorted(set(weights.values()))


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a pickled one without running code.

    Raises:
        UserError: as in `read_safetensors` and `read_pickle`.
    """
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        UserError: the file is missing, broken or incomplete.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read; the download may be incomplete ({_first_line(error)}).") from None


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a .pth or .bin file, or of its entry "model", "state_dict_ema" or "state_dict". No code is run.

    Raises:
        UserError: the file is missing or broken, contains no state dict, or could only be loaded by running code.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what cannot be read raises an error
            values = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} contains more than tensors and numbers, and loading it would run code; save only its state dict."
        ) from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read as a checkpoint ({_first_line(error)}).") from None
    for key in ("model", "state_dict_ema", "state_dict"):
        if isinstance(values, dict) and isinstance(values.get(key), dict):
            values = values[key]
    if not isinstance(values, dict):
        raise UserError(f"{path} contains no state dict.")
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].strip().rstrip(".")
