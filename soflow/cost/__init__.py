"""Cost of an optimizer step (time, memory, FLOPs), measured by phase or predicted without running."""
