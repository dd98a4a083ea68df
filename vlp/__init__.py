"""vlp: BLIP-style vision-language pretraining from image-text shards, and CapFilt to clean them."""

__version__ = "0.1.0"
