"""Files of others: the SoFlow authors' configurations and checkpoints, ADM's sample files."""
