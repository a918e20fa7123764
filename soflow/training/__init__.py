"""Training: the loop, runs with reports and checkpoints, and loading of trained runs."""
