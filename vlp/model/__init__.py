"""The Python API: a model that captions images, embeds and matches images and texts, and answers questions."""

from vlp.model.loading import load_model
from vlp.model.model import Caption, Match, Model

__all__ = ["Caption", "Match", "Model", "load_model"]
