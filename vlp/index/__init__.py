"""A kept index of images: built from folders and shards, searched by text and by image."""

from vlp.index.opened import Found, ImageIndex, open_index

__all__ = ["Found", "ImageIndex", "open_index"]
