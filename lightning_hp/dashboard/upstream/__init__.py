"""Every use of private parts of optuna-dashboard, each with a public fallback; those of Optuna: ``study/upstream``."""
