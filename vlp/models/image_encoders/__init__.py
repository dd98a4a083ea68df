"""Image encoders: one file per architecture."""
