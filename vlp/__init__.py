"""vlp: BLIP-style vision-language pretraining from image-text shards, and CapFilt to clean them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlp.model import Model, load_model

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load_model"]


def __getattr__(name: str) -> Any:
    """`vlp.load_model` and `vlp.Model`, imported when first asked for, as torch takes seconds."""
    if name in ("Model", "load_model"):
        import vlp.model

        return getattr(vlp.model, name)
    raise AttributeError(f"module 'vlp' has no attribute {name!r}")
