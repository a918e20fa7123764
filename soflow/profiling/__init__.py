"""Time and memory of an optimizer step, measured while it runs."""
