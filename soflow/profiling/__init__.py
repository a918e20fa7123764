"""Measure time and memory of optimizer steps during training."""
