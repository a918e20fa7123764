"""Reports of what MLflow and a sweep's Optuna study hold; nothing here changes either, but for a report's own file."""
