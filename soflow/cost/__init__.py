"""What an optimiser step costs: time, memory and arithmetic, measured part by part or predicted without running."""
