"""vlp: BLIP-style vision-language pretraining from image-text shards, and CapFilt to clean them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlp.model import Model, load_model
    from vlp.models.cpu.optimise import optimise_for_cpu

__version__ = "0.1.0"
__all__ = ["Model", "__version__", "load_model", "optimise_for_cpu"]


def __getattr__(name: str) -> Any:
    """Import the public names on first use, because importing torch takes seconds."""
    if name in ("Model", "load_model"):
        import vlp.model

        return getattr(vlp.model, name)
    if name == "optimise_for_cpu":
        from vlp.models.cpu.optimise import optimise_for_cpu

        return optimise_for_cpu
    raise AttributeError(f"module 'vlp' has no attribute {name!r}")
