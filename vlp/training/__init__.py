"""Training: the loop, its checks, checkpoints and stop signals."""
