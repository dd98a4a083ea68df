"""Importers: other data formats to samples, one file per format, and the one function that writes samples as shards."""
