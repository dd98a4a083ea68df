"""Uploading a model folder to the Hugging Face hub."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlp.model.model import Model


def push_to_hub(model: "Model", name: str, private: bool = False) -> str:
    """Upload the model folder, including its card, as "owner/model"; returns its URL."""
    from huggingface_hub import HfApi

    api = HfApi()
    with TemporaryDirectory() as folder:
        model.save(Path(folder) / "model")
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=Path(folder) / "model")
    return str(address)
