"""Evaluation: a model and data in, numbers and predictions out."""
