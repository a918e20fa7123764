"""Sweep reports, comparisons and the live view; they read MLflow and Optuna and never write to them."""
