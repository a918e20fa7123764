"""Readers of MLflow and of Optuna studies."""
