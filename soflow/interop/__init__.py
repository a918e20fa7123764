"""External file formats: the SoFlow authors' configurations and checkpoints, ADM's sample files."""
