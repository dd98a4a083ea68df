"""Faster versions of the model's modules for CPUs; `optimise_for_cpu` in optimise.py turns them all on."""
