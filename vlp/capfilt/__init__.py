"""CapFilt: caption and filter shards."""

STOPPED = "Stopped; finished tables are kept: rerun the command to continue."  # after SIGTERM and SIGINT
