"""CapFilt: caption and filter shards."""
