"""Importers: other formats to shards, one file per format."""
