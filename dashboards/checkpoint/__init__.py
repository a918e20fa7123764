"""The report of a checkpoint sweep."""
