"""Every use of private parts of Optuna and optuna-dashboard, each with a public fallback."""
