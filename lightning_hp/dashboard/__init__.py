"""The dashboard server: optuna-dashboard over all studies of a folder, behind a guard, with our pages beside it."""
