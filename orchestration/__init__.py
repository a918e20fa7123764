"""Ray, Optuna and MLflow around soflow: clusters, warm workers, sweeps and tracking."""
