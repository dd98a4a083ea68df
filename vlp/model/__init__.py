"""The Python API: a model that captions images, embeds and matches images and texts, and answers questions."""

from vlp.model.captions import Caption
from vlp.model.loading import load_model
from vlp.model.model import Match, Model

__all__ = ["Caption", "Match", "Model", "load_model"]
