"""Self-contained HTML pages: templates, labels and figure style."""
