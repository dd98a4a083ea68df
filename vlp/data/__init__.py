"""Image-text shards, from disk to batches."""
